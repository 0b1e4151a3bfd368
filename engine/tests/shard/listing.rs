//! What is pending can be listed page by page, wherever it is and while it moves.

use std::collections::{BTreeMap, BTreeSet};

use escapement_engine::far::RunOp;
use escapement_engine::{Input, ReplyBody, ShardConfig};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{
    EVENT_PAGE_COUNT_MAX, EventPage, EventPlace, ListEvents, ListedEvent, PageToken, Query, QueryAnswer,
    TaskState,
};
use escapement_protocol::settings::SubscriptionSettings;
use escapement_protocol::{ErrorCode, EventId, EventSpec, Sequence, ShardId, TopicId, WallMs};

use crate::rig::{Numbers, Rig, START, config};

const HORIZON_MS: u64 = 60_000;
const HOUR_MS: u64 = 3_600_000;

/// Runs of some blocks each, with a few events in a block.
fn rig(shards: u16) -> (Rig, TopicId) {
    let mut rig =
        Rig::new(ShardConfig { horizon_ms: HORIZON_MS, run_size_bytes: 4 * 1024, ..config(shards) });
    let topic = rig.create_topic("t");
    // Nobody attends to it: what is due stays.
    rig.create_subscription(SubscriptionSettings {
        name: "s".into(),
        topic: "t".into(),
        ..SubscriptionSettings::default()
    });
    (rig, topic)
}

fn encoded(n: u64, key: &str, due: WallMs) -> Vec<u8> {
    let (mut bytes, id, data) = (Vec::new(), n.to_string(), [n as u8; 60]);
    let spec = EventSpec { ordering_key: key.as_bytes(), ..EventSpec::new(Due::At(due), &id, &data) };
    spec.encode(&mut bytes).expect("valid");
    bytes
}

/// Publishes event `n`, due at `START` and some ms.
fn publish(rig: &mut Rig, (shard, topic): (u16, TopicId), n: u64, key: &str, after_ms: u64) -> EventId {
    let due = WallMs(START.0 + after_ms);
    let sequence = rig.published(shard, topic, encoded(n, key, due));
    EventId { shard: ShardId(shard), sequence, schedule_time_ms: due.0 }
}

fn of_topic(topic: TopicId, count_max: u32) -> ListEvents {
    ListEvents { topic, count_max, ..ListEvents::default() }
}

/// Asks for a page as the door does, and drives the disk until it is there.
fn asked(rig: &mut Rig, list: &ListEvents) -> ReplyBody {
    let position = list.position(rig.config.shard_count).expect("a token that was given");
    let list = ListEvents { shard: position.shard, ..list.clone() };
    let shard = position.shard.0;
    let ticket = rig.query(Query::List(Box::new(list)));
    while rig.run_op(shard) {}
    rig.reply(ticket).expect("an answer")
}

fn page(rig: &mut Rig, list: &ListEvents) -> EventPage {
    match asked(rig, list) {
        ReplyBody::Answered(QueryAnswer::List(page)) => page,
        other => panic!("{other:?}"),
    }
}

/// All pages, with something happening between them.
fn listed(rig: &mut Rig, list: &ListEvents, mut between: impl FnMut(&mut Rig)) -> Vec<ListedEvent> {
    let (mut list, mut events) = (list.clone(), Vec::new());
    for _ in 0..10_000 {
        let page = page(rig, &list);
        assert!(list.count_max == 0 || page.events.len() <= list.count_max as usize);
        events.extend(page.events);
        if page.token.is_empty() {
            return events;
        }
        list.token = page.token;
        between(rig);
    }
    panic!("a listing without an end");
}

fn ids(events: &[ListedEvent]) -> Vec<EventId> {
    let mut ids: Vec<EventId> = events.iter().map(|event| event.info.id).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn every_event_that_is_asked_for_is_listed_once_while_nothing_moves() {
    let (mut rig, topic) = rig(3);
    let other = rig.create_topic("u");
    // By id: when it is due, its key, and whether it is of the topic.
    let mut model: BTreeMap<EventId, (u64, &str, bool)> = BTreeMap::new();
    for n in 0..400u64 {
        let after_ms = if n % 5 == 0 { n * 100 } else { HOUR_MS + n / 4 * 1_000 };
        let (key, is_of_topic) = (["", "k", "l"][n as usize % 3], n % 7 != 0);
        let place = ((n % 3) as u16, if is_of_topic { topic } else { other });
        let id = publish(&mut rig, place, n, key, after_ms);
        model.insert(id, (START.0 + after_ms, key, is_of_topic));
    }
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    let all: Vec<EventId> = model.keys().copied().collect();
    for id in all.iter().step_by(11) {
        rig.cancel(*id);
        rig.settle();
        if id.schedule_time_ms > rig.now.wall.0 {
            model.remove(id);
        }
    }
    for (n, id) in all.iter().enumerate().step_by(13) {
        let due = WallMs(START.0 + HOUR_MS + n as u64 * 500);
        rig.reschedule(*id, due, None);
        rig.settle();
        if let Some(held) = model.get_mut(id).filter(|held| held.0 > rig.now.wall.0) {
            held.0 = due.0;
        }
    }
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    rig.check();
    let now = rig.now.wall.0;
    let (first, last) = (START.0 + HOUR_MS + 20_000, START.0 + HOUR_MS + 71_000);
    let mut places = BTreeSet::new();
    for count_max in [0, 1, 7, 2_000] {
        for (from, until) in [(0, u64::MAX), (first, last), (first + 1, last + 1), (0, now), (last, u64::MAX)]
        {
            for (key, state) in
                [("", None), ("", Some(TaskState::Scheduled)), ("", Some(TaskState::Ready)), ("k", None)]
            {
                // Of a key, one shard has all: the others' are left out of the model, too.
                let shard = ListEvents { ordering_key: key.into(), ..of_topic(topic, 0) }
                    .position(3)
                    .expect("no token")
                    .shard;
                let is_meant = |id: &EventId, due: u64, of: &str| {
                    (from..until).contains(&due)
                        && (key.is_empty() || of == key && id.shard == shard)
                        && match state {
                            None => true,
                            Some(TaskState::Scheduled) => due > now,
                            Some(_) => due <= now,
                        }
                };
                let expected = model
                    .iter()
                    .filter(|(id, (due, of, is_of_topic))| *is_of_topic && is_meant(id, *due, of));
                let expected: Vec<EventId> = expected.map(|(id, _)| *id).collect();
                let list = ListEvents {
                    state,
                    ordering_key: key.into(),
                    from: WallMs(from),
                    until: WallMs(until),
                    ..of_topic(topic, count_max)
                };
                let events = listed(&mut rig, &list, |_| {});
                assert_eq!(ids(&events), expected, "{list:?}");
                for event in events {
                    let (due, key, _) = model[&event.info.id];
                    assert_eq!((event.info.due.0, &event.ordering_key[..]), (due, key.as_bytes()));
                    assert_eq!(rig.peek(event.info.id).expect("pending").info, event.info);
                    places.insert(event.info.place as u8);
                }
            }
        }
    }
    assert_eq!(places.len(), 2, "some are in memory, and some in runs");
}

#[test]
fn a_listing_passes_over_what_cant_be_read_and_says_how_much_it_is_and_counts_have_it() {
    let (mut rig, topic) = rig(1);
    let other = rig.create_topic("u");
    let mut pending = BTreeSet::new();
    for n in 0..200 {
        let of = if n % 4 == 0 { other } else { topic };
        let id = publish(&mut rig, (0, of), n, "", HOUR_MS + n * 100);
        pending.extend((of == topic).then_some(id));
    }
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    for id in pending.clone().into_iter().step_by(5) {
        rig.cancel(id);
        rig.settle();
        pending.remove(&id);
    }
    // The second block of a run.
    let blocks_of = |file: &[u8]| -> Vec<usize> {
        (0..file.len()).step_by(4096).filter(|at| file[*at..].starts_with(b"ERB1")).collect()
    };
    let files = rig.files(0).0.values_mut();
    let mut second = files.filter_map(|file| Some((*blocks_of(file).get(1)?, file)));
    let (at, file) = second.next().expect("a run of two blocks");
    file[at + 100] ^= 1;
    for count_max in [1, 7, 0] {
        let (mut list, mut unread, mut seen) = (of_topic(topic, count_max), 0, Vec::new());
        loop {
            let page = page(&mut rig, &list);
            unread += page.unread;
            seen.extend(page.events);
            list.token = page.token;
            if list.token.is_empty() {
                break;
            }
        }
        let seen_ids: BTreeSet<EventId> = ids(&seen).into_iter().collect();
        assert!(seen_ids.is_subset(&pending) && seen_ids.len() == seen.len());
        assert_eq!(seen.len() as u64 + unread, pending.len() as u64, "{unread} are in the block");
        assert!(unread > 0);
    }
    let held = rig.shard(0).stats().held;
    assert!(held > 0, "what a listing finds damaged is held");
    let last = |rig: &mut Rig| *rig.count_due(topic).last().expect("of a day");
    assert_eq!(last(&mut rig).count, pending.len() as u64, "within a day");
    rig.advance_ms(2 * HOUR_MS);
    rig.settle();
    let due = rig.count_due(topic)[0].count;
    assert_eq!((due, last(&mut rig).count), (pending.len() as u64, 0), "what is held is due, too");
    assert_eq!(rig.shard(0).stats().held, held);
}

#[test]
fn an_event_that_moves_while_it_is_listed_is_listed_all_the_same() {
    let mut twice = 0;
    for seed in 0..30 {
        let (mut rig, topic) = rig(2);
        let mut numbers = Numbers(seed);
        let mut owed = BTreeSet::new();
        for n in 0..150 {
            let after_ms = numbers.below(5) * HORIZON_MS + numbers.below(HORIZON_MS);
            owed.insert(publish(&mut rig, (n as u16 % 2, topic), n, "", after_ms));
            if numbers.below(20) == 0 {
                rig.advance_ms(HORIZON_MS / 4);
                rig.settle();
            }
        }
        let all: Vec<EventId> = owed.iter().copied().collect();
        let count_max = [1, 3, 20][seed as usize % 3];
        let mut steps = 0;
        let events = listed(&mut rig, &of_topic(topic, count_max), |rig| {
            steps += 1;
            if steps > 120 {
                return rig.settle();
            }
            let event = all[numbers.below(all.len() as u64) as usize];
            match numbers.below(8) {
                0 => {
                    rig.advance_ms(numbers.below(HORIZON_MS / 2));
                    rig.settle();
                }
                1 | 2 => {
                    // Out of a run, near or far.
                    let due = rig.now.wall.plus_ms(numbers.below(4 * HORIZON_MS));
                    rig.reschedule(event, due, None);
                    rig.settle();
                }
                3 => {
                    let newest = rig.newest(event.shard.0);
                    rig.relocate(event.shard.0, newest, 1 << 20);
                    rig.sync();
                    rig.trim(event.shard.0, usize::MAX);
                }
                4 if steps % 16 == 0 => {
                    rig.cancel(event);
                    rig.settle();
                    if rig.peek(event).is_none() {
                        owed.remove(&event);
                    }
                }
                5 => drop(publish(rig, (event.shard.0, topic), 1_000, "", 2 * HOUR_MS)),
                6 => {
                    rig.advance_ms(numbers.below(2_000));
                    rig.maintain();
                    rig.commit(event.shard.0);
                    rig.complete(event.shard.0);
                }
                _ => rig.advance_ms(HORIZON_MS / 4),
            }
        });
        let seen: BTreeSet<EventId> = ids(&events).into_iter().collect();
        let missed: Vec<&EventId> = owed.difference(&seen).collect();
        assert!(missed.is_empty(), "seed {seed}: {missed:?}");
        let later = seen.iter().find(|id| id.shard == ShardId(0) && !all.contains(id));
        assert_eq!(later, None, "seed {seed}: what came after its shard had begun is left out");
        twice += events.len() - seen.len();
        rig.check();
    }
    assert!(twice > 0, "what moves may come twice");
}

#[test]
fn what_comes_to_memory_while_its_block_is_read_is_listed_from_there() {
    let (mut rig, topic) = rig(1);
    let id = publish(&mut rig, (0, topic), 1, "", HOUR_MS);
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    assert_eq!(rig.peek(id).expect("pending").info.place, EventPlace::Run);
    rig.reschedule(id, WallMs(START.0 + 30_000), None);
    let asked = rig.query(Query::List(Box::new(of_topic(topic, 0))));
    assert!(rig.run_op(0), "the rescheduling reads a block");
    rig.sync();
    let reading = rig.next_run_op(0).cloned();
    assert!(matches!(reading, Some(RunOp::Read { .. })), "{reading:?}");
    assert!(rig.run_op(0), "and so does the page");
    let Some(ReplyBody::Answered(QueryAnswer::List(page))) = rig.reply(asked) else { panic!("no page") };
    let mut events = page.events;
    if !page.token.is_empty() {
        let rest = ListEvents { token: page.token, ..of_topic(topic, 0) };
        events.extend(listed(&mut rig, &rest, |_| {}));
    }
    assert_eq!(events.last().map(|event| (event.info.id, event.info.place)), Some((id, EventPlace::Memory)));
}

#[test]
fn a_page_looks_at_so_much_and_reads_so_much_and_no_more() {
    let (mut rig, topic) = rig(1);
    let other = rig.create_topic("u");
    for n in 0..300u64 {
        publish(&mut rig, (0, other), n, "", HOUR_MS + n);
    }
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    let memory = [encoded(0, "", WallMs(START.0 + 50_000))].concat();
    for _ in 0..100 {
        let events: Vec<Vec<u8>> = (0..60).map(|_| memory.clone()).collect();
        rig.publish(0, other, &events);
        rig.sync();
    }
    publish(&mut rig, (0, topic), 7, "", 50_000);
    let mut list = of_topic(topic, 0);
    let first = page(&mut rig, &list);
    assert!(first.events.is_empty() && !first.token.is_empty(), "6,000 other events are too many for a page");
    list.token = first.token;
    // Nothing of the topic is in a run, or due when those of the other are, and so nothing is read.
    let ticket = rig.query(Query::List(Box::new(list)));
    assert_eq!(rig.next_run_op(0), None);
    let Some(ReplyBody::Answered(QueryAnswer::List(last))) = rig.reply(ticket) else { panic!("no page") };
    assert_eq!((last.events.len(), last.token.len()), (1, 0));
    let bounds = [(START.0 + 2 * HOUR_MS, u64::MAX), (START.0 + 51_000, START.0 + HOUR_MS)];
    for (at, (from, until)) in bounds.into_iter().enumerate() {
        let mut list = ListEvents { from: WallMs(from), until: WallMs(until), ..of_topic(other, 0) };
        let mut reads = 0;
        loop {
            let ticket = rig.query(Query::List(Box::new(list.clone())));
            reads += usize::from(rig.run_op(0));
            let Some(ReplyBody::Answered(QueryAnswer::List(page))) = rig.reply(ticket) else {
                panic!("no page")
            };
            assert!(page.events.is_empty());
            if page.token.is_empty() {
                break;
            }
            list.token = page.token;
        }
        // Where the last block of a run ends is not known without it.
        let runs = rig.shard(0).runs().len();
        assert!(reads <= if at == 0 { runs } else { 0 }, "{reads} reads, {runs} runs");
    }
    let mut list = ListEvents { from: WallMs(START.0 + HOUR_MS), ..of_topic(other, 0) };
    let mut count = 0;
    loop {
        let ticket = rig.query(Query::List(Box::new(list.clone())));
        if let Some(RunOp::Read { len, .. }) = rig.next_run_op(0) {
            assert!(*len <= 256 * 1024, "{len} bytes");
        }
        let read = rig.run_op(0);
        assert!(!rig.run_op(0), "one read at the most");
        let Some(ReplyBody::Answered(QueryAnswer::List(page))) = rig.reply(ticket) else { panic!("no page") };
        assert!(read || page.events.is_empty());
        count += page.events.len();
        if page.token.is_empty() {
            break;
        }
        list.token = page.token;
    }
    assert_eq!(count, 300);
}

#[test]
fn a_page_is_bounded_by_events_and_by_bytes() {
    let (mut rig, topic) = rig(1);
    let event = encoded(1, &"k".repeat(250), WallMs(START.0 + 50_000));
    for _ in 0..120 {
        rig.publish(0, topic, &(0..10).map(|_| event.clone()).collect::<Vec<_>>());
        rig.sync();
    }
    let long = page(&mut rig, &of_topic(topic, 0));
    let size_bytes: usize = long.events.iter().map(ListedEvent::size_bytes).sum();
    assert!((128 * 1024..129 * 1024).contains(&size_bytes), "{size_bytes} bytes");
    let other = rig.create_topic("u");
    let event = encoded(1, "", WallMs(START.0 + 50_000));
    for _ in 0..120 {
        rig.publish(0, other, &(0..10).map(|_| event.clone()).collect::<Vec<_>>());
        rig.sync();
    }
    let most = listed(&mut rig, &of_topic(other, EVENT_PAGE_COUNT_MAX + 1), |_| {});
    assert_eq!(most.len(), 1_200);
}

#[test]
fn pages_that_wait_for_the_disk_are_bounded() {
    let (mut rig, topic) = rig(1);
    publish(&mut rig, (0, topic), 1, "", HOUR_MS);
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    let tickets: Vec<_> = (0..40).map(|_| rig.query(Query::List(Box::new(of_topic(topic, 0))))).collect();
    while rig.run_op(0) {}
    let mut refused = 0;
    for ticket in tickets {
        match rig.reply(ticket) {
            Some(ReplyBody::Answered(QueryAnswer::List(page))) => assert_eq!(page.events.len(), 1),
            Some(ReplyBody::Refused(refusal)) => {
                assert_eq!(refusal.code, ErrorCode::ResourceExhausted);
                assert!(refusal.retry_after_ms > 0);
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 40 - 16);
}

#[test]
fn tokens_of_another_start_or_shard_are_refused_and_made_up_ones_do_no_harm() {
    let (mut rig, topic) = rig(2);
    for n in 0..20 {
        publish(&mut rig, (0, topic), n, "", HOUR_MS + n * 60_000);
        publish(&mut rig, (0, topic), n, "", 1_000);
    }
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    let list = of_topic(topic, 3);
    let token = page(&mut rig, &list).token;
    let given = PageToken::parse(&token).expect("a token");
    let mut numbers = Numbers(5);
    let edges = [0, 1, 5, u64::from(u32::MAX), u64::MAX];
    for _ in 0..2_000 {
        let mut edge = || edges[numbers.below(5) as usize];
        let (bound, block, index) = (Sequence(edge()), edge(), edge() as u32);
        let (run, run_block, entry) = (edge() as u32, edge() as u32, edge() as u32);
        let token = PageToken { bound, block, index, run, run_block, entry, ..given };
        page(&mut rig, &ListEvents { token: token.to_bytes(), ..list.clone() });
    }
    // The door sends it to its shard; another one refuses it all the same.
    let ticket = rig.ticket();
    let astray = ListEvents { token: token.clone(), shard: ShardId(1), ..list.clone() };
    rig.step(1, Input::Query { ticket, query: Query::List(Box::new(astray)) });
    let refused = |reply: Option<ReplyBody>| match reply {
        Some(ReplyBody::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(rig.reply(ticket)), ErrorCode::InvalidPageToken);
    rig.crash();
    let stale = asked(&mut rig, &ListEvents { token, ..list.clone() });
    assert_eq!(refused(Some(stale)), ErrorCode::InvalidPageToken);
    assert_eq!(listed(&mut rig, &list, |_| {}).len(), 40);
}
