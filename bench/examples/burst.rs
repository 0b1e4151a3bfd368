//! What a million events that are due in one millisecond do to a shard, and to another topic beside them.
//!
//! `cargo run --release -p escapement-bench --example burst -- 1000000 20`: events of the burst, and events of the other topic
//! that become due in each millisecond. The shard is alone: a turn is 16 maintenances, as in a core, its time passes as the
//! processor's does, and every push is answered in the next turn.
#![expect(clippy::print_stdout, reason = "a measurement speaks on its streams")]

use std::time::{Duration, Instant};

use escapement_engine::record::RecordWriter;
use escapement_engine::{Effects, Input, Message, Shard, ShardConfig};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{Items, ResultItem};
use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{
    AttemptResult, Epoch, EventSpec, MonoNs, Now, Sequence, ShardId, SubscriptionId, TopicId, WallMs,
};
use escapement_router::{Credit, HostKey, SessionId};

const START: WallMs = WallMs(1_800_000_000_000);
/// When the burst is due, in ms after the start.
const DUE_MS: u64 = 70_000;
/// How long the other topic's events become due after that.
const BESIDE_MS: u64 = 2_000;
/// Maintenances in a core's turn.
const BATCHES_PER_TURN: usize = 16;
const PER_RECORD: u64 = 500;

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
        batch_count_max: 64,
        seed: 1,
    }
}

fn control() -> Vec<u8> {
    let (mut records, mut count) = (Vec::new(), 0);
    let mut writer = RecordWriter::new(&mut records, &mut count);
    for id in 1..=2 {
        let topic = format!("t{id}");
        writer.topic(
            TopicId(id),
            u64::from(2 * id - 1),
            &TopicSettings { name: topic.clone(), ..Default::default() },
        );
        let settings = SubscriptionSettings { name: format!("s{id}"), topic, ..Default::default() };
        writer.subscription(SubscriptionId(id), u64::from(2 * id), TopicId(id), &settings);
    }
    records
}

/// Makes events durable, each due at its moment, from a sequence on.
fn publish(shard: &mut Shard, block: u64, topic: u32, first: u64, due: &[WallMs]) {
    let mut events = Vec::new();
    for due in due {
        let spec = EventSpec::new(Due::At(*due), "0123456789ab", &[7; 128]);
        spec.encode(&mut events).expect("valid");
    }
    let (mut records, mut count) = (Vec::new(), 0);
    let mut writer = RecordWriter::new(&mut records, &mut count);
    writer.published(TopicId(topic), Sequence(first), due.len() as u32, START, &events);
    shard.apply_block(block, &records, &mut Effects::default()).expect("its own records");
}

fn percentile<T: Copy + Default>(sorted: &[T], share: f64) -> T {
    sorted.get((sorted.len().saturating_sub(1) as f64 * share) as usize).copied().unwrap_or_default()
}

fn main() {
    let given: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let number = |at: usize, otherwise| given.get(at).copied().unwrap_or(otherwise);
    let (count, per_ms) = (number(0, 1_000_000), number(1, 20));
    let mut shard = Shard::new(config());
    shard.apply_block(1, &control(), &mut Effects::default()).expect("control records");
    let wall = |ms: u64| START.plus_ms(ms);
    let now = |ns: u64| Now { mono: MonoNs(ns), wall: wall(ns / 1_000_000) };
    shard.recovered(now(0), Epoch(1));
    let (mut block, mut next) = (1, 1);
    let beside: Vec<WallMs> = (0..BESIDE_MS * per_ms).map(|n| wall(DUE_MS + 1 + n / per_ms)).collect();
    for (topic, due) in [(1, vec![wall(DUE_MS); count as usize]), (2, beside)] {
        for due in due.chunks(PER_RECORD as usize) {
            block += 1;
            publish(&mut shard, block, topic, next, due);
            next += due.len() as u64;
        }
    }
    let mut effects = Effects::default();
    for id in 1..=2 {
        let credit = Credit { tasks: 1 << 16, bytes: 1 << 30 };
        let (session, running) = (SessionId(id.into()), Vec::new());
        let attach =
            Message::Attach { subscription: SubscriptionId(id), session, host: HostKey(1), credit, running };
        shard.step(now(0), Input::Message(attach), &mut effects);
    }
    // What waits comes down the wheel's levels as time passes.
    for ms in 0..DUE_MS {
        shard.maintain(now(ms * 1_000_000), &mut effects);
    }
    let began = Instant::now();
    let elapsed_ns = || DUE_MS * 1_000_000 + began.elapsed().as_nanos() as u64;
    let (mut turns, mut lateness, mut drained) = (Vec::new(), Vec::new(), Duration::ZERO);
    let mut results: Vec<ResultItem> = Vec::new();
    let mut left = count + BESIDE_MS * per_ms;
    while left > 0 {
        let turn_ns = elapsed_ns();
        let now = now(turn_ns);
        let items = Items::from(results.as_slice());
        for session in [1, 2].map(SessionId) {
            shard.step(now, Input::Results { session, results: items }, &mut effects);
        }
        results.clear();
        if !effects.records.is_empty() {
            block += 1;
            let records = std::mem::take(&mut effects.records);
            shard.apply_block(block, &records, &mut effects).expect("its own records");
            effects.record_count = 0;
        }
        for _ in 0..BATCHES_PER_TURN {
            shard.maintain(now, &mut effects);
            if !shard.is_behind() {
                break;
            }
        }
        let end_ns = elapsed_ns();
        for push in effects.pushes.drain(..) {
            let (tag, retry_after_ms, result) = (push.tag, 0, AttemptResult::Success);
            results.push(ResultItem { tag, retry_after_ms, result });
            left -= 1;
            if push.subscription == SubscriptionId(1) {
                drained = began.elapsed();
            } else if drained == Duration::ZERO
                || drained.as_nanos() as u64 + DUE_MS * 1_000_000 + 2_000_000 > turn_ns
            {
                let due = shard.event(push.sequence).expect("it is pending").due;
                lateness.push(end_ns.saturating_sub((due.0 - START.0) * 1_000_000) / 1_000);
            }
        }
        turns.push((end_ns - turn_ns) / 1_000);
    }
    println!("{count} events of a burst drained in {:.1} ms", drained.as_secs_f64() * 1e3);
    let first: Vec<u64> = turns.iter().take(10).copied().collect();
    println!("the first turns took, in µs: {first:?}");
    turns.sort_unstable();
    println!(
        "a turn took {} µs, {} at p99, {} at most",
        percentile(&turns, 0.5),
        percentile(&turns, 0.99),
        percentile(&turns, 1.0)
    );
    lateness.sort_unstable();
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|share| percentile(&lateness, share));
    println!(
        "{} events of the other topic meanwhile: {p50} µs late, {p99} at p99, {most} at most",
        lateness.len()
    );
}
