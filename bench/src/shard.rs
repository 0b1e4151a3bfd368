//! A shard in its steady state, without log and network.

use std::hint::black_box;
use std::time::Duration;

use escapement_engine::record::RecordWriter;
use escapement_engine::{Effects, Input, Message, Shard, ShardConfig, Ticket};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{Items, ResultItem};
use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{
    AttemptResult, Epoch, EventSpec, MonoNs, Now, ShardId, SubscriptionId, TopicId, WallMs,
};
use escapement_router::{Credit, HostKey, SessionId};

use crate::clock::Stopwatch;

/// Events published, and due, in one turn.
pub const PER_TURN: usize = 512;

/// What a turn consists of, in its order.
pub const STAGES: [&str; 6] =
    ["step_publish", "step_results", "apply_published", "maintain", "read_event", "apply_completed"];

pub(crate) const BATCH: usize = 64;
pub(crate) const TOPIC: TopicId = TopicId(1);

/// A shard with one topic and one subscription, in which every event is due a fixed time after its publish.
#[derive(Debug)]
pub struct ShardLoad {
    shard: Shard,
    effects: Effects,
    now: Now,
    block: u64,
    events: Vec<u8>,
    records: Vec<u8>,
    results: Vec<ResultItem>,
    /// CPU time spent in each of [`STAGES`] since it was last taken.
    pub spent: [Duration; STAGES.len()],
}

pub(crate) fn config() -> ShardConfig {
    ShardConfig {
        shard: ShardId(0),
        shard_count: 1,
        memory_bytes_max: usize::MAX / 2,
        admission_per_s: 0,
        block_size_bytes_max: 512 * 1024,
        horizon_ms: 15 * 60 * 1_000,
        run_size_bytes: 32 << 20,
        names_run_size_bytes: 1 << 20,
        batch_count_max: PER_TURN,
        seed: 1,
    }
}

pub(crate) fn control() -> Vec<u8> {
    let (mut records, mut count) = (Vec::new(), 0);
    let mut writer = RecordWriter::new(&mut records, &mut count);
    writer.topic(TOPIC, 1, &TopicSettings { name: "t".into(), ..TopicSettings::default() });
    let settings =
        SubscriptionSettings { name: "s".into(), topic: "t".into(), ..SubscriptionSettings::default() };
    writer.subscription(SubscriptionId(1), 2, TOPIC, &settings);
    records
}

pub(crate) fn attach() -> Input<'static> {
    Input::Message(Message::Attach {
        subscription: SubscriptionId(1),
        session: SessionId(1),
        host: HostKey(1),
        credit: Credit { tasks: 1 << 20, bytes: 1 << 30 },
        running: Vec::new(),
    })
}

fn events(count: usize, ahead_ms: u64) -> Vec<u8> {
    let mut events = Vec::new();
    for _ in 0..count {
        EventSpec::new(Due::After(ahead_ms), "0123456789ab", &[7; 128]).encode(&mut events).expect("valid");
    }
    events
}

impl ShardLoad {
    /// With so many pending events.
    ///
    /// # Panics
    /// If the shard refuses its own records.
    #[must_use]
    pub fn new(pending: usize) -> ShardLoad {
        let mut shard = Shard::new(config());
        let mut effects = Effects::default();
        shard.apply_block(1, &control(), &mut effects).expect("control records");
        let now = Now { mono: MonoNs(0), wall: WallMs(1_800_000_000_000) };
        shard.recovered(now, Epoch(1));
        shard.step(now, attach(), &mut effects);
        // A turn is a millisecond, so that as many are pending as are published in so many turns.
        let turns = (pending / PER_TURN).max(1);
        let mut load = ShardLoad {
            shard,
            effects,
            now,
            block: 1,
            events: events(BATCH, turns as u64),
            records: Vec::new(),
            results: Vec::new(),
            spent: [Duration::ZERO; STAGES.len()],
        };
        // One pass over everything pending, until what is published and what ends are in balance.
        load.turns(turns + 200);
        load.spent = [Duration::ZERO; STAGES.len()];
        load
    }

    /// Takes turns: publishes, what is durable, what is due, results, completions.
    ///
    /// # Panics
    /// If the shard refuses its own records, or pushes what is not pending.
    pub fn turns(&mut self, turns: usize) {
        for _ in 0..turns {
            self.turn();
        }
    }

    fn turn(&mut self) {
        let ShardLoad { shard, effects, records, results, spent, .. } = self;
        self.now = Now { mono: self.now.mono.plus_ms(1), wall: self.now.wall.plus_ms(1) };
        let now = self.now;
        let watch = Stopwatch::start();
        let mut before = Duration::ZERO;
        let mut stage = |at: usize| {
            let elapsed = watch.elapsed();
            spent[at] += elapsed - before;
            before = elapsed;
        };
        for _ in 0..PER_TURN / BATCH {
            let publish = Input::Publish {
                ticket: Ticket::default(),
                topic: TOPIC,
                count: BATCH as u32,
                events: &self.events,
            };
            shard.step(now, publish, effects);
        }
        stage(0);
        for batch in results.chunks(BATCH) {
            let results = Items::from(batch);
            shard.step(now, Input::Results { session: SessionId(1), results }, effects);
        }
        results.clear();
        stage(1);
        std::mem::swap(records, &mut effects.records);
        effects.on_commit.clear();
        self.block += 1;
        shard.apply_block(self.block, records, effects).expect("a shard reads itself");
        records.clear();
        stage(2);
        shard.maintain(now, effects);
        stage(3);
        for push in effects.pushes.drain(..) {
            let event = shard.event(push.sequence).expect("pending");
            black_box((event.bytes[40], event.schedule_time()));
            results.push(ResultItem { tag: push.tag, retry_after_ms: 0, result: AttemptResult::Success });
        }
        stage(4);
        std::mem::swap(records, &mut effects.records);
        self.block += 1;
        shard.apply_block(self.block, records, effects).expect("a shard reads itself");
        records.clear();
        shard.releasable();
        stage(5);
    }
}

/// The records of a log, block by block, in which `published` events were accepted and the first half of them ended.
///
/// # Panics
/// Never: the events are valid.
#[must_use]
pub fn log_of(published: usize) -> Vec<Vec<u8>> {
    use escapement_protocol::{Outcome, Sequence};
    let mut blocks = vec![control()];
    let events = events(PER_TURN, 1 << 30);
    for turn in 0..published / PER_TURN {
        let first = Sequence(1 + (turn * PER_TURN) as u64);
        let (mut records, mut count) = (Vec::new(), 0);
        let mut writer = RecordWriter::new(&mut records, &mut count);
        writer.published(TOPIC, first, PER_TURN as u32, WallMs(1), &events);
        if turn % 2 == 1 {
            let ended: Vec<_> =
                (0..PER_TURN).map(|n| Sequence((turn / 2 * PER_TURN + n) as u64 + 1)).collect();
            writer.completed(SubscriptionId(1), Outcome::Succeeded, true, &ended);
        }
        blocks.push(records);
    }
    blocks
}

/// Applies blocks to a new shard and ends its recovery.
///
/// # Panics
/// If a block does not parse.
#[must_use]
pub fn recover<'a>(blocks: impl IntoIterator<Item = &'a [u8]>) -> Shard {
    let mut shard = Shard::new(config());
    let mut effects = Effects::default();
    for (block, records) in (1..).zip(blocks) {
        shard.apply_block(block, records, &mut effects).expect("a shard reads itself");
    }
    shard.recovered(Now { mono: MonoNs(0), wall: WallMs(1_800_000_000_000) }, Epoch(2));
    shard
}
