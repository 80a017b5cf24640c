// SPDX-License-Identifier: GPL-2.0

//! The initramfs images of dom0 and of the guests, made of files of root file systems.
//!
//! dom0 and the guests may run different kernels ([`Paths::dom0`], [`Paths::guest`]). The
//! hypervisor and all of dom0's programs come from one root file system, because the toolstack is
//! for one hypervisor and its libraries are for one libc; it need not be the root that the lab
//! itself runs in ([`Paths::xen_root`]). Which Xen is in it is found by looking. What runs in an
//! ordinary guest comes from the lab's own root.

use anyhow::{bail, ensure, Context, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{symlink, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A kernel that domains run.
#[derive(Clone)]
pub struct Packages {
    /// Its unpacked packages.
    pub image: PathBuf,
    /// Directory of our modules for it. Without, it is a peer: a kernel that has only its own
    /// drivers.
    pub modules: Option<PathBuf>,
}

/// Where things are: given by the environment, see the README.
pub struct Paths {
    /// dom0's kernel.
    pub dom0: Packages,
    /// The guests'.
    pub guest: Packages,
    /// The kernel that has both drivers in its tree, if it was made: for dom0 and guests.
    pub intree: Option<PathBuf>,
    /// The root file system of the hypervisor and of dom0's programs.
    pub xen_root: PathBuf,
    /// What is installed beside them.
    pub dist: PathBuf,
    /// Images and logs.
    pub out: PathBuf,
}

/// What QEMU boots.
pub struct Images {
    /// The hypervisor.
    pub xen: PathBuf,
    /// dom0's kernel.
    pub kernel: PathBuf,
    /// dom0's initramfs, which has the guests' in it.
    pub dom0: PathBuf,
}

/// What the toolstack needs in dom0.
const XEN_DRIVERS: &[&str] = &[
    "xen-privcmd",
    "xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-netback",
    "xen-blkback",
    "bridge",
    "loop",
];
/// Which kernel dom0 and the guests of a machine run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's, with all drivers as modules.
    Stock,
    /// The small one of `scripts/kernel`, with everything built in, both drivers of ours too.
    InTree,
}

/// Drivers of the devices in the lab, and what is used over them.
const DEVICE_DRIVERS: &[&str] = &[
    "e1000e",
    "igb",
    "igbvf",
    "nvme",
    "8139cp",
    "ahci",
    "sd_mod",
    "uhci-hcd",
    "ehci-pci",
    "usb-storage",
    "snd-ens1370",
    "aer_inject",
    "xen-netfront",
    "xen-blkfront",
    "ext4",
];
/// Those of [`DEVICE_DRIVERS`] that `lab peers` uses. A peer's kernel may lack the others: only the
/// cases of our own kernels use their devices.
const PEERS_NEED: &[&str] = &["e1000e", "xen-netfront", "xen-blkfront", "ext4"];

/// What a kernel may have neither as a module nor built in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// The kernel that our modules are for.
    Nothing,
    /// A peer: see [`PEERS_NEED`].
    OurDevices,
    /// The small kernel, which leaves out what its cases do not use.
    Anything,
}

impl Lack {
    fn of(packages: &Packages, which: Kernel) -> Self {
        match (which, &packages.modules) {
            (Kernel::InTree, _) => Self::Anything,
            (Kernel::Stock, Some(_)) => Self::Nothing,
            (Kernel::Stock, None) => Self::OurDevices,
        }
    }

    fn allows(self, module: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::OurDevices => DEVICE_DRIVERS.contains(&module) && !PEERS_NEED.contains(&module),
            Self::Anything => true,
        }
    }
}

/// The Xen of a root file system.
struct Xen {
    /// Where its toolstack's programs are, as seen inside that root.
    bin: String,
    /// The packed hypervisor.
    hypervisor: PathBuf,
}

impl Xen {
    /// The newest Xen that has both a toolstack and a hypervisor in this root.
    fn of(root: &Path) -> Result<Self> {
        let names = |dir: &str| -> Vec<String> {
            let entries = fs::read_dir(root.join(dir)).into_iter().flatten();
            entries.flatten().map(|e| name(&e.path())).collect()
        };
        let (libraries, boot) = (names("usr/lib"), names("boot"));
        let (version, hypervisor) = newest_xen(&libraries, &boot)
            .with_context(|| format!("no Xen in {}", root.display()))?;
        Ok(Self {
            bin: format!("/usr/lib/xen-{version}/bin"),
            hypervisor: root.join("boot").join(hypervisor),
        })
    }
}

/// The newest version that is in both lists, as `xen-VERSION` in that of the libraries and as
/// `xen-VERSION-ARCH.gz` in that of what can be booted; the latter's name is given, too.
fn newest_xen<'a>(libraries: &'a [String], boot: &'a [String]) -> Option<(&'a str, &'a str)> {
    // Beside the versions there are names such as xen-common.
    let numbers = |version: &str| -> Option<Vec<u32>> {
        let numbers = version.split('.').map(|n| n.parse().ok());
        numbers.collect()
    };
    let versions = libraries.iter().filter_map(|l| l.strip_prefix("xen-"));
    let both = versions.filter_map(|version| {
        let start = format!("xen-{version}-");
        let mut files = boot.iter();
        let file = files.find(|f| f.starts_with(&start) && f.ends_with(".gz"))?;
        Some((numbers(version)?, (version, file.as_str())))
    });
    both.max().map(|(_, found)| found)
}

/// Beside the toolstack's own programs: what its hotplug scripts call.
const SCRIPT_TOOLS: &[&str] = &["/usr/bin/bash", "/usr/bin/flock"];
const STORE_TOOLS: &[&str] = &[
    "/usr/bin/xenstore-chmod",
    "/usr/bin/xenstore-exists",
    "/usr/bin/xenstore-list",
    "/usr/bin/xenstore-ls",
    "/usr/bin/xenstore-read",
    "/usr/bin/xenstore-rm",
    "/usr/bin/xenstore-write",
];

const GUEST_INIT: &str = r#"#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
ln -s /proc/self/fd /dev/fd; ln -s fd/0 /dev/stdin
# The console carries the agent's frames from here on, and warnings of the kernel.
case " $(cat /proc/cmdline) " in
*" front=c "*) [ ! -e /modules/c/xen-pcifront.ko ] || insmod /modules/c/xen-pcifront.ko ;;
*" front=none "*) ;;
*) insmod /modules/rust/xen-pcifront.ko ;;
esac
# Only a driver domain has the toolstack.
if [ -e /bin/xl ]; then
  mkdir -p /run/xen /run/lock
  mount -t xenfs xenfs /proc/xen
fi
agent serve /dev/hvc0 &
# Takes leave of processes whose parent is gone.
while :; do wait; done
"#;

const DOM0_INIT: &str = r#"#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
ln -s /proc/self/fd /dev/fd; ln -s fd/0 /dev/stdin
mkdir -p /dev/pts; mount -t devpts pts /dev/pts
mount -t tmpfs run /run; mkdir -p /run/xen /run/xenstored /run/lock
for m in xen-privcmd xenfs xen-evtchn xen-gntdev xen-gntalloc; do modprobe $m; done
mount -t xenfs xenfs /proc/xen
# The firmware leaves USB controllers running, and without a driver their DMA goes wrong a thousand times
# a second, which keeps the emulator busy.
for d in $(lspci -n 2>/dev/null | awk '$2 == "0c03:" { print $1 }'); do setpci -s $d 04.w=0:4; done
# Cases take the bridge that this driver of the kernel finds a slot controller in.
for d in /sys/bus/pci/drivers/shpchp/0000:*; do [ ! -e $d ] || echo ${d##*/} >/sys/bus/pci/drivers/shpchp/unbind; done
xenstored
i=0; until xenstore-write /lab up 2>/dev/null; do i=$((i + 1)); [ $i = 100 ] && break; sleep 0.1; done
xen-init-dom0
xenconsoled --log=all --log-dir=/var/log/xen
case " $(cat /proc/cmdline) " in
*" shell "*) agent serve /dev/ttyS1 & while :; do setsid cttyhack sh; done ;;
esac
agent serve /dev/ttyS1 &
# Takes leave of processes whose parent is gone: each would keep some KiB of the kernel.
while :; do wait; done
"#;

/// Makes all images for a kernel below `paths.out`.
pub fn make(paths: &Paths, which: Kernel) -> Result<Images> {
    let (work, dom0_packages, guest_packages) = match which {
        Kernel::Stock => ("images", paths.dom0.clone(), paths.guest.clone()),
        Kernel::InTree => {
            let image = paths.intree.clone();
            let packages = Packages {
                image: image.context("the in-tree kernel was not made")?,
                modules: None,
            };
            ("images-intree", packages.clone(), packages)
        }
    };
    let work = paths.out.join(work);
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    let kernel_dir = kernel_dir(&dom0_packages.image)?;
    let kernel = vmlinuz(&kernel_dir)?;
    let guest_kernel_dir = self::kernel_dir(&guest_packages.image)?;
    let guest_lack = Lack::of(&guest_packages, which);
    let xen = Xen::of(&paths.xen_root)?;

    let guest = Tree::new(work.join("guest"), Path::new("/"))?;
    guest.programs(&["/usr/bin/lspci", "/usr/bin/setpci"])?;
    if which == Kernel::Stock {
        guest.drivers(&guest_kernel_dir, &guest_packages, "xen-pcifront")?;
        guest.misplaced(&guest_packages, "xen-pciback")?;
    }
    // Of the small kernel both drivers may be modules, for a case to load.
    let in_tree = |driver| (which == Kernel::InTree).then_some(driver);
    let drivers = [DEVICE_DRIVERS, in_tree("xen-pcifront").as_slice()].concat();
    guest.kernel_modules(&guest_kernel_dir, &drivers, guest_lack)?;
    guest.init(GUEST_INIT)?;
    let guest_image = work.join("guest.img");
    guest.pack_plain(&guest_image)?;

    let dom0 = Tree::new(work.join("dom0"), &paths.xen_root)?;
    dom0.toolstack(&xen)?;
    dom0.programs(&["/usr/bin/lspci", "/usr/bin/setpci"])?;
    dom0.programs(&[&format!("{}/xentrace", xen.bin)])?;
    if which == Kernel::Stock {
        dom0.drivers(&kernel_dir, &dom0_packages, "xen-pciback")?;
        dom0.misplaced(&dom0_packages, "xen-pcifront")?;
    } else {
        // A guest that serves other guests: dom0's programs, the guests' way to start.
        let domain = Tree::new(work.join("driver-domain"), &paths.xen_root)?;
        domain.toolstack(&xen)?;
        domain.programs(&["/usr/bin/lspci"])?;
        domain.kernel_modules(&guest_kernel_dir, DEVICE_DRIVERS, guest_lack)?;
        domain.init(GUEST_INIT)?;
        let image = work.join("driver-domain.img");
        domain.pack_plain(&image)?;
        dom0.file(path(&image)?, "guest/driver-domain")?;
    }
    let back = in_tree("xen-pciback");
    let drivers = [XEN_DRIVERS, DEVICE_DRIVERS, back.as_slice()].concat();
    let lack = Lack::of(&dom0_packages, which);
    dom0.kernel_modules(&kernel_dir, &drivers, lack)?;
    dom0.file(path(&guest_image)?, "guest/initramfs")?;
    let plain = work.join("vmlinux");
    uncompressed(&vmlinuz(&guest_kernel_dir)?, &plain)?;
    dom0.file(path(&plain)?, "guest/vmlinuz")?;
    for (from, to) in [
        ("xen-pciback-setup", "bin/xen-pciback-setup"),
        ("modprobe.conf", "etc/modprobe.d/xen-pciback.conf"),
    ] {
        dom0.file(path(&paths.dist.join(from))?, to)?;
    }
    dom0.init(DOM0_INIT)?;
    let dom0_image = work.join("dom0.img");
    dom0.pack(&dom0_image)?;

    let hypervisor = work.join("xen");
    run(Command::new("sh").args([
        "-c",
        "gunzip -c \"$0\" >\"$1\"",
        path(&xen.hypervisor)?,
        path(&hypervisor)?,
    ]))?;
    Ok(Images {
        xen: hypervisor,
        kernel,
        dom0: dom0_image,
    })
}

/// Writes the kernel as the toolstack would unpack it for each guest anew, which takes the emulated dom0
/// seconds. One that is packed in another way than Debian's were in the last years stays as it is.
fn uncompressed(kernel: &Path, to: &Path) -> Result<()> {
    const PACKERS: [(&[u8], &str); 2] = [
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
    ];
    let image = fs::read(kernel)?;
    for (magic, packer) in PACKERS {
        let starts = (0..image.len()).filter(|at| image[*at..].starts_with(magic));
        for start in starts {
            let packed = to.with_extension("packed");
            fs::write(&packed, &image[start..])?;
            // What follows the kernel in its image is none of the packer's business, so its status
            // says nothing.
            let unpacked = Command::new(packer)
                .arg("-dqc")
                .stdin(fs::File::open(&packed)?)
                .output()?
                .stdout;
            fs::remove_file(&packed)?;
            if unpacked.starts_with(b"\x7fELF") {
                fs::write(to, unpacked)?;
                return Ok(());
            }
        }
    }
    fs::write(to, image)?;
    Ok(())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The kernel itself, which stands in another place in each series of Debian's packages.
fn vmlinuz(kernel_dir: &Path) -> Result<PathBuf> {
    [
        "vmlinuz".into(),
        format!("../../../../boot/vmlinuz-{}", name(kernel_dir)),
        format!("../../../boot/vmlinuz-{}", name(kernel_dir)),
    ]
    .iter()
    .map(|file| kernel_dir.join(file))
    .find(|file| file.exists())
    .with_context(|| format!("no vmlinuz beside {}", kernel_dir.display()))
}

/// `lib/modules/RELEASE` of the kernel packages.
fn kernel_dir(image: &Path) -> Result<PathBuf> {
    for base in ["usr/lib/modules", "lib/modules"] {
        if let Ok(mut entries) = fs::read_dir(image.join(base)) {
            if let Some(entry) = entries.next() {
                return Ok(entry?.path());
            }
        }
    }
    bail!("{} has no lib/modules", image.display())
}

fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(output.stdout)
}

/// The modules of a kernel package, found by name.
struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: String,
}

impl Modules {
    fn of(kernel: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut dirs = vec![kernel.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    dirs.push(entry.path());
                } else if let Some((module, _)) = name(&entry.path()).split_once(".ko") {
                    files.insert(plain(module), entry.path());
                }
            }
        }
        let builtin = fs::read_to_string(kernel.join("modules.builtin")).unwrap_or_default();
        Ok(Self { files, builtin })
    }

    fn has(&self, module: &str) -> bool {
        self.files.contains_key(&plain(module))
    }

    fn builtin(&self, module: &str) -> bool {
        plain(&self.builtin).contains(&format!("/{}.ko", plain(module)))
    }

    fn read(&self, module: &str) -> Result<Vec<u8>> {
        let file = self.files.get(&plain(module));
        let file = path(file.with_context(|| format!("no module {module}"))?)?;
        match file.rsplit('.').next() {
            Some("xz") => run(Command::new("xz").args(["-dc", file])),
            Some("zst") => run(Command::new("zstd").args(["-dqc", file])),
            _ => Ok(fs::read(file)?),
        }
    }
}

/// Module names are the same with dashes and underscores.
fn plain(module: &str) -> String {
    module.replace('-', "_")
}

/// The contents of an image.
struct Tree {
    dir: PathBuf,
    /// The root file system that its programs come from.
    root: PathBuf,
}

impl Tree {
    /// With busybox under all of its names, and the agent.
    fn new(dir: PathBuf, root: &Path) -> Result<Self> {
        for sub in ["bin", "proc", "sys", "dev", "run", "tmp", "var", "modules"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let root = root.to_owned();
        let this = Self { dir, root };
        this.copy("/bin/busybox", "bin/busybox")?;
        for applet in this.inside("busybox", &["--list"])?.lines() {
            if applet != "busybox" && applet != "lspci" {
                symlink("busybox", this.dir.join("bin").join(applet))?;
            }
        }
        let agent = std::env::current_exe()?.with_file_name("agent");
        this.file(path(&agent)?, "bin/agent")?;
        // Names for lspci.
        this.file("/usr/share/misc/pci.ids", "usr/share/misc/pci.ids")?;
        Ok(this)
    }

    /// What a program says that runs in the root file system of ours.
    fn inside(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("chroot");
        command.args([path(&self.root)?, program]).args(arguments);
        Ok(String::from_utf8(run(&mut command)?)?)
    }

    /// Copies a file of the root file system. A link there may be absolute, so that it is followed
    /// there.
    fn copy(&self, from: &str, to: &str) -> Result<()> {
        let real = self.inside("realpath", &[from])?;
        let real = self.root.join(real.trim().trim_start_matches('/'));
        self.file(path(&real)?, to)
    }

    /// Copies a file of the lab's own.
    fn file(&self, from: &str, to: &str) -> Result<()> {
        let to = self.dir.join(to);
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::copy(from, &to).with_context(|| format!("copying {from}"))?;
        Ok(())
    }

    /// Programs with the libraries that they are linked to.
    fn programs(&self, files: &[&str]) -> Result<()> {
        let mut libraries = BTreeSet::new();
        for file in files {
            self.copy(file, &format!("bin/{}", name(Path::new(file))))?;
            let list = self.inside("ldd", &[file])?;
            libraries.extend(
                list.split_whitespace()
                    .filter(|w| w.starts_with('/'))
                    .map(str::to_owned),
            );
        }
        for library in libraries {
            self.copy(&library, library.trim_start_matches('/'))?;
        }
        Ok(())
    }

    /// `xl`, what it starts, and its scripts.
    fn toolstack(&self, xen: &Xen) -> Result<()> {
        let tools = [
            "xl",
            "xenstored",
            "xenconsoled",
            "xen-init-dom0",
            "libxl-save-helper",
        ]
        .map(|t| format!("{}/{t}", xen.bin));
        let tools: Vec<&str> = tools.iter().map(String::as_str).collect();
        self.programs(&tools)?;
        self.programs(STORE_TOOLS)?;
        self.programs(SCRIPT_TOOLS)?;
        // pthread_cancel loads it at run time.
        self.copy(
            "/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "lib/x86_64-linux-gnu/libgcc_s.so.1",
        )?;
        for dir in ["etc/xen/scripts", "var/log/xen", "var/lib/xen"] {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        for entry in fs::read_dir(self.root.join("etc/xen/scripts"))? {
            let file = entry?.path();
            if file.is_file() {
                self.file(path(&file)?, &format!("etc/xen/scripts/{}", name(&file)))?;
            }
        }
        symlink("../run", self.dir.join("var/run"))?;
        fs::write(self.dir.join("etc/xen/xl.conf"), "")?;
        // The scripts are for the ordinary places.
        fs::create_dir_all(self.dir.join("usr"))?;
        for dir in ["usr/bin", "usr/sbin"] {
            symlink("../bin", self.dir.join(dir))?;
        }
        // libxl starts its helper by this path.
        let libexec = self.dir.join(xen.bin.trim_start_matches('/'));
        fs::create_dir_all(libexec.parent().context("a path of two parts")?)?;
        symlink("/bin", libexec)?;
        // The modprobe of a real host, which knows modprobe.d and the kernel's command line.
        self.programs(&["/usr/bin/kmod"])?;
        for applet in ["modprobe", "depmod"] {
            fs::remove_file(self.dir.join("bin").join(applet))?;
            symlink("kmod", self.dir.join("bin").join(applet))?;
        }
        Ok(())
    }

    /// The driver under test, the kernel's and, where there is one for it, ours with the test
    /// modules.
    fn drivers(&self, kernel: &Path, packages: &Packages, driver: &str) -> Result<()> {
        let modules = Modules::of(kernel)?;
        // A kernel may have it built in: there is nothing to load then.
        if !modules.builtin(driver) {
            let to = self.dir.join("modules/c");
            fs::create_dir_all(&to)?;
            fs::write(to.join(format!("{driver}.ko")), modules.read(driver)?)?;
        }
        let Some(ours) = &packages.modules else {
            return Ok(());
        };
        for dir in ["rust", "other", "test"] {
            fs::create_dir_all(self.dir.join("modules").join(dir))?;
        }
        for entry in fs::read_dir(ours.join("test")).into_iter().flatten() {
            let file = entry?.path();
            self.file(path(&file)?, &format!("modules/test/{}", name(&file)))?;
        }
        let ours = ours.join(format!("{driver}.ko"));
        let to = self.dir.join("modules/rust").join(format!("{driver}.ko"));
        // Without debug information: it would only cost boot time.
        run(Command::new("objcopy").args(["--strip-debug", path(&ours)?, path(&to)?]))?;
        // As if it had been built for another kernel, by one character.
        let mut module = fs::read(&to)?;
        let (text, other) = (b" SMP PREEMPT_DYNAMIC ", b" SMP PREEMPT_DYNAMIX ");
        let at = module.windows(text.len()).position(|bytes| bytes == text);
        let at = at.context("the module does not name its kernel")?;
        module[at..at + text.len()].copy_from_slice(other);
        fs::write(
            self.dir.join("modules/other").join(format!("{driver}.ko")),
            module,
        )?;
        Ok(())
    }

    /// The driver of ours that is not for this kind of domain and has to say so.
    fn misplaced(&self, packages: &Packages, driver: &str) -> Result<()> {
        let Some(ours) = &packages.modules else {
            return Ok(());
        };
        let to = self.dir.join("modules/misplaced");
        fs::create_dir_all(&to)?;
        let driver = format!("{driver}.ko");
        let (from, to) = (ours.join(&driver), to.join(&driver));
        run(Command::new("objcopy").args(["--strip-debug", path(&from)?, path(&to)?]))?;
        Ok(())
    }

    /// Modules of the kernel and all that they depend on, for `modprobe`.
    fn kernel_modules(&self, kernel: &Path, wanted: &[&str], lack: Lack) -> Result<()> {
        let modules = Modules::of(kernel)?;
        let release = name(kernel);
        let base = self.dir.join("lib/modules").join(&release);
        let dir = base.join("kernel");
        fs::create_dir_all(&dir)?;
        let mut left: Vec<String> = wanted.iter().map(|&w| w.to_owned()).collect();
        while let Some(module) = left.pop() {
            let to = dir.join(format!("{module}.ko"));
            // A module may be built in.
            if to.exists() || !modules.has(&module) {
                ensure!(
                    to.exists()
                        || lack.allows(&module)
                        || !wanted.contains(&module.as_str())
                        || modules.builtin(&module),
                    "no module {module}"
                );
                continue;
            }
            fs::write(&to, modules.read(&module)?)?;
            let needs = run(Command::new("modinfo").args(["-F", "depends", path(&to)?]))?;
            let needs = String::from_utf8(needs)?;
            left.extend(
                needs
                    .trim()
                    .split(',')
                    .filter(|n| !n.is_empty())
                    .map(str::to_owned),
            );
        }
        for list in [
            "modules.builtin",
            "modules.builtin.modinfo",
            "modules.order",
        ] {
            let from = kernel.join(list);
            if from.exists() {
                fs::copy(&from, base.join(list))?;
            }
        }
        run(Command::new("depmod").args(["-b", path(&self.dir)?, &release]))?;
        Ok(())
    }

    fn init(&self, text: &str) -> Result<()> {
        let file = self.dir.join("init");
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// For a guest: to unpack it takes the emulator longer than to copy it.
    fn pack_plain(&self, to: &Path) -> Result<()> {
        self.pack_with("cat", to)
    }

    fn pack(&self, to: &Path) -> Result<()> {
        self.pack_with("zstd -q -1", to)
    }

    fn pack_with(&self, packer: &str, to: &Path) -> Result<()> {
        let script = format!("cd \"$0\" && find . | cpio -o -H newc --quiet | {packer} >\"$1\"");
        run(Command::new("sh").args(["-c", &script, path(&self.dir)?, path(to)?]))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    #[test]
    fn the_newest_xen_with_both_parts_is_found() {
        let found = |libraries: &[&str], boot: &[&str]| {
            let (libraries, boot) = (list(libraries), list(boot));
            newest_xen(&libraries, &boot).map(|(v, f)| format!("{v} {f}"))
        };
        let boot = [
            "xen-9.17-amd64.config",
            "xen-9.17-amd64.efi",
            "xen-9.17-amd64.gz",
            "vmlinuz-6.1.0-50-amd64",
        ];
        assert_eq!(
            found(&["gcc", "xen-common", "xen-9.17"], &boot).as_deref(),
            Some("9.17 xen-9.17-amd64.gz")
        );
        // By number, and only what has a hypervisor.
        let boot = ["xen-9.9-amd64.gz", "xen-9.20-amd64.gz", "xen-9.2-amd64.gz"];
        assert_eq!(
            found(&["xen-9.9", "xen-9.20", "xen-9.2", "xen-9.21"], &boot).as_deref(),
            Some("9.20 xen-9.20-amd64.gz")
        );
        assert_eq!(found(&["xen-9.20"], &["xen-9.20-amd64.efi"]), None);
        assert_eq!(found(&["xen-common"], &["xen-common-amd64.gz"]), None);
        assert_eq!(found(&[], &[]), None);
    }

    #[test]
    fn only_a_kernel_of_ours_has_to_have_everything() {
        let packages = |modules: Option<&str>| Packages {
            image: "/image".into(),
            modules: modules.map(PathBuf::from),
        };
        let ours = Lack::of(&packages(Some("/modules")), Kernel::Stock);
        let peer = Lack::of(&packages(None), Kernel::Stock);
        let small = Lack::of(&packages(None), Kernel::InTree);
        let allowed = |module| [ours, peer, small].map(|lack| lack.allows(module));
        assert_eq!(allowed("nvme"), [false, true, true]);
        // Without these there is nothing to see in a peer either.
        for module in ["e1000e", "xen-evtchn", "xen-gntdev"] {
            assert_eq!(allowed(module), [false, false, true]);
        }
        let known = [XEN_DRIVERS, DEVICE_DRIVERS].concat();
        assert!(PEERS_NEED.iter().all(|module| known.contains(module)));
    }
}
