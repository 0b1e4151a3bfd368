//! Frames as clients keep them, and the two clients that neither publish nor subscribe.

use std::collections::BTreeMap;

use escapement_loadgen::generator::EventTemplate;
use escapement_protocol::frame::{
    AckDuplicate, AckException, AckRun, AdminAnswer, AdminRequest, Cancel, CancelByName, CancelVerdict,
    EventName, Frame, FrameError, Hello, Items, PushItem, QueryAnswer, RescheduleVerdict, SnapshotInfo,
};
use escapement_protocol::settings::TopicSettings;
use escapement_protocol::{
    EventId, EventView, FrameDecoder, FrameWriter, Misfire, PROTOCOL_VERSION, TopicId, WallMs,
};

use super::bug::Bug;
use super::net::{Mark, connection_of};
use super::plan::Plan;
use super::world::{Who, World};

/// A frame of the node's, kept.
#[derive(Clone, Debug)]
pub(super) enum Received {
    Ack { through_item: u64, runs: Vec<AckRun>, exceptions: Vec<AckException>, duplicates: Vec<AckDuplicate> },
    Subscribed { epoch: u32 },
    Pushes { epoch: u32, items: Vec<(PushItem, Vec<u8>)> },
    Detached,
    CancelReply { request: u64, verdicts: Vec<CancelVerdict> },
    RescheduleReply { request: u64, verdicts: Vec<RescheduleVerdict> },
    AdminReply { request: u64, topic: Option<TopicId> },
    QueryReply { request: u64, answer: QueryAnswer },
    SnapshotHeld(SnapshotInfo),
    SnapshotEnded,
    Error { request: u64, code: u16 },
    Other,
}

/// The frames that are complete with these bytes.
///
/// # Errors
/// What came is not frames.
pub(super) fn received(decoder: &mut FrameDecoder, bytes: &[u8]) -> Result<Vec<Received>, FrameError> {
    let mut frames = Vec::new();
    decoder.feed(bytes, |frame| {
        frames.push(match frame {
            Frame::PublishAck(ack) => Received::Ack {
                through_item: ack.through_item,
                runs: ack.runs.iter().collect(),
                exceptions: ack.exceptions.iter().collect(),
                duplicates: ack.duplicates.iter().collect(),
            },
            Frame::Subscribed(subscribed) => Received::Subscribed { epoch: subscribed.epoch.0 },
            Frame::PushBatch(batch) => Received::Pushes {
                epoch: batch.epoch.0,
                items: batch.iter().map(|(item, event)| (item, event.to_vec())).collect(),
            },
            Frame::Detached => Received::Detached,
            Frame::CancelReply(reply) => {
                Received::CancelReply { request: reply.request, verdicts: reply.verdicts.iter().collect() }
            }
            Frame::AdminReply { body: AdminAnswer::SnapshotHeld(held), .. } => Received::SnapshotHeld(held),
            Frame::AdminReply { body: AdminAnswer::SnapshotEnded, .. } => Received::SnapshotEnded,
            Frame::RescheduleReply(reply) => Received::RescheduleReply {
                request: reply.request,
                verdicts: reply.verdicts.iter().collect(),
            },
            Frame::AdminReply { request, body } => Received::AdminReply {
                request,
                topic: match body {
                    AdminAnswer::Topic(info) => Some(info.topic),
                    _ => None,
                },
            },
            Frame::QueryReply { request, answer } => Received::QueryReply { request, answer },
            Frame::Error(error) => Received::Error { request: error.request, code: error.code },
            _ => Received::Other,
        });
        Ok(())
    })?;
    Ok(frames)
}

/// A frame's bytes.
pub(super) fn written(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    FrameWriter::new().write(frame, &mut bytes).expect("the clients' frames are within limits");
    bytes
}

pub(super) fn hello() -> Vec<u8> {
    written(&Frame::Hello(Hello { version: PROTOCOL_VERSION, client: "simulator" }))
}

/// Creates topics and subscriptions, and asks again until each is acknowledged.
#[derive(Debug)]
pub(super) struct Admin {
    wanted: Vec<Wanted>,
    /// The topics' numbers, by index, 0 before their creation is acknowledged.
    topics: Vec<TopicId>,
    connection: Option<u64>,
}

#[derive(Debug)]
struct Wanted {
    request: AdminRequest,
    /// Index of the subscription, where it is one.
    subscription: Option<usize>,
    late: bool,
    done: bool,
    /// Asked for on this connection.
    asked: bool,
}

impl Admin {
    pub(super) fn new(plan: &Plan) -> Admin {
        let topics = (0..plan.topics).map(|index| {
            let settings = TopicSettings {
                name: format!("topic-{index}"),
                dedup_window_ms: plan.dedup_windows_ms[index],
                ..TopicSettings::default()
            };
            (AdminRequest::CreateTopic(settings), None, false)
        });
        let subscriptions = plan.subscriptions.iter().enumerate().map(|(index, plan)| {
            (AdminRequest::CreateSubscription(plan.settings.clone()), Some(index), plan.late)
        });
        let wanted = topics.chain(subscriptions).map(|(request, subscription, late)| Wanted {
            request,
            subscription,
            late,
            done: false,
            asked: false,
        });
        Admin { wanted: wanted.collect(), topics: vec![TopicId(0); plan.topics], connection: None }
    }

    /// Whether events may flow.
    pub(super) fn is_ready(&self) -> bool {
        self.wanted.iter().all(|wanted| wanted.done || wanted.late)
    }

    pub(super) fn topic_id(&self, index: usize) -> TopicId {
        self.topics[index]
    }

    /// Whether a subscription is acknowledged.
    pub(super) fn has_created(&self, subscription: usize) -> bool {
        self.wanted.iter().any(|wanted| wanted.subscription == Some(subscription) && wanted.done)
    }

    pub(super) fn cut(&mut self, connection: u64) {
        if self.connection == Some(connection) {
            self.connection = None;
            for wanted in &mut self.wanted {
                wanted.asked = false;
            }
        }
    }
}

impl World {
    pub(super) fn admin_wakes(&mut self) {
        if self.admin.wanted.iter().all(|wanted| wanted.done) {
            return;
        }
        self.wake(Who::Admin, 5);
        let connection = match self.admin.connection {
            Some(connection) => connection,
            None => {
                let Some(connection) = self.connect(Who::Admin) else { return };
                self.admin.connection = Some(connection);
                self.send(connection, 0, &hello(), Vec::new());
                connection
            }
        };
        let topics_done = self.admin.wanted.iter().all(|wanted| wanted.done || wanted.subscription.is_some());
        // Without waiting for the topics, too: their order among themselves is the node's business.
        let eager = self.rng.one_in(3);
        let late_too = self.handed_out * 3 > self.plan.events || self.is_calm();
        for index in 0..self.admin.wanted.len() {
            let wanted = &mut self.admin.wanted[index];
            let waits = wanted.subscription.is_some() && !topics_done && !eager;
            if wanted.done || wanted.asked || waits || (wanted.late && !late_too) {
                continue;
            }
            wanted.asked = true;
            let mut body = wanted.request.clone();
            if self.options.bug == Some(Bug::PolicyAltered)
                && let AdminRequest::CreateSubscription(settings) = &mut body
            {
                settings.misfire = Misfire::SkipOlderThan(1);
            }
            let frame = Frame::Admin { request: index as u64 + 1, body };
            let bytes = written(&frame);
            self.send(connection, 0, &bytes, Vec::new());
        }
    }

    pub(super) fn admin_frame(&mut self, stream: u64, frame: &Received) {
        if self.admin.connection != Some(connection_of(stream)) {
            return;
        }
        match frame {
            Received::AdminReply { request, topic } => {
                let index = *request as usize - 1;
                let wanted = &mut self.admin.wanted[index];
                wanted.done = true;
                if let Some(topic) = topic {
                    self.admin.topics[index] = *topic;
                }
                if let Some(subscription) = wanted.subscription {
                    self.judge.subscription_created(subscription);
                }
            }
            // A topic that is not there yet, or a node that stops: asked again.
            Received::Error { request, .. } if *request > 0 => {
                self.admin.wanted[*request as usize - 1].asked = false;
            }
            _ => {}
        }
    }
}

/// Cancels what is acknowledged, at random.
#[derive(Debug, Default)]
pub(super) struct Canceller {
    connection: Option<u64>,
    requests: u64,
    asked: BTreeMap<u64, Vec<EventId>>,
}

impl Canceller {
    pub(super) fn cut(&mut self, connection: u64) {
        if self.connection == Some(connection) {
            self.connection = None;
            self.asked.clear();
        }
    }
}

impl World {
    pub(super) fn canceller_wakes(&mut self) {
        if self.is_calm() {
            return;
        }
        let after_ms = 1 + self.rng.below(40);
        self.wake(Who::Canceller, after_ms);
        let connection = match self.canceller.connection {
            Some(connection) => connection,
            None => {
                let Some(connection) = self.connect(Who::Canceller) else { return };
                self.canceller.connection = Some(connection);
                self.send(connection, 0, &hello(), Vec::new());
                connection
            }
        };
        let events = self.judge.pending_events();
        if events.is_empty() {
            return;
        }
        let count = 1 + self.rng.below(3);
        let chosen: Vec<EventId> =
            (0..count).map(|_| events[self.rng.below(events.len() as u64) as usize]).collect();
        self.canceller.requests += 1;
        let request = self.canceller.requests;
        if let Some((chosen, bytes)) = self.cancellation_by_name(request) {
            self.canceller.asked.insert(request, vec![chosen]);
            return self.send(connection, 0, &bytes, vec![Mark::Cancel(vec![chosen])]);
        }
        let bytes = written(&Frame::Cancel(Cancel { request, events: Items::from(chosen.as_slice()) }));
        self.canceller.asked.insert(request, chosen.clone());
        self.send(connection, 0, &bytes, vec![Mark::Cancel(chosen)]);
    }

    /// A request to cancel some event by its name, where that is certain to mean this one event.
    fn cancellation_by_name(&mut self, request: u64) -> Option<(EventId, Vec<u8>)> {
        let named = self.judge.named_for_a_day();
        if named.is_empty() || self.by_name_rng.one_in(2) {
            return None;
        }
        let (n, event) = named[self.by_name_rng.below(named.len() as u64) as usize];
        let mut template = EventTemplate::new(self.plan.workload).expect("the plan's events are small");
        let (view, _) = EventView::parse(template.event(n, WallMs(0))).expect("the plan's events are sound");
        let id = std::str::from_utf8(view.id()).expect("ids are text");
        let names = vec![EventName { ordering_key: view.ordering_key(), source: "", id }];
        let topic = self.admin.topic_id(self.plan.workload.topic(n) as usize);
        Some((event, written(&Frame::CancelByName(CancelByName { request, topic, names }))))
    }

    pub(super) fn canceller_frame(&mut self, stream: u64, incarnation: u32, frame: Received) {
        if self.canceller.connection != Some(connection_of(stream)) {
            return;
        }
        let Received::CancelReply { request, verdicts } = frame else { return };
        let Some(asked) = self.canceller.asked.remove(&request) else { return };
        let wall_ms = self.node_wall_ms(incarnation);
        for (event, verdict) in asked.into_iter().zip(verdicts) {
            self.judge.cancel_answered(event, verdict, wall_ms);
        }
    }
}
