//! Reschedules what is acknowledged: sooner, later, far ahead, now, around the moment when it is due, in versions that
//! are right and wrong.

use std::collections::BTreeMap;

use escapement_protocol::event::Due;
use escapement_protocol::frame::{Frame, Items, Reschedule};
use escapement_protocol::{ErrorCode, EventId, WallMs};
use escapement_wal::memory::Rng;

use super::control::{Received, hello, written};
use super::judge::Sent;
use super::net::connection_of;
use super::plan::START_WALL_MS;
use super::world::{Who, World};

/// One client; its choices come from numbers of its own.
#[derive(Debug)]
pub(super) struct Rescheduler {
    rng: Rng,
    connection: Option<u64>,
    requests: u64,
    asked: BTreeMap<u64, Sent>,
}

impl Rescheduler {
    pub(super) fn new(seed: u64) -> Rescheduler {
        let rng = Rng::new(seed ^ 0x7265_7363_6865_6475);
        Rescheduler { rng, connection: None, requests: 0, asked: BTreeMap::new() }
    }

    pub(super) fn cut(&mut self, connection: u64) {
        if self.connection == Some(connection) {
            self.connection = None;
            self.asked.clear();
        }
    }

    /// One of the events, often one that is due near `now_ms`.
    fn choose(&mut self, events: &[EventId], now_ms: u64, due_ms: impl Fn(&EventId) -> u64) -> EventId {
        let any = events[self.rng.below(events.len() as u64) as usize];
        let near = events.iter().filter(|event| due_ms(event) + 2 >= now_ms);
        match self.rng.below(3) {
            0 => any,
            1 => near.min_by_key(|event| due_ms(event)).copied().unwrap_or(any),
            _ => {
                let later: Vec<_> = near.collect();
                let at = self.rng.below(later.len().max(1) as u64) as usize;
                later.get(at).map_or(any, |event| **event)
            }
        }
    }

    fn due(&mut self, now_ms: u64, due_ms: u64, published_ms: u64, horizon_ms: u64) -> Due {
        let span_ms = (4 * horizon_ms).clamp(100, 8_000);
        let at = |ms: u64| Due::At(WallMs(ms));
        match self.rng.below(9) {
            0 => Due::After(0),
            1 => at(due_ms + self.rng.below(7) - 3),
            2 => at(published_ms),
            3 => at(now_ms.min(due_ms) + self.rng.below(1 + due_ms.saturating_sub(now_ms))),
            4 => at(START_WALL_MS - 5),
            5 => Due::After(self.rng.below(span_ms)),
            6 => at(now_ms + self.rng.below(5)),
            _ => at(now_ms + self.rng.below(span_ms)),
        }
    }
}

impl World {
    pub(super) fn rescheduler_wakes(&mut self) {
        if self.is_calm() {
            return;
        }
        let after_ms = 1 + self.rescheduler.rng.below(25);
        self.wake(Who::Rescheduler, after_ms);
        let connection = match self.rescheduler.connection {
            Some(connection) => connection,
            None => {
                let Some(connection) = self.connect(Who::Rescheduler) else { return };
                self.rescheduler.connection = Some(connection);
                self.send(connection, 0, &hello(), Vec::new());
                connection
            }
        };
        let events = self.judge.pending_events();
        let incarnation = self.net.connections[&connection].incarnation;
        let Some(now_ms) = self.node_wall_ms(incarnation).filter(|_| !events.is_empty()) else { return };
        for _ in 0..1 + self.rescheduler.rng.below(3) {
            let judge = &self.judge;
            let due_ms = |event: &EventId| judge.known_due_ms((event.shard, event.sequence));
            let event = self.rescheduler.choose(&events, now_ms, due_ms);
            let key = (event.shard, event.sequence);
            let known_ms = judge.known_due_ms(key);
            let version = judge.version(key);
            let rescheduler = &mut self.rescheduler;
            let due = rescheduler.due(now_ms, known_ms, event.schedule_time_ms, self.plan.horizon_ms);
            let expected = match rescheduler.rng.below(6) {
                0 | 1 => Some(version),
                2 => Some(version + 1 + rescheduler.rng.below(2)),
                _ => None,
            };
            rescheduler.requests += 1;
            let request = rescheduler.requests;
            let (at_ms, least_ms) = match due {
                Due::At(at) => (Some(at.0), at.0),
                Due::After(delay_ms) => (None, now_ms + delay_ms),
            };
            let sent = Sent { key, request, incarnation, at_ms, least_ms, expected };
            rescheduler.asked.insert(request, sent);
            self.judge.reschedule_asked(&sent);
            let (one, expected) = ([event], expected.as_slice());
            let (events, versions) = (Items::from(one.as_slice()), Items::from(expected));
            let bytes = written(&Frame::Reschedule(Reschedule { request, events, due, versions }));
            self.send(connection, 0, &bytes, Vec::new());
        }
    }

    pub(super) fn rescheduler_frame(&mut self, stream: u64, incarnation: u32, frame: &Received) {
        if self.rescheduler.connection != Some(connection_of(stream)) {
            return;
        }
        match frame {
            Received::RescheduleReply { request, verdicts } => {
                let Some(sent) = self.rescheduler.asked.remove(request) else { return };
                let wall_ms = self.node_wall_ms(incarnation);
                let verdict = verdicts[0];
                self.note(format_args!("{sent:?} is answered: {verdict:?}"));
                self.judge.reschedule_answered(&sent, verdict, wall_ms);
            }
            Received::Error { request, code } => {
                // Of a shard that stopped nobody knows what it has on its disk.
                let is_known = *code != ErrorCode::Unavailable as u16;
                if let Some(sent) = self.rescheduler.asked.remove(request).filter(|_| is_known) {
                    self.judge.reschedule_refused(&sent);
                }
            }
            _ => {}
        }
    }
}
