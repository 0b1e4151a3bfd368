//! A shard's directory at rest, after a life that a seed decides, and all that was promised in that life.

use std::collections::{BTreeMap, BTreeSet};

use escapement_engine::{AdminRequest, ReplyBody, ShardConfig};
use escapement_node::runs::RunDirectory;
use escapement_protocol::event::Due;
use escapement_protocol::frame::CancelVerdict;
use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{
    AttemptResult, EventId, EventSpec, EventView, MonoNs, Now, Sequence, ShardId, SubscriptionId, TopicId,
    WallMs,
};
use escapement_wal::memory::{MemDisk, Rng};
use escapement_wal::{WalConfig, format_log};

use super::running::{Arrival, IDENTITY, Running, Settings, recover};

/// Bytes of every file, by path.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

const START: WallMs = WallMs(1_800_000_000_000);
const HORIZON_MS: u64 = 60_000;
const HOUR_MS: u64 = 3_600_000;
/// Longer than any life.
const DEDUP_WINDOW_MS: u64 = 30 * 24 * HOUR_MS;
/// About 80 names.
const NAMES_RUN_SIZE_BYTES: usize = 6_000;
/// Data of one event at most: a batch of them fits a block.
const DATA_SIZE_BYTES_MAX: u64 = 1_500;
const BATCH_COUNT_MAX: u64 = 8;
/// Attempts that a lambda leaves without a result at one time.
const HELD_COUNT_MAX: usize = 10;

/// Takes all files from a disk.
pub(super) fn files_of(disk: &mut MemDisk) -> Files {
    let paths: Vec<String> = disk.paths().map(str::to_owned).collect();
    let bytes = |path: &String| disk.bytes_mut(path).expect("it was listed").clone();
    let all: Vec<Vec<u8>> = paths.iter().map(bytes).collect();
    paths.into_iter().zip(all).collect()
}

/// A disk with these files.
pub(super) fn disk_of(files: &Files) -> MemDisk {
    let mut disk = MemDisk::new(0);
    for (path, bytes) in files {
        disk.put(path, bytes.clone());
    }
    disk
}

/// The bytes of an event.
pub(super) fn event(due: WallMs, id: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    EventSpec::new(Due::At(due), id, data).encode(&mut bytes).expect("a valid event");
    bytes
}

/// What was promised, as clients know it.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// Every event that was acknowledged, by sequence.
    pub(super) events: BTreeMap<u64, Vec<u8>>,
    /// Those that must still be delivered.
    pub(super) open: BTreeSet<u64>,
}

#[derive(Debug)]
pub(super) struct Scene {
    pub(super) settings: Settings,
    /// At rest.
    pub(super) files: Files,
    /// At earlier moments, oldest first.
    pub(super) earlier: Vec<Files>,
    pub(super) promises: Promises,
    /// The state after each block.
    pub(super) states: BTreeMap<u64, u64>,
    pub(super) now: Now,
    pub(super) topic: TopicId,
    /// Whether each event is published under a name of its own, which the topic knows again.
    pub(super) is_named: bool,
    pub(super) subscription: SubscriptionId,
}

impl Scene {
    /// The life that `seed` decides.
    ///
    /// # Panics
    /// If the shard breaks a promise before anything was damaged.
    pub(super) fn new(seed: u64) -> Scene {
        let mut rng = Rng::new(seed);
        let settings = settings(&mut rng);
        let mut disk = MemDisk::new(0);
        format_log(&mut disk, IDENTITY, &settings.wal).expect("an empty disk is formatted");
        let recovered = recover(&mut disk, &settings).expect("a new log opens");
        let now = Now { mono: MonoNs(5_000_000_000), wall: START };
        let mut running = Running::start(disk, recovered, now);
        // Without a number of those that the rest is drawn from.
        let is_named = seed % 3 == 1;
        let dedup_window_ms = if is_named { DEDUP_WINDOW_MS } else { 0 };
        let topic = TopicSettings { name: "t".into(), dedup_window_ms, ..TopicSettings::default() };
        let ReplyBody::Topic { id: topic, .. } = running.admin(AdminRequest::CreateTopic(topic)) else {
            panic!("a topic is made");
        };
        let subscription =
            SubscriptionSettings { name: "s".into(), topic: "t".into(), ..SubscriptionSettings::default() };
        let ReplyBody::Subscription { id: subscription, .. } =
            running.admin(AdminRequest::CreateSubscription(subscription))
        else {
            panic!("a subscription is made");
        };
        running.attach(subscription);
        let far = rng.below(3);
        let mut life = Life {
            rng,
            settings,
            running,
            topic,
            is_named,
            subscription,
            promises: Promises::default(),
            held: Vec::new(),
            states: BTreeMap::new(),
            earlier: Vec::new(),
            far_ms_max: [2 * HORIZON_MS, 30 * HORIZON_MS, 48 * HOUR_MS][far as usize],
        };
        let steps = 20 + life.rng.below(120);
        for _ in 0..steps {
            life.step();
        }
        life.end()
    }

    /// The state at a block, or at the last one before it that changed any.
    pub(super) fn state_at(&self, block: u64) -> Option<u64> {
        self.states.range(..=block).next_back().map(|(_, hash)| *hash)
    }

    /// The state at rest.
    pub(super) fn last_state(&self) -> u64 {
        self.state_at(u64::MAX).expect("a life has blocks")
    }
}

fn settings(rng: &mut Rng) -> Settings {
    let segment_size_bytes = [32, 64][rng.below(2) as usize] * 1024;
    let wal =
        WalConfig { segment_size_bytes, log_size_bytes_max: 40 * segment_size_bytes, ..WalConfig::tiny() };
    let shard = ShardConfig {
        shard: ShardId(0),
        shard_count: 1,
        memory_bytes_max: 1 << 22,
        admission_per_s: 0,
        block_size_bytes_max: wal.records_size_bytes_max(),
        horizon_ms: HORIZON_MS,
        run_size_bytes: [4, 16, 200][rng.below(3) as usize] * 1024,
        names_run_size_bytes: NAMES_RUN_SIZE_BYTES,
        batch_count_max: 100,
        seed: rng.next_u64(),
    };
    Settings { wal, shard }
}

struct Life {
    rng: Rng,
    settings: Settings,
    running: Running,
    topic: TopicId,
    is_named: bool,
    subscription: SubscriptionId,
    promises: Promises,
    held: Vec<Arrival>,
    states: BTreeMap<u64, u64>,
    earlier: Vec<Files>,
    /// How far behind the horizon events are due at most.
    far_ms_max: u64,
}

impl Life {
    fn step(&mut self) {
        match self.rng.below(16) {
            0..=6 => self.publish(),
            7..=9 => self.pass(20_000),
            10 => self.pass(600_000),
            11..=12 => self.cancel(),
            13 => self.answer_held(),
            14 => {
                self.running.seal();
                self.earlier.push(files_of(&mut self.running.disk));
            }
            _ if self.rng.one_in(2) => self.restart(),
            _ => {}
        }
        self.running.settle();
        self.take_arrivals();
    }

    fn publish(&mut self) {
        let now = self.running.now.wall;
        let count = 1 + self.rng.below(BATCH_COUNT_MAX);
        let known = self.promises.events.len() as u64;
        let events: Vec<Vec<u8>> = (known..known + count)
            .map(|number| {
                let after_ms = match self.rng.below(8) {
                    0 => 0,
                    1..=3 => self.rng.below(HORIZON_MS),
                    _ => HORIZON_MS + self.rng.below(self.far_ms_max),
                };
                let size = self.rng.below(DATA_SIZE_BYTES_MAX);
                let data: Vec<u8> = (0..size).map(|_| self.rng.next_u64() as u8).collect();
                let id = if self.is_named { number.to_string() } else { "e".into() };
                event(now.plus_ms(after_ms), &id, &data)
            })
            .collect();
        let (first, accepted) = self.running.publish(self.topic, &events);
        for (number, event) in (first.0..).zip(events).take(accepted as usize) {
            let before = self.promises.events.insert(number, event);
            assert!(before.is_none(), "sequence {number} is given once");
            self.promises.open.insert(number);
        }
    }

    fn pass(&mut self, ms: u64) {
        let ms = self.rng.below(ms);
        self.running.advance_ms(ms);
    }

    fn cancel(&mut self) {
        let count = self.promises.open.len() as u64;
        if count == 0 {
            return;
        }
        let chosen = self.rng.below(count) as usize;
        let sequence = *self.promises.open.iter().nth(chosen).expect("below the count");
        let event = EventView::trusted(&self.promises.events[&sequence]);
        let due = event.and_then(|event| event.stated_time()).expect("every event states its time");
        let id = EventId { shard: ShardId(0), sequence: Sequence(sequence), schedule_time_ms: due.0 };
        match self.running.cancel(id).expect("an answer") {
            CancelVerdict::Cancelled => {
                self.promises.open.remove(&sequence);
            }
            CancelVerdict::TooLate { .. } => {}
            other => panic!("{sequence} is pending, and its cancellation is {other:?}"),
        }
    }

    fn answer_held(&mut self) {
        for held in std::mem::take(&mut self.held) {
            self.answer(&held);
        }
    }

    fn answer(&mut self, arrival: &Arrival) {
        let result = match self.rng.below(8) {
            0 => AttemptResult::RetryableFailure,
            _ => AttemptResult::Success,
        };
        self.running.answer(&arrival.push, result);
    }

    /// Takes what was pushed: most of it is answered at once, some later, some never.
    fn take_arrivals(&mut self) {
        while !self.running.arrivals.is_empty() {
            for arrival in std::mem::take(&mut self.running.arrivals) {
                let sequence = arrival.push.sequence.0;
                assert_eq!(
                    Some(&arrival.bytes),
                    self.promises.events.get(&sequence),
                    "{sequence} is unaltered"
                );
                if self.held.len() < HELD_COUNT_MAX && self.rng.one_in(6) {
                    self.held.push(arrival);
                } else {
                    self.answer(&arrival);
                }
            }
            self.running.settle();
        }
        // Everything is durable now: what the shard no longer has is done.
        let mut runs = RunDirectory(self.running.disk.clone());
        let far = self.running.shard.far_events(&mut runs).expect("nothing is damaged yet");
        let far: BTreeSet<u64> = far.into_iter().map(|(_, sequence)| sequence.0).collect();
        let shard = &self.running.shard;
        let is_pending =
            |sequence: &u64| far.contains(sequence) || shard.event(Sequence(*sequence)).is_some();
        self.promises.open.retain(is_pending);
    }

    fn restart(&mut self) {
        let now = Now { mono: self.running.now.mono.plus_ms(1), wall: self.running.now.wall.plus_ms(1) };
        let mut disk = disk_of(&files_of(&mut self.running.disk));
        let expected = self.running.shard.state_hash();
        let recovered = recover(&mut disk, &self.settings).unwrap_or_else(|why| panic!("undamaged: {why}"));
        assert_eq!(recovered.shard.state_hash(), expected, "recovery gives the state that there was");
        let running = Running::start(disk, recovered, now);
        let before = std::mem::replace(&mut self.running, running);
        self.states.extend(before.states);
        self.held.clear();
        self.running.attach(self.subscription);
    }

    fn end(mut self) -> Scene {
        if !self.rng.one_in(4) {
            self.running.seal();
        }
        let files = files_of(&mut self.running.disk);
        self.states.extend(self.running.states);
        let mut earlier = self.earlier;
        earlier.retain(|moment| *moment != files);
        Scene {
            settings: self.settings,
            files,
            earlier,
            promises: self.promises,
            states: self.states,
            now: self.running.now,
            topic: self.topic,
            is_named: self.is_named,
            subscription: self.subscription,
        }
    }
}
