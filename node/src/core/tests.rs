use escapement_engine::record::RecordWriter;
use escapement_engine::{ShardConfig, newest_control};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{
    self, AdminRequest, Frame, FrameDecoder, FrameWriter, Hello, Items, Subscribe,
};
use escapement_protocol::{
    ErrorCode, EventSpec, MonoNs, Sequence, SubscriptionId, SubscriptionSettings, TopicId, TopicSettings,
    WallMs,
};
use escapement_wal::memory::{Faults, MemDisk};
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

fn shard_config(shard: u16, shard_count: u16) -> ShardConfig {
    ShardConfig {
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
    }
}

/// A new log, and the disk that it is on.
fn new_log(shard: u16, shard_count: u16) -> (LocalWal, MemDisk) {
    let identity = LogIdentity { cluster: 1, shard: ShardId(shard), shard_count };
    let (mut disk, wal) = (MemDisk::new(1), WalConfig::tiny());
    format_log(&mut disk, identity, &wal).expect("a new log");
    let (log, _) = open(&mut disk, identity, &wal, &mut |_| {}).expect("a new log opens");
    (log, disk)
}

/// A core of shards in which so many hundred events are due after a millisecond.
fn core_with_due(hundreds: &[u32]) -> Core<u32> {
    let shard_count = hundreds.len() as u16;
    let opened = hundreds.iter().zip(0..).map(|(hundreds, shard)| {
        let mut state = Shard::new(shard_config(shard, shard_count));
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
        Some((state, new_log(shard, shard_count).0))
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

/// Two cores of one shard each. The second missed a topic, and its disk does as `faults` say.
#[track_caller]
fn assert_both_listen_once_the_second_catches_up(faults: Faults) {
    let mut first = Shard::new(shard_config(0, 2));
    let (mut records, mut count) = (Vec::new(), 0);
    let settings = TopicSettings { name: "t".into(), ..TopicSettings::default() };
    RecordWriter::new(&mut records, &mut count).topic(TopicId(1), 1, &settings);
    first.apply_block(2, &records, &mut escapement_engine::Effects::default()).expect("its own records");
    let mut second = Shard::new(shard_config(1, 2));
    for shard in [&mut first, &mut second] {
        shard.recovered(at_ms(0), Epoch(1));
    }
    let (version, missed) = newest_control([&first, &second]);
    let ((log, _), (second_log, mut disk)) = (new_log(0, 2), new_log(1, 2));
    disk.set_faults(faults);
    let both = CoreConfig { core_count: 2, ..config(&[Some(Epoch(1)); 2]) };
    let mut first: Core<u32> = Core::new(both.clone(), vec![Some((first, log))]);
    let mut second: Core<u32> = Core::new(CoreConfig { core: 1, ..both }, vec![Some((second, second_log))]);
    first.catch_up(at_ms(0), version, &missed);
    second.catch_up(at_ms(0), version, &missed);
    let mut turns_deaf = 0;
    while !(first.may_read(7) && second.may_read(7)) {
        assert!(turns_deaf < 100, "neither listens");
        turns_deaf += 1;
        if let Some(completion) = disk.step() {
            second.disk_completed(at_ms(0), ShardId(1), completion);
        }
        second.receive(at_ms(0), first.take_mail(1));
        first.receive(at_ms(0), second.take_mail(0));
        second.finish_turn(at_ms(0));
        first.finish_turn(at_ms(0));
        while let Some((_, op)) = second.poll_disk_op() {
            disk.submit(op);
        }
        let knows =
            second.shard(ShardId(1)).is_some_and(|shard| shard.registry().topic(TopicId(1)).is_some());
        let is_out = second.failures().next().is_some();
        assert!(
            knows || is_out || !(first.may_read(7) || second.may_read(7)),
            "somebody is listened to early"
        );
    }
    assert!(turns_deaf > 1, "the second had something to write");
}

#[test]
fn no_core_listens_before_the_shards_of_every_core_know_what_was_acknowledged() {
    assert_both_listen_once_the_second_catches_up(Faults::default());
}

#[test]
fn a_shard_that_stops_before_it_knows_is_not_waited_for() {
    assert_both_listen_once_the_second_catches_up(Faults { write_fails_after: Some(0), ..Faults::default() });
}

/// Why a core whose shards' epochs are these refuses somebody who asks for a topic, and somebody who subscribes.
fn refused_by(epochs: [Option<Epoch>; 2]) -> Vec<Option<ErrorCode>> {
    let shards = (0..2).zip(epochs).map(|(shard, epoch)| {
        epoch.map(|epoch| {
            let mut state = Shard::new(shard_config(shard, 2));
            state.recovered(at_ms(0), epoch);
            (state, new_log(shard, 2).0)
        })
    });
    let mut core: Core<u32> = Core::new(config(&epochs), shards.collect());
    let hello = Frame::Hello(Hello { version: 1, client: "test" });
    let get = Frame::Admin { request: 1, body: AdminRequest::GetTopic { name: "nowhere".into() } };
    let credit = frame::Credit { tasks: 1, bytes: 1 };
    let subscribe = Frame::Subscribe(Subscribe {
        subscription: "nobody",
        credit,
        host: 0,
        running: Items::from(&[][..]),
    });
    for (stream, frames) in [(0, vec![hello, get]), (1, vec![subscribe])] {
        let mut bytes = Vec::new();
        for frame in &frames {
            FrameWriter::new().write(frame, &mut bytes).expect("small frames");
        }
        core.opened(stream);
        core.bytes(at_ms(0), stream, &bytes).expect("sound frames");
    }
    let mut refused = Vec::new();
    core.flush_replies(|stream, bytes| {
        let error = |frame: Frame<'_>| {
            if let Frame::Error(error) = frame {
                refused.push((stream, ErrorCode::from_number(error.code)));
            }
            Ok(())
        };
        FrameDecoder::new().feed(&bytes, error).expect("frames");
    });
    refused.sort_by_key(|(stream, _)| *stream);
    refused.into_iter().map(|(_, code)| code).collect()
}

#[test]
fn nobody_is_told_that_something_is_unknown_while_shard_0_is_out() {
    use ErrorCode::{Unavailable, UnknownSubscription, UnknownTopic};
    assert_eq!(refused_by([Some(Epoch(1)), None]), [Some(UnknownTopic), Some(UnknownSubscription)]);
    assert_eq!(refused_by([None, Some(Epoch(1))]), [Some(Unavailable); 2]);
}
