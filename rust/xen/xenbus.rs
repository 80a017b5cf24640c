// SPDX-License-Identifier: GPL-2.0

//! xenbus drivers: devices, states, watches.
//!
//! # Context and threads
//!
//! `probe`, `otherend_changed`, `remove` and the watches run in sleepable context. The core has one
//! thread for all watches of all devices, which `otherend_changed` and our own watches share: what
//! takes long belongs into a work item. `remove` runs in that thread too when a domain dies.
//!
//! # Lifetimes
//!
//! | type | from | to | what it can be asked for |
//! |---|---|---|---|
//! | [`Device`] | registration | last reference | its own directory, states there, log lines |
//! | [`Bound`] | start of `probe` | end of `remove` | the same, and the peer's directory, which the core owns and frees |
//! | [`DeviceRef`] | taken from a [`Bound`] | its own end | as [`Bound`]: it has a copy of the peer's path |
//! | [`Lent`] | lent by a [`Lease`] | its own end, for which `remove` waits | as [`DeviceRef`] |

use crate::{store, sys};
use core::{marker::PhantomData, mem::offset_of};
use kernel::{
    bindings,
    error::{from_result, to_result},
    ffi, fmt, new_mutex,
    prelude::*,
    str::{CStr, CStrExt, CString},
    sync::{lock::mutex::MutexBackend, lock::Guard, Arc, ArcBorrow, Mutex},
    types::Opaque,
};
use pciif::state::State;

/// Which end of the split device a driver is.
pub enum End {
    /// The side that has the device.
    Backend,
    /// The side that uses it.
    Frontend,
}

/// A state from its number in the store; what is no state is Unknown.
pub fn state(number: u32) -> State {
    State::from_number(i32::try_from(number).unwrap_or(0))
}

/// A xenbus device, as long as there is a reference to it.
///
/// # Invariants
///
/// A live `xenbus_device`, with a driver or without one.
#[repr(transparent)]
pub struct Device(Opaque<sys::xenbus_device>);

// SAFETY: the functions used here take their own locks, or are called as the documentation says.
unsafe impl Send for Device {}
// SAFETY: as for `Send`.
unsafe impl Sync for Device {}

impl Device {
    /// The C structure.
    pub fn as_raw(&self) -> *mut sys::xenbus_device {
        self.0.get()
    }

    /// Our own directory in the store.
    pub fn directory(&self) -> &CStr {
        // SAFETY: set before the device is registered, constant, NUL terminated; part of the device's own
        // memory.
        unsafe { CStr::from_char_ptr((*self.as_raw()).nodename) }
    }

    /// The peer's domain.
    pub fn peer_domain(&self) -> u16 {
        // SAFETY: a live device.
        let id = unsafe { (*self.as_raw()).otherend_id };
        // CAST: domain ids have 15 bits.
        id as u16
    }

    /// A state as the store has it now, not as the core remembers it.
    fn read_state(&self, directory: &CStr) -> State {
        // SAFETY: a live device and a NUL terminated path.
        let state =
            unsafe { sys::xenbus_read_driver_state(self.as_raw(), directory.as_char_ptr()) };
        self::state(state)
    }

    /// Our state in the store. A toolstack may have written it.
    pub fn own_state(&self) -> State {
        self.read_state(self.directory())
    }

    /// Writes our state. Does nothing when the core knows it as such already; the core reports
    /// errors itself.
    pub fn switch_state(&self, state: State) {
        // SAFETY: a live device.
        unsafe { sys::xenbus_switch_state(self.as_raw(), state.number() as sys::xenbus_state) };
    }

    /// Writes state `to` if the store still has `from`, and gives whether it did. A toolstack writes our
    /// state, too: what it wrote after we had looked must not be lost.
    ///
    /// Unlike [`Self::switch_state`] it goes by the store, not by what the core remembers. Sleeps.
    pub fn switch_state_from(&self, from: State, to: State) -> bool {
        let directory = self.directory();
        let written = store::transaction(|store| {
            let present = store.read(directory, c"state")?.number()?;
            if self::state(present) != from {
                return Ok(false);
            }
            store.write(directory, c"state", fmt!("{}", to.number()))?;
            Ok(true)
        });
        match written {
            Ok(true) => self.state_was_written(to),
            // The toolstack has taken the directory away.
            Ok(false) | Err(ENOENT) => {}
            Err(e) => self.error(e, fmt!("writing new state")),
        }
        written.unwrap_or(false)
    }

    /// Tells the core which state was written to the store by other means than
    /// [`Self::switch_state`], namely in a transaction together with other keys.
    pub fn state_was_written(&self, state: State) {
        // SAFETY: a live device; the core reads the field without a lock itself.
        unsafe {
            (&raw mut (*self.as_raw()).state).write_volatile(state.number() as sys::xenbus_state)
        };
    }

    /// Has `body` write to our own directory, in one transaction: all of it becomes visible together.
    ///
    /// # Errors
    ///
    /// `ENOENT` when the toolstack has taken the directory away: nothing is written then, as a key would
    /// bring the directory back. Else that of `body`, or of the store.
    pub fn update(&self, mut body: impl FnMut(store::Scope, &CStr) -> Result) -> Result {
        let directory = self.directory();
        store::transaction(|store| {
            store.read(directory, c"state")?;
            body(store, directory)
        })
    }

    /// Whether the toolstack still wants the device. One that never says so wants it until it removes the
    /// directory.
    pub fn is_online(&self) -> bool {
        let online = store::NOW.read(self.directory(), c"online");
        !matches!(online.and_then(|value| value.number()), Ok(0))
    }

    /// Removes our own directory, which ends the device, and the one above it if nothing else is in it, as
    /// long as `unwanted` says that nobody can want it any more. Whoever makes it again meanwhile is asked about.
    ///
    /// # Errors
    ///
    /// `ENOENT` when it is gone already, `EBUSY` when it is wanted, or that of the store.
    pub fn remove_directory(&self, unwanted: impl Fn() -> bool) -> Result {
        let directory = self.directory();
        let above = directory.to_bytes().rsplitn(2, |byte| *byte == b'/').nth(1);
        let above = core::str::from_utf8(above.unwrap_or(b"")).unwrap_or("");
        let above = CString::try_from_fmt(fmt!("{above}"))?;
        store::transaction(|store| {
            store.read(directory, c"frontend-id")?;
            if !unwanted() {
                return Err(EBUSY);
            }
            store.remove(directory, c"")?;
            if !above.is_empty() && store.is_empty(&above)? {
                store.remove(&above, c"")?;
            }
            Ok(())
        })
    }

    /// Reports an error in the log and in the store's error directory.
    pub fn error(&self, error: Error, text: fmt::Arguments<'_>) {
        self.report(error, text, false);
    }

    /// As [`Self::error`], and moves to state Closing.
    pub fn fatal(&self, error: Error, text: fmt::Arguments<'_>) {
        self.report(error, text, true);
    }

    /// As [`Self::fatal`], but nothing goes into the log: for what another domain can repeat.
    pub fn fatal_unsaid(&self, error: Error, text: fmt::Arguments<'_>) {
        self.state_was_written(self.own_state());
        // The core's own place and form for it. Who reads it misses nothing that matters if it cannot be written.
        if let Ok(place) = CString::try_from_fmt(fmt!("error/{}", self.directory())) {
            let number = error.to_errno().wrapping_neg();
            let _ = store::NOW.write(&place, c"error", fmt!("{number} {text}"));
        }
        self.switch_state(State::Closing);
    }

    fn report(&self, error: Error, text: fmt::Arguments<'_>, fatal: bool) {
        if fatal {
            // The core does not write a state that it takes for the present one.
            self.state_was_written(self.own_state());
        }
        let text = CString::try_from_fmt(text);
        let text = text.as_ref().map_or(c"out of memory", |t| t);
        // SAFETY: a live device; the text is an argument of "%s", never a format.
        unsafe { sys::bus_dev_error(self.as_raw(), error.to_errno(), text.as_char_ptr(), fatal) }
    }

    /// The kernel's view of the device, for log lines.
    pub fn generic(&self) -> &kernel::device::Device {
        // SAFETY: embedded in a live device.
        unsafe { kernel::device::Device::from_raw(&raw mut (*self.as_raw()).dev) }
    }
}

/// A device that has a driver: what the core's callbacks get.
///
/// # Invariants
///
/// Between the start of the driver's `probe` and the end of its `remove`. The core changes the peer's
/// directory only before `probe`, and before `resume` while no other callback runs.
#[repr(transparent)]
pub struct Bound(Device);

impl core::ops::Deref for Bound {
    type Target = Device;
    fn deref(&self) -> &Device {
        &self.0
    }
}

impl Bound {
    /// The peer's directory in the store.
    pub fn peer_directory(&self) -> &CStr {
        // SAFETY: by the type invariant set, NUL terminated, and neither changed nor freed before the
        // callback returns that this was lent to.
        unsafe {
            let path = (*self.as_raw()).otherend;
            if path.is_null() {
                c""
            } else {
                CStr::from_char_ptr(path)
            }
        }
    }

    /// The peer's state in the store.
    pub fn peer_state(&self) -> State {
        self.read_state(self.peer_directory())
    }
}

/// A counted reference to a [`Device`], with a copy of what the core frees after `remove`.
///
/// # Invariants
///
/// `raw` comes with one reference of the embedded `struct device`.
pub struct DeviceRef {
    raw: *mut sys::xenbus_device,
    peer: Arc<CString>,
}

// SAFETY: see `Device`.
unsafe impl Send for DeviceRef {}
// SAFETY: see `Device`.
unsafe impl Sync for DeviceRef {}

impl DeviceRef {
    /// Takes a reference.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(dev: &Bound) -> Result<Self> {
        let peer = CString::try_from_fmt(fmt!("{}", dev.peer_directory()))?;
        Ok(Self::take(dev, Arc::new(peer, GFP_KERNEL)?))
    }

    fn take(dev: &Device, peer: Arc<CString>) -> Self {
        let raw = dev.as_raw();
        // SAFETY: a live device.
        unsafe { bindings::get_device(&raw mut (*raw).dev) };
        // INVARIANT: taken just now.
        Self { raw, peer }
    }

    /// The peer's directory in the store, as it was when the reference was taken.
    pub fn peer_directory(&self) -> &CStr {
        &self.peer
    }

    /// The peer's state in the store.
    pub fn peer_state(&self) -> State {
        self.read_state(self.peer_directory())
    }
}

impl Clone for DeviceRef {
    fn clone(&self) -> Self {
        Self::take(self, self.peer.clone())
    }
}

impl core::ops::Deref for DeviceRef {
    type Target = Device;
    fn deref(&self) -> &Device {
        // SAFETY: `Device` is transparent; alive by the reference.
        unsafe { &*self.raw.cast() }
    }
}

impl Drop for DeviceRef {
    fn drop(&mut self) {
        // SAFETY: owns one reference.
        unsafe { bindings::put_device(&raw mut (*self.raw).dev) }
    }
}

/// A device for work that may still be running, or begin, when `remove` is called. The store is read and
/// written for it only while it is lent: after [`Self::end`] that is over, and whatever the toolstack or
/// the core write then stays.
///
/// *Lock*: the mutex of what is lent. It is held for a few operations on the store, so `remove` does not
/// wait long; who has it must not wait for the xenbus core's thread, which may be the one in `remove`.
#[pin_data]
pub struct Lease {
    dev: DeviceRef,
    #[pin]
    open: Mutex<bool>,
}

impl Lease {
    /// The device can be lent.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(dev: &Bound) -> Result<Arc<Self>> {
        let dev = DeviceRef::new(dev)?;
        Arc::pin_init(
            pin_init!(Self {
                dev,
                open <- new_mutex!(true),
            }),
            GFP_KERNEL,
        )
    }

    /// Lends the device; `None` when it goes. Not twice in one thread.
    pub fn get(&self) -> Option<Lent<'_>> {
        let open = self.open.lock();
        (*open).then_some(Lent {
            dev: &self.dev,
            _open: open,
        })
    }

    /// Ends the lease for good, and waits until it is not lent any more. To be called by `remove`.
    pub fn end(&self) {
        *self.open.lock() = false;
    }

    /// The kernel's view of the device, for log lines.
    pub fn generic(&self) -> &kernel::device::Device {
        self.dev.generic()
    }

    /// The device's directory in the store, for who looks at it after the end of the lease.
    pub fn directory(&self) -> &CStr {
        self.dev.directory()
    }

    /// As [`Device::remove_directory`], for a device that nobody has.
    ///
    /// # Errors
    ///
    /// Those of that.
    pub fn remove_directory(&self, unwanted: impl Fn() -> bool) -> Result {
        self.dev.remove_directory(unwanted)
    }
}

/// The device of a [`Lease`], which does not end while this lives.
pub struct Lent<'a> {
    dev: &'a DeviceRef,
    _open: Guard<'a, bool, MutexBackend>,
}

impl core::ops::Deref for Lent<'_> {
    type Target = DeviceRef;
    fn deref(&self) -> &DeviceRef {
        self.dev
    }
}

/// What is to become of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It stays.
    Keep,
    /// It is removed from the bus, which calls the driver's `remove`.
    Unregister,
}

/// A driver of devices of one type.
pub trait Driver: Send + Sync + Sized + 'static {
    /// Which end it is.
    const END: End;
    /// The device type: the last but one part of the directory, such as `pci`.
    const TYPE: &'static CStr;

    /// A new device. What it returns is the device's state, dropped after `remove`.
    fn probe(dev: &Bound) -> Result<Arc<Self>>;
    /// The peer's state has changed (or may have: watches can fire without a change).
    fn otherend_changed(this: ArcBorrow<'_, Self>, dev: &Bound, state: State) -> Wish;
    /// The device goes: what is to outlive this needs a [`DeviceRef`].
    fn remove(this: Arc<Self>, dev: &Bound);
    /// The guest was suspended and goes on, perhaps on another host. Frontends only.
    fn resume(_this: ArcBorrow<'_, Self>, _dev: &Bound) -> Result {
        Ok(())
    }
}

/// A driver while it is registered.
///
/// # Invariants
///
/// `raw` is registered until `drop`.
#[pin_data(PinnedDrop)]
pub struct Registration<T: Driver> {
    #[pin]
    raw: Opaque<sys::xenbus_driver>,
    #[pin]
    ids: Opaque<[sys::xenbus_device_id; 2]>,
    #[pin]
    group: Opaque<bindings::attribute_group>,
    #[pin]
    groups: Opaque<[*const bindings::attribute_group; 2]>,
    _driver: PhantomData<fn(T)>,
}

// SAFETY: nothing can be done with a shared reference.
unsafe impl<T: Driver> Sync for Registration<T> {}
// SAFETY: registering and unregistering may happen in any thread.
unsafe impl<T: Driver> Send for Registration<T> {}

impl<T: Driver> Registration<T> {
    /// Registers the driver under `name`; devices that exist already are probed now.
    ///
    /// # Errors
    ///
    /// That of the core.
    pub fn new(
        name: &'static CStr,
        mod_name: &'static CStr,
        module: &'static ThisModule,
    ) -> impl PinInit<Self, Error> {
        Self::with_files(name, mod_name, module, None)
    }

    /// As [`Self::new`], with attribute files; they are made after devices are probed.
    ///
    /// # Errors
    ///
    /// That of the core.
    pub fn with_files(
        name: &'static CStr,
        mod_name: &'static CStr,
        module: &'static ThisModule,
        files: Option<&'static crate::sysfs::Group>,
    ) -> impl PinInit<Self, Error> {
        // SAFETY: the closure fills all fields; on success the value is pinned until `drop`, which
        // unregisters before the memory goes.
        unsafe {
            pin_init::pin_init_from_closure(move |slot: *mut Self| {
                let raw = Opaque::cast_into(&raw const (*slot).raw);
                let ids = Opaque::cast_into(&raw const (*slot).ids);
                let mut id = sys::xenbus_device_id::default();
                for (to, from) in id.devicetype.iter_mut().zip(T::TYPE.to_bytes()) {
                    *to = *from as ffi::c_char;
                }
                ids.write([id, sys::xenbus_device_id::default()]);
                let group = Opaque::cast_into(&raw const (*slot).group);
                let groups = Opaque::cast_into(&raw const (*slot).groups);
                group.write(bindings::attribute_group {
                    bin_attrs: files.map_or(core::ptr::null(), |files| files.list()),
                    ..Default::default()
                });
                groups.write([group.cast_const(), core::ptr::null()]);
                raw.write(sys::xenbus_driver {
                    name: name.as_char_ptr(),
                    ids: ids.cast(),
                    probe: Some(Self::probe),
                    otherend_changed: Some(Self::otherend_changed),
                    remove: Some(Self::remove),
                    resume: match T::END {
                        End::Backend => None,
                        End::Frontend => Some(Self::resume),
                    },
                    driver: bindings::device_driver {
                        groups: match files {
                            Some(_) => groups.cast(),
                            None => core::ptr::null_mut(),
                        },
                        ..Default::default()
                    },
                    ..Default::default()
                });
                let register = match T::END {
                    End::Backend => sys::__xenbus_register_backend,
                    End::Frontend => sys::__xenbus_register_frontend,
                };
                to_result(register(raw, module.as_ptr(), mod_name.as_char_ptr()))
            })
        }
    }

    extern "C" fn probe(
        dev: *mut sys::xenbus_device,
        _id: *const sys::xenbus_device_id,
    ) -> ffi::c_int {
        // SAFETY: the core passes a live device with our driver; both types are transparent.
        let device = unsafe { &*dev.cast::<Bound>() };
        from_result(|| {
            let state = T::probe(device)?;
            // SAFETY: a live device, whose driver data is ours while it is bound.
            unsafe {
                bindings::dev_set_drvdata(
                    &raw mut (*dev).dev,
                    Arc::into_raw(state).cast_mut().cast(),
                )
            };
            Ok(0)
        })
    }

    /// The state of a bound device.
    ///
    /// # Safety
    ///
    /// Between `probe` and `remove` of `dev`; the result must not outlive `remove`.
    unsafe fn state<'a>(dev: *mut sys::xenbus_device) -> Option<ArcBorrow<'a, T>> {
        // SAFETY: a live device.
        let state = unsafe { bindings::dev_get_drvdata(&raw mut (*dev).dev) }.cast::<T>();
        // SAFETY: `probe` stored an `Arc<T>`, `remove` takes it out.
        (!state.is_null()).then(|| unsafe { ArcBorrow::from_raw(state.cast_const()) })
    }

    extern "C" fn otherend_changed(dev: *mut sys::xenbus_device, state: sys::xenbus_state) {
        // SAFETY: the core passes a live device with our driver; both types are transparent.
        let device = unsafe { &*dev.cast::<Bound>() };
        // SAFETY: the core calls this between `probe` and `remove` only.
        let wish = match unsafe { Self::state(dev) } {
            Some(this) => T::otherend_changed(this, device, self::state(state)),
            None => Wish::Keep,
        };
        if wish == Wish::Unregister {
            // SAFETY: a registered device. The core allows this from here and does not touch the device
            // afterwards, nor do we: what was lent to the driver is back.
            unsafe { bindings::device_unregister(&raw mut (*dev).dev) }
        }
    }

    extern "C" fn remove(dev: *mut sys::xenbus_device) {
        // SAFETY: a live device, whose driver data is ours.
        let state = unsafe { bindings::dev_get_drvdata(&raw mut (*dev).dev) }.cast::<T>();
        // SAFETY: as above.
        unsafe { bindings::dev_set_drvdata(&raw mut (*dev).dev, core::ptr::null_mut()) };
        if !state.is_null() {
            // SAFETY: the core passes a live device with our driver; both types are transparent.
            let device = unsafe { &*dev.cast::<Bound>() };
            // SAFETY: `probe` stored it with `Arc::into_raw`, and it has just been taken out.
            T::remove(unsafe { Arc::from_raw(state.cast_const()) }, device);
        }
    }

    extern "C" fn resume(dev: *mut sys::xenbus_device) -> ffi::c_int {
        // SAFETY: the core passes a live device with our driver; both types are transparent.
        let device = unsafe { &*dev.cast::<Bound>() };
        from_result(|| {
            // SAFETY: between `probe` and `remove`.
            if let Some(this) = unsafe { Self::state(dev) } {
                T::resume(this, device)?;
            }
            Ok(0)
        })
    }
}

#[pinned_drop]
impl<T: Driver> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: registered by the type invariant; calls `remove` for each bound device.
        unsafe { sys::xenbus_unregister_driver(self.raw.get()) }
    }
}

/// Who hears of changes below a directory, or of the end of domains.
pub trait Watcher: Send + Sync + 'static {
    /// Something below the watched directory has changed.
    fn changed(this: ArcBorrow<'_, Self>);
    /// A domain has ended or stopped; which one is not said.
    fn domain_ended(_this: ArcBorrow<'_, Self>) {}
}

/// A watch on a device's own directory, or on the end of domains.
///
/// The core keeps each event until its one thread gets to it, and may be given a word about which ones to
/// keep. One that waits is enough, as the watcher looks at the store afresh: so however often something
/// changes while the thread is busy, at most one event of a watch waits.
///
/// # Invariants
///
/// `raw` is registered until `drop`, and `watcher` is an `Arc` turned into a pointer.
pub struct Watch<T: Watcher> {
    inner: Pin<KBox<WatchInner<T>>>,
}

/// What the core calls.
type Callback = extern "C" fn(*mut sys::xenbus_watch, *const ffi::c_char, *const ffi::c_char);

#[repr(C)]
struct WatchInner<T> {
    raw: Opaque<sys::xenbus_watch>,
    watcher: *const T,
    _path: CString,
}

// SAFETY: the pointer is an `Arc<T>` with `T: Send + Sync`.
unsafe impl<T: Watcher> Send for Watch<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: Watcher> Sync for Watch<T> {}

impl<T: Watcher> Watch<T> {
    /// Starts to watch; the store fires each new watch once at once.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or that of the store.
    pub fn own_directory(dev: &Device, watcher: Arc<T>) -> Result<Self> {
        let path = CString::try_from_fmt(fmt!("{}", dev.directory()))?;
        Self::new(path, Self::changed, watcher)
    }

    /// Starts to watch for the end of domains; fires once at once, too.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or that of the store.
    pub fn domains(watcher: Arc<T>) -> Result<Self> {
        // The store's own name for that event.
        let path = CString::try_from_fmt(fmt!("@releaseDomain"))?;
        Self::new(path, Self::domain_ended, watcher)
    }

    fn new(path: CString, callback: Callback, watcher: Arc<T>) -> Result<Self> {
        let raw = sys::xenbus_watch {
            node: path.as_char_ptr(),
            will_handle: Some(Self::will_handle),
            callback: Some(callback),
            ..Default::default()
        };
        let inner = KBox::pin(
            WatchInner {
                raw: Opaque::new(raw),
                watcher: Arc::as_ptr(&watcher),
                _path: path,
            },
            GFP_KERNEL,
        )?;
        // SAFETY: pinned in its box, all fields set; unregistered in `drop` before it goes.
        to_result(unsafe { sys::register_xenbus_watch(inner.raw.get()) })?;
        // The reference now belongs to the watch.
        let _ = Arc::into_raw(watcher);
        Ok(Self { inner })
    }

    /// Whether an event is kept. The core asks in the thread that reads from the store, and counts an event
    /// as pending until just before it calls `callback`: what has changed before this event is then still
    /// to be looked at.
    extern "C" fn will_handle(
        raw: *mut sys::xenbus_watch,
        _path: *const ffi::c_char,
        _token: *const ffi::c_char,
    ) -> bool {
        // SAFETY: the core passes a registered watch, and holds the lock under which it is unregistered. The
        // counter is one word; another lock guards it, so it may be changing, see above.
        let pending = unsafe { (&raw const (*raw).nr_pending).read_volatile() };
        pending == 0
    }

    extern "C" fn changed(
        raw: *mut sys::xenbus_watch,
        _path: *const ffi::c_char,
        _token: *const ffi::c_char,
    ) {
        // SAFETY: the core calls this only while the watch is registered.
        T::changed(unsafe { Self::watcher(raw) });
    }

    extern "C" fn domain_ended(
        raw: *mut sys::xenbus_watch,
        _path: *const ffi::c_char,
        _token: *const ffi::c_char,
    ) {
        // SAFETY: the core calls this only while the watch is registered.
        T::domain_ended(unsafe { Self::watcher(raw) });
    }

    /// Who hears of it.
    ///
    /// # Safety
    ///
    /// `raw` is the registered watch of one of these; the result must not outlive its callback.
    unsafe fn watcher<'a>(raw: *mut sys::xenbus_watch) -> ArcBorrow<'a, T> {
        let inner = raw
            .wrapping_byte_sub(offset_of!(WatchInner<T>, raw))
            .cast::<WatchInner<T>>();
        // SAFETY: alive while the watch is registered.
        let watcher = unsafe { (*inner).watcher };
        // SAFETY: owned by the watch while it is registered, and by its maker before.
        unsafe { ArcBorrow::from_raw(watcher) }
    }
}

impl<T: Watcher> Drop for Watch<T> {
    fn drop(&mut self) {
        // SAFETY: registered by the type invariant. Waits for a running callback, unless it is
        // called by that very thread.
        unsafe { sys::unregister_xenbus_watch(self.inner.raw.get()) };
        // SAFETY: owned by the watch by the type invariant.
        drop(unsafe { Arc::from_raw(self.inner.watcher) });
    }
}
