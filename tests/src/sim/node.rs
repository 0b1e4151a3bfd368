//! The node: cores driven turn by turn as `escapement_node`'s own loop drives them, on simulated disks, streams and mesh.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use escapement_node::core::{Core, Mail};
use escapement_node::io::{PARK_NS_MAX, WallClock};
use escapement_protocol::frame::Frame;
use escapement_protocol::{FrameDecoder, Now, ShardId};
use escapement_wal::{DiskCompletion, DiskOp, FileId, ShardLog};

use super::bug::Bug;
use super::judge::Leaving;
use super::net::{Mark, connection_of, index_of, stream_of};
use super::quic::NodeQuic;
use super::world::{Happening, NS_PER_MS, Who, World};

/// How long a drain may take.
const DRAIN_NS_MAX: u64 = 3_000 * NS_PER_MS;

/// From so long on a standstill makes missed what became due in it.
const STANDSTILL_MS: u64 = 5_000;

/// Longest time from mail's arrival to the turn that takes it, twice.
const TURN_NS_MAX: u64 = 100_000;

/// The node dies here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crash;

/// What waits for a core's next turn.
#[derive(Debug)]
pub(super) enum Inbound {
    Bytes { stream: u64, bytes: Vec<u8>, marks: Vec<Mark> },
    Cut { connection: u64 },
}

#[derive(Debug)]
pub(super) struct SimCore {
    pub(super) core: Core<u64>,
    completions: Vec<(ShardId, DiskCompletion)>,
    mail: VecDeque<Mail>,
    pub(super) inbound: VecDeque<Inbound>,
    pub(super) quic: Option<Box<NodeQuic>>,
    next_turn_ns: Option<u64>,
    frozen_until_ns: u64,
    /// Shards that have stopped.
    failed: usize,
}

/// One start of the node.
#[derive(Debug)]
pub(super) struct Node {
    incarnation: u32,
    /// What its clock said first.
    pub(super) started_ms: u64,
    pub(super) clock: WallClock,
    pub(super) cores: Vec<SimCore>,
    /// Mail on its way, by sender and receiver, each with the moment it left.
    mesh: BTreeMap<(u16, u16), VecDeque<(u64, Mail)>>,
    mesh_arrives_ns: BTreeMap<(u16, u16), u64>,
    /// Longest time between a core's decision and another's carrying it out, so far.
    transit_ns: u64,
    pub(super) draining_until_ns: Option<u64>,
    /// Shards that served at its start.
    pub(super) serving: u16,
    /// A shard has stopped, and somebody is going to restart the node.
    is_limping: bool,
}

impl Node {
    /// Whether all of so many shards serve.
    pub(super) fn is_whole(&self, shards: u16) -> bool {
        self.serving == shards && self.cores.iter().all(|core| core.failed == 0)
    }

    pub(super) fn new(incarnation: u32, clock: WallClock, _cores: u16) -> Node {
        Node {
            incarnation,
            started_ms: 0,
            clock,
            cores: Vec::new(),
            mesh: BTreeMap::new(),
            mesh_arrives_ns: BTreeMap::new(),
            transit_ns: 0,
            draining_until_ns: None,
            serving: 0,
            is_limping: false,
        }
    }

    pub(super) fn add(&mut self, core: Core<u64>, quic: Option<Box<NodeQuic>>) {
        self.cores.push(SimCore {
            core,
            completions: Vec::new(),
            mail: VecDeque::new(),
            inbound: VecDeque::new(),
            quic,
            next_turn_ns: None,
            frozen_until_ns: 0,
            failed: 0,
        });
    }

    pub(super) fn pending_count(&self) -> u64 {
        self.cores.iter().flat_map(|core| core.core.stats()).map(|(_, stats)| stats.pending).sum()
    }

    /// What each core waits for, for a failure's message.
    pub(super) fn into_summary(self) -> Vec<String> {
        let summary = |core: SimCore| {
            let (synced, quiet) = (core.core.is_synced(), core.core.is_quiet());
            let (inbound, deadline) = (core.inbound.len(), core.core.next_deadline());
            let logs = core.core.into_logs();
            let logs: Vec<String> = logs
                .iter()
                .map(|(shard, log)| {
                    format!(
                        "{}: {:?}, {} in flight, {:?}",
                        shard.0,
                        log.error(),
                        log.in_flight(),
                        log.usage()
                    )
                })
                .collect();
            format!(
                "synced {synced}, quiet {quiet}, {inbound} pieces unread, next {deadline:?}, logs {logs:?}"
            )
        };
        self.cores.into_iter().map(summary).collect()
    }

    /// Whether nothing is on its way inside the node, and everything it was told is durable.
    pub(super) fn is_settled(&self) -> bool {
        self.mesh.values().all(VecDeque::is_empty)
            && self.cores.iter().all(|core| core.mail.is_empty() && core.failed == 0 && core.core.is_synced())
    }
}

impl World {
    /// Makes a core's turn come, at this moment or a little later.
    pub(super) fn wake_core(&mut self, core: u16, after_ns: u64) {
        let spread_ns = 1 + self.rng.below(20_000);
        let at_ns = self.now_ns + after_ns + spread_ns;
        let incarnation = self.incarnation;
        let Some(node) = &mut self.node else { return };
        let next = &mut node.cores[usize::from(core)].next_turn_ns;
        if next.is_none_or(|next| next > at_ns) {
            *next = Some(at_ns);
            self.queue.push(at_ns, Happening::Turn { core, incarnation });
        }
    }

    fn is_now(&self, incarnation: u32) -> bool {
        self.node.is_some() && incarnation == self.incarnation
    }

    pub(super) fn disk_step(&mut self, shard: u16, incarnation: u32) {
        if !self.is_now(incarnation) {
            return;
        }
        let bug = self.options.bug;
        let state = &mut self.disks[usize::from(shard)];
        let Some(mut completion) = state.disk.step() else { return };
        if state.called_done.remove(&completion.id) {
            return;
        }
        if bug == Some(Bug::RetryAfterError) && completion.buf.is_some() && !completion.id.is_foreign() {
            completion.result = Ok(());
        }
        if bug == Some(Bug::LostCompletion) && self.rng.one_in(20) {
            return;
        }
        if completion.result.is_err() {
            self.note(format_args!("an operation of shard {shard} fails"));
        }
        self.complete(ShardId(shard), completion);
    }

    fn complete(&mut self, shard: ShardId, completion: DiskCompletion) {
        let core = self.core_of(shard);
        let Some(node) = &mut self.node else { return };
        node.cores[usize::from(core)].completions.push((shard, completion));
        self.wake_core(core, 0);
    }

    pub(super) fn mail_arrives(&mut self, from: u16, to: u16, incarnation: u32) {
        if !self.is_now(incarnation) {
            return;
        }
        let Some(node) = &mut self.node else { return };
        let Some((sent_ns, mail)) = node.mesh.get_mut(&(from, to)).and_then(VecDeque::pop_front) else {
            return;
        };
        let receiver = &mut node.cores[usize::from(to)];
        // A decision takes two ways at most: from the owner to the event's shard, and on to the session.
        let arrives_ns = receiver.frozen_until_ns.max(self.now_ns);
        node.transit_ns = node.transit_ns.max(arrives_ns - sent_ns);
        if self.options.bug == Some(Bug::MailTwice) && self.rng.one_in(20) {
            receiver.mail.push_back(mail.clone());
        }
        receiver.mail.push_back(mail);
        self.wake_core(to, 0);
    }

    pub(super) fn deliver_to_node(&mut self, stream: u64, bytes: Vec<u8>, marks: Vec<Mark>) {
        let Some(connection) = self.net.connections.get(&connection_of(stream)) else { return };
        if !connection.node_open || !self.is_now(connection.incarnation) {
            return;
        }
        let core = connection.core;
        let Some(node) = &mut self.node else { return };
        node.cores[usize::from(core)].inbound.push_back(Inbound::Bytes { stream, bytes, marks });
        self.wake_core(core, 0);
    }

    pub(super) fn node_cut(&mut self, connection: u64) {
        let Some(state) = self.net.connections.get(&connection) else { return };
        if !state.node_open || !self.is_now(state.incarnation) {
            return;
        }
        let core = state.core;
        let Some(node) = &mut self.node else { return };
        node.cores[usize::from(core)].inbound.push_back(Inbound::Cut { connection });
        self.wake_core(core, 0);
    }

    pub(super) fn freeze(&mut self) {
        let lengths = [1, 1, 1, 1, 1, 1, 1, 1, 20, 20, 20, 20, 300, 300, 300, 60_000];
        let length_ms = lengths[self.rng.below(lengths.len() as u64) as usize];
        let all = self.rng.one_in(2);
        let one = self.rng.below(self.plan.cores.into()) as usize;
        let until_ns = self.now_ns + length_ms * NS_PER_MS;
        let Some(node) = &mut self.node else { return };
        for (index, core) in node.cores.iter_mut().enumerate() {
            if all || index == one {
                core.frozen_until_ns = core.frozen_until_ns.max(until_ns);
            }
        }
        // What was decided before the freeze may be carried out after it.
        node.transit_ns = node.transit_ns.max(length_ms * NS_PER_MS);
        if length_ms >= STANDSTILL_MS {
            let until_ms = self.latest_wall_ms() + length_ms;
            self.judge.stood_still(until_ms);
        }
        self.note(format_args!("freeze for {length_ms} ms, all: {all}"));
    }

    /// Stops intake; the node ends once everything has, or when its time is over.
    pub(super) fn drain(&mut self) {
        let now_ns = self.now_ns;
        let Some(mut node) = self.node.take() else { return };
        if node.draining_until_ns.is_none() {
            self.note(format_args!("drain"));
            node.draining_until_ns = Some(now_ns + DRAIN_NS_MAX);
            let now = self.read_clock(&mut node);
            let now = self.told(&node, now);
            for core in &mut node.cores {
                core.core.drain(now);
            }
        }
        self.node = Some(node);
        for core in 0..self.plan.cores {
            self.wake_core(core, 0);
        }
    }

    pub(super) fn turn(&mut self, core: u16, incarnation: u32) {
        if !self.is_now(incarnation) {
            return;
        }
        let Some(mut node) = self.node.take() else { return };
        let state = &mut node.cores[usize::from(core)];
        if state.next_turn_ns != Some(self.now_ns) {
            self.node = Some(node);
            return;
        }
        state.next_turn_ns = None;
        if state.frozen_until_ns > self.now_ns {
            let after_ns = state.frozen_until_ns - self.now_ns;
            self.node = Some(node);
            return self.wake_core(core, after_ns);
        }
        if self.turn_of(&mut node, core).is_err() {
            return self.crash(&node);
        }
        self.counts.turns += 1;
        let over = node.draining_until_ns.is_some_and(|until_ns| {
            self.now_ns >= until_ns
                || (node.is_settled() && node.cores.iter().all(|core| core.core.is_quiet()))
        });
        if node.is_settled() && node.cores.iter().all(|core| core.completions.is_empty()) {
            self.judge.all_durable(self.now_ns);
        }
        let failed: usize = node.cores.iter().map(|core| core.failed).sum();
        let none_left = failed == usize::from(node.serving) || (failed > 0 && !self.goes_on_without());
        let limps = failed > 0 && !none_left && !std::mem::replace(&mut node.is_limping, failed > 0);
        if over {
            return self.stop(&mut node);
        }
        let draining = node.draining_until_ns.is_some();
        let deadline = node.cores[usize::from(core)].core.next_deadline();
        let now = self.read_clock(&mut node);
        let now = self.told(&node, now);
        let state = &node.cores[usize::from(core)];
        let unread_ns = Self::has_unread(state).then_some(0);
        let quic_ns = state.quic.as_ref().and_then(|quic| quic.next_ns());
        let quic_ns = quic_ns.map(|at_ns| at_ns.saturating_sub(self.now_ns));
        self.node = Some(node);
        if none_left && !draining {
            self.drain();
        } else if limps {
            self.counts.shards_out += 1;
            self.restart_later();
        }
        let wall = deadline.wall.filter(|_| self.options.bug != Some(Bug::LostWakeup));
        let wall_ns = wall.map(|wall| wall.0.saturating_sub(now.wall.0) * NS_PER_MS);
        // No host parks for longer, so that a jump of the clock that is followed is noticed.
        let wall_ns = wall_ns.map(|ns| if self.clocks.steps_far() { ns.min(PARK_NS_MAX) } else { ns });
        let mono_ns = deadline.mono.map(|mono| mono.since(now.mono));
        let drain_ns = draining.then_some(5 * NS_PER_MS);
        if let Some(after_ns) = [wall_ns, mono_ns, drain_ns, unread_ns, quic_ns].into_iter().flatten().min() {
            self.wake_core(core, after_ns);
        }
    }

    /// What the cores are told of the clock.
    fn told(&self, node: &Node, mut now: Now) -> Now {
        if self.options.bug == Some(Bug::ClockStale) {
            // Never behind the moment at which its shards recovered.
            now.wall.0 = now.wall.0.saturating_sub(700).max(node.started_ms);
        }
        now
    }

    fn turn_of(&mut self, node: &mut Node, index: u16) -> Result<(), Crash> {
        let now = self.read_clock(node);
        let wall_ms = now.wall.0;
        self.judge.turn(self.now_ns, wall_ms);
        let now = self.told(node, now);
        let transit_ns = if self.plan.cores == 1 { 0 } else { 2 * node.transit_ns + TURN_NS_MAX };
        let state = &mut node.cores[usize::from(index)];
        self.take_datagrams(state, now)?;
        for (shard, completion) in std::mem::take(&mut state.completions) {
            self.point()?;
            let disk = &mut self.disks[usize::from(shard.0)];
            disk.note_end(completion.id, completion.result.is_ok(), completion.buf.is_some());
            state.core.disk_completed(now, shard, completion);
        }
        while let Some(mail) = state.mail.pop_front() {
            self.point()?;
            state.core.receive(now, mail);
        }
        self.take_stream_bytes(state);
        self.read_streams(state, now)?;
        self.point()?;
        let shards = (index..self.plan.shards).step_by(usize::from(self.plan.cores));
        let taken = |core: &SimCore| -> u64 {
            let shards = shards.clone().filter_map(|shard| core.core.shard(ShardId(shard)));
            shards.map(escapement_engine::Shard::taken_in_turns_size_bytes).sum()
        };
        let before = taken(state);
        state.core.finish_turn(now);
        self.counts.topic_turns += u64::from(taken(state) > before);
        self.point()?;
        while let Some((shard, op)) = state.core.poll_disk_op() {
            self.submit(shard, op, state);
            self.point()?;
        }
        for to in (0..self.plan.cores).filter(|to| *to != index) {
            let mail = state.core.take_mail(to);
            if mail.is_empty() || (self.options.bug == Some(Bug::LostMail) && self.rng.one_in(20)) {
                continue;
            }
            let most_us = if self.rng.one_in(30) { self.plan.mesh_us * 20 } else { self.plan.mesh_us };
            let arrives_ns = node.mesh_arrives_ns.entry((index, to)).or_default();
            *arrives_ns = (*arrives_ns).max(self.now_ns + 100 + self.rng.below(most_us * 1_000));
            node.mesh.entry((index, to)).or_default().push_back((self.now_ns, mail));
            let incarnation = self.incarnation;
            self.queue.push(*arrives_ns, Happening::Mail { from: index, to, incarnation });
        }
        self.point()?;
        self.write_streams(&mut node.cores[usize::from(index)], wall_ms, transit_ns)?;
        let state = &mut node.cores[usize::from(index)];
        self.transmit(state, now);
        if self.rng.one_in(16) {
            for shard in (index..self.plan.shards).step_by(usize::from(self.plan.cores)) {
                state.core.shard(ShardId(shard)).into_iter().for_each(escapement_engine::Shard::check);
            }
        }
        let failed = state.core.failures().count();
        if failed > state.failed {
            state.failed = failed;
            self.trace.line(self.now_ns, format_args!("a shard of core {index} has stopped"));
        }
        Ok(())
    }

    fn read_streams(&mut self, state: &mut SimCore, now: Now) -> Result<(), Crash> {
        let mut held = VecDeque::new();
        while let Some(inbound) = state.inbound.pop_front() {
            self.point()?;
            match inbound {
                Inbound::Bytes { stream, bytes, marks } => {
                    let is_held = |held: &VecDeque<Inbound>| {
                        held.iter()
                            .any(|other| matches!(other, Inbound::Bytes { stream: of, .. } if *of == stream))
                    };
                    if !state.core.may_read(stream) || is_held(&held) {
                        held.push_back(Inbound::Bytes { stream, bytes, marks });
                        continue;
                    }
                    let connection = connection_of(stream);
                    if !self.net.connections.get(&connection).is_some_and(|c| c.node_open) {
                        continue;
                    }
                    let Some(known) = self.net.stream_mut(stream) else { continue };
                    if !std::mem::replace(&mut known.opened, true) {
                        state.core.opened(stream);
                    }
                    let forgotten =
                        self.options.bug == Some(Bug::ResultsForgotten) && is_results(&bytes, &marks);
                    for mark in marks {
                        self.mark(stream, mark);
                    }
                    if forgotten && self.rng.one_in(10) {
                        continue;
                    }
                    if let Err(violation) = state.core.bytes(now, stream, &bytes) {
                        self.judge.breach(format!("a client was called to order: {violation:?}"));
                    }
                }
                Inbound::Cut { connection } => {
                    held.retain(|other| {
                        !matches!(other, Inbound::Bytes { stream, .. } if connection_of(*stream) == connection)
                    });
                    self.close_at_node(state, now, connection);
                }
            }
        }
        state.inbound = held;
        Ok(())
    }

    fn close_at_node(&mut self, state: &mut SimCore, now: Now, connection: u64) {
        let Some(closing) = self.net.connections.get_mut(&connection) else { return };
        closing.node_open = false;
        self.trace.line(self.now_ns, format_args!("the node closes connection {connection}"));
        let opened = closing.streams.iter().filter(|(_, stream)| stream.opened);
        let streams: Vec<u64> = opened.map(|(id, _)| *id).collect();
        for stream in streams {
            if let Who::Subscriber(index) = self.net.connections[&connection].who
                && self.subscribers[index].has_left(stream)
            {
                self.judge.left(stream);
            }
            if self.options.bug == Some(Bug::CutAsLeft) {
                self.feed_detach(state, now, stream);
            }
            state.core.closed(now, stream);
        }
        self.net.forget_dead(connection);
    }

    fn feed_detach(&mut self, state: &mut SimCore, now: Now, stream: u64) {
        let mut bytes = Vec::new();
        let written = escapement_protocol::FrameWriter::new().write(&Frame::Detach, &mut bytes);
        written.expect("a detach is a small frame");
        // On a stream without a session it is refused, which changes nothing.
        let _ = state.core.bytes(now, stream, &bytes);
    }

    /// What the node reads is noted for the judge at the moment that it is read.
    fn mark(&mut self, stream: u64, mark: Mark) {
        match mark {
            Mark::Attach { subscriber, running } => {
                self.trace.line(
                    self.now_ns,
                    format_args!("{subscriber} attaches by {stream}, running {running:?}"),
                );
                let plan = &self.plan.subscribers[subscriber];
                let running: Vec<u64> = running.iter().map(|tag| tag.0).collect();
                self.judge.attached(plan.subscription, plan.host, stream, &running);
            }
            Mark::Results { subscriber, results } => {
                let index = self.plan.subscribers[subscriber].subscription;
                for (epoch, item) in results {
                    self.trace
                        .line(self.now_ns, format_args!("result by {stream} for epoch {epoch}: {item:?}"));
                    let of = (index, stream);
                    self.judge.result(of, item.tag.0, epoch, item.result, item.retry_after_ms, self.now_ns);
                }
            }
            Mark::Cancel(events) => {
                for event in events {
                    self.judge.cancel_asked(event);
                }
            }
        }
    }

    fn submit(&mut self, shard: ShardId, op: DiskOp, state: &mut SimCore) {
        let disk = &mut self.disks[usize::from(shard.0)];
        disk.note_op(&op);
        let is_write = matches!(op, DiskOp::Write { .. });
        let is_called_done = match self.options.bug {
            Some(Bug::AckBeforeDurable) => is_write && !op.id().is_foreign(),
            Some(Bug::RunWriteLost) => is_write && op.id().is_foreign(),
            _ => false,
        };
        if is_called_done {
            disk.called_done.insert(op.id());
            state.completions.push((shard, DiskCompletion { id: op.id(), result: Ok(()), buf: None }));
            let core = self.core_of(shard);
            state.next_turn_ns = Some(self.now_ns + 1);
            let incarnation = self.incarnation;
            self.queue.push(self.now_ns + 1, Happening::Turn { core, incarnation });
        }
        if is_called_done && self.options.bug == Some(Bug::RunWriteLost) {
            return;
        }
        let disk = &mut self.disks[usize::from(shard.0)];
        if let DiskOp::Create { file: file @ FileId::Slot(_), .. } = &op
            && self.options.bug == Some(Bug::CreationNotDurable)
        {
            disk.not_entered.push(file.path());
        }
        disk.disk.submit(op);
        let us = self.plan.disk_us;
        let most_us = if self.rng.one_in(self.plan.disk_stall_one_in) { us * 100 } else { us };
        let at_ns = self.now_ns + 20_000 + self.rng.below(most_us * 1_000);
        let incarnation = self.incarnation;
        self.queue.push(at_ns, Happening::Disk { shard: shard.0, incarnation });
    }

    fn write_streams(&mut self, state: &mut SimCore, wall_ms: u64, transit_ns: u64) -> Result<(), Crash> {
        let mut replies: Vec<(u64, Bytes)> = Vec::new();
        state.core.flush_replies(|stream, bytes| replies.push((stream, bytes)));
        // Which stream comes first is no promise, and not the same in two processes.
        replies.sort_by_key(|(stream, _)| *stream);
        for (stream, bytes) in replies {
            let stream = self.astray(stream);
            self.carry(state, stream, bytes);
            self.point()?;
        }
        let room = self.plan.room_bytes;
        let net = &mut self.net;
        let now_ns = self.now_ns;
        let mut pushes: Vec<(u64, Bytes, u64)> = Vec::new();
        let quic = &state.quic;
        state.core.flush_pushes(|stream, frame| {
            let Some(known) = net.stream_mut(stream) else { return Ok(()) };
            let full = match &quic {
                None => known.to_client_bytes >= room,
                Some(quic) => !quic.has_room(stream, known.to_client_bytes + frame.len()),
            };
            if full {
                known.blocked_since_ns.get_or_insert(now_ns);
                return Err(frame);
            }
            known.to_client_bytes += frame.len();
            pushes.push((stream, frame, known.blocked_since_ns.unwrap_or(now_ns)));
            Ok(())
        });
        for (stream, _, _) in &pushes {
            if let Some(known) = net.stream_mut(*stream)
                && known.blocked_since_ns.is_some_and(|since| since < now_ns)
                && known.to_client_bytes < room
            {
                known.blocked_since_ns = None;
            }
        }
        pushes.sort_by_key(|(stream, _, _)| *stream);
        for (stream, frame, decided_ns) in pushes {
            let decided_ns = decided_ns.saturating_sub(transit_ns);
            self.judge_pushes(stream, &frame, wall_ms, decided_ns);
            let Some(known) = self.net.stream_mut(stream) else { continue };
            known.to_client_bytes -= frame.len();
            if self.options.bug == Some(Bug::PushTwice) && self.rng.one_in(20) {
                self.judge_pushes(stream, &frame, wall_ms, decided_ns);
            }
            self.carry(state, stream, frame);
            self.point()?;
        }
        Ok(())
    }

    /// The stream that an answer leaves on: its own, but for a planted bug.
    fn astray(&mut self, stream: u64) -> u64 {
        let reader = || self.net.connections.get(&connection_of(stream)).map(|c| c.who) == Some(Who::Reader);
        if self.options.bug != Some(Bug::AnswersAstray) || !reader() || !self.rng.one_in(4) {
            return stream;
        }
        stream_of(connection_of(stream), 1 - index_of(stream))
    }

    /// Sends bytes of the node on their way.
    fn carry(&mut self, state: &mut SimCore, stream: u64, bytes: Bytes) {
        self.trace.number(self.now_ns);
        self.trace.number(stream);
        self.trace.bytes(&bytes);
        if let Some(quic) = &mut state.quic {
            return Self::write_quic(quic, stream, bytes);
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let len = self.piece(rest.len());
            let delay_ns = self.net_delay_ns();
            let Some(known) = self.net.stream_mut(stream) else { return };
            let (piece, after) = rest.split_at(len);
            rest = after;
            known.to_client_bytes += len;
            known.to_client_ns = known.to_client_ns.max(self.now_ns + delay_ns);
            self.queue.push(known.to_client_ns, Happening::ToClient { stream, bytes: piece.to_vec() });
        }
    }

    fn judge_pushes(&mut self, stream: u64, frame: &[u8], wall_ms: u64, decided_ns: u64) {
        let Some(connection) = self.net.connections.get(&connection_of(stream)) else { return };
        let Who::Subscriber(subscriber) = connection.who else {
            return self.judge.breach("something was pushed to who did not subscribe".into());
        };
        let plan = &self.plan.subscribers[subscriber];
        let (subscription, host) = (plan.subscription, plan.host);
        let bug = self.options.bug;
        let altered = bug == Some(Bug::EventAltered) && self.rng.one_in(20);
        let (judge, trace, now_ns) = (&mut self.judge, &mut self.trace, self.now_ns);
        let fed = FrameDecoder::new().feed(frame, |frame| {
            if let Frame::PushBatch(batch) = frame {
                for ((item, bytes), due) in batch.iter().zip(batch.dues()) {
                    let mut copy = bytes.to_vec();
                    if altered && let Some(last) = copy.iter_mut().rev().find(|byte| **byte != 0) {
                        *last ^= 1;
                    }
                    let epoch = batch.epoch.0;
                    trace.line(now_ns, format_args!("push to {stream} under epoch {epoch}: {item:?}"));
                    let bytes = &copy;
                    let is_lost = bug == Some(Bug::RescheduledDueLost);
                    let due = if is_lost { item.schedule_time } else { due };
                    judge.pushed(Leaving {
                        subscription,
                        stream,
                        host,
                        epoch,
                        item,
                        due_ms: due.0,
                        bytes,
                        wall_ms,
                        now_ns,
                        decided_ns,
                    });
                }
            }
            Ok(())
        });
        if let Err(error) = fed {
            self.judge.breach(format!("a push is no frame: {error}"));
        }
    }

    /// The process dies, or the power does.
    pub(super) fn crash(&mut self, node: &Node) {
        let power = self.rng.one_in(2);
        self.note(format_args!("{}", if power { "the power fails" } else { "killed" }));
        self.counts.crashes += 1;
        self.crashes_left = self.crashes_left.saturating_sub(1);
        self.end(node, power);
    }

    fn stop(&mut self, node: &mut Node) {
        self.note(format_args!("stopped"));
        let now = self.read_clock(node);
        let now = self.told(node, now);
        for state in &mut node.cores {
            self.close_all(state, now);
        }
        self.counts.restarts += 1;
        self.end(node, false);
    }

    fn end(&mut self, node: &Node, power: bool) {
        for core in &node.cores {
            for (shard, _) in core.core.stats() {
                let Some(state) = core.core.shard(shard) else { continue };
                self.disks[usize::from(shard.0)].note_crash(state.state_hash());
            }
        }
        for disk in &mut self.disks {
            if power {
                disk.disk.power_cut();
            } else {
                disk.disk.kill();
            }
            disk.lose_entries(power, &mut self.rng);
        }
        let incarnation = node.incarnation;
        let connections: Vec<u64> = self.net.connections.keys().copied().collect();
        for id in connections {
            let Some(connection) = self.net.connections.get_mut(&id) else { continue };
            if connection.incarnation != incarnation {
                continue;
            }
            connection.node_open = false;
            if self.quic.is_some() {
                // The client finds out, from who comes after this node or from silence.
                continue;
            }
            // What was sent before the crash may still arrive.
            let at_ns = self.now_ns + self.rng.below(10 * NS_PER_MS);
            self.queue.push(at_ns, Happening::ClientCut { connection: id });
            self.net.forget_dead(id);
        }
        if self.plan.has_standstills {
            self.clocks.down();
        }
        let spread_ms = [1, 100, 5_000][self.rng.below(3) as usize];
        let after_ns = self.rng.below(spread_ms * NS_PER_MS);
        self.queue.push(self.now_ns + after_ns, Happening::Boot);
    }
}

/// Whether these bytes are results, all of them.
fn is_results(bytes: &[u8], marks: &[Mark]) -> bool {
    let mut whole = false;
    let fed = FrameDecoder::new().feed(bytes, |frame| {
        whole = matches!(frame, Frame::ResultBatch(_));
        Ok(())
    });
    fed.is_ok() && whole && matches!(marks, [Mark::Results { .. }])
}
