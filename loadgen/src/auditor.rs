//! Holds a node to its promises.
//!
//! One auditor judges one load whose topics have one subscription each. It is told, in the order in which the caller
//! learns of it: [`Auditor::published`] before an event's bytes leave, [`Auditor::acknowledged`] or
//! [`Auditor::refused`] when its receipt arrives, [`Auditor::pushed`] for every attempt that arrives,
//! and [`Auditor::finished`] just before the attempt's result leaves.
//!
//! What it counts as broken, and why no clock error can make it accuse an honest node: a push is
//! *early* where the receiver's clock, which must be the node's own, has not reached the due
//! millisecond. Two events of a key are *out of order* only where the later one of the two was
//! certainly known to the node (its receipt had arrived) before the other became due.

mod keys;
mod table;

use escapement_protocol::{AttemptResult, EventId, Sequence, ShardId};

use crate::generator::Workload;
use keys::{Keys, Order};
use table::{Entry, Found, Table};

/// Examples kept of each kind of breach.
const EXAMPLES_MAX: usize = 5;

/// Where a receipt says that an event is stored: two thirds of its [`EventId`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its shard.
    pub shard: ShardId,
    /// Its position there.
    pub sequence: Sequence,
}

/// One attempt as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Pushed<'a> {
    /// The event's `id` attribute.
    pub id: &'a [u8],
    /// The event's data.
    pub data: &'a [u8],
    /// What the node calls the event.
    pub event: EventId,
    /// When it was due, as the node says.
    pub due_ms: u64,
    /// When it arrived, in ns since the Unix epoch.
    pub received_wall_ns: u64,
}

/// What [`Auditor::pushed`] made of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The first dispatch of an event: its lateness counts.
    First {
        /// The event's number.
        n: u64,
        /// Arrival after the due time, in ns; 0 where it was early.
        lateness_ns: u64,
    },
    /// A later attempt, as planned, a duplicate, or one of an event that was never published.
    Again {
        /// The event's number.
        n: u64,
    },
    /// Not an event of this load; it should be answered with success, to be rid of it.
    Foreign,
}

/// How often one promise was broken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breaches {
    /// How many.
    pub count: u64,
    /// The first few events concerned.
    pub examples: Vec<u64>,
}

impl Breaches {
    fn add(&mut self, n: u64) {
        self.count += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(n);
        }
    }
}

/// What was counted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events handed over for sending.
    pub published: u64,
    /// Events with a receipt.
    pub acknowledged: u64,
    /// Events refused.
    pub refused: u64,
    /// Attempts that arrived.
    pub dispatched: u64,
    /// Events finished by a success or a permanent failure, once each.
    pub completed: u64,
    /// Attempts beyond what the plan called for. At-least-once allows them.
    pub duplicates: u64,
    /// Attempts at events of other loads.
    pub foreign: u64,
    /// Acknowledged, and not finished yet: lost, where nothing more will come.
    pub outstanding: u64,
    /// Most attempts of one subscription that ran at once.
    pub running_most: u64,
    /// Pushed before their due time.
    pub early: Breaches,
    /// Data or due time other than published, or never published at all.
    pub wrong_payload: Breaches,
    /// Key order broken: an overtaken event, or two attempts of a key at once.
    pub out_of_order: Breaches,
    /// Pushed although refused.
    pub refused_but_pushed: Breaches,
    /// Pushed under another event id than the receipt's, though sent only once.
    pub misnamed: Breaches,
    /// Pushed while as many attempts as the limit allows were running.
    pub over_limit: Breaches,
}

impl Report {
    /// Every kind of breach with its name.
    #[must_use]
    pub fn breaches(&self) -> [(&'static str, &Breaches); 6] {
        [
            ("early", &self.early),
            ("wrong_payload", &self.wrong_payload),
            ("out_of_order", &self.out_of_order),
            ("refused_but_pushed", &self.refused_but_pushed),
            ("misnamed", &self.misnamed),
            ("over_limit", &self.over_limit),
        ]
    }

    /// Whether no promise is broken so far. What is still outstanding may yet come.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.breaches().iter().all(|(_, breaches)| breaches.count == 0)
    }
}

/// Judges one load whose topics have one subscription each.
#[derive(Debug)]
pub struct Auditor {
    workload: Workload,
    running_limit: u64,
    table: Table,
    keys: Keys,
    /// Attempts that run now, by topic.
    running: Vec<u64>,
    /// Attempts at events of other loads that run now.
    running_foreign: u64,
    report: Report,
}

impl Auditor {
    /// Judges the events of `workload`, pushed under a limit of `max_concurrent` attempts at once for
    /// each subscription (0: none).
    #[must_use]
    pub fn new(workload: Workload, max_concurrent: u32) -> Self {
        Auditor {
            workload,
            running_limit: if max_concurrent == 0 { u64::MAX } else { max_concurrent.into() },
            table: Table::default(),
            keys: Keys::new(workload.config().keys),
            running: vec![0; workload.config().topics as usize],
            running_foreign: 0,
            report: Report::default(),
        }
    }

    /// What was counted so far.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Some events that are acknowledged and not finished.
    #[must_use]
    pub fn outstanding_examples(&self) -> Vec<u64> {
        self.table.iter().filter(|(_, e)| e.is_outstanding()).map(|(n, _)| n).take(EXAMPLES_MAX).collect()
    }

    /// Event `n` is about to be sent for the first time, due at `due_ms` of the wall clock.
    pub fn published(&mut self, n: u64, due_ms: u64) {
        self.report.published += 1;
        self.table.create(n).publish(due_ms);
    }

    /// Event `n`, not acknowledged, is about to be sent once more: it may now be stored twice.
    pub fn resent(&mut self, n: u64) {
        if let Some(entry) = self.table.get(n) {
            entry.resend();
        }
    }

    /// Event `n` is about to be given another due time: from now on it is due when the node says, and which times that may be
    /// is for the caller to judge, as its place among those of its key is.
    pub fn rescheduled(&mut self, n: u64) {
        if let Some(entry) = self.table.get(n) {
            entry.reschedule();
        }
    }

    /// A receipt for event `n` arrived at `received_wall_ms`, and says where the event is stored.
    ///
    /// # Panics
    /// If `n` was not published, or is answered twice: both are mistakes of the caller.
    pub fn acknowledged(&mut self, n: u64, received_wall_ms: u64, place: Place) {
        let entry = self.table.get(n).filter(|e| !e.is_answered());
        let entry = entry.expect("an event is published once and answered once");
        if entry.is_pushed() && !entry.is_resent() && !entry.is_at(place) {
            self.report.misnamed.add(n);
        }
        entry.acknowledge(received_wall_ms, place);
        self.report.acknowledged += 1;
        if entry.is_finished() {
            self.table.settle(n);
        } else {
            self.report.outstanding += 1;
        }
    }

    /// Event `n` was refused.
    ///
    /// # Panics
    /// If `n` was not published, or is answered twice: both are mistakes of the caller.
    pub fn refused(&mut self, n: u64) {
        let entry = self.table.get(n).filter(|e| !e.is_answered());
        let entry = entry.expect("an event is published once and answered once");
        self.report.refused += 1;
        if entry.is_pushed() && !entry.is_resent() {
            self.report.refused_but_pushed.add(n);
        }
        entry.refuse();
    }

    /// Reads what is known of the event with this `id`, and answers something that depends on it.
    ///
    /// To be called for every attempt of a batch before [`Auditor::pushed`] is called for the first: events
    /// come in the order of their due times, so that each is a cache miss, and the processor can wait for many
    /// of them at once where nothing depends on the answer of one.
    #[must_use]
    pub fn warm(&self, id: &[u8]) -> u64 {
        self.workload.number(id).map_or(0, |n| self.table.peek(n))
    }

    /// An attempt arrived.
    pub fn pushed(&mut self, push: &Pushed<'_>) -> Verdict {
        self.report.dispatched += 1;
        let Some(n) = self.workload.number(push.id) else {
            self.report.foreign += 1;
            self.running_foreign += 1;
            return Verdict::Foreign;
        };
        let running = &mut self.running[self.workload.topic(n) as usize];
        *running += 1;
        self.report.running_most = self.report.running_most.max(*running);
        if *running > self.running_limit {
            self.report.over_limit.add(n);
        }
        if !self.workload.is_data(n, push.data) {
            self.report.wrong_payload.add(n);
        }
        let verdict = match self.table.look(n) {
            Found::Live(entry) => {
                Self::judge(&mut self.report, &mut self.keys, n, entry, push, &self.workload)
            }
            Found::Settled => {
                self.report.duplicates += 1;
                Verdict::Again { n }
            }
            Found::Unknown => {
                self.report.wrong_payload.add(n);
                return Verdict::Again { n };
            }
        };
        if let Some(key) = self.workload.key(n)
            && !self.keys.start(key, n)
        {
            self.report.out_of_order.add(n);
        }
        verdict
    }

    fn judge(
        report: &mut Report,
        keys: &mut Keys,
        n: u64,
        entry: &mut Entry,
        push: &Pushed<'_>,
        workload: &Workload,
    ) -> Verdict {
        let due_ns = push.due_ms * 1_000_000;
        let place = Place { shard: push.event.shard, sequence: push.event.sequence };
        if push.received_wall_ns < due_ns {
            report.early.add(n);
        }
        let is_due_otherwise = push.due_ms != entry.due_ms() && !entry.is_rescheduled();
        if push.event.schedule_time_ms != entry.due_ms() || is_due_otherwise {
            report.wrong_payload.add(n);
        }
        if entry.is_refused() && !entry.is_resent() {
            report.refused_but_pushed.add(n);
        }
        if entry.is_acknowledged() && !entry.is_resent() && !entry.is_at(place) {
            report.misnamed.add(n);
        }
        if entry.is_pushed() {
            if !entry.take_retry() {
                report.duplicates += 1;
            }
            return Verdict::Again { n };
        }
        if let Some(key) = workload.key(n).filter(|_| !entry.is_rescheduled()) {
            let order = Order { due_ms: entry.due_ms(), sequence: place.sequence };
            if keys.is_overtaken(key, order, entry.acknowledged_ms()) {
                report.out_of_order.add(n);
            }
        }
        entry.push(place);
        Verdict::First { n, lateness_ns: push.received_wall_ns.saturating_sub(due_ns) }
    }

    /// The result of an attempt is about to leave: of event `n`, or of a foreign one where `n` is `None`.
    ///
    /// # Panics
    /// If no attempt is running: a mistake of the caller.
    pub fn finished(&mut self, n: Option<u64>, result: AttemptResult) {
        let running = match n {
            Some(n) => &mut self.running[self.workload.topic(n) as usize],
            None => &mut self.running_foreign,
        };
        *running = running.checked_sub(1).expect("what finishes was running");
        let Some(n) = n else { return };
        let retry = result == AttemptResult::RetryableFailure;
        let entry = self.table.get(n).filter(|entry| !entry.is_finished());
        if let Some(key) = self.workload.key(n) {
            self.keys.finish(key, n, retry && entry.is_some());
        }
        let Some(entry) = entry else { return };
        if retry {
            entry.expect_retry();
            return;
        }
        entry.finish();
        self.report.completed += 1;
        if entry.is_acknowledged() {
            self.report.outstanding -= 1;
            self.table.settle(n);
        }
    }
}

#[cfg(test)]
mod tests;
