//! How late newly due events are, in turns, while a shard that was down for days drains what is overdue.
//!
//! `cargo run --release -p escapement-bench --example drain -- 1000000 256 10 1024`: overdue events, results that the
//! subscriber gives in a turn, events that become due in each turn, and the subscriber's credit; a turn is a millisecond. One
//! in ten events has an ordering key: overdue ones one of 1,000, newly due ones one of these or of 1,000 others. Time is
//! counted in turns, so that the figures don't depend on the machine.
#![expect(clippy::print_stdout, reason = "a measurement speaks on its streams")]

use std::collections::{BTreeMap, VecDeque};

use escapement_engine::record::RecordWriter;
use escapement_engine::{Effects, Input, Message, Shard, ShardConfig};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{Items, ResultItem};
use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{
    AttemptResult, Epoch, EventSpec, MonoNs, Now, Sequence, ShardId, SubscriptionId, TopicId, WallMs,
};
use escapement_router::{Credit, HostKey, SessionId};

const TOPIC: TopicId = TopicId(1);
const ID: SubscriptionId = SubscriptionId(1);
const START: WallMs = WallMs(1_800_000_000_000);
const DOWN_MS: u64 = 8 * 86_400_000;
const TURNS: u64 = 2_000;

fn config() -> ShardConfig {
    ShardConfig {
        shard: ShardId(0),
        shard_count: 1,
        memory_bytes_max: 8 << 30,
        admission_per_s: 0,
        block_size_bytes_max: 512 * 1024,
        horizon_ms: 15 * 60 * 1_000,
        run_size_bytes: 32 << 20,
        names_run_size_bytes: 1 << 20,
        batch_count_max: 4_096,
        seed: 1,
    }
}

fn control() -> Vec<u8> {
    let (mut records, mut count) = (Vec::new(), 0);
    let mut writer = RecordWriter::new(&mut records, &mut count);
    writer.topic(TOPIC, 1, &TopicSettings { name: "t".into(), ..TopicSettings::default() });
    let settings =
        SubscriptionSettings { name: "s".into(), topic: "t".into(), ..SubscriptionSettings::default() };
    writer.subscription(ID, 2, TOPIC, &settings);
    records
}

/// Keys that overdue events have; newly due ones have twice as many.
const KEY_COUNT: u64 = 1_000;

/// The key of an event, by its sequence, where it has one.
fn key(sequence: u64, count: u64) -> Option<u64> {
    sequence.is_multiple_of(10).then(|| sequence / 10 % count)
}

/// Publishes events, each due at its moment, from a sequence on.
fn publish(shard: &mut Shard, block: u64, first: u64, due: &[WallMs], keys: u64) {
    let mut events = Vec::new();
    for (sequence, due) in (first..).zip(due) {
        let key = key(sequence, keys).map(u64::to_le_bytes);
        let spec = EventSpec {
            ordering_key: key.as_ref().map_or(&[], |key| &key[..]),
            ..EventSpec::new(Due::At(*due), "0123456789ab", &[7; 128])
        };
        spec.encode(&mut events).expect("valid");
    }
    let (mut records, mut count) = (Vec::new(), 0);
    let mut writer = RecordWriter::new(&mut records, &mut count);
    writer.published(TOPIC, Sequence(first), due.len() as u32, START, &events);
    shard.apply_block(block, &records, &mut Effects::default()).expect("its own records");
}

fn percentile(lateness: &[u64], share: f64) -> u64 {
    lateness.get(((lateness.len() - 1) as f64 * share) as usize).copied().unwrap_or(0)
}

fn report(what: &str, mut lateness: Vec<u64>, missing: u64) {
    lateness.sort_unstable();
    let count = lateness.len();
    if count == 0 {
        println!("{what}: none of {missing} in {TURNS} turns");
        return;
    }
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|share| percentile(&lateness, share));
    println!(
        "{what}: {count} dispatched, p50 {p50}, p99 {p99}, most {most} turns late; {missing} not dispatched"
    );
}

fn main() {
    let given: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let number = |at: usize, otherwise| given.get(at).copied().unwrap_or(otherwise);
    let (overdue, results, newly) = (number(0, 1_000_000), number(1, 256), number(2, 10));
    let credit_tasks = number(3, 1_024) as u32;
    let mut shard = Shard::new(config());
    shard.apply_block(1, &control(), &mut Effects::default()).expect("control records");
    let mut block = 1;
    let mut first = 1;
    while first <= overdue {
        let count = (overdue + 1 - first).min(1_000);
        let due: Vec<WallMs> =
            (first..first + count).map(|n| START.plus_ms(n * (DOWN_MS - 1) / overdue)).collect();
        block += 1;
        publish(&mut shard, block, first, &due, KEY_COUNT);
        first += count;
    }
    let begin = START.plus_ms(DOWN_MS);
    for turn in 0..TURNS {
        block += 1;
        let due: Vec<WallMs> = (0..newly).map(|_| begin.plus_ms(turn + 1)).collect();
        publish(&mut shard, block, first + turn * newly, &due, 2 * KEY_COUNT);
    }
    let now = |turn: u64| Now { mono: MonoNs(turn * 1_000_000), wall: begin.plus_ms(turn) };
    shard.replayed().expect("no runs");
    shard.recovered(now(0), Epoch(1));
    let mut effects = Effects::default();
    let credit = Credit { tasks: credit_tasks, bytes: 1 << 20 };
    let (session, running) = (SessionId(1), Vec::new());
    let attach = Message::Attach { subscription: ID, session, host: HostKey(1), credit, running };
    shard.step(now(0), Input::Message(attach), &mut effects);

    let mut working: VecDeque<ResultItem> = VecDeque::new();
    let mut lateness: BTreeMap<Option<bool>, Vec<u64>> = BTreeMap::new();
    // Whether overdue events have its key, where it has one.
    let is_shared = |sequence: u64| key(sequence, 2 * KEY_COUNT).map(|key| key < KEY_COUNT);
    let mut drained = 0;
    for turn in 0..=TURNS {
        let done: Vec<ResultItem> = working.drain(..working.len().min(results as usize)).collect();
        let items = Items::from(done.as_slice());
        shard.step(now(turn), Input::Results { session, results: items }, &mut effects);
        shard.maintain(now(turn), &mut effects);
        for push in effects.pushes.drain(..) {
            working.push_back(ResultItem {
                tag: push.tag,
                retry_after_ms: 0,
                result: AttemptResult::Success,
            });
            if push.sequence.0 < first {
                drained += 1;
            } else {
                let due_turn = (push.sequence.0 - first) / newly + 1;
                lateness.entry(is_shared(push.sequence.0)).or_default().push(turn - due_turn);
            }
        }
        if !effects.records.is_empty() {
            block += 1;
            let records = std::mem::take(&mut effects.records);
            shard.apply_block(block, &records, &mut effects).expect("its own records");
            effects.record_count = 0;
        }
    }
    println!("{overdue} overdue, {results} results and {newly} newly due events a turn: {drained} drained");
    for (sort, what) in [
        (None, "newly due without a key"),
        (Some(false), "newly due with a key that nothing overdue has"),
        (Some(true), "newly due with a key of overdue events"),
    ] {
        let found = lateness.remove(&sort).unwrap_or_default();
        let all = (first..first + TURNS * newly).filter(|n| is_shared(*n) == sort).count() as u64;
        let missing = all - found.len() as u64;
        report(what, found, missing);
    }
}
