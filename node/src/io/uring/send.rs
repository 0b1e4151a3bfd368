//! The send side of a ring: a bounded pool of messages in flight, which bounds their bytes as well.

use std::mem;
use std::ptr;

use quinn_proto::Transmit;

use super::super::message::{self, ControlBuf, NameBuf};

/// Sends in flight at once: at most 4 MiB of payload.
pub(super) const SLOT_COUNT: usize = 64;

/// Slots stay where they are while the kernel reads them: they are made once, and only a free one is changed.
pub(super) struct SendSlots {
    slots: Box<[Slot]>,
    free: Vec<u16>,
}

struct Slot {
    header: libc::msghdr,
    part: libc::iovec,
    name: NameBuf,
    control: ControlBuf,
    payload: Vec<u8>,
    segmented: bool,
}

impl SendSlots {
    pub(super) fn new() -> Self {
        let slot = |_| Slot {
            // SAFETY: all-zero is a valid msghdr.
            header: unsafe { mem::zeroed() },
            part: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
            name: NameBuf::new(),
            control: ControlBuf::new(),
            payload: Vec::new(),
            segmented: false,
        };
        SendSlots { slots: (0..SLOT_COUNT).map(slot).collect(), free: (0..SLOT_COUNT as u16).rev().collect() }
    }

    /// How many are in flight.
    pub(super) fn in_flight_count(&self) -> usize {
        SLOT_COUNT - self.free.len()
    }

    /// Fills a free slot, exchanging the payload's vector for the slot's. The message stays valid and unmoved
    /// until [`SendSlots::release`].
    pub(super) fn fill(
        &mut self,
        transmit: &Transmit,
        payload: &mut Vec<u8>,
    ) -> Option<(u16, *const libc::msghdr)> {
        assert!(payload.len() >= transmit.size, "a transmit of {} bytes in {}", transmit.size, payload.len());
        let index = self.free.pop()?;
        let slot = &mut self.slots[usize::from(index)];
        mem::swap(&mut slot.payload, payload);
        payload.clear();
        payload.reserve(slot.payload.capacity());
        slot.name.encode(transmit.destination);
        slot.control.encode(transmit);
        slot.segmented = message::is_segmented(transmit);
        slot.part = libc::iovec { iov_base: slot.payload.as_mut_ptr().cast(), iov_len: transmit.size };
        slot.header.msg_name = slot.name.space().as_mut_ptr().cast();
        slot.header.msg_namelen = slot.name.bytes().len() as libc::socklen_t;
        slot.header.msg_iov = &raw mut slot.part;
        slot.header.msg_iovlen = 1;
        slot.header.msg_controllen = slot.control.bytes().len() as _;
        slot.header.msg_control = match slot.header.msg_controllen {
            0 => ptr::null_mut(),
            _ => slot.control.space().as_mut_ptr().cast(),
        };
        Some((index, &raw const slot.header))
    }

    /// Gives up the memory of every slot, for a kernel that may still read it.
    pub(super) fn leak(&mut self) {
        mem::forget(mem::take(&mut self.slots));
    }

    /// Takes a slot back whose send has completed; whether it was segmented.
    pub(super) fn release(&mut self, index: u16) -> bool {
        self.free.push(index);
        assert!(self.free.len() <= SLOT_COUNT, "a send completes once");
        self.slots[usize::from(index)].segmented
    }
}
