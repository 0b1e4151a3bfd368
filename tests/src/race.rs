//! Cancels that race with dispatch: at the due instant, by the million, through crashes.
//!
//! A seed decides a life of one shard: rounds of events that are due at about one moment, some in memory and some in runs,
//! and around that moment turns in which cancels, the clock, dispatch, the disk, results and crashes come in any order.
//! Every verdict that leaves is held against what the subscriber has seen and sees afterwards:
//!
//! * `CANCELLED`: no push before, and none after, whatever crashes;
//! * `TOO_LATE`: a push before, or one still to come, and never `CANCELLED` afterwards;
//! * `NOT_FOUND`: only of what has ended, and no push after.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};

use escapement_engine::{Push, ReplyBody, ShardConfig, Ticket};
use escapement_protocol::frame::CancelVerdict;
use escapement_protocol::{AttemptResult, EventId, Sequence, SubscriptionId, TopicId, WallMs};
use escapement_wal::memory::Rng;

use crate::lone::{Lone, config};

const START: WallMs = WallMs(1_800_000_000_000);
/// Rounds of one life.
const ROUNDS: u64 = 6;
/// What an event is ahead of its time in rounds of far-future events, in ms.
const FAR_MS: u64 = 20_000;
const HORIZON_MS: u64 = 5_000;
/// Turns of a shard around the due moment of a round.
const TURNS: u64 = 40;

/// A fault planted in what carries answers and requests, never in the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A verdict leaves before its record is durable.
    AnsweredBeforeDurable,
    /// The verdict is decided where the request comes in, by the clock there, and the shard hears of it a little later:
    /// nothing keeps the event from being dispatched in between.
    FenceForgotten,
}

impl Bug {
    /// Every one.
    pub const ALL: [Bug; 2] = [Bug::AnsweredBeforeDurable, Bug::FenceForgotten];

    /// The one with this name, as it is written here.
    #[must_use]
    pub fn named(name: &str) -> Option<Bug> {
        Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
    }
}

/// What one life, or many, went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lives of a shard.
    pub seeds: u64,
    /// Events.
    pub events: u64,
    /// Cancels asked for before the due millisecond.
    pub before: u64,
    /// Cancels asked for in the due millisecond.
    pub at: u64,
    /// Cancels asked for later.
    pub after: u64,
    /// Verdicts `CANCELLED`.
    pub cancelled: u64,
    /// Verdicts `TOO_LATE`.
    pub too_late: u64,
    /// Verdicts `NOT_FOUND`.
    pub not_found: u64,
    /// Cancels that a crash left without an answer, or that were refused for now.
    pub unanswered: u64,
    /// Crashes.
    pub crashes: u64,
    /// Pushes seen.
    pub pushes: u64,
}

impl Counts {
    /// Cancels asked for.
    #[must_use]
    pub fn cancels(&self) -> u64 {
        self.before + self.at + self.after
    }

    /// Adds those of another life.
    pub fn add(&mut self, other: Counts) {
        self.seeds += other.seeds;
        self.events += other.events;
        self.before += other.before;
        self.at += other.at;
        self.after += other.after;
        self.cancelled += other.cancelled;
        self.too_late += other.too_late;
        self.not_found += other.not_found;
        self.unanswered += other.unanswered;
        self.crashes += other.crashes;
        self.pushes += other.pushes;
    }
}

/// A verdict that what was seen contradicts, or an assertion of the product.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}: {what}")]
pub struct Failed {
    /// The seed.
    pub seed: u64,
    /// What.
    pub what: String,
}

/// What is known of an event from outside.
#[derive(Clone, Debug)]
struct Fate {
    id: EventId,
    /// Times that the subscriber saw it.
    pushes: u64,
    /// A final result was given.
    has_result: bool,
    /// A cancel was asked for that may have come through, whatever its answer.
    is_asked: bool,
    verdict: Option<CancelVerdict>,
}

struct Life {
    lone: Lone,
    rng: Rng,
    bug: Option<Bug>,
    topic: TopicId,
    subscription: SubscriptionId,
    /// Events of this round.
    fates: Vec<Fate>,
    by_sequence: HashMap<Sequence, usize>,
    /// By ticket: the event, and what was said of it when this was asked.
    asked: BTreeMap<u64, (usize, Option<CancelVerdict>)>,
    /// Attempts without a result.
    held: Vec<Push>,
    /// Cancels that were answered and that the shard has not heard of.
    postponed: Vec<EventId>,
    counts: Counts,
}

/// Lives one life.
///
/// # Errors
/// The first verdict that is contradicted, or the message of a panic in the product.
pub fn run(seed: u64, bug: Option<Bug>) -> Result<Counts, Failed> {
    let lived = catch_unwind(AssertUnwindSafe(|| Life::new(seed, bug).live()));
    let lived = lived.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    });
    lived.map_err(|what| Failed { seed, what })
}

impl Life {
    fn new(seed: u64, bug: Option<Bug>) -> Life {
        let mut rng = Rng::new(seed ^ 0x7261_6365_0000_0001);
        let config = ShardConfig {
            horizon_ms: HORIZON_MS,
            // Small, so that a run has several blocks and a round several runs.
            run_size_bytes: 2_000,
            names_run_size_bytes: 1 << 20,
            block_size_bytes_max: [8 * 1024, 64 * 1024][rng.below(2) as usize],
            batch_count_max: [1, 7, 4_096][rng.below(3) as usize],
            ..config(seed)
        };
        let mut lone = Lone::new(config, START);
        let (topic, subscription) = lone.create(1);
        lone.answers_at_once = bug == Some(Bug::AnsweredBeforeDurable);
        lone.attach(subscription);
        Life {
            lone,
            rng,
            bug,
            topic,
            subscription,
            fates: Vec::new(),
            by_sequence: HashMap::new(),
            asked: BTreeMap::new(),
            held: Vec::new(),
            postponed: Vec::new(),
            counts: Counts { seeds: 1, ..Counts::default() },
        }
    }

    fn live(mut self) -> Result<Counts, String> {
        for _ in 0..ROUNDS {
            let due = self.begin_round()?;
            self.race(due)?;
            self.end_round()?;
        }
        Ok(self.counts)
    }

    /// Publishes events that are due at about one moment, and lets the time until shortly before it pass.
    fn begin_round(&mut self) -> Result<WallMs, String> {
        let is_far = self.rng.one_in(3);
        let ahead_ms = if is_far { FAR_MS } else { 10 + self.rng.below(50) };
        let due = self.lone.now.wall.plus_ms(ahead_ms);
        let count = 1 + self.rng.below(80);
        let spread = 1 + self.rng.below(3);
        let dues: Vec<WallMs> = (0..count).map(|_| due.plus_ms(self.rng.below(spread))).collect();
        let fate = |id| Fate { id, pushes: 0, has_result: false, is_asked: false, verdict: None };
        self.fates = self.lone.publish(self.topic, &dues).into_iter().map(fate).collect();
        self.by_sequence = self.fates.iter().map(|fate| fate.id.sequence).zip(0..).collect();
        self.counts.events += count;
        let window_ms = 1 + self.rng.below(4);
        if is_far {
            // Into runs; and sometimes the clock jumps over the time in which they would have been read ahead.
            self.lone.advance_ms(HORIZON_MS / 4);
            self.lone.settle();
            if self.rng.one_in(2) {
                self.lone.advance_ms(FAR_MS - HORIZON_MS / 4 - HORIZON_MS);
                if self.rng.one_in(2) {
                    self.lone.settle();
                }
            }
        }
        let rest_ms = due.0 - self.lone.now.wall.0;
        self.lone.advance_ms(rest_ms - window_ms);
        Ok(due)
    }

    /// Turns around the due moment, in which everything comes in any order.
    fn race(&mut self, due: WallMs) -> Result<(), String> {
        for _ in 0..TURNS {
            match self.rng.below(16) {
                0 | 1 => self.lone.advance_ms(1),
                // A clock that is stopped for a moment stands on the other side of the due time.
                2 if self.lone.now.wall < due && self.rng.one_in(6) => self.lone.advance_ms(5),
                2..6 => self.ask()?,
                6..10 => self.lone.maintain(),
                10 | 11 => self.lone.commit(),
                12 => {
                    self.lone.complete();
                    self.shard_hears();
                }
                13 => {
                    self.lone.run_op();
                }
                14 => self.give_results(),
                _ if self.rng.one_in(4) => self.crash(),
                _ => {}
            }
            self.watch()?;
        }
        Ok(())
    }

    /// Asks for some cancels, mostly of events that nobody asked for yet.
    fn ask(&mut self) -> Result<(), String> {
        for _ in 0..1 + self.rng.below(6) {
            let any = self.rng.below(self.fates.len() as u64) as usize;
            let other = self.rng.below(self.fates.len() as u64) as usize;
            let index = if self.fates[any].is_asked { other } else { any };
            let fate = &mut self.fates[index];
            fate.is_asked = true;
            let (id, said) = (fate.id, fate.verdict);
            let wall = self.lone.now.wall.0;
            match wall.cmp(&id.schedule_time_ms) {
                std::cmp::Ordering::Less => self.counts.before += 1,
                std::cmp::Ordering::Equal => self.counts.at += 1,
                std::cmp::Ordering::Greater => self.counts.after += 1,
            }
            if self.bug == Some(Bug::FenceForgotten) && wall < id.schedule_time_ms {
                self.postponed.push(id);
                self.verdict(index, said, CancelVerdict::Cancelled)?;
                continue;
            }
            let Ticket { number, .. } = self.lone.cancel(id);
            self.asked.insert(number, (index, said));
        }
        Ok(())
    }

    fn shard_hears(&mut self) {
        for id in std::mem::take(&mut self.postponed) {
            self.lone.cancel(id);
        }
    }

    /// Takes what has left: pushes first, as they leave first.
    fn watch(&mut self) -> Result<(), String> {
        for push in std::mem::take(&mut self.lone.pushes) {
            self.counts.pushes += 1;
            let now = self.lone.now.wall;
            // One of an earlier round has ended.
            let Some(&index) = self.by_sequence.get(&push.sequence) else {
                return Err(format!("{push:?} is of an event that has ended"));
            };
            let fate = &mut self.fates[index];
            fate.pushes += 1;
            if now.0 < fate.id.schedule_time_ms {
                return Err(format!("{fate:?} was pushed at {now}, early"));
            }
            if matches!(fate.verdict, Some(CancelVerdict::Cancelled | CancelVerdict::NotFound)) {
                return Err(format!("{fate:?} was pushed after that verdict"));
            }
            self.held.push(push);
        }
        for reply in std::mem::take(&mut self.lone.replies) {
            let Some((index, said)) = self.asked.remove(&reply.ticket.number) else { continue };
            match reply.body {
                ReplyBody::Cancelled(verdict) => self.verdict(index, said, verdict)?,
                ReplyBody::Refused(_) => self.counts.unanswered += 1,
                other => return Err(format!("a cancel was answered with {other:?}")),
            }
        }
        Ok(())
    }

    /// `said` is what had been answered when this was asked; others may have been answered since.
    fn verdict(
        &mut self,
        index: usize,
        said: Option<CancelVerdict>,
        verdict: CancelVerdict,
    ) -> Result<(), String> {
        let fate = &mut self.fates[index];
        let before = fate.verdict.replace(verdict);
        let is_possible = match verdict {
            CancelVerdict::Cancelled => {
                self.counts.cancelled += 1;
                let is_open = matches!(said, None | Some(CancelVerdict::Cancelled));
                fate.pushes == 0 && is_open && !matches!(before, Some(CancelVerdict::TooLate { .. }))
            }
            CancelVerdict::TooLate { .. } => {
                self.counts.too_late += 1;
                matches!(before, None | Some(CancelVerdict::TooLate { .. }))
            }
            CancelVerdict::NotFound => {
                self.counts.not_found += 1;
                // Either it was done, or a cancel came through: then nobody ever saw it.
                fate.has_result || fate.pushes == 0
            }
        };
        if is_possible { Ok(()) } else { Err(format!("{fate:?}, where {before:?} was the verdict before")) }
    }

    fn give_results(&mut self) {
        for _ in 0..1 + self.rng.below(5) {
            if self.held.is_empty() {
                return;
            }
            let push = self.held.swap_remove(self.rng.below(self.held.len() as u64) as usize);
            let result = if self.rng.one_in(4) {
                AttemptResult::RetryableFailure
            } else {
                let index = self.by_sequence[&push.sequence];
                self.fates[index].has_result = true;
                AttemptResult::Success
            };
            self.lone.answer(&push, result);
        }
    }

    fn crash(&mut self) {
        self.counts.crashes += 1;
        let kept = self.rng.below(1 + self.lone.in_flight_count() as u64) as usize;
        self.lone.crash(kept);
        self.lone.attach(self.subscription);
        self.held.clear();
        self.postponed.clear();
        self.counts.unanswered += self.asked.len() as u64;
        self.asked.clear();
    }

    /// Lets everything end that is still to come, and holds it against what was said.
    fn end_round(&mut self) -> Result<(), String> {
        self.shard_hears();
        loop {
            self.lone.settle();
            self.watch()?;
            for push in std::mem::take(&mut self.held) {
                let index = self.by_sequence[&push.sequence];
                self.fates[index].has_result = true;
                self.lone.answer(&push, AttemptResult::Success);
            }
            self.lone.settle();
            self.watch()?;
            if self.lone.shard.stats().pending == 0 {
                break;
            }
            if self.held.is_empty() {
                let ms = self.lone.next_deadline_ms().ok_or("what is pending waits for nothing")?;
                self.lone.advance_ms(ms);
            }
        }
        if !self.asked.is_empty() {
            return Err(format!("{} cancels were never answered", self.asked.len()));
        }
        self.lone.shard.check();
        for fate in &self.fates {
            let is_lost = match fate.verdict {
                None => !fate.is_asked && fate.pushes == 0,
                Some(CancelVerdict::TooLate { .. }) => fate.pushes == 0,
                Some(CancelVerdict::Cancelled | CancelVerdict::NotFound) => false,
            };
            if is_lost {
                return Err(format!("{fate:?} was never pushed"));
            }
        }
        Ok(())
    }
}
