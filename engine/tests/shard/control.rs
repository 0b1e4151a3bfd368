//! Topics and subscriptions over several shards.

use escapement_engine::names::NameHash;
use escapement_engine::{AdminRequest, Input, Message, ReplyBody, owner_of};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{GroupAct, GroupOperation, Query};
use escapement_protocol::settings::TopicSettings;
use escapement_protocol::{ErrorCode, ShardId, SubscriptionId, SubscriptionSettings, TopicId};
use escapement_router::{Credit, Detach, HostKey, SessionId};

use crate::rig::{NOBODY, Rig, config, event, topic_record};

fn settings(name: &str) -> SubscriptionSettings {
    SubscriptionSettings { name: name.into(), topic: "t".into(), ..SubscriptionSettings::default() }
}

fn topic(name: &str) -> AdminRequest {
    AdminRequest::CreateTopic(TopicSettings { name: name.into(), ..TopicSettings::default() })
}

#[test]
fn creation_is_idempotent_by_settings_and_refused_by_name() {
    let mut rig = Rig::new(config(3));
    let first = rig.admin(topic("t"));
    assert_eq!(rig.admin(topic("t")), first);
    assert!(matches!(&first, ReplyBody::Topic { id: TopicId(1), version: 1, .. }));
    let other = TopicSettings { name: "t".into(), default_type: "x".into(), ..TopicSettings::default() };
    match rig.admin(AdminRequest::CreateTopic(other)) {
        ReplyBody::Refused(refusal) => assert_eq!(refusal.code, ErrorCode::AlreadyExists),
        other => panic!("{other:?}"),
    }
    let first = rig.admin(AdminRequest::CreateSubscription(settings("s")));
    assert_eq!(rig.admin(AdminRequest::CreateSubscription(settings("s"))), first);
    let lost = SubscriptionSettings { topic: "nowhere".into(), ..settings("u") };
    match rig.admin(AdminRequest::CreateSubscription(lost)) {
        ReplyBody::Refused(refusal) => assert_eq!(refusal.code, ErrorCode::UnknownTopic),
        other => panic!("{other:?}"),
    }
    for shard in 0..3 {
        let held = rig.shard(shard).registry().topic_named("t").expect("copied");
        assert_eq!(held.subscriptions.len(), 1);
    }
    rig.check_replay();
}

#[test]
fn what_shard_0_lost_with_the_end_of_its_log_comes_back_from_the_others() {
    let mut rig = Rig::new(config(3));
    rig.admin(topic("t"));
    let lost = rig.admin(topic("lost"));
    rig.lose_newest_block(0);
    rig.crash();
    rig.sync();
    assert_eq!(rig.admin(topic("lost")), lost);
    assert!(matches!(rig.admin(topic("new")), ReplyBody::Topic { id: TopicId(3), version: 3, .. }));
    for shard in 0..3 {
        let names: Vec<_> =
            rig.shard(shard).registry().topics().iter().map(|t| t.settings.name.clone()).collect();
        assert_eq!(names, ["t", "lost", "new"]);
    }
    rig.check_replay();
}

#[test]
fn two_creations_at_once_share_one_object_and_the_answer_waits_for_every_shard() {
    let mut rig = Rig::new(config(3));
    let (first, second, third) = (rig.ticket(), rig.ticket(), rig.ticket());
    rig.step(0, Input::Admin { ticket: first, request: topic("t") });
    rig.step(0, Input::Admin { ticket: second, request: topic("t") });
    rig.step(0, Input::Admin { ticket: third, request: topic("u") });
    for shard in [0, 1] {
        rig.commit(shard);
        while rig.complete(shard) {}
    }
    assert_eq!(rig.replies, [], "shard 2 has not got it");
    rig.commit(2);
    rig.complete(2);
    let (first, second) = (rig.reply(first).expect("an answer"), rig.reply(second).expect("an answer"));
    assert_eq!(first, second);
    assert!(matches!(rig.reply(third), Some(ReplyBody::Topic { id: TopicId(2), version: 2, .. })));
}

#[test]
fn a_second_copy_of_a_registry_counts_for_no_shard_twice() {
    let mut rig = Rig::new(config(2));
    rig.create_topic("t");
    let ticket = rig.ticket();
    rig.step(0, Input::Admin { ticket, request: topic("u") });
    rig.commit(0);
    rig.complete(0);
    // Shard 1's copy is logged and not durable. Shard 0 appends all of its registry again meanwhile.
    rig.relocate(0, rig.newest(0), 1 << 30);
    rig.commit(0);
    rig.complete(0);
    assert_eq!(rig.reply(ticket), None);
    let before = rig.log_len(1);
    rig.sync();
    assert!(rig.reply(ticket).is_some());
    assert_eq!(rig.log_len(1), before + 1, "what was copied once is not copied again");
    rig.check_replay();
}

#[test]
fn a_shard_that_does_not_serve_is_not_waited_for() {
    let mut rig = Rig::new(config(3));
    rig.shard_mut(0).set_serving([ShardId(0), ShardId(2)]);
    let ticket = rig.ticket();
    rig.step(0, Input::Admin { ticket, request: topic("t") });
    rig.sync();
    assert!(rig.reply(ticket).is_some());
    assert_eq!(rig.shard(1).registry().version(), 0);
    rig.crash();
    rig.sync();
    assert!(rig.shard(1).registry().topic_named("t").is_some(), "it catches up at its start");
}

#[test]
fn what_comes_for_a_subscription_before_its_record_waits_for_it() {
    let mut rig = Rig::new(config(2));
    rig.create_topic("t");
    // A subscription that shard 1 decides for.
    let mut names = ["a", "b", "c", "d", "e"].into_iter();
    let (id, topic_id) = loop {
        let name = names.next().expect("one of them is owned by shard 1");
        let ticket = rig.ticket();
        let request = AdminRequest::CreateSubscription(settings(name));
        rig.step(0, Input::Admin { ticket, request });
        rig.commit(0);
        rig.complete_quietly(0);
        let held = rig.shard(0).registry().subscription_named(name).expect("applied").clone();
        if rig.owner(held.id) == 1 {
            break (held.id, held.topic);
        }
        rig.sync();
    };
    let control = rig.intercept(1);
    assert_eq!(control.len(), 1);
    let (kept, gone) = (SessionId(1), SessionId(2));
    let credit = Credit { tasks: 1, bytes: 1_000 };
    for session in [kept, gone] {
        let attach =
            Message::Attach { subscription: id, session, host: HostKey(1), credit, running: Vec::new() };
        rig.step(1, Input::Message(attach));
    }
    let more = Credit { tasks: 5, bytes: 10_000 };
    rig.step(1, Input::Message(Message::Credit { session: kept, credit: more }));
    rig.step(1, Input::Message(Message::Detach { session: gone, how: Detach::Cut }));
    let events: Vec<_> = (0..3).map(|_| event(Due::After(0), "id", b"")).collect();
    let input = Input::Publish { ticket: NOBODY, topic: topic_id, count: 3, events: &events.concat() };
    rig.step(0, input);
    for _ in 0..3 {
        rig.sync();
    }
    assert_eq!(rig.pushes, []);
    assert_eq!(rig.shard(0).stats().pending, 3, "no task ended for want of its subscription");
    for message in control {
        rig.step(1, Input::Message(message));
    }
    for _ in 0..3 {
        rig.sync();
    }
    let to: Vec<_> =
        rig.pushes.iter().filter(|(_, p)| p.subscription == id).map(|(_, p)| p.session).collect();
    assert_eq!(to, [kept; 3]);
}

#[test]
fn a_subscription_whose_topic_comes_later_is_found_by_its_events() {
    let mut rig = Rig::new(config(2));
    rig.create_topic("t");
    let id = rig.create_subscription(settings("s"));
    // The first block held the topic, and went when a copy of the topic was durable and one of the subscription
    // was not.
    let mut replay = escapement_engine::Shard::new(rig.config.clone());
    let mut effects = escapement_engine::Effects::default();
    let subscription = rig.block(0, 1).to_vec();
    replay.apply_block(2, &subscription, &mut effects).expect("records");
    replay.apply_block(9, &topic_record(TopicId(1), 1, "t"), &mut effects).expect("records");
    let held = replay.registry().topic(TopicId(1)).expect("there");
    assert_eq!(held.subscriptions.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id]);
    assert_eq!(replay.state_hash(), rig.shard(0).state_hash());
}

#[test]
fn a_creation_does_not_wait_for_a_shard_that_has_stopped() {
    let mut rig = Rig::new(config(3));
    let ticket = rig.ticket();
    rig.step(0, Input::Admin { ticket, request: topic("t") });
    for shard in [0, 1] {
        rig.commit(shard);
        while rig.complete(shard) {}
    }
    assert_eq!(rig.reply(ticket), None, "shard 2 has not got it");
    rig.step(0, Input::Message(Message::Out { shard: ShardId(2) }));
    assert!(matches!(rig.reply(ticket), Some(ReplyBody::Topic { .. })));
    let ticket = rig.ticket();
    rig.step(0, Input::Admin { ticket, request: topic("u") });
    rig.commit(0);
    rig.complete(0);
    assert_eq!(rig.intercept(2).len(), 0, "it is sent nothing more");
    rig.commit(1);
    while rig.complete(1) {}
    assert!(matches!(rig.reply(ticket), Some(ReplyBody::Topic { .. })));
}

#[test]
fn a_shard_that_stops_answers_nobody_and_says_who_waits() {
    let mut rig = Rig::new(config(2));
    let ticket = rig.ticket();
    rig.step(0, Input::Admin { ticket, request: topic("t") });
    rig.commit(0);
    rig.complete(0);
    assert_eq!(rig.shard_mut(0).take_waiting(), [ticket]);
    assert_eq!(rig.shard_mut(0).take_waiting(), []);
}

#[test]
fn a_shard_that_is_out_loses_its_subscriptions_to_the_others_and_no_other_moves() {
    let all: Vec<ShardId> = (0..4).map(ShardId).collect();
    let rest: Vec<ShardId> = all.iter().copied().filter(|shard| *shard != ShardId(2)).collect();
    let mut moved = [0; 4];
    for id in (1..=400).map(SubscriptionId) {
        let (before, after) = (owner_of(id, &all), owner_of(id, &rest));
        if before == ShardId(2) {
            moved[usize::from(after.0)] += 1;
        } else {
            assert_eq!(before, after);
        }
    }
    assert!(moved[2] == 0 && moved.iter().filter(|count| **count > 10).count() == 3, "{moved:?}");
}

#[test]
fn a_subscription_of_a_shard_that_is_out_gets_the_events_of_the_others() {
    let mut rig = Rig::new(config(2));
    let topic = rig.create_topic("t");
    let mut names = (0..).map(|n| format!("s{n}"));
    let subscription = loop {
        let id = rig.create_subscription(settings(&names.next().expect("endless")));
        if rig.owner(id) == 1 {
            break id;
        }
    };
    rig.publish(0, topic, &[event(Due::After(5), "e", b"")]);
    rig.sync();
    rig.crash();
    rig.shard_mut(0).set_serving([ShardId(0)]);
    let (session, host) = (SessionId(1), HostKey(1));
    let credit = Credit { tasks: 10, bytes: 1_000 };
    rig.step(0, Input::Message(Message::Attach { subscription, session, host, credit, running: Vec::new() }));
    rig.advance_ms(5);
    rig.maintain();
    let pushed: Vec<_> = rig.pushes.iter().map(|(from, push)| (*from, push.subscription)).collect();
    assert!(pushed.contains(&(ShardId(0), subscription)), "{pushed:?}");
}

#[test]
fn a_shard_that_missed_a_topic_calls_it_unknown_only_next_to_shard_0() {
    let mut rig = Rig::new(config(2));
    rig.shard_mut(0).set_serving([ShardId(0)]);
    let topic = rig.create_topic("t");
    rig.shard_mut(1).set_serving([ShardId(1)]);
    let refused = |rig: &mut Rig, topic| {
        let published = rig.publish(1, topic, &[event(Due::After(0), "e", b"")]);
        let cancelled = rig.ticket();
        let name = NameHash::of(topic, b"", b"/default", b"e");
        rig.step(1, Input::CancelByName { ticket: cancelled, topic, name });
        let (shard, group) = (ShardId(1), "g".to_owned());
        let operation = GroupOperation { shard, topic, group, act: GroupAct::Read, epoch: 0, by_ms: 0 };
        let operated = rig.query(Query::Group(operation));
        [published, cancelled, operated].map(|ticket| match rig.reply(ticket) {
            Some(ReplyBody::Refused(refusal)) => (refusal.code, refusal.retry_after_ms > 0),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(refused(&mut rig, topic), [(ErrorCode::Unavailable, true); 3]);
    rig.crash();
    rig.sync();
    assert_eq!(refused(&mut rig, TopicId(99)), [(ErrorCode::UnknownTopic, false); 3]);
    rig.published(1, topic, event(Due::After(0), "e", b""));
}
