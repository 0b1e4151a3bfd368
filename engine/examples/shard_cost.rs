//! What a task costs in the shard alone: publish, apply, due, push, result, completion, apply.
//!
//! `cargo run --release -p escapement-engine --example shard_cost [pending] [batch]`. No log, no network: the
//! figures are for finding what to make cheaper, and say nothing about a node.
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

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

const PER_TURN: usize = 512;
const TURNS: usize = 4_000;

const STAGES: [&str; 6] =
    ["publish", "apply published", "due, route, push", "read event", "result", "log, apply end"];

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let pending: usize = arguments.next().unwrap_or(1_000_000);
    let batch: usize = arguments.next().unwrap_or(64);
    let mut bench = Bench::new(pending, batch);
    // One pass over everything pending, so that what is measured is the steady state.
    for _ in 0..pending / PER_TURN + 1_000 {
        bench.turn();
    }
    bench.spent = [Duration::ZERO; STAGES.len()];
    let before = bench.shard.stats().completed;
    for _ in 0..TURNS {
        bench.turn();
    }
    let tasks = bench.shard.stats().completed - before;
    let stats = bench.shard.stats();
    println!("{pending} pending, batches of {batch}, {tasks} tasks");
    let mut total = 0.0;
    for (stage, spent) in STAGES.iter().zip(bench.spent) {
        let ns = spent.as_nanos() as f64 / tasks as f64;
        total += ns;
        println!("{stage:>18} {ns:7.1} ns");
    }
    println!("{:>18} {total:7.1} ns", "task");
    let held = (stats.payload_bytes + stats.index_bytes) as f64 / stats.pending.max(1) as f64;
    println!(
        "{:>18} {held:7.1} bytes, of which index {}",
        "pending",
        stats.index_bytes / stats.pending.max(1)
    );
}

/// CPU time of this thread, as cores are shared with others.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

struct Bench {
    shard: Shard,
    effects: Effects,
    now: Now,
    block: u64,
    events: Vec<u8>,
    batch: usize,
    records: Vec<u8>,
    results: Vec<ResultItem>,
    spent: [Duration; STAGES.len()],
    checksum: u64,
}

impl Bench {
    fn new(pending: usize, batch: usize) -> Bench {
        let mut shard = Shard::new(ShardConfig {
            shard: ShardId(0),
            shard_count: 1,
            memory_bytes_max: usize::MAX / 2,
            admission_per_s: 0,
            block_size_bytes_max: 512 * 1024,
            batch_count_max: 4_096,
            seed: 1,
        });
        let mut effects = Effects::default();
        let (mut control, mut count) = (Vec::new(), 0);
        let mut writer = RecordWriter::new(&mut control, &mut count);
        writer.topic(TopicId(1), 1, &TopicSettings { name: "t".into(), ..TopicSettings::default() });
        let settings =
            SubscriptionSettings { name: "s".into(), topic: "t".into(), ..SubscriptionSettings::default() };
        writer.subscription(SubscriptionId(1), 2, TopicId(1), &settings);
        shard.apply_block(1, &control, &mut effects).expect("control records");
        let now = Now { mono: MonoNs(0), wall: WallMs(1_800_000_000_000) };
        shard.recovered(now, Epoch(1));
        let attach = Message::Attach {
            subscription: SubscriptionId(1),
            session: SessionId(1),
            host: HostKey(1),
            credit: Credit { tasks: 1 << 20, bytes: 1 << 30 },
            running: Vec::new(),
        };
        shard.step(now, Input::Message(attach), &mut effects);
        // A turn is a millisecond, so that as many are pending as are published in so many turns.
        let ahead_ms = (pending / PER_TURN).max(1) as u64;
        let mut events = Vec::new();
        for _ in 0..batch {
            EventSpec::new(Due::After(ahead_ms), "0123456789ab", &[7; 128])
                .encode(&mut events)
                .expect("valid");
        }
        Bench {
            shard,
            effects,
            now,
            block: 1,
            events,
            batch,
            records: Vec::new(),
            results: Vec::new(),
            spent: [Duration::ZERO; STAGES.len()],
            checksum: 0,
        }
    }

    fn turn(&mut self) {
        let Bench { shard, effects, records, results, spent, .. } = self;
        self.now = Now { mono: self.now.mono.plus_ms(1), wall: self.now.wall.plus_ms(1) };
        let now = self.now;
        let mut lap = thread_time();
        let mut stage = |at: usize| {
            let next = thread_time();
            spent[at] += next - lap;
            lap = next;
        };
        for _ in 0..PER_TURN / self.batch {
            let (ticket, count) = (Ticket::default(), self.batch as u32);
            let publish = Input::Publish { ticket, topic: TopicId(1), count, events: &self.events };
            shard.step(now, publish, effects);
        }
        stage(0);
        for results in results.chunks(self.batch) {
            let results = Items::from(results);
            shard.step(now, Input::Results { session: SessionId(1), results }, effects);
        }
        stage(4);
        std::mem::swap(records, &mut effects.records);
        effects.on_commit.clear();
        self.block += 1;
        shard.apply_block(self.block, records, effects).expect("a shard reads itself");
        records.clear();
        stage(1);
        shard.maintain(now, effects);
        stage(2);
        results.clear();
        for push in effects.pushes.drain(..) {
            let event = shard.event(push.sequence).expect("pending");
            self.checksum = self.checksum.wrapping_add(u64::from(event.bytes[40]) + event.schedule_time().0);
            results.push(ResultItem { tag: push.tag, retry_after_ms: 0, result: AttemptResult::Success });
        }
        stage(3);
        std::mem::swap(records, &mut effects.records);
        self.block += 1;
        shard.apply_block(self.block, records, effects).expect("a shard reads itself");
        records.clear();
        shard.releasable();
        stage(5);
    }
}
