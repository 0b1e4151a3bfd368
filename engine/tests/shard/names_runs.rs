//! Names in runs: what is published twice is one event, wherever the first one's name is.

use std::collections::BTreeMap;

use escapement_engine::far::{RunError, RunOp};
use escapement_engine::names::NameHash;
use escapement_engine::names::format::NamesFooter;
use escapement_engine::record::{Record, records};
use escapement_engine::{AdminRequest, Input, ReplyBody, ShardConfig, Ticket};
use escapement_protocol::event::Due;
use escapement_protocol::frame::CancelVerdict;
use escapement_protocol::settings::TopicSettings;
use escapement_protocol::{ErrorCode, ShardId, TopicId, WallMs};

use super::rig::{Numbers, Rig, config, event};

const WINDOW_MS: u64 = 60_000;

/// A rig of one shard that writes names to a run when they take so many bytes.
fn rig(names_run_size_bytes: usize) -> Rig {
    Rig::new(ShardConfig { names_run_size_bytes, ..config(1) })
}

fn topic(rig: &mut Rig, name: &str, dedup_window_ms: u64) -> TopicId {
    let settings = TopicSettings {
        name: name.into(),
        default_source: "/default".into(),
        dedup_window_ms,
        ..TopicSettings::default()
    };
    match rig.admin(AdminRequest::CreateTopic(settings)) {
        ReplyBody::Topic { id, .. } => id,
        other => panic!("{other:?}"),
    }
}

fn soon(id: u64) -> Vec<u8> {
    event(Due::After(0), &id.to_string(), b"")
}

fn later(id: u64) -> Vec<u8> {
    event(Due::After(WINDOW_MS / 2), &id.to_string(), b"")
}

fn batch(ids: impl Iterator<Item = u64>) -> Vec<Vec<u8>> {
    ids.map(soon).collect()
}

/// Publishes, and lets everything that it takes happen. Answers the sequences, those of duplicates included.
#[track_caller]
fn published(rig: &mut Rig, topic: TopicId, events: &[Vec<u8>]) -> Vec<u64> {
    let ticket = rig.publish(0, topic, events);
    rig.settle();
    sequences(rig, ticket)
}

#[track_caller]
fn sequences(rig: &mut Rig, ticket: Ticket) -> Vec<u64> {
    match rig.reply(ticket) {
        Some(ReplyBody::Published { first_sequence, accepted_count, duplicates, refusal: None, .. }) => {
            let mut fresh = first_sequence.0..;
            let of = |index| duplicates.iter().find(|duplicate| duplicate.index == index);
            let each = (0..accepted_count).map(|index| match of(index) {
                Some(duplicate) => duplicate.sequence.0,
                None => fresh.next().expect("without end"),
            });
            each.collect()
        }
        other => panic!("{other:?}"),
    }
}

/// A rig whose topic's first 400 names are in runs; the events are pending for half of their window.
fn written() -> (Rig, TopicId) {
    let mut rig = rig(10_000);
    let topic = topic(&mut rig, "t", WINDOW_MS);
    for n in 0..4 {
        let events: Vec<_> = (100 * n..100 * (n + 1)).map(later).collect();
        published(&mut rig, topic, &events);
    }
    let first = soon(0);
    let ticket = rig.publish(0, topic, &[first]);
    assert!(matches!(rig.next_run_op(0), Some(RunOp::Read { .. })), "the first name is in a run");
    rig.settle();
    assert_eq!(sequences(&mut rig, ticket), [1]);
    (rig, topic)
}

#[test]
fn what_is_published_twice_is_one_event_wherever_its_name_is() {
    let (mut rig, topic) = written();
    rig.check();
    rig.check_replay();
    for round in 0..2 {
        let again = batch((0..400).rev());
        assert_eq!(published(&mut rig, topic, &again), Vec::from_iter((1..=400).rev()), "round {round}");
        rig.crash();
        rig.check_replay();
    }
    assert_eq!(rig.shard(0).stats().names, 400);
    rig.advance_ms(WINDOW_MS);
    assert_eq!(published(&mut rig, topic, &[soon(0)]), [401], "its window has passed");
}

#[test]
fn a_new_name_does_not_read_the_disk() {
    let (mut rig, topic) = written();
    for n in 1_000..1_400 {
        rig.publish(0, topic, &[soon(n)]);
        assert!(!matches!(rig.next_run_op(0), Some(RunOp::Read { .. })), "event {n}");
    }
}

#[test]
fn what_is_in_a_run_is_in_the_log_no_more() {
    let (mut rig, topic) = written();
    for _ in 0..3 {
        let (upto, before) = (rig.newest(0), rig.log_len(0));
        while rig.oldest(0) <= upto {
            rig.relocate(0, upto, 1_000);
            rig.sync();
            rig.trim(0, before);
        }
        rig.settle();
    }
    let all = (0..rig.log_len(0)).flat_map(|index| records(rig.block(0, index)));
    let stated: usize = all
        .map(|record| match record.expect("it parses") {
            Record::Names { names, .. } => names.iter().count(),
            Record::Published { names, .. } => names.count(),
            _ => 0,
        })
        .sum();
    assert!(stated < 300, "{stated} of 400 names are in the log");
    rig.check();
    rig.check_replay();
    rig.crash();
    assert_eq!(published(&mut rig, topic, &batch(0..400)), Vec::from_iter(1..=400));
}

#[test]
fn a_topics_events_keep_their_order_behind_one_that_waits_for_the_disk() {
    let (mut rig, topic) = written();
    let other = self::topic(&mut rig, "other", WINDOW_MS);
    let waits = rig.publish(0, topic, &[soon(3), soon(900)]);
    let behind = rig.publish(0, topic, &[soon(901), soon(900)]);
    let passes = rig.publish(0, other, &[soon(3)]);
    rig.sync();
    assert_eq!(
        (rig.reply(waits), rig.reply(behind)),
        (None, None),
        "one is read for, the other is behind it"
    );
    assert_eq!(sequences(&mut rig, passes), [401], "another topic's goes on");
    rig.settle();
    assert_eq!(sequences(&mut rig, waits), [4, 402]);
    assert_eq!(sequences(&mut rig, behind), [403, 402]);
    rig.check_replay();
}

#[test]
fn what_leaves_memory_while_a_publish_waits_is_found_in_the_new_run() {
    let (mut rig, topic) = written();
    // In memory, the newest names.
    published(&mut rig, topic, &batch(400..420));
    let ticket = rig.publish(0, topic, &[soon(3), soon(410)]);
    let Some(RunOp::Read { .. }) = rig.next_run_op(0) else { panic!("it waits") };
    // Behind it in the queue of the disk: the names that it saw in memory go to a run.
    let other = self::topic(&mut rig, "other", WINDOW_MS);
    let held = rig.hold_run_op(0);
    for n in 0..4 {
        published(&mut rig, other, &batch(100 * n..100 * (n + 1)));
    }
    rig.release_run_op(0, held);
    rig.settle();
    assert_eq!(sequences(&mut rig, ticket), [4, 411]);
    rig.check_replay();
}

fn cancel(rig: &mut Rig, topic: TopicId, id: u64) -> Ticket {
    let ticket = rig.ticket();
    let name = NameHash::of(topic, b"", b"/default", id.to_string().as_bytes());
    rig.step(0, Input::CancelByName { ticket, topic, name });
    ticket
}

#[test]
fn an_event_is_cancelled_by_a_name_that_is_in_a_run() {
    let (mut rig, topic) = written();
    let tickets = [3, 3, 7_777].map(|id| cancel(&mut rig, topic, id));
    assert_eq!(tickets.map(|ticket| rig.reply(ticket)), [const { None }; 3]);
    rig.settle();
    let verdicts = tickets.map(|ticket| rig.reply(ticket));
    // The second one is decided when the first is durable.
    let [cancelled, none] = [CancelVerdict::Cancelled, CancelVerdict::NotFound];
    assert_eq!(verdicts, [cancelled, none, none].map(|verdict| Some(ReplyBody::Cancelled(verdict))));
    assert_eq!(published(&mut rig, topic, &[soon(3)]), [4], "the name outlives the event");
    rig.check_replay();
}

#[test]
fn a_run_goes_when_all_its_windows_have_passed_and_the_log_states_it_no_more() {
    let (mut rig, topic) = written();
    let made = rig.files(0).0.len();
    assert!(made > 0);
    rig.advance_ms(WINDOW_MS - 1);
    rig.settle();
    assert_eq!(rig.files(0).0.len(), made, "not a moment before");
    rig.advance_ms(1_001);
    rig.settle();
    assert_eq!(rig.shard(0).stats().names, 0);
    rig.check_replay();
    rig.crash();
    rig.check_replay();
    let (upto, before) = (rig.newest(0), rig.log_len(0));
    while rig.oldest(0) <= upto {
        rig.relocate(0, upto, 1_000);
        rig.sync();
        rig.trim(0, before);
    }
    rig.settle();
    assert_eq!(rig.files(0).0.len(), 0);
    assert_eq!(published(&mut rig, topic, &[soon(0)]), [401]);
    rig.crash();
    rig.check_replay();
}

#[test]
fn a_disk_that_refuses_a_run_loses_no_name() {
    let mut rig = rig(10_000);
    let topic = topic(&mut rig, "t", WINDOW_MS);
    for n in 0..4 {
        let ticket = rig.publish(0, topic, &batch(100 * n..100 * (n + 1)));
        rig.sync();
        while rig.next_run_op(0).is_some_and(|op| !matches!(op, RunOp::Read { .. })) {
            rig.run_op_fails(0);
        }
        assert_eq!(sequences(&mut rig, ticket).len(), 100);
    }
    assert_eq!(published(&mut rig, topic, &[soon(0)]), [1]);
    rig.advance_ms(1_000);
    rig.settle();
    assert!(!rig.files(0).0.is_empty(), "it is tried again");
    assert_eq!(published(&mut rig, topic, &batch(0..400)), Vec::from_iter(1..=400));
    rig.check_replay();
}

#[test]
fn a_damaged_block_stops_the_shard_and_a_missing_file_keeps_it_from_starting() {
    let (mut rig, topic) = written();
    let (run, file) = rig.files(0).0.iter_mut().next().map(|(run, file)| (*run, file)).expect("a run");
    file[100] ^= 1;
    let ticket = rig.publish(0, topic, &batch(0..400));
    while rig.run_op(0) {}
    assert_eq!(rig.reply(ticket), None, "no answer is better than a wrong one");
    assert!(matches!(rig.shard(0).names_damage(), Some(RunError::Damaged(of, _)) if *of == run));
    assert_eq!(rig.shard_mut(0).take_waiting(), [ticket], "whoever drives it says so");
    rig.files(0).0.remove(&run);
    let refused = rig.try_replay(0).replayed();
    assert!(matches!(refused, Err(RunError::Missing(of)) if of == run), "{refused:?}");
}

#[test]
fn names_that_are_given_up_are_accepted_again_and_no_others() {
    let (mut rig, topic) = written();
    for _ in 0..3 {
        let (upto, before) = (rig.newest(0), rig.log_len(0));
        while rig.oldest(0) <= upto {
            rig.relocate(0, upto, 1_000);
            rig.sync();
            rig.trim(0, before);
        }
    }
    let mut stated = BTreeMap::new();
    for record in (0..rig.log_len(0)).flat_map(|index| records(rig.block(0, index))).flatten() {
        if let Record::NamesRun { run, footer_id } = record {
            stated.insert(run, footer_id);
        }
    }
    let (run, footer_id) = stated.pop_first().expect("a run is stated");
    rig.files(0).0.insert(run, NamesFooter::given_up(ShardId(0), run, footer_id));
    rig.check_replay();
    rig.crash();
    let again = published(&mut rig, topic, &batch(0..400));
    let others = again.iter().enumerate().filter(|(at, sequence)| **sequence == *at as u64 + 1).count();
    let anew = again.iter().filter(|sequence| **sequence > 400).count();
    assert!(anew > 0 && others > 0 && anew + others == 400, "{anew} anew and {others} known");
    rig.settle();
    rig.check();
    rig.check_replay();
}

#[test]
fn requests_that_wait_are_bounded_and_refused_with_what_to_do() {
    let (mut rig, topic) = written();
    let tickets: Vec<_> = (0..1_100).map(|_| rig.publish(0, topic, &[soon(3)])).collect();
    let refused = tickets.iter().filter_map(|ticket| match rig.reply(*ticket) {
        None => None,
        Some(ReplyBody::Refused(refusal)) => Some(refusal),
        other => panic!("{other:?}"),
    });
    let refused: Vec<_> = refused.collect();
    assert_eq!(refused.len(), 1_100 - 1_024);
    assert!(refused.iter().all(|r| r.code == ErrorCode::ResourceExhausted && r.retry_after_ms > 0));
    rig.settle();
    assert_eq!(sequences(&mut rig, tickets[1_023]), [4]);
}

#[test]
fn names_in_runs_take_a_small_part_of_the_memory_that_they_would_take() {
    let memory_bytes_max = 4 << 20;
    let mut rig =
        Rig::new(ShardConfig { memory_bytes_max, names_run_size_bytes: memory_bytes_max / 16, ..config(1) });
    let topic = topic(&mut rig, "t", WINDOW_MS);
    // In memory alone fewer than 20,000 fit.
    for n in 0..200 {
        published(&mut rig, topic, &batch(500 * n..500 * (n + 1)));
        let (upto, before) = (rig.newest(0), rig.log_len(0));
        rig.relocate(0, upto, 1 << 20);
        rig.sync();
        rig.trim(0, before);
    }
    assert_eq!(rig.shard(0).stats().names, 100_000);
    assert_eq!(published(&mut rig, topic, &[soon(0), soon(50_000), soon(99_999)]), [1, 50_001, 100_000]);
}

/// What was accepted under a name last: when, and its sequence.
type Model = BTreeMap<(TopicId, u64), (WallMs, u64)>;

/// A publish that was not answered.
struct Asked {
    ticket: Ticket,
    topic: TopicId,
    ids: Vec<u64>,
    at: WallMs,
}

fn judge(rig: &mut Rig, windows: &BTreeMap<TopicId, u64>, asked: &mut Vec<Asked>, model: &mut Model) {
    asked.retain(|publish| {
        let Some(reply) = rig.reply(publish.ticket) else { return true };
        let ReplyBody::Published { first_sequence, accepted_count, accepted, refusal: None, duplicates } =
            reply
        else {
            panic!("{reply:?}")
        };
        assert_eq!(accepted_count as usize, publish.ids.len());
        let window_ms = windows[&publish.topic];
        let mut fresh = first_sequence.0..;
        for (index, id) in (0..).zip(&publish.ids) {
            let held = model.get(&(publish.topic, *id)).copied();
            if let Some(duplicate) = duplicates.iter().find(|duplicate| duplicate.index == index) {
                assert_eq!(Some((duplicate.accepted, duplicate.sequence.0)), held, "the first one's receipt");
                assert!(publish.at < duplicate.accepted.plus_ms(window_ms), "within the window");
            } else {
                let is_free = held.is_none_or(|(first, _)| accepted >= first.plus_ms(window_ms));
                assert!(is_free, "{id} is accepted twice: {held:?}, and at {accepted:?}");
                let sequence = fresh.next().expect("without end");
                model.insert((publish.topic, *id), (accepted, sequence));
            }
        }
        false
    });
}

#[test]
fn a_model_finds_every_duplicate_and_no_other_through_crashes_and_slow_disks() {
    for seed in 0..24 {
        let mut numbers = Numbers(seed);
        let mut rig = rig([1, 4_000, 12_000][numbers.below(3) as usize]);
        let windows: BTreeMap<TopicId, u64> = [("a", 20_000), ("b", 30_000), ("c", 500_000)]
            .map(|(name, window_ms)| (topic(&mut rig, name, window_ms), window_ms))
            .into();
        let topics: Vec<TopicId> = windows.keys().copied().collect();
        let (mut model, mut asked) = (Model::new(), Vec::new());
        for _ in 0..400 {
            match numbers.below(20) {
                0..=6 => {
                    let topic = topics[numbers.below(3) as usize];
                    let ids: Vec<u64> = (0..=numbers.below(12)).map(|_| numbers.below(300)).collect();
                    let ticket = rig.publish(0, topic, &batch(ids.iter().copied()));
                    asked.push(Asked { ticket, topic, ids, at: rig.now.wall });
                }
                7..=10 => {
                    rig.run_op(0);
                }
                11..=13 => {
                    rig.maintain();
                    rig.commit(0);
                    rig.complete(0);
                }
                14 => rig.settle(),
                15 => rig.advance_ms(numbers.below(3_000)),
                16 => {
                    let upto = rig.newest(0);
                    rig.relocate(0, upto, 2_000);
                    rig.sync();
                    rig.trim(0, usize::MAX);
                }
                17 => {
                    rig.check();
                    rig.check_replay();
                }
                18 if numbers.below(3) == 0 => {
                    judge(&mut rig, &windows, &mut asked, &mut model);
                    rig.crash();
                    asked.clear();
                }
                _ => {}
            }
            judge(&mut rig, &windows, &mut asked, &mut model);
        }
        rig.settle();
        judge(&mut rig, &windows, &mut asked, &mut model);
        assert!(asked.is_empty(), "every publish is answered");
        rig.check();
        rig.check_replay();
    }
}

#[test]
fn runs_are_few_and_each_is_of_topics_with_like_windows() {
    let mut rig = rig(10_000);
    let (short, long) = (topic(&mut rig, "short", 5_000), topic(&mut rig, "long", 100 * WINDOW_MS));
    for n in 0..30 {
        published(&mut rig, short, &batch(100 * n..100 * (n + 1)));
        published(&mut rig, long, &batch(20 * n..20 * (n + 1)));
        rig.advance_ms(1_000);
        rig.settle();
    }
    // Of the long window's 600 names those that went to a run lie there alone: the others' runs have gone.
    let names = rig.shard(0).stats().names;
    assert!((600..600 + 800).contains(&names), "{names}");
    assert_eq!(published(&mut rig, long, &batch(0..600)).len(), 600);
    assert_eq!(rig.shard(0).stats().duplicates, 600);
    let ended = (0..rig.log_len(0)).flat_map(|index| records(rig.block(0, index)));
    assert!(ended.flatten().any(|record| matches!(record, Record::NamesRunEnded { .. })));
}
