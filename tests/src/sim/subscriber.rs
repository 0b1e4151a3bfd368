//! A subscriber's process: one session at a time, lambdas that take their time, and a memory of what they run.

use std::collections::BTreeMap;

use escapement_protocol::frame::{Credit, Frame, Items, ResultBatch, ResultItem, Subscribe};
use escapement_protocol::{AttemptResult, EventView, Tag};

use super::control::{Received, hello, written};
use super::net::{Mark, connection_of, stream_of};
use super::plan::SubscriberPlan;
use super::world::{Happening, NS_PER_MS, Who, World};

/// Stream of a connection that the session is on.
const STREAM: u64 = 1;

#[derive(Clone, Copy, Debug)]
struct Running {
    result: AttemptResult,
    retry_after_ms: u32,
    /// The lambda has ended, and its result waits for a session.
    ready: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Subscriber {
    connection: Option<u64>,
    attached: bool,
    /// Asked for no more pushes, and waits for `Detached`.
    leaving: bool,
    /// Streams of sessions that were left.
    left: Vec<u64>,
    /// By epoch and tag.
    running: BTreeMap<(u32, u64), Running>,
    credit: Credit,
}

impl Subscriber {
    pub(super) fn new(plan: &SubscriberPlan) -> Subscriber {
        Subscriber {
            connection: None,
            attached: false,
            leaving: false,
            left: Vec::new(),
            running: BTreeMap::new(),
            credit: plan.credit,
        }
    }

    /// Whether the session on this stream was left.
    pub(super) fn has_left(&self, stream: u64) -> bool {
        self.left.contains(&stream)
    }
}

impl World {
    pub(super) fn subscriber_wakes(&mut self, index: usize) {
        let after_ms = 2 + self.rng.below(30);
        self.wake(Who::Subscriber(index), after_ms);
        if self.subscribers[index].connection.is_none() {
            return self.subscribe(index);
        }
        if self.subscribers[index].attached && !self.subscribers[index].leaving {
            self.change_session(index);
        }
    }

    fn subscribe(&mut self, index: usize) {
        let plan = self.plan.subscribers[index].clone();
        if !self.admin.has_created(plan.subscription) {
            return;
        }
        let Some(connection) = self.connect(Who::Subscriber(index)) else { return };
        let calm = self.is_calm();
        let named = self.rng.below(3);
        let mut kept = BTreeMap::new();
        for (name, running) in std::mem::take(&mut self.subscribers[index].running) {
            let keep = match named {
                0 => true,
                1 => self.rng.one_in(2),
                _ => false,
            };
            if keep {
                kept.insert(name, running);
            }
        }
        let tags: Vec<Tag> = kept.keys().map(|(_, tag)| Tag(*tag)).collect();
        let subscriber = &mut self.subscribers[index];
        subscriber.running = kept;
        subscriber.connection = Some(connection);
        subscriber.attached = false;
        subscriber.leaving = false;
        subscriber.credit = if calm { Credit { tasks: 1_000, bytes: 1 << 20 } } else { plan.credit };
        let name = self.plan.subscriptions[plan.subscription].settings.name.clone();
        let frame = written(&Frame::Subscribe(Subscribe {
            subscription: &name,
            credit: self.subscribers[index].credit,
            host: plan.host,
            running: Items::from(tags.as_slice()),
        }));
        self.send(connection, 0, &hello(), Vec::new());
        let mark = Mark::Attach { subscriber: index, running: tags };
        self.send(connection, STREAM, &frame, vec![mark]);
    }

    /// Now and then the credit changes, the session is left, or its connection dropped.
    fn change_session(&mut self, index: usize) {
        let Some(connection) = self.subscribers[index].connection else { return };
        let full = Credit { tasks: 1_000, bytes: 1 << 20 };
        let wanted = match self.rng.below(12) {
            _ if self.is_calm() => full,
            0 => Credit::default(),
            1..4 => self.plan.subscribers[index].credit,
            4 => {
                self.subscribers[index].leaving = true;
                self.subscribers[index].left.push(stream_of(connection, STREAM));
                return self.send(connection, STREAM, &written(&Frame::Detach), Vec::new());
            }
            5 => return self.cut_connection(connection),
            _ => self.subscribers[index].credit,
        };
        if wanted != self.subscribers[index].credit {
            self.subscribers[index].credit = wanted;
            self.send(connection, STREAM, &written(&Frame::Credit(wanted)), Vec::new());
        }
    }

    pub(super) fn subscriber_frame(&mut self, index: usize, stream: u64, frame: Received) {
        let connection = connection_of(stream);
        if self.subscribers[index].connection != Some(connection) {
            return;
        }
        match frame {
            Received::Subscribed { epoch } => {
                self.subscribers[index].attached = true;
                // Attempts of another generation are stale: most subscribers know, some send their results anyway.
                if self.rng.one_in(2) {
                    self.subscribers[index].running.retain(|(of, _), _| *of == epoch);
                }
                let ready: Vec<(u32, u64)> = self.subscribers[index]
                    .running
                    .iter()
                    .filter(|(_, r)| r.ready)
                    .map(|(name, _)| *name)
                    .collect();
                for (epoch, tag) in ready {
                    self.send_result(index, epoch, tag);
                }
            }
            Received::Pushes { epoch, items } => {
                for (item, event) in items {
                    let attempt = item.attempt;
                    self.run_lambda(index, epoch, item.tag.0, attempt, &event);
                }
            }
            Received::Detached => {
                // What still runs is given up: the session ends as one that nothing is out at.
                self.subscribers[index].running.clear();
                self.subscribers[index].connection = None;
                self.subscribers[index].attached = false;
                let after_ns = self.net_delay_ns() * 20;
                self.queue.push(self.now_ns + after_ns, Happening::NodeCut { connection });
            }
            Received::Error { .. } => {
                // Refused, as by a node that drains.
                self.cut_connection(connection);
            }
            _ => {}
        }
    }

    fn run_lambda(&mut self, index: usize, epoch: u32, tag: u64, attempt: u16, event: &[u8]) {
        let plan = self.plan.subscribers[index].clone();
        let n = EventView::parse(event).ok().and_then(|(view, _)| self.plan.workload.number(view.id()));
        let calm = self.is_calm();
        let planned = n.map_or(AttemptResult::Success, |n| self.plan.workload.result(n, attempt.into()));
        let result = match planned {
            _ if calm => AttemptResult::Success,
            AttemptResult::Success if self.rng.one_in(100) => AttemptResult::PermanentFailure,
            planned => planned,
        };
        let asks = result == AttemptResult::RetryableFailure && self.rng.one_in(3);
        let retry_after_ms = if asks { self.rng.below(400) as u32 } else { 0 };
        self.subscribers[index]
            .running
            .insert((epoch, tag), Running { result, retry_after_ms, ready: false });
        let silent = !calm && plan.silent_one_in < u64::MAX && self.rng.one_in(plan.silent_one_in);
        if silent {
            return;
        }
        // In the end everything has to succeed within an attempt's deadline, whatever it was before.
        let work_ms = if calm { plan.work_ms.min(20) } else { plan.work_ms };
        let work_ns = 1 + self.rng.below(1 + work_ms * NS_PER_MS);
        self.queue.push(self.now_ns + work_ns, Happening::ResultDue { subscriber: index, epoch, tag });
    }

    pub(super) fn result_due(&mut self, index: usize, epoch: u32, tag: u64) {
        let subscriber = &mut self.subscribers[index];
        let Some(running) = subscriber.running.get_mut(&(epoch, tag)) else { return };
        running.ready = true;
        if subscriber.connection.is_some() && subscriber.attached {
            self.send_result(index, epoch, tag);
        }
    }

    fn send_result(&mut self, index: usize, epoch: u32, tag: u64) {
        let subscriber = &mut self.subscribers[index];
        let Some(connection) = subscriber.connection else { return };
        let Some(running) = subscriber.running.remove(&(epoch, tag)) else { return };
        let item =
            ResultItem { tag: Tag(tag), retry_after_ms: running.retry_after_ms, result: running.result };
        let bytes = written(&Frame::ResultBatch(ResultBatch { results: Items::from(&[item][..]) }));
        let mark = Mark::Results { subscriber: index, results: vec![(epoch, item)] };
        self.send(connection, STREAM, &bytes, vec![mark]);
    }

    pub(super) fn subscriber_cut(&mut self, index: usize, connection: u64) {
        let subscriber = &mut self.subscribers[index];
        if subscriber.connection == Some(connection) {
            subscriber.connection = None;
            subscriber.attached = false;
            // A process may go with its connection, and with it what it ran.
            if self.rng.one_in(4) {
                self.subscribers[index].running.clear();
            }
        }
    }
}
