//! The host without `io_uring`: `ppoll` for waiting, `recvmmsg` and `sendmsg` for datagrams, threads for the disk.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;

use escapement_protocol::{Now, ShardId};
use escapement_wal::{DiskCompletion, DiskOp};
use quinn_proto::Transmit;

use super::disk::{DiskThreads, ShardDirs};
use super::message::{self, ControlBuf, NameBuf};
use super::sys::{self, Ready, RecvSlot};
use super::udp::{CoreSocket, SEND_SIZE_BYTES_MAX};
use super::waker::{Parker, Waker};
use super::{
    CoreIo, CoreSetup, Datagram, Drained, HostError, HostKind, IoStats, MIN_WAIT_US_MAX, NodeClock, Wait,
};

/// Messages taken by one call.
const BATCH: usize = 16;
/// Calls made by one `recv`.
const BATCHES_MAX: usize = 4;
/// The largest message: 64 KiB, headers not counted.
const MESSAGE_SIZE_BYTES_MAX: usize = 65_536;

/// See the module.
pub(super) struct PollHost {
    socket: CoreSocket,
    clock: Arc<NodeClock>,
    parker: Parker,
    disk: DiskThreads,
    slots: Box<[RecvSlot; BATCH]>,
    segmentation: bool,
    /// A send found no room: the next wait ends when there is some.
    blocked: bool,
    stats: IoStats,
}

impl PollHost {
    pub(super) fn open(setup: CoreSetup) -> Result<Self, HostError> {
        let failed = |step| move |source| HostError { kind: HostKind::Poll, step, source };
        let parker = Parker::new().map_err(failed("making an eventfd"))?;
        let disk = DiskThreads::start(&ShardDirs::new(setup.shard_dirs), &parker.waker())
            .map_err(failed("starting disk threads"))?;
        let slots = std::array::from_fn(|_| RecvSlot {
            payload: vec![0; MESSAGE_SIZE_BYTES_MAX],
            name: NameBuf::new(),
            control: ControlBuf::new(),
            length: 0,
            flags: 0,
        });
        Ok(PollHost {
            segmentation: setup.socket.segmentation(),
            socket: setup.socket,
            clock: setup.clock,
            parker,
            disk,
            slots: Box::new(slots),
            blocked: false,
            stats: IoStats::default(),
        })
    }
}

impl CoreIo for PollHost {
    fn park(&mut self, until: Wait, min_wait_us: u32) {
        assert!(min_wait_us <= MIN_WAIT_US_MAX, "min_wait_us {min_wait_us}");
        let start = self.clock.now().mono;
        let wait_ns = until.ns_from(start);
        // With nothing to wait for, the calls that follow find out themselves what is there.
        if wait_ns == 0 {
            self.parker.end();
            return;
        }
        if self.parker.begin() {
            let collect_ns = u64::from(min_wait_us) * 1_000;
            self.stats.enters += 1;
            let socket = (
                self.socket.as_fd(),
                if mem::take(&mut self.blocked) { Ready::ReadOrWrite } else { Ready::Read },
            );
            let [_, woken] = sys::wait_ready([socket, (self.parker.event(), Ready::Read)], wait_ns);
            let passed_ns = self.clock.now().mono.since(start);
            if passed_ns < collect_ns.min(wait_ns) {
                self.stats.enters += 1;
                sys::wait_ready([], collect_ns.min(wait_ns) - passed_ns);
            }
            if woken {
                sys::eventfd_drain(self.parker.event());
            }
        }
        self.parker.end();
    }

    fn recv(&mut self, each: &mut dyn FnMut(Datagram)) -> Drained {
        let mut drained = Drained::default();
        for _ in 0..BATCHES_MAX {
            // An error is a datagram's that is lost (say, an unreachable peer's): the next call sees the next.
            let count = sys::recv_messages(self.socket.as_fd(), &mut self.slots).unwrap_or(0);
            self.stats.recv_messages += count as u64;
            for slot in &self.slots[..count] {
                let whole = slot.flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) == 0;
                match message::decode_name(slot.name.bytes()) {
                    Some(remote) if whole => {
                        let received = message::decode_control(slot.control.bytes());
                        drained.count += message::split(remote, received, &slot.payload[..slot.length], each);
                    }
                    _ => self.stats.recv_dropped += 1,
                }
            }
            drained.more = count == BATCH;
            if !drained.more {
                break;
            }
        }
        self.stats.recv_datagrams += drained.count as u64;
        drained
    }

    fn send(&mut self, transmit: &Transmit, payload: &mut Vec<u8>) -> bool {
        assert!(transmit.size <= SEND_SIZE_BYTES_MAX, "a send of {} bytes", transmit.size);
        let mut name = NameBuf::new();
        name.encode(transmit.destination);
        let mut control = ControlBuf::new();
        control.encode(transmit);
        match sys::send_message(self.socket.as_fd(), &name, &control, &payload[..transmit.size]) {
            Ok(()) => self.stats.sends += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.blocked = true;
                return false;
            }
            Err(error) => {
                self.stats.send_errors += 1;
                let cannot = error.raw_os_error().is_some_and(message::means_no_segmentation);
                self.segmentation &= !(cannot && message::is_segmented(transmit));
            }
        }
        true
    }

    fn segmentation(&self) -> bool {
        self.segmentation
    }

    fn disk_submit(&mut self, shard: ShardId, op: DiskOp) {
        self.disk.submit(shard, op);
    }

    fn disk_completions(&mut self, each: &mut dyn FnMut(ShardId, DiskCompletion)) {
        self.disk.completions(each);
    }

    fn waker(&self) -> Waker {
        self.parker.waker()
    }

    fn now(&mut self) -> Now {
        self.clock.now()
    }

    fn stats(&self) -> IoStats {
        self.stats
    }
}
