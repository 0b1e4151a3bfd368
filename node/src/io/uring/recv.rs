//! The receive side of a ring: buffers that the kernel fills, one message each, from one standing request.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::{BufRingEntry, RecvMsgOut};

use super::super::message::{self, CONTROL_SIZE_BYTES, NAME_SIZE_BYTES};
use super::super::{Datagram, IoStats};

/// Buffers lent to the kernel. A power of two.
const BUFFER_COUNT: u16 = 64;
/// Message header, name, control messages and the largest message, rounded up to whole cache lines.
const BUFFER_SIZE_BYTES: usize = (16 + NAME_SIZE_BYTES + CONTROL_SIZE_BYTES + 65_536).next_multiple_of(64);
/// The buffer group's number in the ring.
pub(super) const GROUP: u16 = 1;
/// The ring of buffers that the kernel takes from starts on a page.
const PAGE_SIZE_BYTES: usize = 4096;

/// The provided buffers, and those of them that hold a message which nobody has looked at.
///
/// A buffer is in exactly one of two hands: lent (its entry lies between the ring's head and tail) or arrived.
pub(super) struct RecvBuffers {
    entries: Region,
    buffers: Region,
    tail: u16,
    arrived: VecDeque<Arrived>,
    /// What the standing request shows the kernel: how much room each buffer leaves for name and control messages.
    header: Box<libc::msghdr>,
}

struct Arrived {
    buffer: u16,
    length: usize,
}

impl RecvBuffers {
    /// Allocates the buffers and lends all of them to `ring`.
    ///
    /// # Safety
    /// The value must outlive every receive request of the ring: the kernel writes into it until then.
    pub(super) unsafe fn register(ring: &IoUring) -> io::Result<Self> {
        let entry_bytes = usize::from(BUFFER_COUNT) * size_of::<BufRingEntry>();
        // SAFETY: all-zero is a valid msghdr.
        let mut header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        header.msg_namelen = NAME_SIZE_BYTES as libc::socklen_t;
        header.msg_controllen = CONTROL_SIZE_BYTES as _;
        let mut buffers = RecvBuffers {
            entries: Region::new(entry_bytes),
            buffers: Region::new(usize::from(BUFFER_COUNT) * BUFFER_SIZE_BYTES),
            tail: 0,
            arrived: VecDeque::with_capacity(usize::from(BUFFER_COUNT)),
            header,
        };
        // SAFETY: the entries are page-aligned, zeroed, large enough for BUFFER_COUNT and, by this function's
        // contract, live as long as the ring uses them.
        unsafe {
            let at = buffers.entries.start.as_ptr() as u64;
            ring.submitter().register_buf_ring_with_flags(at, BUFFER_COUNT, GROUP, 0)?;
        }
        (0..BUFFER_COUNT).for_each(|buffer| buffers.lend(buffer));
        Ok(buffers)
    }

    /// The request's message header.
    pub(super) fn header(&self) -> *const libc::msghdr {
        &raw const *self.header
    }

    /// Whether messages wait for [`RecvBuffers::hand_over`].
    pub(super) fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Whether the kernel has a buffer to fill.
    pub(super) fn has_lent(&self) -> bool {
        self.arrived.len() < usize::from(BUFFER_COUNT)
    }

    /// Takes a buffer back that a completion named.
    pub(super) fn arrive(&mut self, buffer: u16, length: usize) {
        assert!(buffer < BUFFER_COUNT && length <= BUFFER_SIZE_BYTES, "the kernel fills what it was lent");
        self.arrived.push_back(Arrived { buffer, length });
    }

    /// Hands over every datagram of every message that has arrived, and lends the buffers again; how many.
    pub(super) fn hand_over(&mut self, stats: &mut IoStats, each: &mut dyn FnMut(Datagram)) -> usize {
        let mut count = 0;
        while let Some(Arrived { buffer, length }) = self.arrived.pop_front() {
            stats.recv_messages += 1;
            // SAFETY: an arrived buffer is not the kernel's; `arrive` checked number and length; every byte of a
            // region is initialised. The slice ends before the buffer is lent again.
            let bytes = unsafe { std::slice::from_raw_parts(self.at(buffer).as_ptr(), length) };
            match RecvMsgOut::parse(bytes, &self.header) {
                Ok(message) if !message.is_payload_truncated() && !message.is_control_data_truncated() => {
                    match message::decode_name(message.name_data()) {
                        Some(remote) => {
                            let received = message::decode_control(message.control_data());
                            count += message::split(remote, received, message.payload_data(), each);
                        }
                        None => stats.recv_dropped += 1,
                    }
                }
                _ => stats.recv_dropped += 1,
            }
            self.lend(buffer);
        }
        count
    }

    /// Gives up the memory, for a kernel that may still write to it.
    pub(super) fn leak(&mut self) {
        self.entries.leaked = true;
        self.buffers.leaked = true;
        // SAFETY: all-zero is a valid msghdr.
        let header = Box::new(unsafe { std::mem::zeroed() });
        std::mem::forget(std::mem::replace(&mut self.header, header));
    }

    fn at(&self, buffer: u16) -> NonNull<u8> {
        debug_assert!(buffer < BUFFER_COUNT);
        // SAFETY: the region holds BUFFER_COUNT buffers of this size, and `buffer` is one of them.
        unsafe { self.buffers.start.add(usize::from(buffer) * BUFFER_SIZE_BYTES) }
    }

    fn lend(&mut self, buffer: u16) {
        let base = self.entries.start.as_ptr().cast::<BufRingEntry>();
        let index = usize::from(self.tail & (BUFFER_COUNT - 1));
        // SAFETY: `index` lies inside the ring. The entry is outside of head..tail, so that the kernel does not
        // read it before the store below; the tail shares its bytes with a part of entry 0 that set_* leave alone.
        unsafe {
            let entry = &mut *base.add(index);
            entry.set_addr(self.at(buffer).as_ptr() as u64);
            entry.set_len(BUFFER_SIZE_BYTES as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail is an aligned u16 of the live region that both sides only access atomically. Release:
        // the kernel, which acquires it, sees the entry.
        unsafe {
            let tail = BufRingEntry::tail(base).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

/// Zeroed, page-aligned memory that the kernel writes into; never seen as a slice as a whole.
struct Region {
    start: NonNull<u8>,
    layout: Layout,
    leaked: bool,
}

impl Region {
    fn new(size_bytes: usize) -> Self {
        let layout = Layout::from_size_align(size_bytes, PAGE_SIZE_BYTES).expect("a few MiB");
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) });
        Region { start: start.unwrap_or_else(|| handle_alloc_error(layout)), layout, leaked: false }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if !self.leaked {
            // SAFETY: allocated in `new` with this layout, and freed only here.
            unsafe { dealloc(self.start.as_ptr(), self.layout) };
        }
    }
}
