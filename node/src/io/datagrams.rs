//! Datagrams by system calls, for hosts that have no ring of their own to hand them to.

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};

use quinn_proto::Transmit;

use super::message::{self, ControlBuf, NameBuf};
use super::sys::{self, RecvSlot};
use super::udp::{CoreSocket, SEND_SIZE_BYTES_MAX};
use super::{Datagram, Drained, IoStats};

/// Messages taken by one call.
const BATCH: usize = 16;
/// Calls made by one `recv`.
const BATCHES_MAX: usize = 4;
/// The largest message: 64 KiB, headers not counted.
const MESSAGE_SIZE_BYTES_MAX: usize = 65_536;

/// A core's socket with `recvmmsg` and `sendmsg`. Nothing here waits.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: CoreSocket,
    slots: Box<[RecvSlot; BATCH]>,
    segmentation: bool,
    blocked: bool,
}

impl Datagrams {
    pub(super) fn new(socket: CoreSocket) -> Self {
        let slots = std::array::from_fn(|_| RecvSlot {
            payload: vec![0; MESSAGE_SIZE_BYTES_MAX],
            name: NameBuf::new(),
            control: ControlBuf::new(),
            length: 0,
            flags: 0,
        });
        Datagrams { segmentation: socket.segmentation(), socket, slots: Box::new(slots), blocked: false }
    }

    /// Whether a send found no room since the last call of this: the next wait has to end when there is some.
    pub(super) fn take_blocked(&mut self) -> bool {
        mem::take(&mut self.blocked)
    }

    pub(super) fn segmentation(&self) -> bool {
        self.segmentation
    }

    pub(super) fn recv(&mut self, stats: &mut IoStats, each: &mut dyn FnMut(Datagram)) -> Drained {
        let mut drained = Drained::default();
        for _ in 0..BATCHES_MAX {
            // An error is a datagram's that is lost (say, an unreachable peer's): the next call sees the next.
            let count = sys::recv_messages(self.socket.as_fd(), &mut self.slots).unwrap_or(0);
            stats.recv_messages += count as u64;
            for slot in &self.slots[..count] {
                let whole = slot.flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) == 0;
                match message::decode_name(slot.name.bytes()) {
                    Some(remote) if whole => {
                        let received = message::decode_control(slot.control.bytes());
                        drained.count += message::split(remote, received, &slot.payload[..slot.length], each);
                    }
                    _ => stats.recv_dropped += 1,
                }
            }
            drained.more = count == BATCH;
            if !drained.more {
                break;
            }
        }
        stats.recv_datagrams += drained.count as u64;
        drained
    }

    pub(super) fn send(&mut self, stats: &mut IoStats, transmit: &Transmit, payload: &[u8]) -> bool {
        assert!(transmit.size <= SEND_SIZE_BYTES_MAX, "a send of {} bytes", transmit.size);
        let mut name = NameBuf::new();
        name.encode(transmit.destination);
        let mut control = ControlBuf::new();
        control.encode(transmit);
        match sys::send_message(self.socket.as_fd(), &name, &control, &payload[..transmit.size]) {
            Ok(()) => stats.sends += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.blocked = true;
                return false;
            }
            Err(error) => {
                stats.send_errors += 1;
                let cannot = error.raw_os_error().is_some_and(message::means_no_segmentation);
                self.segmentation &= !(cannot && message::is_segmented(transmit));
            }
        }
        true
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
