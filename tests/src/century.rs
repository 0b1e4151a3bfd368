//! A hundred years of timers: one shard from deadline to deadline, through restarts, with delays from a millisecond to the
//! ten years that are the longest.
//!
//! Time passes as far as the next publish or the shard's own [`next_deadline`](escapement_engine::Shard::next_deadline), so
//! that a deadline that is stated too late shows as lateness. Two seeds of three keep far-future events in runs, on a disk
//! that takes its time; the others keep all of them on the wheel. One of two ends with the last moments and sequences that
//! 48 bits hold.
//!
//! Judged by a clock of its own: nothing is early; an event is pushed in its due millisecond, or, where the node was down
//! then, soon after its start; nothing is lost; the log and the files of runs stay few; a restart finds the state that was
//! there before.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use escapement_engine::ShardConfig;
use escapement_protocol::{AttemptResult, DELAY_MS_MAX, MonoNs, Sequence, SubscriptionId, TopicId, WallMs};
use escapement_wal::memory::Rng;

use crate::lone::{Lone, config};

const YEAR_MS: u64 = 31_557_600_000;
const DAY_MS: u64 = 86_400_000;
const START: WallMs = WallMs(1_800_000_000_000);
/// Latest moment, and highest sequence, of an event.
const MAX_48: u64 = (1 << 48) - 1;

/// After a start, what was due is read from the disk first.
const AFTER_START_MS_MAX: u64 = 10_000;
/// How long an operation on a run's file takes at most.
const RUN_OP_MS_MAX: u64 = 40;
/// More blocks than a log of any of these shards needs.
const LOG_COUNT_MAX: usize = 1_000;

/// A fault planted around the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The host sometimes sleeps a millisecond longer than it was told.
    Oversleeps,
    /// The clock that the shard is given is ahead.
    ClockAhead,
    /// A restart forgets the newest block of the log.
    BlockForgotten,
}

impl Bug {
    /// Every one.
    pub const ALL: [Bug; 3] = [Bug::Oversleeps, Bug::ClockAhead, Bug::BlockForgotten];

    /// The one with this name, as it is written here.
    #[must_use]
    pub fn named(name: &str) -> Option<Bug> {
        Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
    }
}

/// How long, and how much.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Simulated years. In the last ten nothing is published.
    pub years: u64,
    /// Events, about.
    pub events: u64,
    /// A planted bug.
    pub bug: Option<Bug>,
}

/// What was gone through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events, all of which were delivered.
    pub events: u64,
    /// Of these, events that were pushed in their due millisecond.
    pub in_time: u64,
    /// Of these, events that were due while the node was down or had just started.
    pub after_start: u64,
    /// Attempts, retries included.
    pub pushes: u64,
    /// Restarts.
    pub restarts: u64,
    /// Times that the shard was woken.
    pub wakes: u64,
    /// Most events that waited in runs.
    pub far_max: u64,
    /// Most files of runs.
    pub files_max: u64,
    /// Most blocks of the log.
    pub log_max: u64,
}

/// A timer that was early, late or lost, or an assertion of the product.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}: {what}")]
pub struct Failed {
    /// The seed.
    pub seed: u64,
    /// What.
    pub what: String,
}

struct Owed {
    due_ms: u64,
    was_pushed: bool,
}

struct Century {
    options: Options,
    lone: Lone,
    rng: Rng,
    topic: TopicId,
    subscription: SubscriptionId,
    start_ms: u64,
    began: MonoNs,
    /// Since when the node has been up.
    up_since_ms: u64,
    owed: HashMap<Sequence, Owed>,
    counts: Counts,
}

/// Lets the years pass.
///
/// # Errors
/// The first timer that was early, late or lost, or the message of a panic in the product.
pub fn run(options: Options) -> Result<Counts, Failed> {
    let passed = catch_unwind(AssertUnwindSafe(|| Century::new(options).pass()));
    let passed = passed.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    });
    passed.map_err(|what| Failed { seed: options.seed, what })
}

impl Century {
    fn new(options: Options) -> Century {
        let mut rng = Rng::new(options.seed ^ 0x6365_6e74_7572_7900);
        let has_runs = options.seed % 3 != 2;
        let is_last = options.seed % 2 == 1;
        let config = ShardConfig {
            horizon_ms: if has_runs { [60_000, 15 * 60_000][rng.below(2) as usize] } else { u64::MAX >> 16 },
            run_size_bytes: [1_000, 64 * 1024][rng.below(2) as usize],
            names_run_size_bytes: 1 << 20,
            ..config(options.seed)
        };
        // To the end of 48 bits, but for the downtime that may come on top of the years.
        let last_start = MAX_48 - options.years * YEAR_MS - 9 * DAY_MS;
        let start = if is_last { WallMs(last_start) } else { START };
        let mut lone = Lone::new(config, start);
        if is_last {
            // Each publish is one batch more than is asked for at most.
            lone.skip_sequences(MAX_48 - options.events - 1_000);
        }
        lone.run_op_ms = rng.below(RUN_OP_MS_MAX + 1);
        let (topic, subscription) = lone.create(1_000);
        lone.attach(subscription);
        let (start_ms, began) = (lone.now.wall.0, lone.now.mono);
        let counts = Counts::default();
        let owed = HashMap::new();
        let up_since_ms = start_ms;
        Century { options, lone, rng, topic, subscription, start_ms, began, up_since_ms, owed, counts }
    }

    /// The clock that judges.
    fn now_ms(&self) -> u64 {
        self.start_ms + self.lone.now.mono.since(self.began) / 1_000_000
    }

    fn pass(mut self) -> Result<Counts, String> {
        let end_ms = self.start_ms + self.options.years * YEAR_MS;
        let publish_end_ms = end_ms.saturating_sub(10 * YEAR_MS).max(self.start_ms + 1);
        let mut publish_at_ms = self.start_ms;
        let mut restart_at_ms = self.start_ms + self.rng.below(YEAR_MS);
        if self.options.bug == Some(Bug::ClockAhead) {
            self.lone.now.wall.0 += 40;
        }
        while self.now_ms() < end_ms {
            let now_ms = self.now_ms();
            if publish_at_ms <= now_ms {
                publish_at_ms = now_ms + self.publish(publish_end_ms - self.start_ms)?;
                if publish_at_ms >= publish_end_ms || self.counts.events >= self.options.events {
                    publish_at_ms = u64::MAX;
                }
            }
            if restart_at_ms <= now_ms {
                self.restart()?;
                restart_at_ms = now_ms + self.rng.below(2 * YEAR_MS);
            }
            self.deliver()?;
            let asked_ms = self.lone.next_deadline_ms().unwrap_or(u64::MAX);
            let until = |at_ms: u64| at_ms.saturating_sub(self.now_ms());
            let next = [asked_ms, until(publish_at_ms), until(restart_at_ms), until(end_ms)];
            let mut next_ms = next.into_iter().min().unwrap_or(0);
            if self.options.bug == Some(Bug::Oversleeps) && self.rng.one_in(100) {
                next_ms += 1;
            }
            self.counts.wakes += 1;
            self.lone.advance_ms(next_ms);
        }
        self.deliver()?;
        match self.owed.iter().next() {
            Some((sequence, owed)) => {
                Err(format!("{sequence:?}, due at {}, was never delivered", owed.due_ms))
            }
            None => Ok(self.counts),
        }
    }

    /// Publishes a batch; answers the time until the next.
    fn publish(&mut self, whole_ms: u64) -> Result<u64, String> {
        let now_ms = self.now_ms();
        let count = 1 + self.rng.below(50);
        // As many of a second as of a year: each bit of the delay is the highest as often as the others.
        let delays = (0..count).map(|_| {
            let most = 1_u64 << self.rng.below(39);
            (most / 2 + self.rng.below(most)).min(DELAY_MS_MAX)
        });
        let dues: Vec<WallMs> = delays.map(|delay_ms| WallMs(self.lone.now.wall.0 + delay_ms)).collect();
        let ids = self.lone.publish(self.topic, &dues);
        for (id, due) in ids.iter().zip(&dues) {
            // One that is due at once was accepted in the same millisecond.
            let owed = Owed { due_ms: due.0.max(now_ms), was_pushed: false };
            if self.owed.insert(id.sequence, owed).is_some() {
                return Err(format!("{:?} was given out twice", id.sequence));
            }
        }
        self.counts.events += count;
        // Several at once now and then, so that some come while the last are on their way.
        let mean_ms = whole_ms * 25 / self.options.events;
        Ok(if self.rng.one_in(4) { self.rng.below(100) } else { self.rng.below(mean_ms * 8 / 3) })
    }

    /// Takes what is pushed at this moment, and answers it.
    fn deliver(&mut self) -> Result<(), String> {
        loop {
            self.lone.settle();
            let pushes = std::mem::take(&mut self.lone.pushes);
            if pushes.is_empty() {
                break;
            }
            for push in pushes {
                self.counts.pushes += 1;
                self.judge(push.sequence)?;
                let result = if self.rng.one_in(20) {
                    AttemptResult::RetryableFailure
                } else {
                    self.owed.remove(&push.sequence);
                    AttemptResult::Success
                };
                self.lone.answer(&push, result);
            }
        }
        let counts = &mut self.counts;
        counts.far_max = counts.far_max.max(self.lone.shard.stats().far);
        counts.files_max = counts.files_max.max(self.lone.file_count() as u64);
        counts.log_max = counts.log_max.max(self.lone.log_count() as u64);
        if self.lone.log_count() > LOG_COUNT_MAX {
            return Err(format!("the log has {} blocks", self.lone.log_count()));
        }
        Ok(())
    }

    fn judge(&mut self, sequence: Sequence) -> Result<(), String> {
        let (now_ms, up_since_ms) = (self.now_ms(), self.up_since_ms);
        let owed = self.owed.get_mut(&sequence);
        let owed = owed.ok_or_else(|| format!("{sequence:?} was pushed after it was done, or never was"))?;
        let due_ms = owed.due_ms;
        if now_ms < due_ms {
            return Err(format!("{sequence:?} was pushed {} ms early", due_ms - now_ms));
        }
        if std::mem::replace(&mut owed.was_pushed, true) {
            return Ok(());
        }
        let late_ms = now_ms - due_ms;
        if late_ms == 0 {
            self.counts.in_time += 1;
        } else if due_ms < up_since_ms + AFTER_START_MS_MAX && now_ms <= up_since_ms + AFTER_START_MS_MAX {
            self.counts.after_start += 1;
        } else {
            return Err(format!("{sequence:?}, due at {due_ms}, was pushed {late_ms} ms late"));
        }
        Ok(())
    }

    /// The node goes down, mostly for a moment, sometimes for days, and comes back.
    fn restart(&mut self) -> Result<(), String> {
        self.counts.restarts += 1;
        self.deliver()?;
        self.lone.shard.check();
        let before = self.lone.shard.state_hash();
        let down_ms = [0, 0, 1_000, DAY_MS / 24, 8 * DAY_MS][self.rng.below(5) as usize];
        self.lone.advance_ms(down_ms);
        if self.options.bug == Some(Bug::BlockForgotten) {
            self.lone.forget_newest_block();
        }
        self.lone.crash(0);
        if self.options.bug.is_none() && self.lone.shard.state_hash() != before {
            return Err("the state after the restart is not the state before".to_owned());
        }
        self.lone.attach(self.subscription);
        self.up_since_ms = self.now_ms();
        Ok(())
    }
}
