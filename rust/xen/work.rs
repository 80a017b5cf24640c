// SPDX-License-Identifier: GPL-2.0

//! Work queues and work items that keep their object alive and can be cancelled; what a turn of one has
//! cost.

use crate::{clock, sys};
use core::{
    marker::PhantomData,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};
use kernel::{
    bindings,
    prelude::*,
    str::{CStr, CStrExt},
    sync::{Arc, LockClassKey},
    time::{delay::fsleep, Delta},
    types::Opaque,
};

/// The place of a work queue of our own, for a `static`.
///
/// # Invariants
///
/// Null, or a live work queue that an [`OpenQueue`] owns.
pub struct Queue(AtomicPtr<bindings::workqueue_struct>);

impl Queue {
    /// No queue yet.
    pub const fn closed() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Makes the queue: its items run at the same time on any CPU, each item only once at a time, and
    /// with the priority of any other thread: what a peer asks for is not worth more.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EBUSY` when it is open already.
    pub fn open(&'static self, name: &'static CStr) -> Result<OpenQueue> {
        if !self.0.load(Ordering::Acquire).is_null() {
            return Err(EBUSY);
        }
        // SAFETY: a printf format and its one argument; 0 means the default concurrency.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND,
                0,
                name.as_char_ptr(),
            )
        };
        if queue.is_null() {
            return Err(ENOMEM);
        }
        // INVARIANT: made just now, owned by the value that is returned.
        self.0.store(queue, Ordering::Release);
        Ok(OpenQueue(self))
    }

    /// Puts the item of `owner` into the queue unless it is in there already. Atomic.
    ///
    /// The queue holds a reference to `owner` until the item has run or is cancelled.
    pub fn add<T: Run<ID>, const ID: u8>(&self, owner: Arc<T>) {
        let queue = self.0.load(Ordering::Acquire);
        if queue.is_null() {
            return;
        }
        let pointer = Arc::into_raw(owner);
        let item = Item::<T, ID>::of(pointer);
        // SAFETY: the queue is live by the invariant: the module's users are gone before it is
        // closed. The item is initialised and kept by the reference that became a pointer.
        if !unsafe { sys::queue_work(queue, item) } {
            // In the queue already, with a reference of its own.
            // SAFETY: made by `Arc::into_raw` above and not passed on.
            drop(unsafe { Arc::from_raw(pointer) });
        }
    }
}

/// Keeps a [`Queue`] open. Dropping it waits for the items in it, so it must be the last part of a
/// module that goes.
pub struct OpenQueue(&'static Queue);

impl Drop for OpenQueue {
    fn drop(&mut self) {
        let queue = self.0 .0.load(Ordering::Acquire);
        // SAFETY: owned by this value; waits for the items in it.
        unsafe { bindings::destroy_workqueue(queue) };
        self.0 .0.store(ptr::null_mut(), Ordering::Release);
    }
}

/// An object of this type has a work item at a known place. Made by [`crate::has_work_item!`].
///
/// # Safety
///
/// `OFFSET` is the distance in bytes of a field of type `Item<Self, ID>` from the start of `Self`.
pub unsafe trait HasItem<const ID: u8>: Sized {
    /// Where the item is.
    const OFFSET: usize;
}

/// Implements [`work::HasItem`](crate::work::HasItem) for a type and one of its fields.
#[macro_export]
macro_rules! has_work_item {
    ($type:ty, $id:literal, $field:ident) => {
        // SAFETY: `offset_of!` names a field; the function below fails to compile if it has
        // another type.
        unsafe impl $crate::work::HasItem<$id> for $type {
            const OFFSET: usize = {
                #[allow(dead_code)]
                fn has_the_right_type(this: &$type) -> &$crate::work::Item<$type, $id> {
                    &this.$field
                }
                ::core::mem::offset_of!($type, $field)
            };
        }
    };
}

/// What a work item does. `ID` tells several items of one object apart.
pub trait Run<const ID: u8>: HasItem<ID> + Send + Sync + 'static {
    /// The work. May sleep.
    fn run(this: Arc<Self>);
}

/// A work item inside an object of type `T`.
#[pin_data]
#[repr(transparent)]
pub struct Item<T: Run<ID>, const ID: u8> {
    #[pin]
    raw: Opaque<bindings::work_struct>,
    _owner: PhantomData<fn(T)>,
}

// SAFETY: the work queue code serialises accesses to the item.
unsafe impl<T: Run<ID>, const ID: u8> Send for Item<T, ID> {}
// SAFETY: as for `Send`.
unsafe impl<T: Run<ID>, const ID: u8> Sync for Item<T, ID> {}

impl<T: Run<ID>, const ID: u8> Item<T, ID> {
    /// An item that is in no queue.
    pub fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            raw <- Opaque::ffi_init(|slot| {
                // SAFETY: the slot is valid for writing and pinned; name and key live for ever.
                unsafe {
                    bindings::init_work_with_key(
                        slot,
                        Some(Self::callback),
                        false,
                        name.as_char_ptr(),
                        key.as_ptr(),
                    )
                }
            }),
            _owner: PhantomData,
        })
    }

    /// Takes the item out of its queue, or waits until it has run. Must not be called by the item.
    pub fn cancel(owner: &Arc<T>) {
        // SAFETY: initialised by `new`; `owner` keeps it alive.
        if unsafe { bindings::cancel_work_sync(Self::of(Arc::as_ptr(owner))) } {
            // SAFETY: it was queued, so the reference that `Queue::add` made is still out.
            drop(unsafe { Arc::from_raw(Arc::as_ptr(owner)) });
        }
    }

    /// The item of the object at `owner`, which must be alive when the result is used.
    fn of(owner: *const T) -> *mut bindings::work_struct {
        // CAST: `Item` is transparent.
        owner.cast_mut().wrapping_byte_add(T::OFFSET).cast()
    }

    extern "C" fn callback(raw: *mut bindings::work_struct) {
        let object = raw.wrapping_byte_sub(T::OFFSET).cast::<T>();
        // SAFETY: `Queue::add` made this pointer from an `Arc` for this run.
        T::run(unsafe { Arc::from_raw(object) });
    }
}

/// The longest sleep of [`sleep_while`] without a look, in ns.
const LOOK: i64 = 10_000_000;

/// Sleeps `ns`, but not on when `wanted` says `false`. Gives what `wanted` said last.
pub fn sleep_while(ns: i64, wanted: impl Fn() -> bool) -> bool {
    let mut now = clock::now();
    let end = now.saturating_add(ns);
    while wanted() {
        if now >= end {
            return true;
        }
        fsleep(Delta::from_nanos(end.saturating_sub(now).min(LOOK)));
        now = clock::now();
    }
    false
}

/// Whether another task could run on this CPU now, whatever its priority.
pub fn others_wait() -> bool {
    // SAFETY: it reads a number of this CPU's queue, from any context; the thread may be on another CPU when
    // it has the answer, which is then as old as that.
    unsafe { sys::others_wait() }
}

/// A turn of the running thread, to find out what it costs.
pub struct Turn {
    begun: i64,
    task: Switches,
}

/// What a turn has cost.
pub struct Spent {
    /// From its beginning to its end, in ns.
    pub elapsed: i64,
    /// What it used of a CPU, in ns: what it slept is left out.
    pub cpu: i64,
    /// Somebody else got the CPU that it wanted.
    pub preempted: bool,
    /// Somebody else got it, or waits for it at the end: any task that could run, whatever its priority.
    pub contended: bool,
}

/// What the scheduler counts of a thread.
#[derive(Clone, Copy)]
struct Switches {
    /// Time on a CPU up to the last tick or switch, in ns.
    runtime: u64,
    slept: usize,
    preempted: usize,
}

impl Switches {
    fn of_current() -> Self {
        let task = kernel::current!().as_ptr();
        // SAFETY: the running thread; the scheduler writes these words of it only, one at a time, while
        // it is not running or in an interrupt, so at worst they are a tick old.
        unsafe {
            Self {
                runtime: (&raw const (*task).se.sum_exec_runtime).read_volatile(),
                slept: (&raw const (*task).nvcsw).read_volatile(),
                preempted: (&raw const (*task).nivcsw).read_volatile(),
            }
        }
    }
}

impl Turn {
    /// It begins now.
    pub fn begin() -> Self {
        Self {
            begun: clock::now(),
            task: Switches::of_current(),
        }
    }

    /// It ends now, in the same thread.
    pub fn end(self) -> Spent {
        let elapsed = clock::now().saturating_sub(self.begun);
        let now = Switches::of_current();
        let preempted = now.preempted != self.task.preempted;
        let cpu = if now.slept != self.task.slept || preempted {
            // The switch has brought it up to date; it may include some time before this turn.
            let ran = now.runtime.saturating_sub(self.task.runtime);
            i64::try_from(ran).unwrap_or(i64::MAX).min(elapsed)
        } else {
            elapsed
        };
        Spent {
            elapsed,
            cpu,
            preempted,
            contended: preempted || others_wait(),
        }
    }
}
