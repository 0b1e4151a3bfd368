//! How long it takes to decide an operation on a group of many events, and how many bytes it logs.
//!
//! `cargo run --release -p escapement-bench --example group -- 1000 1000000`: sizes of groups. Time is that of the decision
//! alone: the answer waits for one block of the log besides.
#![expect(clippy::print_stdout, reason = "a measurement speaks on its streams")]

use std::time::Instant;

use escapement_engine::record::RecordWriter;
use escapement_engine::{Effects, Input, Shard, ShardConfig, Ticket};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{GroupAct, GroupOperation, Query};
use escapement_protocol::settings::TopicSettings;
use escapement_protocol::{Epoch, EventSpec, MonoNs, Now, Sequence, ShardId, TopicId, WallMs};

const TOPIC: TopicId = TopicId(1);
const START: WallMs = WallMs(1_800_000_000_000);
const NOW: Now = Now { mono: MonoNs(0), wall: START };
const GROUP: &str = "account-7";

/// Operations measured on each group.
const OPERATIONS: u64 = 100;

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

/// A shard with so many pending events of one group.
fn filled(count: u64) -> Shard {
    let mut shard = Shard::new(config());
    let (mut records, mut record_count) = (Vec::new(), 0);
    let settings = TopicSettings { name: "t".into(), ..TopicSettings::default() };
    RecordWriter::new(&mut records, &mut record_count).topic(TOPIC, 1, &settings);
    shard.apply_block(1, &records, &mut Effects::default()).expect("its own records");
    let due = Due::At(START.plus_ms(600_000));
    let mut one = Vec::new();
    let spec = EventSpec { group: GROUP, ..EventSpec::new(due, "0123456789ab", &[7; 128]) };
    spec.encode(&mut one).expect("valid");
    let (mut first, mut block) = (1, 2);
    while first <= count {
        let some = (count + 1 - first).min(1_000);
        records.clear();
        let mut writer = RecordWriter::new(&mut records, &mut record_count);
        writer.published(TOPIC, Sequence(first), some as u32, START, &one.repeat(some as usize));
        shard.apply_block(block, &records, &mut Effects::default()).expect("its own records");
        (first, block) = (first + some, block + 1);
    }
    shard.replayed().expect("no runs");
    shard.recovered(NOW, Epoch(1));
    shard
}

fn main() {
    let sizes: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    for count in if sizes.is_empty() { vec![1_000, 1_000_000] } else { sizes } {
        let mut shard = filled(count);
        let mut block = count / 1_000 + 10;
        let (mut times, mut logged) = (Vec::new(), 0);
        for n in 0..OPERATIONS {
            // What is cancelled is given back by the next one.
            let act = if n % 2 == 0 { GroupAct::Cancel } else { GroupAct::Undo };
            let (group, epoch) = (GROUP.to_owned(), n / 2 + 1);
            let operation = GroupOperation { shard: ShardId(0), topic: TOPIC, group, act, epoch, by_ms: 0 };
            let input = Input::Query { ticket: Ticket::default(), query: Query::Group(operation) };
            let mut effects = Effects::default();
            let begun = Instant::now();
            shard.step(NOW, input, &mut effects);
            times.push(begun.elapsed());
            logged = logged.max(effects.records.len());
            block += 1;
            let records = std::mem::take(&mut effects.records);
            shard.apply_block(block, &records, &mut effects).expect("its own records");
        }
        times.sort_unstable();
        let (half, most) = (times[times.len() / 2], times[times.len() - 1]);
        println!(
            "{count} events: an operation takes {half:?} at p50, at most {most:?}, and logs up to {logged} bytes"
        );
    }
}
