// SPDX-License-Identifier: GPL-2.0

//! The initramfs images of dom0 and of the guests, made of the root file system's own files.

use anyhow::{bail, ensure, Context, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{symlink, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Where things are: given by the environment, see the README.
pub struct Paths {
    /// Unpacked kernel packages.
    pub image: PathBuf,
    /// The kernel that has both drivers in its tree, if it was made.
    pub intree: Option<PathBuf>,
    /// Our two modules.
    pub modules: PathBuf,
    /// What is installed beside them.
    pub dist: PathBuf,
    /// Images and logs.
    pub out: PathBuf,
}

/// What QEMU boots.
pub struct Images {
    /// The hypervisor.
    pub xen: PathBuf,
    /// The kernel of dom0 and the guests.
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
const XEN: &str = "/usr/lib/xen-4.20/bin";

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
# The console carries the agent's frames from here on.
dmesg -n 1
case " $(cat /proc/cmdline) " in
*" front=c "*) insmod /modules/c/xen-pcifront.ko ;;
*" front=none "*) ;;
*) insmod /modules/rust/xen-pcifront.ko ;;
esac
# Only a driver domain has the toolstack.
if [ -e /bin/xl ]; then
  mkdir -p /run/xen /run/lock
  mount -t xenfs xenfs /proc/xen
fi
exec agent serve /dev/hvc0
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
exec agent serve /dev/ttyS1
"#;

/// Makes all images for a kernel below `paths.out`.
pub fn make(paths: &Paths, which: Kernel) -> Result<Images> {
    let (work, packages) = match which {
        Kernel::Stock => ("images", &paths.image),
        Kernel::InTree => (
            "images-intree",
            paths
                .intree
                .as_ref()
                .context("the in-tree kernel was not made")?,
        ),
    };
    let work = paths.out.join(work);
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    let kernel_dir = kernel_dir(packages)?;
    let kernel = [
        "vmlinuz".into(),
        format!("../../../../boot/vmlinuz-{}", name(&kernel_dir)),
        format!("../../../boot/vmlinuz-{}", name(&kernel_dir)),
    ]
    .iter()
    .map(|file| kernel_dir.join(file))
    .find(|file| file.exists())
    .context("no vmlinuz in the kernel packages")?;

    let guest = Tree::new(work.join("guest"))?;
    guest.programs(&["/usr/bin/lspci", "/usr/bin/setpci"])?;
    if which == Kernel::Stock {
        guest.drivers(&kernel_dir, paths, "xen-pcifront")?;
    }
    guest.kernel_modules(&kernel_dir, DEVICE_DRIVERS, which)?;
    guest.init(GUEST_INIT)?;
    let guest_image = work.join("guest.img");
    guest.pack_plain(&guest_image)?;

    let dom0 = Tree::new(work.join("dom0"))?;
    dom0.toolstack()?;
    dom0.programs(&["/usr/bin/lspci", "/usr/bin/setpci"])?;
    dom0.programs(&[&format!("{XEN}/xentrace")])?;
    if which == Kernel::Stock {
        dom0.drivers(&kernel_dir, paths, "xen-pciback")?;
    } else {
        // A guest that serves other guests: dom0's programs, the guests' way to start.
        let domain = Tree::new(work.join("driver-domain"))?;
        domain.toolstack()?;
        domain.programs(&["/usr/bin/lspci"])?;
        domain.kernel_modules(&kernel_dir, DEVICE_DRIVERS, which)?;
        domain.init(GUEST_INIT)?;
        let image = work.join("driver-domain.img");
        domain.pack_plain(&image)?;
        dom0.file(path(&image)?, "guest/driver-domain")?;
    }
    let drivers = [XEN_DRIVERS, DEVICE_DRIVERS].concat();
    dom0.kernel_modules(&kernel_dir, &drivers, which)?;
    dom0.file(path(&guest_image)?, "guest/initramfs")?;
    let plain = work.join("vmlinux");
    uncompressed(&kernel, &plain)?;
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

    let xen = work.join("xen");
    run(Command::new("sh").args([
        "-c",
        "gunzip -c /boot/xen-4.20-amd64.gz >\"$0\"",
        path(&xen)?,
    ]))?;
    Ok(Images {
        xen,
        kernel,
        dom0: dom0_image,
    })
}

/// Writes the kernel as the toolstack would unpack it for each guest anew, which takes the emulated dom0
/// more than a second. One that is not packed with zstd stays as it is.
fn uncompressed(kernel: &Path, to: &Path) -> Result<()> {
    const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    let image = fs::read(kernel)?;
    let starts = (0..image.len()).filter(|at| image[*at..].starts_with(&ZSTD));
    for start in starts {
        let packed = to.with_extension("zst");
        fs::write(&packed, &image[start..])?;
        // What follows the kernel in its image is none of zstd's business, so its status says nothing.
        let unpacked = Command::new("zstd")
            .args(["-dqc", path(&packed)?])
            .stdin(Stdio::null())
            .output()?
            .stdout;
        fs::remove_file(&packed)?;
        if unpacked.starts_with(b"\x7fELF") {
            fs::write(to, unpacked)?;
            return Ok(());
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
struct Tree(PathBuf);

impl Tree {
    /// With busybox under all of its names, and the agent.
    fn new(dir: PathBuf) -> Result<Self> {
        for sub in ["bin", "proc", "sys", "dev", "run", "tmp", "var", "modules"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let this = Self(dir);
        this.file("/bin/busybox", "bin/busybox")?;
        for applet in String::from_utf8(run(Command::new("busybox").arg("--list"))?)?.lines() {
            if applet != "busybox" && applet != "lspci" {
                symlink("busybox", this.0.join("bin").join(applet))?;
            }
        }
        let agent = std::env::current_exe()?.with_file_name("agent");
        this.file(path(&agent)?, "bin/agent")?;
        // Names for lspci.
        this.file("/usr/share/misc/pci.ids", "usr/share/misc/pci.ids")?;
        Ok(this)
    }

    fn file(&self, from: &str, to: &str) -> Result<()> {
        let to = self.0.join(to);
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
            self.file(file, &format!("bin/{}", name(Path::new(file))))?;
            let list = run(Command::new("ldd").arg(file))?;
            let list = String::from_utf8(list)?;
            libraries.extend(
                list.split_whitespace()
                    .filter(|w| w.starts_with('/'))
                    .map(str::to_owned),
            );
        }
        for library in libraries {
            self.file(&library, library.trim_start_matches('/'))?;
        }
        Ok(())
    }

    /// `xl`, what it starts, and its scripts.
    fn toolstack(&self) -> Result<()> {
        let tools = [
            "xl",
            "xenstored",
            "xenconsoled",
            "xen-init-dom0",
            "libxl-save-helper",
        ]
        .map(|t| format!("{XEN}/{t}"));
        let tools: Vec<&str> = tools.iter().map(String::as_str).collect();
        self.programs(&tools)?;
        self.programs(STORE_TOOLS)?;
        self.programs(SCRIPT_TOOLS)?;
        // pthread_cancel loads it at run time.
        self.file(
            "/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "lib/x86_64-linux-gnu/libgcc_s.so.1",
        )?;
        for dir in ["etc/xen/scripts", "var/log/xen", "var/lib/xen"] {
            fs::create_dir_all(self.0.join(dir))?;
        }
        for entry in fs::read_dir("/etc/xen/scripts")? {
            let file = entry?.path();
            if file.is_file() {
                self.file(path(&file)?, path(&file)?.trim_start_matches('/'))?;
            }
        }
        symlink("../run", self.0.join("var/run"))?;
        fs::write(self.0.join("etc/xen/xl.conf"), "")?;
        // The scripts are for the ordinary places.
        fs::create_dir_all(self.0.join("usr"))?;
        for dir in ["usr/bin", "usr/sbin"] {
            symlink("../bin", self.0.join(dir))?;
        }
        // libxl starts its helper by this path.
        let libexec = self.0.join(XEN.trim_start_matches('/'));
        fs::create_dir_all(libexec.parent().context("a path of two parts")?)?;
        symlink("/bin", libexec)?;
        // The modprobe of a real host, which knows modprobe.d and the kernel's command line.
        self.programs(&["/usr/bin/kmod"])?;
        for applet in ["modprobe", "depmod"] {
            fs::remove_file(self.0.join("bin").join(applet))?;
            symlink("kmod", self.0.join("bin").join(applet))?;
        }
        Ok(())
    }

    /// The driver under test, ours and the kernel's, and the test modules.
    fn drivers(&self, kernel: &Path, paths: &Paths, driver: &str) -> Result<()> {
        for dir in ["c", "rust", "other", "test"] {
            fs::create_dir_all(self.0.join("modules").join(dir))?;
        }
        let modules = Modules::of(kernel)?;
        fs::write(
            self.0.join("modules/c").join(format!("{driver}.ko")),
            modules.read(driver)?,
        )?;
        for entry in fs::read_dir(paths.modules.join("test"))
            .into_iter()
            .flatten()
        {
            let file = entry?.path();
            self.file(path(&file)?, &format!("modules/test/{}", name(&file)))?;
        }
        let ours = paths.modules.join(format!("{driver}.ko"));
        let to = self.0.join("modules/rust").join(format!("{driver}.ko"));
        // Without debug information: it would only cost boot time.
        run(Command::new("objcopy").args(["--strip-debug", path(&ours)?, path(&to)?]))?;
        // As if it had been built for another kernel, by one character.
        let mut module = fs::read(&to)?;
        let (text, other) = (b" SMP PREEMPT_DYNAMIC ", b" SMP PREEMPT_DYNAMIX ");
        let at = module.windows(text.len()).position(|bytes| bytes == text);
        let at = at.context("the module does not name its kernel")?;
        module[at..at + text.len()].copy_from_slice(other);
        fs::write(
            self.0.join("modules/other").join(format!("{driver}.ko")),
            module,
        )?;
        Ok(())
    }

    /// Modules of the kernel and all that they depend on, for `modprobe`.
    fn kernel_modules(&self, kernel: &Path, wanted: &[&str], which: Kernel) -> Result<()> {
        let modules = Modules::of(kernel)?;
        let release = name(kernel);
        let base = self.0.join("lib/modules").join(&release);
        let dir = base.join("kernel");
        fs::create_dir_all(&dir)?;
        let mut left: Vec<String> = wanted.iter().map(|&w| w.to_owned()).collect();
        while let Some(module) = left.pop() {
            let to = dir.join(format!("{module}.ko"));
            // A module may be built in.
            if to.exists() || !modules.has(&module) {
                // The small kernel leaves out what its cases do not use.
                ensure!(
                    to.exists()
                        || which == Kernel::InTree
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
        run(Command::new("depmod").args(["-b", path(&self.0)?, &release]))?;
        Ok(())
    }

    fn init(&self, text: &str) -> Result<()> {
        let file = self.0.join("init");
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
        run(Command::new("sh").args(["-c", &script, path(&self.0)?, path(to)?]))?;
        Ok(())
    }
}
