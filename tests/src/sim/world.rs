//! The environment: one queue of happenings, in simulated time, and the faults that strike it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use escapement_protocol::{ErrorCode, ShardId};
use escapement_wal::memory::{Faults, Rng};

use super::clock::Clocks;
use super::control::{Admin, Canceller};
use super::copier::Copier;
use super::grouper::Grouper;
use super::judge::Judge;
use super::net::{Mark, Net, connection_of, stream_of};
use super::node::{Crash, Node};
use super::plan::Plan;
use super::publisher::Publisher;
use super::quic::{QuicWorld, Way};
use super::reader::Reader;
use super::recovery::ShardDisk;
use super::reschedule::Rescheduler;
use super::subscriber::Subscriber;
use super::trace::Trace;
use super::{Counts, Options, Passed};

pub(super) const NS_PER_MS: u64 = 1_000_000;

/// Longest time, once nothing is faulted any more, until everything owed has come.
const CALM_NS_MAX: u64 = 600_000 * NS_PER_MS;

/// Faults end after this, whatever is left of the plan.
const CHAOS_NS_MAX: u64 = 240_000 * NS_PER_MS;

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Publisher(usize),
    Subscriber(usize),
    Admin,
    Canceller,
    Reader,
    Copier,
    Rescheduler,
    Grouper,
}

/// Something that happens at a moment.
#[derive(Debug)]
pub(super) enum Happening {
    Turn {
        core: u16,
        incarnation: u32,
    },
    Disk {
        shard: u16,
        incarnation: u32,
    },
    Mail {
        from: u16,
        to: u16,
        incarnation: u32,
    },
    ToNode {
        stream: u64,
        bytes: Vec<u8>,
        marks: Vec<Mark>,
    },
    ToClient {
        stream: u64,
        bytes: Vec<u8>,
    },
    NodeCut {
        connection: u64,
    },
    ClientCut {
        connection: u64,
    },
    Wake(Who),
    Datagram {
        way: Way,
        connection: u64,
        port: u16,
        bytes: Vec<u8>,
    },
    ClientTimer {
        connection: u64,
    },
    ResultDue {
        subscriber: usize,
        epoch: u32,
        tag: u64,
    },
    Boot,
    /// Somebody restarts a node of which a shard is out of service.
    Restart {
        incarnation: u32,
    },
    Fault,
    NoSpaceEnds {
        shard: u16,
    },
}

#[derive(Debug)]
struct Entry {
    at_ns: u64,
    order: u64,
    what: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ns, self.order).cmp(&(other.at_ns, other.order))
    }
}

/// What is to come, earliest first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    order: u64,
}

impl Queue {
    pub(super) fn push(&mut self, at_ns: u64, what: Happening) {
        self.order += 1;
        self.heap.push(Reverse(Entry { at_ns, order: self.order, what }));
    }
}

/// Everything of one seed.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) options: Options,
    pub(super) plan: Plan,
    pub(super) rng: Rng,
    /// Of what is published again, so that who publishes nothing twice runs as without it.
    pub(super) again_rng: Rng,
    /// Of what is cancelled by its name, likewise.
    pub(super) by_name_rng: Rng,
    /// Of shards that are out of service, likewise.
    pub(super) out_rng: Rng,
    pub(super) now_ns: u64,
    pub(super) queue: Queue,
    pub(super) trace: Trace,
    pub(super) judge: Judge,
    pub(super) net: Net,
    pub(super) quic: Option<QuicWorld>,
    pub(super) disks: Vec<ShardDisk>,
    pub(super) node: Option<Node>,
    pub(super) incarnation: u32,
    pub(super) publishers: Vec<Publisher>,
    pub(super) subscribers: Vec<Subscriber>,
    pub(super) admin: Admin,
    pub(super) canceller: Canceller,
    pub(super) reader: Reader,
    pub(super) copier: Copier,
    pub(super) rescheduler: Rescheduler,
    pub(super) grouper: Grouper,
    /// Events handed to publishers so far.
    pub(super) handed_out: u64,
    /// Points until the next crash.
    fuse: Option<u64>,
    pub(super) crashes_left: u32,
    /// From when on nothing is faulted.
    pub(super) calm_since_ns: Option<u64>,
    pub(super) clocks: Clocks,
    pub(super) counts: Counts,
}

impl World {
    pub(super) fn new(seed: u64, options: Options) -> World {
        let mut rng = Rng::new(seed ^ 0x51b0_7f6a_93c4_d2e1);
        let plan = Plan::draw(seed, &mut rng);
        let disks = (0..plan.shards).map(|_| ShardDisk::new(rng.next_u64())).collect();
        // Drawn apart, so that it changes nothing for those who don't speak it.
        let quic = (plan.quic || options.quic).then(|| QuicWorld::new(&mut Rng::new(seed)));
        let mut world = World {
            seed,
            options,
            judge: Judge::new(&plan),
            disks,
            quic,
            publishers: (0..plan.publishers).map(|_| Publisher::default()).collect(),
            subscribers: plan.subscribers.iter().map(Subscriber::new).collect(),
            admin: Admin::new(&plan),
            canceller: Canceller::default(),
            reader: Reader::new(seed),
            copier: Copier::new(seed),
            rescheduler: Rescheduler::new(seed),
            grouper: Grouper::new(seed),
            crashes_left: plan.crashes,
            plan,
            rng,
            again_rng: Rng::new(seed ^ 0x6167_6169_6e20_6f66),
            by_name_rng: Rng::new(seed ^ 0x6279_206e_616d_6520),
            out_rng: Rng::new(seed ^ 0x6f75_7420_6f66_2061),
            now_ns: NS_PER_MS,
            queue: Queue::default(),
            trace: Trace::new(options.trace),
            net: Net::default(),
            node: None,
            incarnation: 0,
            handed_out: 0,
            fuse: None,
            calm_since_ns: None,
            clocks: Clocks::new(seed),
            counts: Counts { seeds: 1, ..Counts::default() },
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.trace.line(self.now_ns, format_args!("{:?}", self.plan));
        self.queue.push(self.now_ns, Happening::Boot);
        self.wake(Who::Admin, 1);
        for index in 0..self.publishers.len() {
            self.wake(Who::Publisher(index), 1);
        }
        for index in 0..self.subscribers.len() {
            self.wake(Who::Subscriber(index), 1);
        }
        if self.plan.cancels {
            self.wake(Who::Canceller, 10);
        }
        if self.plan.reads {
            self.wake(Who::Reader, 10);
        }
        if self.plan.snapshots {
            self.wake(Who::Copier, 50);
        }
        if self.plan.reschedules {
            self.wake(Who::Rescheduler, 10);
        }
        if self.plan.groups {
            self.wake(Who::Grouper, 10);
        }
        self.queue.push(self.now_ns + 5 * NS_PER_MS, Happening::Fault);
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first broken promise, and when, in ms.
    pub(super) fn run(mut self) -> Result<Passed, (u64, String)> {
        loop {
            if let Some(what) = self.judge.broken() {
                return Err((self.now_ns / NS_PER_MS, what));
            }
            if self.is_over() {
                break;
            }
            let Some(Reverse(entry)) = self.queue.heap.pop() else {
                return Err((self.now_ns / NS_PER_MS, format!("nothing more happens: {}", self.owed())));
            };
            self.now_ns = entry.at_ns;
            self.judge.clock(self.latest_wall_ms());
            if self.calm_since_ns.is_some_and(|since| self.now_ns > since + CALM_NS_MAX) {
                return Err((self.now_ns / NS_PER_MS, format!("not delivered in time: {}", self.owed())));
            }
            if self.node.is_some()
                && self.point().is_err()
                && let Some(node) = self.node.take()
            {
                self.crash(&node);
            }
            self.happen(entry.what);
        }
        self.trace.number(self.counts.pushes);
        self.counts.pushes = self.judge.pushes;
        self.counts.events = self.handed_out;
        Ok(Passed { counts: self.counts, trace_hash: self.trace.hash() })
    }

    fn owed(&mut self) -> String {
        let outstanding = self.judge.outstanding();
        let pending: Vec<_> = self
            .node
            .iter()
            .flat_map(|node| &node.cores)
            .flat_map(|core| core.core.stats())
            .map(|(shard, stats)| (shard.0, stats.pending))
            .collect();
        let unanswered: usize = self.publishers.iter().map(Publisher::unanswered).sum();
        let state = self.node.take().map(Node::into_summary);
        let disks: Vec<usize> = self.disks.iter().map(|disk| disk.disk.pending_count()).collect();
        format!(
            "owed {outstanding:?}, pending by shard {pending:?}, {unanswered} publishes unanswered, \
             operations at disks {disks:?}, {state:?}"
        )
    }

    fn is_over(&mut self) -> bool {
        if self.calm_since_ns.is_none() {
            let published = self.handed_out == self.plan.events;
            if (published && self.crashes_left == 0 && self.node.is_some()) || self.now_ns > CHAOS_NS_MAX {
                self.begin_calm();
            }
            return false;
        }
        let Some(node) = &self.node else { return false };
        node.draining_until_ns.is_none()
            && node.pending_count() == 0
            && self.publishers.iter().all(|publisher| publisher.unanswered() == 0)
            && self.handed_out == self.plan.events
            && self.judge.outstanding().is_empty()
            && node.is_settled()
    }

    fn begin_calm(&mut self) {
        self.note(format_args!("calm"));
        self.calm_since_ns = Some(self.now_ns);
        self.fuse = None;
        self.crashes_left = 0;
        self.clocks.step(0);
        for disk in &mut self.disks {
            disk.disk.set_faults(Faults::default());
        }
    }

    pub(super) fn is_calm(&self) -> bool {
        self.calm_since_ns.is_some()
    }

    /// A point at which the node may crash.
    pub(super) fn point(&mut self) -> Result<(), Crash> {
        match &mut self.fuse {
            Some(0) => {
                self.fuse = None;
                Err(Crash)
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether this seed's nodes go on without a shard. Elsewhere they are restarted at once: planted bugs are looked for
    /// among the first seeds, and found sooner where nothing else is out.
    pub(super) fn goes_on_without(&self) -> bool {
        self.plan.shards > 1 && self.seed >= 64 && self.seed % 4 == 3
    }

    /// A node of which a shard is out of service goes on for a while, until somebody restarts it.
    pub(super) fn restart_later(&mut self) {
        let spread_ms = [50, 500, 5_000][self.out_rng.below(3) as usize];
        let at_ns = self.now_ns + self.out_rng.below(spread_ms * NS_PER_MS);
        self.queue.push(at_ns, Happening::Restart { incarnation: self.incarnation });
    }

    /// Sets when the next crash comes.
    pub(super) fn light_fuse(&mut self) {
        if self.crashes_left > 0 && !self.is_calm() {
            // Short and long lives alike.
            let most = 1 + self.rng.below(self.plan.fuse_max);
            self.fuse = Some(self.rng.below(most));
        }
    }

    pub(super) fn note(&mut self, what: std::fmt::Arguments<'_>) {
        self.trace.line(self.now_ns, what);
    }

    pub(super) fn wake(&mut self, who: Who, after_ms: u64) {
        let jitter = self.rng.below(NS_PER_MS);
        self.queue.push(self.now_ns + after_ms * NS_PER_MS + jitter, Happening::Wake(who));
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Turn { core, incarnation } => self.turn(core, incarnation),
            Happening::Disk { shard, incarnation } => self.disk_step(shard, incarnation),
            Happening::Mail { from, to, incarnation } => self.mail_arrives(from, to, incarnation),
            Happening::ToNode { stream, bytes, marks } => self.deliver_to_node(stream, bytes, marks),
            Happening::ToClient { stream, bytes } => self.deliver_to_client(stream, &bytes),
            Happening::NodeCut { connection } if self.quic.is_some() => self.client_cut(connection),
            Happening::NodeCut { connection } => self.node_cut(connection),
            Happening::ClientCut { connection } => self.client_cut(connection),
            Happening::Datagram { way, connection, port, bytes } => {
                self.datagram(way, connection, port, &bytes);
            }
            Happening::ClientTimer { connection } => self.client_timer(connection),
            Happening::Wake(Who::Publisher(index)) => self.publisher_wakes(index),
            Happening::Wake(Who::Subscriber(index)) => self.subscriber_wakes(index),
            Happening::Wake(Who::Admin) => self.admin_wakes(),
            Happening::Wake(Who::Canceller) => self.canceller_wakes(),
            Happening::Wake(Who::Reader) => self.reader_wakes(),
            Happening::Wake(Who::Copier) => self.copier_wakes(),
            Happening::Wake(Who::Rescheduler) => self.rescheduler_wakes(),
            Happening::Wake(Who::Grouper) => self.grouper_wakes(),
            Happening::ResultDue { subscriber, epoch, tag } => self.result_due(subscriber, epoch, tag),
            Happening::Boot => self.boot(),
            Happening::Restart { incarnation } => {
                if incarnation == self.incarnation {
                    self.drain();
                }
            }
            Happening::Fault => self.fault(),
            Happening::NoSpaceEnds { shard } => {
                self.disks[usize::from(shard)].disk.set_faults(Faults::default());
            }
        }
    }

    /// One fault, and the next after a while.
    fn fault(&mut self) {
        if self.is_calm() {
            return;
        }
        let after_ms = 1 + self.rng.below(60);
        self.queue.push(self.now_ns + after_ms * NS_PER_MS, Happening::Fault);
        match self.rng.below(20) {
            0..4 if self.quic.is_some() => self.trouble_path(),
            0..6 => self.cut_any(),
            6..8 => self.freeze(),
            8..10 => {
                let steps = [0, 0, 200, 450, 5_000, -3_000, -200];
                let near_ms = steps[self.rng.below(steps.len() as u64) as usize];
                let error_ms = self.clocks.far_step().unwrap_or(near_ms);
                self.clocks.step(error_ms);
                if error_ms > 500 {
                    // When the node follows is its own business.
                    self.judge.stood_still(u64::MAX);
                }
                self.note(format_args!("the machine's clock is {error_ms} ms ahead"));
            }
            10 => {
                let shard = self.rng.below(self.plan.shards.into()) as u16;
                let faults = Faults { no_space: true, ..Faults::default() };
                self.disks[usize::from(shard)].disk.set_faults(faults);
                let until_ns = self.now_ns + self.rng.below(2_000) * NS_PER_MS;
                self.queue.push(until_ns, Happening::NoSpaceEnds { shard });
            }
            11..14 if self.crashes_left > 0 => {
                let shard = self.rng.below(self.plan.shards.into()) as usize;
                let write_fails_after = Some(self.rng.below(4) as u32);
                self.note(format_args!("a write of shard {shard} will fail"));
                self.disks[shard].disk.set_faults(Faults { write_fails_after, ..Faults::default() });
            }
            14..16 if self.crashes_left > 0 => self.drain(),
            _ => {}
        }
    }

    fn cut_any(&mut self) {
        let open: Vec<u64> = self
            .net
            .connections
            .iter()
            .filter(|(_, c)| c.client_open && c.node_open)
            .map(|(id, _)| *id)
            .collect();
        if open.is_empty() {
            return;
        }
        let connection = open[self.rng.below(open.len() as u64) as usize];
        self.note(format_args!("connection {connection} breaks"));
        self.cut_connection(connection);
    }

    /// A connection breaks; the two sides learn of it at different moments.
    pub(super) fn cut_connection(&mut self, connection: u64) {
        if self.quic.is_some() {
            // The node learns of it from the client, or in the end by itself.
            return self.queue.push(self.now_ns + 1, Happening::ClientCut { connection });
        }
        let spread_ms = [1, 20, 3_000][self.rng.below(3) as usize];
        let node_ns = self.now_ns + self.rng.below(spread_ms * NS_PER_MS);
        let client_ns = self.now_ns + self.rng.below(spread_ms * NS_PER_MS);
        self.queue.push(node_ns, Happening::NodeCut { connection });
        self.queue.push(client_ns, Happening::ClientCut { connection });
    }

    // The network.

    /// Opens a connection to any core, as clients do that do not know the shard map. `None` while the node is down.
    pub(super) fn connect(&mut self, who: Who) -> Option<u64> {
        let cores = self.node.as_ref()?.cores.len() as u64;
        let core = self.rng.below(cores) as u16;
        let connection = self.net.connect(who, core, self.incarnation);
        self.dial(connection, core);
        Some(connection)
    }

    /// Sends bytes on a stream to the node. `marks` are for the judge, once all of them were read.
    pub(super) fn send(&mut self, connection: u64, index: u64, bytes: &[u8], marks: Vec<Mark>) {
        let stream = stream_of(connection, index);
        if self.quic.is_some() {
            return self.queue_bytes(stream, bytes, marks);
        }
        let mut rest = bytes;
        let mut marks = Some(marks);
        while !rest.is_empty() {
            let len = self.piece(rest.len());
            let delay_ns = self.net_delay_ns();
            let Some(state) = self.net.stream_mut(stream) else { return };
            let (piece, after) = rest.split_at(len);
            rest = after;
            state.to_node_ns = state.to_node_ns.max(self.now_ns + delay_ns);
            let marks = if rest.is_empty() { marks.take().unwrap_or_default() } else { Vec::new() };
            let what = Happening::ToNode { stream, bytes: piece.to_vec(), marks };
            self.queue.push(state.to_node_ns, what);
        }
    }

    /// How many of the next bytes travel together.
    pub(super) fn piece(&mut self, len: usize) -> usize {
        if self.rng.one_in(4) { 1 + self.rng.below(len as u64) as usize } else { len }
    }

    pub(super) fn net_delay_ns(&mut self) -> u64 {
        let most_us = if self.rng.one_in(50) { self.plan.net_us * 20 } else { self.plan.net_us };
        1_000 + self.rng.below(most_us * 1_000)
    }

    fn deliver_to_client(&mut self, stream: u64, bytes: &[u8]) {
        let Some(connection) = self.net.connections.get_mut(&connection_of(stream)) else { return };
        let (incarnation, core) = (connection.incarnation, connection.core);
        if let Some(state) = connection.streams.get_mut(&stream) {
            state.to_client_bytes -= bytes.len();
            if state.blocked_since_ns.is_some() && incarnation == self.incarnation {
                self.wake_core(core, 0);
            }
        }
        self.client_bytes(stream, bytes);
    }

    /// A client reads bytes.
    pub(super) fn client_bytes(&mut self, stream: u64, bytes: &[u8]) {
        let Some(connection) = self.net.connections.get_mut(&connection_of(stream)) else { return };
        if !connection.client_open {
            return;
        }
        let (who, incarnation) = (connection.who, connection.incarnation);
        connection.streams.entry(stream).or_default();
        let Some(state) = connection.streams.get_mut(&stream) else { return };
        match super::control::received(&mut state.decoder, bytes) {
            Ok(frames) => {
                for frame in frames {
                    self.client_frame(who, stream, incarnation, frame);
                }
            }
            Err(error) => self.judge.breach(format!("the node sent what is not a frame: {error}")),
        }
    }

    fn client_frame(&mut self, who: Who, stream: u64, incarnation: u32, frame: super::control::Received) {
        if let super::control::Received::Error { code, .. } = frame
            && [ErrorCode::UnknownTopic as u16, ErrorCode::UnknownSubscription as u16].contains(&code)
            && who != Who::Admin
        {
            // All others name only what was acknowledged before.
            self.judge.breach(format!("{who:?} is told {:?}", ErrorCode::from_number(code)));
        }
        match who {
            Who::Publisher(index) => self.publisher_frame(index, stream, incarnation, frame),
            Who::Subscriber(index) => self.subscriber_frame(index, stream, frame),
            Who::Admin => self.admin_frame(stream, &frame),
            Who::Canceller => self.canceller_frame(stream, incarnation, frame),
            Who::Reader => self.reader_frame(stream, incarnation, frame),
            Who::Copier => self.copier_frame(stream, frame),
            Who::Rescheduler => self.rescheduler_frame(stream, incarnation, &frame),
            Who::Grouper => self.grouper_frame(stream, frame),
        }
    }

    pub(super) fn client_cut(&mut self, connection: u64) {
        let Some(state) = self.net.connections.get_mut(&connection) else { return };
        if !std::mem::take(&mut state.client_open) {
            return;
        }
        let who = state.who;
        self.hang_up(connection);
        self.net.forget_dead(connection);
        match who {
            Who::Publisher(index) => self.publisher_cut(index, connection),
            Who::Subscriber(index) => self.subscriber_cut(index, connection),
            Who::Admin => self.admin.cut(connection),
            Who::Canceller => self.canceller.cut(connection),
            Who::Reader => self.reader.cut(connection),
            Who::Copier => self.copier.cut(connection),
            Who::Rescheduler => self.rescheduler.cut(connection),
            Who::Grouper => self.grouper.cut(connection),
        }
    }

    pub(super) fn core_of(&self, shard: ShardId) -> u16 {
        escapement_node::core::core_of(shard, self.plan.cores)
    }
}
