//! The host without `io_uring`: `ppoll` for waiting, `recvmmsg` and `sendmsg` for datagrams, threads for the disk.

use std::os::fd::AsFd;
use std::sync::Arc;

use escapement_protocol::{Now, ShardId};
use escapement_wal::{DiskCompletion, DiskOp};
use quinn_proto::Transmit;

use super::datagrams::Datagrams;
use super::disk::{DiskThreads, ShardDirs};
use super::sys::{self, Ready};
use super::waker::{Parker, Waker};
use super::{
    CoreIo, CoreSetup, Datagram, Drained, HostError, HostKind, IoStats, MIN_WAIT_US_MAX, NodeClock, Wait,
};

/// See the module.
pub(super) struct PollHost {
    datagrams: Datagrams,
    clock: Arc<NodeClock>,
    parker: Parker,
    disk: DiskThreads,
    stats: IoStats,
}

impl PollHost {
    pub(super) fn open(setup: CoreSetup) -> Result<Self, HostError> {
        let failed = |step| move |source| HostError { kind: HostKind::Poll, step, source };
        let parker = Parker::new().map_err(failed("making an eventfd"))?;
        let disk = DiskThreads::start(ShardDirs::new(setup.shard_dirs), &parker.waker())
            .map_err(failed("starting disk threads"))?;
        Ok(PollHost {
            datagrams: Datagrams::new(setup.socket),
            clock: setup.clock,
            parker,
            disk,
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
            let ready = if self.datagrams.take_blocked() { Ready::ReadOrWrite } else { Ready::Read };
            let socket = (self.datagrams.as_fd(), ready);
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
        self.datagrams.recv(&mut self.stats, each)
    }

    fn send(&mut self, transmit: &Transmit, payload: &mut Vec<u8>) -> bool {
        self.datagrams.send(&mut self.stats, transmit, payload)
    }

    fn segmentation(&self) -> bool {
        self.datagrams.segmentation()
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
