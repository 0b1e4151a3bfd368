//! At steady state the shard's path allocates nothing for an event: what is allocated grows with turns, not with events.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use escapement_engine::record::RecordWriter;
use escapement_engine::{Effects, Input, Message, Shard, ShardConfig, Ticket};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{Items, ResultItem};
use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{
    AttemptResult, Epoch, EventSpec, MonoNs, Now, ShardId, SubscriptionId, TopicId, WallMs,
};
use escapement_router::{Credit, HostKey, SessionId};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller upholds what `alloc` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds what `dealloc` asks for, and the memory came from the same allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BATCH: u32 = 64;
const BATCHES_PER_TURN: usize = 1;
/// How far ahead events are due, in turns of one millisecond: what is pending meanwhile.
const AHEAD_MS: u64 = 20;

#[test]
fn events_are_published_delivered_and_completed_without_an_allocation_for_each() {
    let mut shard = Shard::new(ShardConfig {
        shard: ShardId(0),
        shard_count: 1,
        memory_bytes_max: 1 << 30,
        admission_per_s: 0,
        block_size_bytes_max: 512 * 1024,
        horizon_ms: 15 * 60 * 1_000,
        run_size_bytes: 32 << 20,
        names_run_size_bytes: 1 << 20,
        batch_count_max: 4_096,
        seed: 1,
    });
    let mut control = Vec::new();
    let mut writer_count = 0;
    let mut writer = RecordWriter::new(&mut control, &mut writer_count);
    writer.topic(TopicId(1), 1, &TopicSettings { name: "t".into(), ..TopicSettings::default() });
    // More subscriptions than a small vector holds, so that a fan-out is measured too.
    for id in 1..=6 {
        let settings = SubscriptionSettings {
            name: format!("s{id}"),
            topic: "t".into(),
            ..SubscriptionSettings::default()
        };
        writer.subscription(SubscriptionId(id), 1 + u64::from(id), TopicId(1), &settings);
    }
    let mut effects = Effects::default();
    shard.apply_block(1, &control, &mut effects).expect("control records");
    let mut now = Now { mono: MonoNs(0), wall: WallMs(1_800_000_000_000) };
    shard.recovered(now, Epoch(1));
    for id in 1..=6 {
        let attach = Message::Attach {
            subscription: SubscriptionId(id),
            session: SessionId(u64::from(id)),
            host: HostKey(1),
            credit: Credit { tasks: 100_000, bytes: 1 << 30 },
            running: Vec::new(),
        };
        shard.step(now, Input::Message(attach), &mut effects);
    }
    let mut events = Vec::new();
    for _ in 0..BATCH {
        EventSpec::new(Due::After(AHEAD_MS), "0123456789ab", &[7; 128]).encode(&mut events).expect("valid");
    }
    let mut block = 1;
    let mut records = Vec::new();
    let mut pushes = Vec::new();
    let mut turn = || {
        now = Now { mono: now.mono.plus_ms(1), wall: now.wall.plus_ms(1) };
        for number in 0..BATCHES_PER_TURN {
            let ticket = Ticket { core: 0, number: number as u64 };
            let publish = Input::Publish { ticket, topic: TopicId(1), count: BATCH, events: &events };
            shard.step(now, publish, &mut effects);
        }
        for push in pushes.drain(..) {
            let escapement_engine::Push { session, tag, .. } = push;
            let result = [ResultItem { tag, retry_after_ms: 0, result: AttemptResult::Success }];
            let results = Items::from(result.as_slice());
            shard.step(now, Input::Results { session, results }, &mut effects);
        }
        shard.maintain(now, &mut effects);
        pushes.append(&mut effects.pushes);
        std::mem::swap(&mut records, &mut effects.records);
        effects.on_commit.clear();
        block += 1;
        shard.apply_block(block, &records, &mut effects).expect("a shard reads itself");
        records.clear();
        shard.releasable();
        shard.stats().completed
    };
    // Once around the wheel's lowest level, so that every buffer has its size.
    for _ in 0..4_200 {
        turn();
    }
    let (before, completed) = (ALLOCATIONS.load(Ordering::Relaxed), turn());
    for _ in 0..1_000 {
        turn();
    }
    let (allocations, completed) = (ALLOCATIONS.load(Ordering::Relaxed) - before, turn() - completed);
    assert!(completed >= 6 * 64_000, "{completed} tasks completed");
    assert!(allocations < 1_000, "{allocations} allocations in 1,000 turns, {completed} tasks");
}
