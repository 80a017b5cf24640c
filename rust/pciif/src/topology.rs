// SPDX-License-Identifier: GPL-2.0

//! Which address a guest sees for which function of the host (behaviour, section 7).
//!
//! * **vpci**: one virtual bus, 0000:00, with 32 slots. Functions of one host device share a slot
//!   and keep their function numbers, in whatever order they come. A new device takes the lowest
//!   free slot. A virtual function (SR-IOV) with function number 0 has a slot of its own, because
//!   what shares its bus and device number is not part of the same device.
//! * **passthrough**: every function keeps the host's address.
//!
//! The table holds a handle of type `H` for each function, in places that its owner provides: most
//! guests have a few functions, some have all that a bus can hold.

use crate::sbdf::{Devfn, RootText, Sbdf};
use core::{
    fmt::{self, Display, Formatter},
    mem,
    ops::DerefMut,
};

/// How virtual addresses are chosen: fixed when the module is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One virtual bus.
    Vpci,
    /// The host's addresses.
    Passthrough,
}

/// Why a function got no virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopologyError {
    /// A bridge makes no sense on the one virtual bus.
    Bridge,
    /// All 32 slots of the virtual bus are taken.
    NoSlot,
    /// All places of the table are taken; see [`Topology::grow`].
    NoRoom,
    /// The function is in the table already.
    AlreadyThere,
}

impl Display for TopologyError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TopologyError::Bridge => "can't export bridges on the virtual PCI bus",
            TopologyError::NoSlot => "no more space on the virtual PCI bus: 32 slots are taken",
            TopologyError::NoRoom => "no room for one more function",
            TopologyError::AlreadyThere => "the function has a virtual address already",
        })
    }
}

/// One function in the table.
#[derive(Clone, Debug)]
pub struct Entry<H> {
    host: Sbdf,
    address: Sbdf,
    /// A virtual function with number 0: nothing may join its slot.
    alone: bool,
    handle: H,
}

impl<H> Entry<H> {
    /// Address on the host.
    pub const fn host(&self) -> Sbdf {
        self.host
    }

    /// Address that the guest sees.
    pub const fn address(&self) -> Sbdf {
        self.address
    }

    /// The handle that was given with it.
    pub const fn handle(&self) -> &H {
        &self.handle
    }

    /// True when both are on the same host device, whatever their functions are.
    fn is_on_device_of(&self, host: Sbdf) -> bool {
        self.host.root() == host.root() && self.host.devfn.dev() == host.devfn.dev()
    }
}

/// Slots of the virtual bus.
const SLOTS: u8 = 32;
/// Device and function numbers on one bus.
const DEVFNS: usize = 256;
/// No function at this device and function number.
const ABSENT: u16 = u16::MAX;

/// A place for a function.
pub type Place<H> = Option<Entry<H>>;

/// The functions of one guest, in places of type `P`.
#[derive(Clone, Debug)]
pub struct Topology<P> {
    mode: Mode,
    entries: P,
    /// vpci only: index in `entries` by virtual device and function number, so that a request finds
    /// its function in one step.
    by_devfn: [u16; DEVFNS],
}

impl<H, P: DerefMut<Target = [Place<H>]>> Topology<P> {
    /// The most places that are used, however many there are: 32 slots of 8 functions.
    pub const CAPACITY: usize = DEVFNS;

    /// A table that begins with these places, which have to be empty.
    pub const fn new(mode: Mode, places: P) -> Self {
        // Every index fits and is not `ABSENT`.
        const { assert!(DEVFNS < ABSENT as usize) };
        Topology {
            mode,
            entries: places,
            by_devfn: [ABSENT; DEVFNS],
        }
    }

    /// How many functions there are places for.
    pub fn room(&self) -> usize {
        self.entries.len().min(Self::CAPACITY)
    }

    /// How many places to [`grow`](Self::grow) to when there is no room; `None` when there can be no more.
    pub fn larger(&self) -> Option<usize> {
        let room = self.room();
        (room < Self::CAPACITY).then_some(Self::CAPACITY.min(2 * room.max(1)))
    }

    /// Moves into other places, which have to be empty, if those are more. Gives those that are not
    /// needed any more.
    pub fn grow(&mut self, mut places: P) -> P {
        if places.len() > self.entries.len() {
            for (to, from) in places.iter_mut().zip(self.entries.iter_mut()) {
                mem::swap(to, from);
            }
            mem::swap(&mut places, &mut self.entries);
        }
        places
    }

    /// Adds a function of the host and returns the address that the guest will see.
    ///
    /// `wanted` is a wish of the toolstack (`vdevfn-N`), of which the device number counts. It is
    /// granted on the virtual bus when that slot is free and no function of the same host device
    /// has another slot already.
    ///
    /// # Errors
    ///
    /// [`TopologyError`]; the table is as before then.
    pub fn assign(
        &mut self,
        host: Sbdf,
        is_vf: bool,
        is_bridge: bool,
        handle: H,
        wanted: Option<Devfn>,
    ) -> Result<Sbdf, TopologyError> {
        if self.entries().any(|entry| entry.host == host) {
            return Err(TopologyError::AlreadyThere);
        }
        let alone = is_vf && host.devfn.func() == 0;
        let address = match self.mode {
            Mode::Passthrough => host,
            Mode::Vpci if is_bridge => return Err(TopologyError::Bridge),
            Mode::Vpci => self.virtual_address(host, alone, wanted)?,
        };
        let mut slots = self.entries.iter_mut().enumerate().take(Self::CAPACITY);
        let (index, slot) = slots
            .find(|(_, slot)| slot.is_none())
            .ok_or(TopologyError::NoRoom)?;
        *slot = Some(Entry {
            host,
            address,
            alone,
            handle,
        });
        if self.mode == Mode::Vpci {
            // CAST: less than `CAPACITY`, of which `new` asserts that it fits.
            self.note(address, index as u16);
        }
        Ok(address)
    }

    fn note(&mut self, address: Sbdf, index: u16) {
        if let Some(place) = self.by_devfn.get_mut(usize::from(address.devfn.raw())) {
            *place = index;
        }
    }

    fn virtual_address(
        &self,
        host: Sbdf,
        alone: bool,
        wanted: Option<Devfn>,
    ) -> Result<Sbdf, TopologyError> {
        let sibling = self
            .entries()
            .find(|entry| !alone && !entry.alone && entry.is_on_device_of(host))
            .map(|entry| entry.address.devfn.dev());
        let wish = wanted
            .map(Devfn::dev)
            .filter(|&slot| self.slot_is_free(slot));
        let slot = sibling
            .or(wish)
            .or_else(|| (0..SLOTS).find(|&slot| self.slot_is_free(slot)))
            .ok_or(TopologyError::NoSlot)?;
        Sbdf::new(0, 0, slot, host.devfn.func()).ok_or(TopologyError::NoSlot)
    }

    fn slot_is_free(&self, slot: u8) -> bool {
        !self
            .entries()
            .any(|entry| entry.address.devfn.dev() == slot)
    }

    /// The place in `entries` of a virtual address.
    fn index_of(&self, address: Sbdf) -> Option<usize> {
        match self.mode {
            Mode::Vpci if address.segment != 0 || address.bus != 0 => None,
            Mode::Vpci => self
                .by_devfn
                .get(usize::from(address.devfn.raw()))
                .filter(|&&index| index != ABSENT)
                .map(|&index| usize::from(index)),
            Mode::Passthrough => self
                .entries
                .iter()
                .position(|slot| slot.as_ref().is_some_and(|entry| entry.address == address)),
        }
    }

    /// The handle of the function that the guest addresses so.
    pub fn find(&self, address: Sbdf) -> Option<&H> {
        let entry = self.entries.get(self.index_of(address)?)?.as_ref()?;
        Some(&entry.handle)
    }

    /// The handle of a function of the host.
    pub fn find_host(&self, host: Sbdf) -> Option<&Entry<H>> {
        self.entries().find(|entry| entry.host == host)
    }

    /// Takes a function out of the table. Its slot is free again once its last function is gone.
    pub fn release(&mut self, address: Sbdf) -> Option<H> {
        let index = self.index_of(address)?;
        let entry = self.entries.get_mut(index)?.take()?;
        if self.mode == Mode::Vpci {
            self.note(address, ABSENT);
        }
        Some(entry.handle)
    }

    /// The functions of the guest, in no particular order.
    pub fn entries<'a>(&'a self) -> impl Iterator<Item = &'a Entry<H>>
    where
        H: 'a,
    {
        self.entries.iter().flatten()
    }

    /// The root buses to publish, each once: always 0000:00 on the virtual bus, else those that the
    /// functions are on, unless the guest finds a function from above: `is_below` tells of one
    /// whether a bridge above it is in the table, too.
    pub fn roots<'a>(
        &'a self,
        is_below: impl Fn(&Entry<H>) -> bool + 'a,
    ) -> impl Iterator<Item = RootText> + 'a
    where
        H: 'a,
    {
        const VIRTUAL_ROOT: RootText = RootText { segment: 0, bus: 0 };
        let fixed = (self.mode == Mode::Vpci).then_some(VIRTUAL_ROOT);
        let has_root = move |entry: &Entry<H>| self.mode == Mode::Passthrough && !is_below(entry);
        let passed = self
            .entries()
            .enumerate()
            .filter(move |(index, entry)| {
                let same = |earlier: &Entry<H>| earlier.address.root() == entry.address.root();
                let mut before = self.entries().take(*index);
                has_root(entry) && !before.any(|earlier| same(earlier) && has_root(earlier))
            })
            .map(|(_, entry)| entry.address.root());
        fixed.into_iter().chain(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec::Vec;

    type Table = Topology<Vec<Place<u32>>>;

    fn empty(mode: Mode, room: usize) -> Table {
        Table::new(mode, std::vec![None; room])
    }

    fn host(bus: u8, dev: u8, func: u8) -> Sbdf {
        Sbdf::new(0, bus, dev, func).unwrap()
    }

    fn add(table: &mut Table, host: Sbdf) -> Sbdf {
        table.assign(host, false, false, 0, None).unwrap()
    }

    #[test]
    fn functions_of_one_device_share_a_slot_in_any_order() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut table = empty(Mode::Vpci, 64);
            add(&mut table, host(9, 0, 0));
            for func in order {
                let address = add(&mut table, host(3, 5, func));
                assert_eq!(address, Sbdf::new(0, 0, 1, func).unwrap());
                add(&mut table, host(4, func, 0));
            }
        }
    }

    #[test]
    fn lone_function_keeps_its_number() {
        let mut table = empty(Mode::Vpci, 64);
        assert_eq!(add(&mut table, host(3, 0, 3)).to_string(), "0000:00:00.3");
    }

    #[test]
    fn same_device_number_on_another_bus_or_segment_is_another_device() {
        let mut table = empty(Mode::Vpci, 64);
        add(&mut table, host(3, 0, 0));
        assert_eq!(add(&mut table, host(4, 0, 1)).devfn.dev(), 1);
        let other_segment = Sbdf::new(1, 3, 0, 1).unwrap();
        assert_eq!(add(&mut table, other_segment).devfn.dev(), 2);
    }

    #[test]
    fn virtual_function_zero_has_a_slot_of_its_own() {
        let mut table = empty(Mode::Vpci, 64);
        let vf = |table: &mut Table, func| {
            table
                .assign(host(3, 16, func), true, false, 0, None)
                .unwrap()
                .to_string()
        };
        assert_eq!(vf(&mut table, 1), "0000:00:00.1");
        assert_eq!(vf(&mut table, 0), "0000:00:01.0");
        assert_eq!(vf(&mut table, 2), "0000:00:00.2");
    }

    #[test]
    fn lowest_free_slot_is_reused() {
        let mut table = empty(Mode::Vpci, 64);
        for bus in 0..4 {
            add(&mut table, host(bus, 0, 0));
        }
        assert!(table.release(host(0, 1, 0)).is_some());
        assert!(table.release(host(0, 2, 0)).is_some());
        assert_eq!(add(&mut table, host(9, 0, 0)).devfn.dev(), 1);
        assert_eq!(add(&mut table, host(8, 0, 0)).devfn.dev(), 2);
    }

    #[test]
    fn device_33_is_refused_and_fits_after_a_release() {
        let mut table = empty(Mode::Vpci, 64);
        for bus in 0..32 {
            add(&mut table, host(bus, 0, 0));
        }
        let refused = table.assign(host(32, 0, 0), false, false, 0, None);
        assert_eq!(refused, Err(TopologyError::NoSlot));
        // One more function of a device that has a slot fits.
        assert_eq!(add(&mut table, host(5, 0, 1)).to_string(), "0000:00:05.1");
        assert_eq!(table.release(Sbdf::new(0, 0, 7, 0).unwrap()), Some(0));
        assert_eq!(add(&mut table, host(32, 0, 0)).devfn.dev(), 7);
    }

    #[test]
    fn full_table_refuses_and_changes_nothing() {
        let mut table = empty(Mode::Vpci, 2);
        for bus in 0..2 {
            assert!(table.assign(host(bus, 0, 0), false, false, 1, None).is_ok());
        }
        let refused = table.assign(host(2, 0, 0), false, false, 1, None);
        assert_eq!(refused, Err(TopologyError::NoRoom));
        assert_eq!(table.find(host(0, 2, 0)), None);
        assert_eq!(table.entries().count(), 2);
    }

    #[test]
    fn table_that_grows_keeps_its_functions_and_takes_more() {
        for mode in [Mode::Vpci, Mode::Passthrough] {
            let mut table = empty(mode, 2);
            let first = add(&mut table, host(0, 0, 0));
            let second = add(&mut table, host(1, 0, 0));
            assert_eq!(table.grow(std::vec![None; 2]).len(), 2);
            assert_eq!((table.room(), table.larger()), (2, Some(4)));
            assert_eq!(table.grow(std::vec![None; 4]).len(), 2);
            assert_eq!(table.room(), 4);
            let third = add(&mut table, host(2, 0, 0));
            for (address, bus) in [(first, 0), (second, 1), (third, 2)] {
                assert!(table.find(address).is_some());
                let entry = table.find_host(host(bus, 0, 0));
                assert_eq!(entry.map(Entry::address), Some(address));
            }
            assert_eq!(table.release(second), Some(0));
            assert_eq!(table.entries().count(), 2);
        }
    }

    #[test]
    fn no_more_functions_than_a_bus_holds() {
        let mut table = empty(Mode::Passthrough, 300);
        assert_eq!((table.room(), table.larger()), (Table::CAPACITY, None));
        assert_eq!(empty(Mode::Vpci, 0).larger(), Some(2));
        assert_eq!(empty(Mode::Vpci, 200).larger(), Some(Table::CAPACITY));
        for raw in 0..=u8::MAX {
            let devfn = Devfn::from_raw(raw);
            add(&mut table, host(1, devfn.dev(), devfn.func()));
        }
        let refused = table.assign(host(2, 0, 0), false, false, 0, None);
        assert_eq!(refused, Err(TopologyError::NoRoom));
    }

    #[test]
    fn wanted_slot_is_granted_only_when_free_and_not_splitting_a_device() {
        let mut table = empty(Mode::Vpci, 64);
        let mut ask = |host, slot| {
            let wanted = Devfn::new(slot, 0);
            let address = table.assign(host, false, false, 0, wanted).unwrap();
            address.devfn.dev()
        };
        assert_eq!(ask(host(3, 0, 0), 9), 9);
        assert_eq!(ask(host(4, 0, 0), 9), 0);
        assert_eq!(ask(host(3, 0, 1), 5), 9);
    }

    #[test]
    fn bridge_is_refused_on_the_virtual_bus_only() {
        let mut table = empty(Mode::Vpci, 64);
        let refused = table.assign(host(3, 0, 0), false, true, 0, None);
        assert_eq!(refused, Err(TopologyError::Bridge));
        let mut table = empty(Mode::Passthrough, 64);
        let passed = table.assign(host(3, 0, 0), false, true, 0, None);
        assert_eq!(passed, Ok(host(3, 0, 0)));
    }

    #[test]
    fn function_is_not_added_twice() {
        for mode in [Mode::Vpci, Mode::Passthrough] {
            let mut table = empty(mode, 64);
            add(&mut table, host(3, 0, 0));
            let refused = table.assign(host(3, 0, 0), false, false, 0, None);
            assert_eq!(refused, Err(TopologyError::AlreadyThere));
        }
    }

    #[test]
    fn virtual_bus_has_one_root_and_answers_on_it_only() {
        let mut table = empty(Mode::Vpci, 64);
        let roots = |table: &Table| {
            table
                .roots(|_| false)
                .map(|r| r.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(roots(&table), ["0000:00"]);
        add(&mut table, host(3, 0, 0));
        add(&mut table, host(4, 0, 0));
        assert_eq!(roots(&table), ["0000:00"]);
        assert!(table.find(host(0, 1, 0)).is_some());
        assert!(table.find(host(3, 0, 0)).is_none());
        assert!(table.find(Sbdf::new(1, 0, 1, 0).unwrap()).is_none());
        assert_eq!(
            table.find_host(host(4, 0, 0)).map(Entry::address),
            Some(host(0, 1, 0))
        );
    }

    #[test]
    fn what_lies_behind_a_bridge_of_the_same_guest_needs_no_root() {
        let mut table = empty(Mode::Passthrough, 64);
        let bridge = host(0, 5, 0);
        table.assign(bridge, false, true, 1, None).unwrap();
        add(&mut table, host(3, 0, 0));
        add(&mut table, host(4, 0, 0));
        add(&mut table, host(3, 1, 0));
        let roots = |table: &Table| {
            let behind = |entry: &Entry<u32>| {
                entry.host().bus == 3 && table.find_host(host(0, 5, 0)).is_some()
            };
            let roots: Vec<_> = table.roots(behind).map(|root| root.to_string()).collect();
            roots
        };
        assert_eq!(roots(&table), ["0000:00", "0000:04"]);
        assert!(table.release(bridge).is_some());
        assert_eq!(roots(&table), ["0000:03", "0000:04"]);
    }

    #[test]
    fn passthrough_keeps_addresses_and_lists_each_root_once() {
        let mut table = empty(Mode::Passthrough, 64);
        assert_eq!(table.roots(|_| false).count(), 0);
        let segment_1 = Sbdf::new(1, 3, 0, 0).unwrap();
        for function in [host(3, 0, 0), host(4, 1, 0), host(3, 0, 1), segment_1] {
            assert_eq!(add(&mut table, function), function);
            assert!(table.find(function).is_some());
        }
        let roots: Vec<_> = table
            .roots(|_| false)
            .map(|root| root.to_string())
            .collect();
        assert_eq!(roots, ["0000:03", "0000:04", "0001:03"]);
        assert!(table.release(host(4, 1, 0)).is_some());
        assert!(table.release(host(4, 1, 0)).is_none());
        assert_eq!(table.roots(|_| false).count(), 2);
    }
}
