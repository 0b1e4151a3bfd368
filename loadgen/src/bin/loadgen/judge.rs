//! What publishers and receivers report to: the auditor, the distributions, and the batches under way.

use std::collections::BTreeMap;

use escapement_client::{BatchReceipt, ResultSink};
use escapement_loadgen::auditor::{Auditor, Place, Pushed, Report, Verdict};
use escapement_loadgen::{Workload, WorkloadConfig};
use escapement_protocol::frame::PushBatch;
use escapement_protocol::{AttemptResult, EventView, Sequence};
use hashbrown::HashMap;

use crate::measure::Distributions;
use crate::slo::Metric;

/// The events of one batch, by place.
#[derive(Debug)]
pub(crate) enum BatchEvents {
    /// Consecutive, from this one on.
    From(u64),
    /// Named one by one.
    Listed(Vec<u64>),
}

impl BatchEvents {
    pub(crate) fn at(&self, index: u32) -> u64 {
        match self {
            BatchEvents::From(first) => first + u64::from(index),
            BatchEvents::Listed(numbers) => numbers[index as usize],
        }
    }
}

/// A batch that was sent and not answered.
#[derive(Debug)]
struct Flight {
    events: BatchEvents,
    count: u32,
    sent_ns: u64,
}

/// An attempt that was handed over and whose result has not left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    n: Option<u64>,
    result: AttemptResult,
}

/// Everything that is known of a run while it runs.
#[derive(Debug)]
pub(crate) struct Judge {
    workload: Workload,
    auditor: Auditor,
    /// Since the last second was taken.
    second: Distributions,
    /// Events from this number on are measured.
    measured_from: u64,
    /// ns between intended sends; `None` where there is no schedule.
    interval_ns: Option<f64>,
    flights: HashMap<u64, Flight>,
    next_token: u64,
    pub(crate) refused_by_code: BTreeMap<u16, u64>,
    /// Events that are due from this moment on, in ms of the wall clock, are noted one by one:
    noted_from_ms: u64,
    pub(crate) noted: Vec<Noted>,
}

/// When an event was due, and how late it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noted {
    pub(crate) due_ms: u64,
    pub(crate) lateness_ns: u64,
}

impl Judge {
    pub(crate) fn new(config: WorkloadConfig, max_concurrent: u32) -> Self {
        let workload = Workload::new(config);
        let interval_ns = (config.rate_per_s > 0).then(|| 1e9 / config.rate_per_s as f64);
        Judge {
            workload,
            auditor: Auditor::new(workload, max_concurrent),
            second: Distributions::new(),
            measured_from: u64::MAX,
            interval_ns,
            flights: HashMap::new(),
            next_token: 0,
            refused_by_code: BTreeMap::new(),
            noted_from_ms: u64::MAX,
            noted: Vec::new(),
        }
    }

    /// Notes what is due from this moment on, in ms of the wall clock.
    pub(crate) fn note_from(&mut self, due_ms: u64) {
        self.noted_from_ms = due_ms;
    }

    pub(crate) fn measure_from(&mut self, n: u64) {
        self.measured_from = n;
    }

    pub(crate) fn report(&self) -> &Report {
        self.auditor.report()
    }

    pub(crate) fn outstanding_examples(&self) -> Vec<u64> {
        self.auditor.outstanding_examples()
    }

    /// Batches without a receipt.
    pub(crate) fn flights(&self) -> usize {
        self.flights.len()
    }

    /// Adds the distributions of the last second to `all`, through `look`.
    pub(crate) fn take_second(&mut self, all: &mut Distributions, look: impl FnOnce(&Distributions)) {
        look(&self.second);
        all.absorb(&mut self.second);
    }

    /// When event `n` should have been sent, in ns of the run: its schedule, else the moment of sending.
    pub(crate) fn intended_ns(&self, n: u64, sent_ns: u64) -> u64 {
        self.interval_ns.map_or(sent_ns, |interval| (n as f64 * interval) as u64)
    }

    /// Event `n` is in a batch that is about to be sent.
    pub(crate) fn published(&mut self, n: u64, due_ms: u64, intended_ns: u64, now_ns: u64) {
        self.auditor.published(n, due_ms);
        if n >= self.measured_from {
            self.second.record(Metric::GeneratorLag, now_ns.saturating_sub(intended_ns));
        }
    }

    /// A batch is about to be sent; its receipt will come under the token that this returns.
    pub(crate) fn sent(&mut self, events: BatchEvents, count: u32, sent_ns: u64) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.flights.insert(token, Flight { events, count, sent_ns });
        token
    }

    /// A batch's receipt came.
    pub(crate) fn answered(&mut self, token: u64, receipt: &BatchReceipt, now_ns: u64, wall_ms: u64) {
        let Some(Flight { events, count, sent_ns }) = self.flights.remove(&token) else { return };
        if receipt.resent {
            (0..count).for_each(|index| self.auditor.resent(events.at(index)));
        }
        for run in &receipt.runs {
            for i in 0..run.count {
                let n = events.at(run.first_index + i);
                let sequence = Sequence(run.first_sequence.0 + u64::from(i));
                self.auditor.acknowledged(n, wall_ms, Place { shard: run.shard, sequence });
                if n >= self.measured_from {
                    let intended_ns = self.intended_ns(n, sent_ns);
                    self.second.record(Metric::PublishAck, now_ns.saturating_sub(intended_ns));
                }
            }
        }
        for refusal in &receipt.refusals {
            self.auditor.refused(events.at(refusal.index));
            *self.refused_by_code.entry(refusal.number).or_default() += 1;
        }
    }

    /// A frame of attempts came: each is judged and answered as planned.
    pub(crate) fn pushed(
        &mut self,
        batch: &PushBatch<'_>,
        wall_ns: u64,
        results: &mut ResultSink,
        running: &mut Vec<Running>,
    ) {
        let known = |bytes| EventView::trusted(bytes).map_or(0, |event| self.auditor.warm(event.id()));
        std::hint::black_box(batch.events.iter().fold(0, |all, bytes| all ^ known(bytes)));
        for ((item, bytes), due) in batch.iter().zip(batch.dues()) {
            // Of an event that cannot be read, nothing is right.
            let (id, data) =
                EventView::trusted(bytes).map_or((&[][..], &[][..]), |event| (event.id(), event.data()));
            let verdict = self.auditor.pushed(&Pushed {
                id,
                data,
                event: item.event_id(),
                due_ms: due.0,
                received_wall_ns: wall_ns,
            });
            let n = match verdict {
                Verdict::First { n, lateness_ns } => {
                    if n >= self.measured_from {
                        self.second.record(Metric::Lateness, lateness_ns);
                    }
                    if due.0 >= self.noted_from_ms {
                        self.noted.push(Noted { due_ms: due.0, lateness_ns });
                    }
                    Some(n)
                }
                Verdict::Again { n } => Some(n),
                Verdict::Foreign => None,
            };
            let result = match n {
                Some(n) => self.workload.result(n, u32::from(item.attempt)),
                None => AttemptResult::Success,
            };
            results.push(item.tag, result);
            running.push(Running { n, result });
        }
    }

    /// The results of these attempts are about to leave.
    pub(crate) fn leaving(&mut self, running: &mut Vec<Running>) {
        for Running { n, result } in running.drain(..) {
            self.auditor.finished(n, result);
        }
    }
}
