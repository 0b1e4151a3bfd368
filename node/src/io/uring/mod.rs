//! The default host: one `io_uring` for datagrams, log files, waiting and being woken.
//!
//! The ring belongs to its thread (`SINGLE_ISSUER`) and does its work when the thread asks (`DEFER_TASKRUN`), so
//! nothing interrupts a turn. One receive request stands for all datagrams; if it ends, because the buffers ran
//! out or the kernel chose so, the next `park` starts it again.
//!
//! Memory that requests in flight point to: receive buffers (`recv`), send slots (`send`), buffers of log
//! operations and the word that a wake is read into (here). None of it is freed or moved before the requests have
//! completed; dropping the host cancels them and waits, and leaks the memory if even that fails.

mod recv;
mod send;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use escapement_protocol::{Now, ShardId};
use escapement_wal::{AlignedBuf, DiskCompletion, DiskOp, OpId};
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use quinn_proto::Transmit;
use slab::Slab;

use self::recv::RecvBuffers;
use self::send::SendSlots;
use super::disk::{DiskThread, ShardDirs, ShardFiles};
use super::message;
use super::udp::{CoreSocket, SEND_SIZE_BYTES_MAX};
use super::waker::{Parker, Waker};
use super::{
    CoreIo, CoreSetup, Datagram, Drained, HostError, HostKind, IoStats, MIN_WAIT_US_MAX, NodeClock, Wait,
};

const SUBMISSION_COUNT: u32 = 256;
/// More than receive buffers, send slots and log operations can complete between two turns. What is beyond, the
/// kernel keeps aside (`NODROP`) and hands over later.
const COMPLETION_COUNT: u32 = 1024;
/// With a minimum wait, completions that end it before its time.
const COLLECT_COUNT_MAX: usize = 64;
/// How long a dropped host waits for its requests, in ms, and in what steps, in ns.
const QUIESCE_MS_MAX: u64 = 5_000;
const QUIESCE_STEP_NS: u64 = 50_000_000;

/// See the module.
pub(super) struct UringHost {
    ring: IoUring,
    socket: CoreSocket,
    clock: Arc<NodeClock>,
    parker: Parker,
    recv: RecvBuffers,
    recv_standing: bool,
    sends: SendSlots,
    event_word: Box<u64>,
    event_standing: bool,
    files: ShardFiles,
    disk_ops: Slab<DiskRequest>,
    finished: Vec<(ShardId, DiskCompletion)>,
    creator: DiskThread,
    /// Requests that found the submission queue full.
    waiting: VecDeque<squeue::Entry>,
    min_wait: bool,
    segmentation: bool,
    stats: IoStats,
}

/// A log operation in flight. The kernel uses `buf`'s bytes, which stay where they are when the value moves.
struct DiskRequest {
    shard: ShardId,
    id: OpId,
    buf: AlignedBuf,
    write: bool,
    /// Keeps the file open, and the descriptor from naming another one before the request is submitted.
    _file: Arc<File>,
}

/// What a completion belongs to: the kind in the upper half of its user data, which one of them in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Recv,
    Event,
    Send(u16),
    Disk(u32),
    Cancel,
}

impl Tag {
    fn pack(self) -> u64 {
        let (kind, index) = match self {
            Tag::Recv => (1, 0),
            Tag::Event => (2, 0),
            Tag::Send(index) => (3, u32::from(index)),
            Tag::Disk(index) => (4, index),
            Tag::Cancel => (5, 0),
        };
        kind << 32 | u64::from(index)
    }

    fn unpack(data: u64) -> Tag {
        let index = data as u32;
        match data >> 32 {
            1 => Tag::Recv,
            2 => Tag::Event,
            3 => Tag::Send(index as u16),
            4 => Tag::Disk(index),
            5 => Tag::Cancel,
            kind => unreachable!("no request of this host has kind {kind}"),
        }
    }
}

fn build_ring() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(COMPLETION_COUNT)
        .build(SUBMISSION_COUNT)
}

/// Whether this machine lets us have what the host is made of: a line that says so, or what is missing.
///
/// A kernel that takes the ring's flags (6.1) has multishot receive (6.0) and buffer rings (5.19) too; that the
/// latter may be registered is tried, because memory limits can forbid it.
pub(super) fn probe() -> Result<String, String> {
    let ring = build_ring().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has no io_uring".to_owned(),
        Some(libc::EPERM | libc::EACCES) => {
            match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
                Ok(setting) if setting.trim() != "0" => {
                    format!("io_uring is forbidden (kernel.io_uring_disabled = {})", setting.trim())
                }
                _ => "io_uring is forbidden to this process".to_owned(),
            }
        }
        Some(libc::EINVAL) => "the kernel's io_uring is older than Linux 6.1".to_owned(),
        _ => format!("no io_uring can be made: {error}"),
    })?;
    let parameters = ring.params();
    if !(parameters.is_feature_ext_arg() && parameters.is_feature_nodrop()) {
        return Err("the kernel's io_uring lacks waits with a deadline".to_owned());
    }
    // SAFETY: the ring makes no receive request, and is dropped before the buffers.
    let buffers = unsafe { RecvBuffers::register(&ring) };
    let collects = parameters.is_feature_min_timeout();
    drop(ring);
    buffers.map_err(|error| format!("no receive buffers can be registered: {error}"))?;
    Ok(format!("host uring, {} collecting waits", if collects { "with" } else { "without" }))
}

impl UringHost {
    pub(super) fn open(setup: CoreSetup) -> Result<Self, HostError> {
        let failed = |step| move |source| HostError { kind: HostKind::Uring, step, source };
        let ring = build_ring().map_err(failed("making a ring"))?;
        // SAFETY: the host keeps the buffers until every request has completed, see `Drop`.
        let recv = unsafe { RecvBuffers::register(&ring) }.map_err(failed("registering receive buffers"))?;
        let parker = Parker::new().map_err(failed("making an eventfd"))?;
        let files = ShardFiles::new(ShardDirs::new(setup.shard_dirs));
        let creator = DiskThread::start("log-create", &files, parker.waker())
            .map_err(failed("starting a disk thread"))?;
        Ok(UringHost {
            min_wait: ring.params().is_feature_min_timeout(),
            ring,
            segmentation: setup.socket.segmentation(),
            socket: setup.socket,
            clock: setup.clock,
            parker,
            recv,
            recv_standing: false,
            sends: SendSlots::new(),
            event_word: Box::new(0),
            event_standing: false,
            files,
            disk_ops: Slab::new(),
            finished: Vec::new(),
            creator,
            waiting: VecDeque::new(),
            stats: IoStats::default(),
        })
    }

    /// Queues a request.
    ///
    /// # Safety
    /// What the entry points to must stay valid and unmoved until its completion is reaped.
    unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: the caller's promise is the one that is asked for.
        let pushed = self.waiting.is_empty() && unsafe { self.ring.submission().push(&entry) }.is_ok();
        if !pushed {
            self.waiting.push_back(entry);
        }
    }

    /// Starts the standing requests that are not in flight.
    fn stand(&mut self) {
        if !self.recv_standing && self.recv.has_lent() {
            let fd = Fd(self.socket.as_fd().as_raw_fd());
            let entry = opcode::RecvMsgMulti::new(fd, self.recv.header(), recv::GROUP).build();
            // SAFETY: header and buffers are the host's, boxed, and kept until the request has ended.
            unsafe { self.push(entry.user_data(Tag::Recv.pack())) };
            self.recv_standing = true;
        }
        if !self.event_standing {
            let fd = Fd(self.parker.event().as_raw_fd());
            let entry = opcode::Read::new(fd, (&raw mut *self.event_word).cast(), 8).build();
            // SAFETY: the word is boxed, touched by nobody else, and kept until the request has ended.
            unsafe { self.push(entry.user_data(Tag::Event.pack())) };
            self.event_standing = true;
        }
    }

    /// Submits everything queued and lets the kernel do deferred work, without waiting.
    fn submit(&mut self) {
        loop {
            while let Some(entry) = self.waiting.front() {
                // SAFETY: it was put aside under the contract of `push`, which holds until its completion.
                if unsafe { self.ring.submission().push(entry) }.is_err() {
                    break;
                }
                self.waiting.pop_front();
            }
            let queue = self.ring.submission();
            let queued = !queue.is_empty();
            if !queued && !queue.taskrun() && !queue.cq_overflow() {
                return;
            }
            drop(queue);
            self.stats.enters += 1;
            let submitted = self.ring.submit();
            // The flag that asks for another enter can stay up with nothing behind it.
            let fruitless = self.reap() == 0 && !queued;
            if !survives(submitted) || fruitless {
                return;
            }
        }
    }

    /// Submits and waits for an arrival; `collect_us` gathers more of them.
    fn wait(&mut self, wait_ns: u64, collect_us: u32) {
        let timeout = Timespec::new().sec(wait_ns / 1_000_000_000).nsec((wait_ns % 1_000_000_000) as u32);
        let mut args = SubmitArgs::new().timespec(&timeout);
        let mut count = 1;
        if self.min_wait && collect_us > 0 {
            args = args.min_wait_usec(collect_us);
            count = COLLECT_COUNT_MAX;
        }
        self.stats.enters += 1;
        survives(self.ring.submitter().submit_with_args(count, &args));
    }

    /// Takes what has completed; how many.
    fn reap(&mut self) -> usize {
        let mut count = 0;
        loop {
            // Copied out: handling one may need the ring.
            let mut space = [const { mem::MaybeUninit::uninit() }; 64];
            let entries = self.ring.completion().fill(&mut space);
            if entries.is_empty() {
                return count;
            }
            count += entries.len();
            for entry in entries {
                self.complete(Tag::unpack(entry.user_data()), entry.result(), entry.flags());
            }
        }
    }

    fn complete(&mut self, tag: Tag, result: i32, flags: u32) {
        match tag {
            Tag::Recv => {
                self.recv_standing &= cqueue::more(flags);
                match (usize::try_from(result), cqueue::buffer_select(flags)) {
                    (Ok(length), Some(buffer)) => self.recv.arrive(buffer, length),
                    _ => self.recv_ended(-result),
                }
            }
            Tag::Event => {
                let ended = result == 8 || matches!(-result, libc::EINTR | libc::ECANCELED | libc::EAGAIN);
                assert!(ended, "the ring cannot be woken: {}", io::Error::from_raw_os_error(-result));
                self.event_standing = false;
            }
            Tag::Send(index) => {
                let segmented = self.sends.release(index);
                if result >= 0 {
                    self.stats.sends += 1;
                } else {
                    self.stats.send_errors += 1;
                    self.segmentation &= !(segmented && message::means_no_segmentation(-result));
                }
            }
            Tag::Disk(index) => {
                let DiskRequest { shard, id, buf, write, .. } = self.disk_ops.remove(index as usize);
                let result = match usize::try_from(result) {
                    Err(_) => Err(io::Error::from_raw_os_error(-result)),
                    Ok(count) if count < buf.len() && write => Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) if count < buf.len() => Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => Ok(()),
                };
                self.finished.push((shard, DiskCompletion { id, result, buf: Some(buf) }));
            }
            Tag::Cancel => {}
        }
    }

    /// A receive request ended, or gave up a message: `stand` starts the next one.
    fn recv_ended(&mut self, error: i32) {
        match error {
            libc::ENOBUFS => self.stats.recv_starved += 1,
            libc::EBADF | libc::EINVAL | libc::EFAULT | libc::ENOTSOCK | libc::EOPNOTSUPP => {
                panic!("the ring cannot receive: {}", io::Error::from_raw_os_error(error))
            }
            // Interrupted, cancelled, or an error that the network left on the socket.
            _ => {}
        }
    }

    /// Waits until `idle` says so, or too long; whether it did.
    fn quiesce(&mut self, idle: impl Fn(&Self) -> bool) -> bool {
        let end = self.clock.now().mono.plus_ms(QUIESCE_MS_MAX);
        loop {
            self.submit();
            if idle(self) || self.clock.now().mono >= end {
                return idle(self);
            }
            self.wait(QUIESCE_STEP_NS, 0);
            self.reap();
        }
    }
}

/// Whether an enter did what it should; one that was interrupted, ran out of time or found the kernel short of
/// resources is tried again by the next turn.
fn survives(entered: io::Result<usize>) -> bool {
    match entered {
        Ok(_) => true,
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => false,
            _ => panic!("the ring has failed: {error}"),
        },
    }
}

impl CoreIo for UringHost {
    fn park(&mut self, until: Wait, min_wait_us: u32) {
        assert!(min_wait_us <= MIN_WAIT_US_MAX, "min_wait_us {min_wait_us}");
        self.stand();
        let wait_ns = until.ns_from(self.clock.now().mono);
        let arrived = self.recv.has_arrived() || !self.finished.is_empty() || !self.waiting.is_empty();
        if wait_ns > 0 && !arrived && self.ring.completion().is_empty() && self.parker.begin() {
            let collect_us = u64::from(min_wait_us).min(wait_ns / 1_000) as u32;
            self.wait(wait_ns, collect_us);
            self.reap();
        } else {
            self.submit();
            self.reap();
        }
        self.parker.end();
    }

    fn recv(&mut self, each: &mut dyn FnMut(Datagram)) -> Drained {
        // Bounded by the number of buffers; if it was all of them, or the request ended, more may wait.
        let count = self.recv.hand_over(&mut self.stats, each);
        self.stats.recv_datagrams += count as u64;
        Drained { count, more: count > 0 && !self.recv_standing }
    }

    fn send(&mut self, transmit: &Transmit, payload: &mut Vec<u8>) -> bool {
        assert!(transmit.size <= SEND_SIZE_BYTES_MAX, "a send of {} bytes", transmit.size);
        let Some((index, header)) = self.sends.fill(transmit, payload) else { return false };
        let entry = opcode::SendMsg::new(Fd(self.socket.as_fd().as_raw_fd()), header).build();
        // SAFETY: the slot keeps the message unmoved until the completion releases it.
        unsafe { self.push(entry.user_data(Tag::Send(index).pack())) };
        true
    }

    fn segmentation(&self) -> bool {
        self.segmentation
    }

    fn disk_submit(&mut self, shard: ShardId, op: DiskOp) {
        let (id, file, offset, mut buf, write) = match op {
            DiskOp::Write { id, file, offset, buf } => (id, file, offset, buf, true),
            DiskOp::Read { id, file, offset, buf } => (id, file, offset, buf, false),
            DiskOp::Create { .. } | DiskOp::Remove { .. } => return self.creator.submit(shard, op),
        };
        let file = match self.files.file(shard, file) {
            Ok(file) => file,
            Err(error) => {
                let completion = DiskCompletion { id, result: Err(error), buf: Some(buf) };
                self.finished.push((shard, completion));
                return;
            }
        };
        let fd = Fd(file.as_raw_fd());
        let length = u32::try_from(buf.len()).expect("an operation is shorter than 4 GiB");
        let entry = if write {
            opcode::Write::new(fd, buf.as_ptr(), length).offset(offset).build()
        } else {
            opcode::Read::new(fd, buf.as_mut_ptr(), length).offset(offset).build()
        };
        let index = self.disk_ops.insert(DiskRequest { shard, id, buf, write, _file: file }) as u32;
        // SAFETY: the buffer's bytes stay where they are until the completion takes the request out of the slab.
        unsafe { self.push(entry.user_data(Tag::Disk(index).pack())) };
    }

    fn disk_completions(&mut self, each: &mut dyn FnMut(ShardId, DiskCompletion)) {
        for (shard, completion) in self.finished.drain(..) {
            each(shard, completion);
        }
        self.creator.completions(each);
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

impl Drop for UringHost {
    fn drop(&mut self) {
        // What was handed over is carried out; a cancellation would catch log writes that a kernel worker holds.
        self.quiesce(|host| host.sends.in_flight_count() == 0 && host.disk_ops.is_empty());
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
        // SAFETY: a cancellation points to nothing.
        unsafe { self.push(cancel.user_data(Tag::Cancel.pack())) };
        let idle = self.quiesce(|host| {
            !(host.recv_standing || host.event_standing)
                && host.sends.in_flight_count() == 0
                && host.disk_ops.is_empty()
        });
        if !idle {
            // The kernel may still write to this memory: better lost than reused.
            self.recv.leak();
            self.sends.leak();
            mem::forget(mem::take(&mut self.event_word));
            mem::forget(mem::take(&mut self.disk_ops));
        }
    }
}
