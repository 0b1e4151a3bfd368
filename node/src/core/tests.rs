use escapement_engine::ShardConfig;
use escapement_engine::record::RecordWriter;
use escapement_protocol::event::Due;
use escapement_protocol::frame::{Frame, FrameDecoder, FrameWriter, Hello};
use escapement_protocol::{
    EventSpec, MonoNs, Sequence, SubscriptionId, SubscriptionSettings, TopicId, TopicSettings, WallMs,
};
use escapement_wal::memory::MemDisk;
use escapement_wal::{LogIdentity, WalConfig, format_log, open};

use super::*;

fn config(epochs: &[Option<Epoch>]) -> CoreConfig {
    CoreConfig {
        core: 0,
        core_count: 1,
        shard_count: epochs.len() as u16,
        epochs: epochs.to_vec(),
        node_id: 1,
        commit: CommitPolicy::default(),
        intake_size_bytes_max: 1 << 20,
        credit_max: Credit::default(),
    }
}

/// What a core of three shards, whose epochs are these, answers to `Hello`.
fn welcomed_to(epochs: [Option<Epoch>; 3]) -> Epoch {
    let mut core: Core<u32> = Core::new(config(&epochs), vec![None, None, None]);
    let mut hello = Vec::new();
    FrameWriter::new().write(&Frame::Hello(Hello { version: 1, client: "test" }), &mut hello).unwrap();
    core.opened(0);
    core.bytes(Now::default(), 0, &hello).unwrap();
    let mut epoch = None;
    core.flush_replies(|_, bytes| {
        let welcome = |frame: Frame<'_>| {
            let Frame::Welcome(welcome) = frame else { panic!("{frame:?}") };
            epoch = Some(welcome.epoch);
            Ok(())
        };
        FrameDecoder::new().feed(&bytes, welcome).unwrap();
    });
    epoch.expect("a welcome")
}

#[test]
fn the_nodes_epoch_is_the_highest_of_the_shards_that_serve() {
    assert_eq!(welcomed_to([Some(Epoch(2)), Some(Epoch(9)), Some(Epoch(4))]), Epoch(9));
    assert_eq!(welcomed_to([None, Some(Epoch(3)), None]), Epoch(3));
}

const START: WallMs = WallMs(1_800_000_000_000);
const BATCH: usize = 10;
/// Events in a record.
const PER_RECORD: u32 = 100;

fn at_ms(ms: u64) -> Now {
    Now { mono: MonoNs(0).plus_ms(ms), wall: START.plus_ms(ms) }
}

fn event() -> Vec<u8> {
    let mut event = Vec::new();
    EventSpec::new(Due::At(START.plus_ms(1)), "id", &[7; 24]).encode(&mut event).expect("valid");
    event
}

/// A core of shards in which so many hundred events are due after a millisecond.
fn core_with_due(hundreds: &[u32]) -> Core<u32> {
    let shard_count = hundreds.len() as u16;
    let opened = hundreds.iter().zip(0..).map(|(hundreds, shard)| {
        let mut state = Shard::new(ShardConfig {
            shard: ShardId(shard),
            shard_count,
            memory_bytes_max: 1 << 30,
            admission_per_s: 0,
            block_size_bytes_max: 64 * 1024,
            horizon_ms: 60_000,
            run_size_bytes: 64 * 1024,
            names_run_size_bytes: 1 << 20,
            batch_count_max: BATCH,
            seed: 1,
        });
        let (mut records, mut count) = (Vec::new(), 0);
        let mut writer = RecordWriter::new(&mut records, &mut count);
        writer.topic(TopicId(1), 1, &TopicSettings { name: "t".into(), ..TopicSettings::default() });
        let settings =
            SubscriptionSettings { name: "s".into(), topic: "t".into(), ..SubscriptionSettings::default() };
        writer.subscription(SubscriptionId(1), 2, TopicId(1), &settings);
        for n in 0..*hundreds {
            let events = event().repeat(PER_RECORD as usize);
            writer.published(TopicId(1), Sequence(1 + u64::from(n * PER_RECORD)), PER_RECORD, START, &events);
        }
        state.apply_block(2, &records, &mut escapement_engine::Effects::default()).expect("its own records");
        state.recovered(at_ms(0), Epoch(1));
        let identity = LogIdentity { cluster: 1, shard: ShardId(shard), shard_count };
        let (mut disk, wal) = (MemDisk::new(1), WalConfig::tiny());
        format_log(&mut disk, identity, &wal).expect("a new log");
        let (log, _) = open(&mut disk, identity, &wal, &mut |_| {}).expect("a new log opens");
        Some((state, log))
    });
    Core::new(config(&vec![Some(Epoch(1)); hundreds.len()]), opened.collect())
}

#[test]
fn while_a_core_is_behind_publishers_are_read_for_half_of_what_it_matches_and_else_without_bound() {
    let mut core = core_with_due(&[10]);
    core.finish_turn(at_ms(0));
    assert_eq!(core.intake_size_bytes(), usize::MAX, "nothing is due");
    core.finish_turn(at_ms(1));
    assert_eq!(core.intake_size_bytes(), 0, "one turn in the order of due times comes first");
    let all = BATCHES_PER_TURN * BATCH * event().len();
    for _ in 2..=6 {
        core.finish_turn(at_ms(1));
        assert_eq!(core.intake_size_bytes(), all / 2);
    }
    core.finish_turn(at_ms(1));
    assert_eq!(
        (core.intake_size_bytes(), core.shard(ShardId(0)).expect("it serves").is_behind()),
        (usize::MAX, false)
    );
}

#[test]
fn a_turn_is_as_long_for_four_shards_that_are_behind_as_for_one() {
    for shards in [1, 4] {
        let mut core = core_with_due(&vec![10; shards]);
        let tasks = |core: &Core<u32>| -> usize {
            let sent: usize = core.inside.local.len();
            let held = (0..shards).filter_map(|shard| core.shard(ShardId(shard as u16)));
            sent + held.map(|shard| shard.router().tasks()).sum::<usize>()
        };
        core.finish_turn(at_ms(0));
        core.finish_turn(at_ms(1));
        assert_eq!(tasks(&core), BATCHES_PER_TURN * BATCH, "of {shards} shards");
    }
}
