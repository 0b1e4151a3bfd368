//! A core's thread: one turn after another over its host.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use hashbrown::HashSet;

use escapement_frontend::quic::{ConnKey, QuicEvent, QuicServer, ReadOutcome, StreamKey, WriteError};
use escapement_protocol::{ErrorCode, MonoNs, Now, ShardId};
use quinn_proto::Transmit;

use crate::core::{Core, ShardFailure};
use crate::cores::Seat;
use crate::disk_notice::DiskNotice;
use crate::io::{CoreIo, Drained, SEGMENT_COUNT_MAX, Wait};

/// Bytes read from one stream before the next has its turn.
const READ_SIZE_BYTES: usize = 256 * 1024;

/// Bytes read from one publisher's stream, where this turn reads a bounded number of them all.
const BOUNDED_READ_SIZE_BYTES: usize = 8 * 1024;

/// Datagrams received in one turn from which on the next waits a little, to have more of them at once.
const LOADED_DATAGRAM_COUNT: usize = 4;

/// How often a draining core looks whether it may end.
const DRAIN_POLL_MS: u64 = 5;

/// How a core's thread ended.
#[derive(Debug, Default)]
pub(crate) struct CoreEnd {
    /// Shards that stopped, and why.
    pub(crate) failures: Vec<(ShardId, ShardFailure)>,
    /// Whether the drain's time was over before everything had ended.
    pub(crate) cut_short: bool,
}

pub(crate) struct CoreThread {
    /// First, so that a panic tells the other cores before anything else is dropped.
    seat: Seat,
    core: Core<StreamKey>,
    quic: QuicServer,
    io: Box<dyn CoreIo>,
    disk_notice: DiskNotice,
    /// Streams with bytes that were not read yet.
    readable: VecDeque<StreamKey>,
    in_readable: HashSet<StreamKey>,
    /// A transmit that found no room.
    stuck: Option<Transmit>,
    datagram: Vec<u8>,
    drain_until: Option<MonoNs>,
    reported_quiet: bool,
    /// Shards of this core that have stopped, as far as the others were told.
    stopped: Vec<ShardId>,
}

impl CoreThread {
    pub(crate) fn new(seat: Seat, core: Core<StreamKey>, quic: QuicServer, io: Box<dyn CoreIo>) -> Self {
        CoreThread {
            seat,
            core,
            quic,
            io,
            disk_notice: DiskNotice::default(),
            readable: VecDeque::new(),
            in_readable: HashSet::new(),
            stuck: None,
            datagram: Vec::with_capacity(64 * 1024),
            drain_until: None,
            reported_quiet: false,
            stopped: Vec::new(),
        }
    }

    /// Turns until a drain has ended, no shard is left that serves, or the node ends at once.
    pub(crate) fn run(mut self) -> CoreEnd {
        let mut received = Drained::default();
        loop {
            let min_wait_us =
                if received.count >= LOADED_DATAGRAM_COUNT { self.seat.turn_wait_us } else { 0 };
            let wait = self.wait(&received);
            self.io.park(wait, min_wait_us);
            if self.seat.shared.is_ending() {
                return CoreEnd::default();
            }
            let now = self.io.now();
            received = self.turn(now);
            if let Some(end) = self.ended(now) {
                return end;
            }
        }
    }

    fn turn(&mut self, now: Now) -> Drained {
        let quic = &mut self.quic;
        let received = self.io.recv(&mut |datagram| {
            quic.datagram(now.mono, datagram.remote, datagram.local_ip, datagram.ecn, datagram.data);
        });
        quic.handle_timeouts(now.mono);
        let core = &mut self.core;
        let (disk_notice, shared) = (&mut self.disk_notice, &self.seat.shared);
        self.io.disk_completions(&mut |shard, completion| {
            if let Some(notice) = disk_notice.completed(shard, &completion) {
                shared.tell(notice);
            }
            core.disk_completed(now, shard, completion);
        });
        core.take_notices().for_each(|notice| shared.tell(notice));
        while let Some(mail) = self.seat.shared.mesh.receive(self.seat.index) {
            self.core.receive(now, mail);
        }
        while let Some(event) = self.quic.poll_event() {
            self.event(now, &event);
        }
        self.read(now);
        self.core.finish_turn(now);
        while let Some((shard, op)) = self.core.poll_disk_op() {
            self.disk_notice.submitted(shard, &op);
            self.io.disk_submit(shard, op);
        }
        for core in (0..self.seat.core_count).filter(|core| *core != self.seat.index) {
            let mail = self.core.take_mail(core);
            if !mail.is_empty() {
                self.seat.shared.mesh.send(core, mail);
            }
        }
        self.write();
        self.transmit(now);
        received
    }

    fn event(&mut self, now: Now, event: &QuicEvent) {
        match *event {
            QuicEvent::StreamOpened(stream) => {
                self.core.opened(stream);
                self.note_readable(stream);
            }
            QuicEvent::Readable(stream) => self.note_readable(stream),
            QuicEvent::StreamClosed { key, .. } => self.core.closed(now, key),
            QuicEvent::Closed { conn, .. } => self.core.closed_where(now, |stream| stream.conn == conn),
            // Pushes that found no room are offered again in every turn.
            QuicEvent::Connected { .. } | QuicEvent::Writable(_) => {}
        }
    }

    fn note_readable(&mut self, stream: StreamKey) {
        if self.in_readable.insert(stream) {
            self.readable.push_back(stream);
        }
    }

    /// Reads every stream that has bytes and may be read, each a bounded amount.
    fn read(&mut self, now: Now) {
        let crowded = self.seat.shared.mesh.is_crowded();
        let mut left = self.core.intake_size_bytes();
        let most = if left == usize::MAX { READ_SIZE_BYTES } else { BOUNDED_READ_SIZE_BYTES };
        // Publishers for whom nothing was left are the first of the next turn.
        let mut first = Vec::new();
        for _ in 0..self.readable.len() {
            let Some(stream) = self.readable.pop_front() else { break };
            let is_publisher = self.core.is_publisher(stream);
            if !self.core.may_read(stream) || (crowded && is_publisher) {
                self.readable.push_back(stream);
                continue;
            }
            if left == 0 && is_publisher {
                first.push(stream);
                continue;
            }
            let core = &mut self.core;
            let mut violation = None;
            let budget = if is_publisher { most.min(left) } else { READ_SIZE_BYTES };
            let outcome = self.quic.read(stream, budget, |bytes| {
                left = left.saturating_sub(if is_publisher { bytes.len() } else { 0 });
                if violation.is_none() {
                    violation = core.bytes(now, stream, bytes).err();
                }
            });
            if violation.is_none() && outcome == ReadOutcome::Finished {
                violation = self.core.finished(stream).err();
            }
            if let Some(violation) = violation {
                self.in_readable.remove(&stream);
                // The error frame, and what was answered before it, leave ahead of the close: QUIC sends nothing after.
                self.write();
                self.transmit(now);
                self.close(now, stream.conn, violation.code, &violation.message);
                continue;
            }
            match outcome {
                ReadOutcome::More => self.readable.push_back(stream),
                ReadOutcome::Blocked => {
                    self.in_readable.remove(&stream);
                }
                ReadOutcome::Finished | ReadOutcome::Reset(_) | ReadOutcome::Gone => {
                    self.in_readable.remove(&stream);
                    self.core.closed(now, stream);
                    self.quic.finish(stream);
                }
            }
        }
        first.into_iter().rev().for_each(|stream| self.readable.push_front(stream));
    }

    fn close(&mut self, now: Now, conn: ConnKey, code: ErrorCode, reason: &str) {
        self.quic.close(conn, u32::from(code as u16), reason.as_bytes());
        self.core.closed_where(now, |stream| stream.conn == conn);
    }

    fn write(&mut self) {
        let quic = &mut self.quic;
        let mut overrun = Vec::new();
        self.core.flush_replies(|stream, bytes| {
            // A peer that does not take its answers, of which it caused every one, is not worth more memory.
            if let Err(WriteError::QueueFull { .. }) = quic.write(stream, bytes) {
                overrun.push(stream);
            }
        });
        self.core.flush_pushes(|stream, frame| match quic.write(stream, frame.clone()) {
            Err(WriteError::QueueFull { .. }) => Err(frame),
            Ok(()) | Err(_) => Ok(()),
        });
        if !overrun.is_empty() {
            let now = self.io.now();
            for stream in overrun {
                self.close(now, stream.conn, ErrorCode::TooManyRequests, "answers are not being read");
            }
        }
    }

    fn transmit(&mut self, now: Now) {
        if let Some(transmit) = self.stuck.take()
            && !self.io.send(&transmit, &mut self.datagram)
        {
            self.stuck = Some(transmit);
            return;
        }
        let most = if self.io.segmentation() { SEGMENT_COUNT_MAX } else { 1 };
        while let Some(transmit) = self.quic.poll_transmit(now.mono, most, &mut self.datagram) {
            if !self.io.send(&transmit, &mut self.datagram) {
                self.stuck = Some(transmit);
                return;
            }
        }
    }

    fn wait(&self, received: &Drained) -> Wait {
        if received.more || self.stuck.is_some() {
            return Wait::Now;
        }
        // Streams held back become readable again by a disk completion or by mail, which end the wait.
        if self.readable.iter().any(|stream| self.core.may_read(*stream))
            && !self.seat.shared.mesh.is_crowded()
        {
            return Wait::Now;
        }
        let deadline = self.core.next_deadline();
        let wall = deadline.wall.map(|wall| self.seat.shared.clock.moment_of(wall));
        let drain = self.drain_until.map(|_| self.last_now().plus_ms(DRAIN_POLL_MS));
        let next = [wall, deadline.mono, self.quic.next_timeout(), drain].into_iter().flatten().min();
        next.map_or(Wait::Forever, Wait::Until)
    }

    fn last_now(&self) -> MonoNs {
        self.seat.shared.clock.now().mono
    }

    /// Whether this core's work is over: after a drain, or because no shard is left that serves.
    fn ended(&mut self, now: Now) -> Option<CoreEnd> {
        for (shard, failure) in self.core.failures() {
            if !self.stopped.contains(&shard) {
                self.stopped.push(shard);
                self.seat.shared.shard_stopped(shard, failure.to_string());
            }
        }
        if !self.seat.shared.is_draining() {
            return None;
        }
        let Some(until) = self.drain_until else {
            self.drain_until = Some(now.mono.plus_ms(self.seat.drain_timeout_ms));
            self.core.drain(now);
            return None;
        };
        let late = now.mono >= until;
        if !self.reported_quiet && (late || self.core.is_quiet()) {
            self.reported_quiet = true;
            self.seat.shared.busy_cores.fetch_sub(1, Ordering::AcqRel);
        }
        // The last core to become quiet may still have mail for this one; so all wait for all.
        let all_quiet = self.seat.shared.busy_cores.load(Ordering::Acquire) == 0;
        if !(late || all_quiet && self.core.is_synced()) {
            return None;
        }
        let cut_short = late && !self.core.is_quiet();
        self.quic.close_all(u32::from(ErrorCode::Unavailable as u16), b"the node has stopped");
        self.transmit(now);
        self.io.park(Wait::Now, 0);
        let failures = self.core.failures().map(|(shard, failure)| (shard, failure.clone())).collect();
        Some(CoreEnd { failures, cut_short })
    }
}
