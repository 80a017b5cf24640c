// SPDX-License-Identifier: GPL-2.0

//! A PCI backend that breaks the rules when it is told to; it lends functions that do not exist.
//!
//! The lab loads it in dom0 in place of pciback, writes both directories of a device into the store,
//! and steers it by keys of the backend's directory:
//!
//! | key | meaning |
//! |---|---|
//! | `num_devs`, `vdev-N`, `root_num`, `root-N` | as a backend publishes them; a function is there if it is listed, even if the frontend is not to know (`hidden-N`) |
//! | `mode` | `good`; `dead` answers nothing, and takes no part in a change of states; `late` answers after `delay`; `nonsense` answers with numbers that mean nothing; `flood` answers, and sends events without end; `hold` sets the request flag itself; `gone` reads as all ones; `flap` closes and starts again, over and over, and keeps each page of the frontend mapped until the mode is another one |
//! | `delay` | ms in hex, how late a late answer is; 7 s without |
//! | `starts`, `kept` | written when `flap` is over: how often it has started again, how many pages it has kept |
//! | `bar` | address of BAR 0 of every function, 4 KiB; 0 or none for no BAR |
//! | `message` | `COMMAND STATE DEVFN NUMBER` in hex: sends an error message when it changes; the verdict goes into `verdict` |
//!
//! *Owns* the connection. *Callers*: the xenbus core and the work items below. *Lock*: `link`, a
//! mutex; `functions` inside it or alone; `kept` alone.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use kernel::{
    new_mutex,
    prelude::*,
    str::CStr,
    sync::{Arc, ArcBorrow, Mutex},
    time::{delay::fsleep, Delta},
};
use pciif::{
    op::OpStatus,
    sbdf::Sbdf,
    state::{backend_step, BackendAction, Remains, State},
    wire::{self, PciOp},
};
use xen::{
    event::{EventChannel, Handler, Irq, IrqCell},
    page::MappedPage,
    store::{self, NumberedKey},
    work::{Item, OpenQueue, Queue, Run},
    xenbus::{self, Bound, DeviceRef, End, Watch, Watcher, Wish},
};

static QUEUE: Queue = Queue::closed();

/// How late a late answer is when the lab does not say, in ms: later than any frontend waits.
const LATE: u32 = 7_000;
/// How often a backend that starts again and again looks for what it waits for, and how many ms it pauses
/// in between.
const FLAP_LOOKS: u32 = 20;
const FLAP_PAUSE: i64 = 10;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Mode {
    Good = 0,
    Dead = 1,
    Late = 2,
    Nonsense = 3,
    Flood = 4,
    Hold = 5,
    Gone = 6,
    Flap = 7,
}

impl Mode {
    fn from_text(text: &[u8]) -> Self {
        match text {
            b"dead" => Mode::Dead,
            b"late" => Mode::Late,
            b"nonsense" => Mode::Nonsense,
            b"flood" => Mode::Flood,
            b"hold" => Mode::Hold,
            b"gone" => Mode::Gone,
            b"flap" => Mode::Flap,
            _ => Mode::Good,
        }
    }
}

/// One function that does not exist.
struct Function {
    address: Sbdf,
    bar: u32,
}

impl Function {
    /// One byte of what never changes: a function of no class with a capability list of one, and
    /// the header of an extended capability.
    fn byte(&self, at: u32) -> u8 {
        match at {
            // Vendor 1234, device 0bad.
            0 => 0x34,
            1 => 0x12,
            2 => 0xad,
            3 => 0x0b,
            // There is a list of capabilities.
            6 => 0x10,
            0x0b => 0xff,
            0x2c => 0x34,
            0x2d => 0x12,
            0x2e => self.address.devfn.raw(),
            0x34 => 0x40,
            // Vendor specific, four bytes, the last one.
            0x40 => 0x09,
            0x42 => 4,
            // A serial number.
            0x100 => 0x03,
            0x102 => 0x01,
            _ => 0,
        }
    }

    fn read(&self, offset: u32, size: u32) -> u32 {
        if offset == 0x10 && size == 4 {
            return self.bar;
        }
        (0..size).fold(0, |value, at| {
            value | u32::from(self.byte(offset.wrapping_add(at))) << (8 * at)
        })
    }
}

/// The serving end of one connection.
#[pin_data]
struct Server {
    device: Arc<Shared>,
    page: MappedPage,
    stop: AtomicBool,
    irq: IrqCell,
    /// The EOI of an event is out.
    due: AtomicBool,
    #[pin]
    work: Item<Server, 0>,
}

xen::has_work_item!(Server, 0, work);

/// What the connection and the device share.
#[pin_data]
struct Shared {
    mode: AtomicU32,
    /// How late a late answer is, in ms.
    delay: AtomicU32,
    /// Answers given, for the figures of the lab.
    served: AtomicU32,
    #[pin]
    functions: Mutex<KVec<Function>>,
}

impl Shared {
    fn is(&self, mode: Mode) -> bool {
        self.mode.load(Ordering::Relaxed) == mode as u32
    }

    fn answer(&self, op: &PciOp) -> (OpStatus, u32) {
        let Some(address) = Sbdf::from_wire(op.domain, op.bus, op.devfn) else {
            return (OpStatus::DevNotFound, 0);
        };
        let (Ok(offset), Ok(size @ 1..=4)) = (u32::try_from(op.offset), u32::try_from(op.size))
        else {
            return (OpStatus::InvalidOffset, 0);
        };
        let mut functions = self.functions.lock();
        let Some(function) = functions.iter_mut().find(|f| f.address == address) else {
            return (OpStatus::DevNotFound, 0);
        };
        match op.cmd {
            0 if self.is(Mode::Gone) => (OpStatus::Success, u32::MAX),
            0 => (OpStatus::Success, function.read(offset, size)),
            1 => {
                if offset == 0x10 && function.bar != 0 {
                    function.bar = op.value & !0xfff;
                }
                (OpStatus::Success, 0)
            }
            _ => (OpStatus::NotImplemented, 0),
        }
    }
}

impl Handler for Server {
    fn on_event(this: ArcBorrow<'_, Self>, irq: Irq) {
        this.irq.set(irq);
        this.due.store(true, Ordering::Release);
        if !this.stop.load(Ordering::Acquire) {
            QUEUE.add::<Self, 0>(this.into());
        }
    }
}

impl Run<0> for Server {
    fn run(this: Arc<Self>) {
        let Some(irq) = this.irq.get() else { return };
        this.serve(irq);
        // A request that came while the channel was masked has its event delivered now.
        if this.due.swap(false, Ordering::AcqRel) {
            irq.eoi(false);
        }
        if this.device.is(Mode::Flood) && !this.stop.load(Ordering::Acquire) {
            for _ in 0..10 {
                for _ in 0..1_000 {
                    irq.notify();
                }
                // dom0 has one CPU, and others on it.
                fsleep(Delta::from_millis(2));
            }
            QUEUE.add::<Self, 0>(this);
        }
    }
}

impl Server {
    fn serve(&self, irq: Irq) {
        let page = self.page.page();
        if self.device.is(Mode::Dead)
            || self.device.is(Mode::Hold)
            || !page.flag(wire::FLAG_PCIF_ACTIVE)
        {
            return;
        }
        let mut words = [0; wire::OP_WORDS];
        for (at, word) in words.iter_mut().enumerate() {
            *word = page.read(wire::OP + 4 * at);
        }
        if self.device.is(Mode::Late) {
            for _ in 0..self.device.delay.load(Ordering::Relaxed) / 100 {
                if self.stop.load(Ordering::Acquire) {
                    return;
                }
                fsleep(Delta::from_millis(100));
            }
        }
        let served = self.device.served.fetch_add(1, Ordering::Relaxed);
        let (err, value) = if self.device.is(Mode::Nonsense) {
            let noise = served.wrapping_mul(0x9e37_79b9);
            (if noise & 0x10 != 0 { noise } else { 0 }, noise)
        } else {
            let (status, value) = self.device.answer(&PciOp::from_words(&words));
            // CAST: the same 32 bits, as the protocol declares them.
            (status.to_wire() as u32, value)
        };
        page.write(wire::OP_VALUE, value);
        page.write(wire::OP_ERR, err);
        page.clear_flag(wire::FLAG_PCIF_ACTIVE);
        irq.notify();
    }
}

/// A connection; ends when dropped.
struct Link {
    channel: Option<EventChannel<Server>>,
    server: Arc<Server>,
}

impl Link {
    fn new(dev: &DeviceRef, shared: Arc<Shared>) -> Result<Self> {
        let key = |key| store::NOW.read(dev.peer_directory(), key)?.number();
        let page = MappedPage::map(dev, key(c"pci-op-ref")?)?;
        let server = Arc::pin_init(
            pin_init!(Server {
                device: shared,
                page,
                stop: AtomicBool::new(false),
                irq: IrqCell::empty(),
                due: AtomicBool::new(false),
                work <- Item::new(c"badback-serve", kernel::static_lock_class!()),
            }),
            GFP_KERNEL,
        )?;
        let port = key(c"event-channel")?;
        let channel = EventChannel::bind_remote(dev, port, c"badback", server.clone())?;
        Ok(Self {
            channel: Some(channel),
            server,
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.server.stop.store(true, Ordering::Release);
        drop(self.channel.take());
        Item::<Server, 0>::cancel(&self.server);
    }
}

/// One backend.
#[pin_data]
struct Backend {
    dev: DeviceRef,
    shared: Arc<Shared>,
    dying: AtomicBool,
    #[pin]
    link: Mutex<Option<Link>>,
    /// Connections of before whose pages are not given back.
    #[pin]
    kept: Mutex<KVec<Link>>,
    #[pin]
    watch: Mutex<Option<Watch<Backend>>>,
    /// The last error message that was sent.
    #[pin]
    message: Mutex<[u32; 4]>,
    #[pin]
    control: Item<Backend, 0>,
}

xen::has_work_item!(Backend, 0, control);

impl Watcher for Backend {
    fn changed(this: ArcBorrow<'_, Self>) {
        if !this.dying.load(Ordering::Acquire) {
            QUEUE.add::<Self, 0>(this.into());
        }
    }
}

impl Run<0> for Backend {
    fn run(this: Arc<Self>) {
        for _ in 0..8 {
            this.listen();
            if this.shared.is(Mode::Flap) {
                this.flap();
                this.listen();
            }
            // What was left unanswered in another mode.
            if let Some(link) = &*this.link.lock() {
                if this.shared.is(Mode::Hold) {
                    link.server.page.page().set_flag(wire::FLAG_PCIF_ACTIVE);
                }
                QUEUE.add::<Server, 0>(link.server.clone());
            }
            if this.dying.load(Ordering::Acquire) || !this.step() {
                break;
            }
        }
        let _ = this.send_message();
    }
}

impl xenbus::Driver for Backend {
    const END: End = End::Backend;
    const TYPE: &'static CStr = c"pci";

    fn probe(dev: &Bound) -> Result<Arc<Self>> {
        let shared = Arc::pin_init(
            pin_init!(Shared {
                mode: AtomicU32::new(Mode::Good as u32),
                delay: AtomicU32::new(LATE),
                served: AtomicU32::new(0),
                functions <- new_mutex!(KVec::new()),
            }),
            GFP_KERNEL,
        )?;
        let held = DeviceRef::new(dev)?;
        let this = Arc::pin_init(
            pin_init!(Self {
                dev: held,
                shared,
                dying: AtomicBool::new(false),
                link <- new_mutex!(None),
                kept <- new_mutex!(KVec::new()),
                watch <- new_mutex!(None),
                message <- new_mutex!([0; 4]),
                control <- Item::new(c"badback-control", kernel::static_lock_class!()),
            }),
            GFP_KERNEL,
        )?;
        dev.switch_state(State::InitWait);
        let watch = Watch::own_directory(dev, this.clone())?;
        *this.watch.lock() = Some(watch);
        Ok(this)
    }

    fn otherend_changed(this: ArcBorrow<'_, Self>, dev: &Bound, _front: State) -> Wish {
        if this.next() == BackendAction::Unregister {
            this.disconnect();
            dev.switch_state(State::Closed);
            return Wish::Unregister;
        }
        QUEUE.add::<Self, 0>(this.into());
        Wish::Keep
    }

    fn remove(this: Arc<Self>, _dev: &Bound) {
        this.dying.store(true, Ordering::Release);
        let watch = this.watch.lock().take();
        drop(watch);
        Item::<Self, 0>::cancel(&this);
        this.disconnect();
        this.let_go();
    }
}

impl Backend {
    fn next(&self) -> BackendAction {
        let up = self.link.lock().is_some();
        let peer = self.dev.peer_state();
        // It ends with its frontend: no function is lent here.
        if peer == State::Unknown {
            return BackendAction::Unregister;
        }
        backend_step(
            self.dev.own_state(),
            peer,
            Remains::Frontend,
            up,
            self.dev.is_online(),
        )
    }

    fn disconnect(&self) {
        let link = self.link.lock().take();
        drop(link);
    }

    fn key(&self, key: &CStr) -> Result<store::Value> {
        store::NOW.read(self.dev.directory(), key)
    }

    /// Gives back all pages that were kept.
    fn let_go(&self) {
        let kept = core::mem::replace(&mut *self.kept.lock(), KVec::new());
        drop(kept);
    }

    /// Reads the mode.
    fn listen_for_mode(&self) {
        let mode = self
            .key(c"mode")
            .map_or(Mode::Good, |v| Mode::from_text(v.bytes()));
        self.shared.mode.store(mode as u32, Ordering::Relaxed);
    }

    /// Waits until the frontend's state is `wanted`, for a moment; whether it is.
    fn until_peer(&self, wanted: State) -> bool {
        for _ in 0..FLAP_LOOKS {
            if self.dev.peer_state() == wanted {
                return true;
            }
            if self.dying.load(Ordering::Acquire) {
                break;
            }
            fsleep(Delta::from_millis(FLAP_PAUSE));
        }
        false
    }

    /// Closes and starts again until the mode is another one, and keeps each page that it gets. Writes down how
    /// often that was.
    fn flap(&self) {
        let mut starts = 0u32;
        let keep = |link| {
            let _ = self.kept.lock().push(link, GFP_KERNEL);
        };
        while self.shared.is(Mode::Flap) && !self.dying.load(Ordering::Acquire) {
            let link = self.link.lock().take();
            if let Some(link) = link {
                keep(link);
            }
            self.dev.switch_state(State::Closing);
            self.until_peer(State::Closed);
            self.dev.switch_state(State::InitWait);
            starts = starts.wrapping_add(1);
            if self.until_peer(State::Initialised) {
                if let Ok(link) = Link::new(&self.dev, self.shared.clone()) {
                    keep(link);
                    self.dev.switch_state(State::Connected);
                }
            }
            self.listen_for_mode();
        }
        let kept = self.kept.lock().len();
        let directory = self.dev.directory();
        let _ = store::NOW.write(directory, c"kept", fmt!("{kept}"));
        let _ = store::NOW.write(directory, c"starts", fmt!("{starts}"));
        self.let_go();
    }

    /// Reads what the lab has written.
    fn listen(&self) {
        self.listen_for_mode();
        let delay = self.key(c"delay").map_or(LATE, |v| hex(v.bytes()));
        self.shared.delay.store(delay, Ordering::Relaxed);
        let bar = self.key(c"bar").map_or(0, |v| hex(v.bytes()));
        let mut functions = self.shared.functions.lock();
        for name in ["vdev", "hidden"] {
            for number in 0..32 {
                let key = NumberedKey::new(name, number);
                let Some(address) = self
                    .key(key.text())
                    .ok()
                    .and_then(|v| Sbdf::parse_vdev_key(v.bytes()).ok())
                else {
                    continue;
                };
                if !functions.iter().any(|f| f.address == address) {
                    let _ = functions.push(Function { address, bar }, GFP_KERNEL);
                }
            }
        }
    }

    /// Does what the states of both ends ask for; `false` when there is nothing to do.
    fn step(&self) -> bool {
        if self.shared.is(Mode::Dead) {
            return false;
        }
        let state = match self.next() {
            BackendAction::Wait
            | BackendAction::Hold
            | BackendAction::Unregister
            | BackendAction::Sweep => return false,
            BackendAction::Export if self.dev.own_state() == State::Initialised => return false,
            BackendAction::Export => State::Initialised,
            BackendAction::Attach => match Link::new(&self.dev, self.shared.clone()) {
                Ok(link) => {
                    *self.link.lock() = Some(link);
                    State::Connected
                }
                Err(e) => {
                    self.dev.fatal(e, fmt!("cannot attach"));
                    return false;
                }
            },
            BackendAction::Reconfigure => State::Reconfigured,
            BackendAction::Resume => State::Connected,
            BackendAction::Disconnect { then } => {
                self.disconnect();
                then
            }
            BackendAction::Reconnect => {
                self.disconnect();
                State::InitWait
            }
        };
        self.dev.switch_state(state);
        true
    }

    /// Sends the error message of the store if it is a new one, and writes down the verdict.
    fn send_message(&self) -> Result {
        let text = self.key(c"message")?;
        let mut numbers = text.bytes().split(|byte| *byte == b' ').map(hex);
        let wanted = core::array::from_fn(|_| numbers.next().unwrap_or(0));
        let mut sent = self.message.lock();
        if *sent == wanted {
            return Ok(());
        }
        let link = self.link.lock();
        let link = link.as_ref().ok_or(ENODEV)?;
        *sent = wanted;
        let [command, state, devfn, _] = wanted;
        let page = link.server.page.page();
        for (at, word) in [command, state, 0, 0, devfn].into_iter().enumerate() {
            page.write(wire::AER + 4 * at, word);
        }
        page.set_flag(wire::FLAG_PCIB_ACTIVE);
        if let Some(channel) = &link.channel {
            channel.irq().notify();
        }
        for _ in 0..2_000 {
            if !page.flag(wire::FLAG_PCIB_ACTIVE) {
                let verdict = page.read(wire::AER + 4);
                return store::NOW.write(self.dev.directory(), c"verdict", fmt!("{verdict}"));
            }
            fsleep(Delta::from_millis(20));
        }
        store::NOW.write(self.dev.directory(), c"verdict", fmt!("none"))
    }
}

/// A hexadecimal number; 0 for what is none.
fn hex(text: &[u8]) -> u32 {
    core::str::from_utf8(text)
        .ok()
        .and_then(|text| u32::from_str_radix(text, 16).ok())
        .unwrap_or(0)
}

#[pin_data]
struct Module {
    #[pin]
    _driver: xenbus::Registration<Backend>,
    _queue: OpenQueue,
}

impl kernel::InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            Ok(try_pin_init!(Self {
                _queue: QUEUE.open(c"badback")?,
                _driver <- xenbus::Registration::new(c"badback", c"badback", module),
            }))
        })
    }
}

module! {
    type: Module,
    name: "badback",
    authors: ["The xen-pci-rust developers"],
    description: "PCI backend that breaks the rules, for the lab",
    license: "GPL",
}
