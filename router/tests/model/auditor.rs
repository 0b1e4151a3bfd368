//! Judges a trace of the router's inputs and decisions by the rules alone, the slow and obvious way.

use std::collections::{BTreeMap, BTreeSet};

use escapement_protocol::{
    AttemptResult, MonoNs, Outcome, Sequence, ShardId, SubscriptionId, SubscriptionSettings, Tag,
};
use escapement_router::{
    Credit, Decision, Detach, EXCUSED_ATTEMPTS_MAX, HostKey, SessionId, TaskRef, Withdrawn,
};

/// Everything that a router is told and says.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Time(MonoNs),
    Upsert(SubscriptionId, SubscriptionSettings),
    Remove(SubscriptionId),
    Offer(SubscriptionId, TaskRef),
    Attach {
        id: SubscriptionId,
        session: SessionId,
        host: HostKey,
        credit: Credit,
        running: Vec<Tag>,
    },
    Credit(SessionId, Credit),
    Detach(SessionId, Detach),
    Result {
        session: SessionId,
        tag: Tag,
        result: AttemptResult,
        retry_after_ms: u32,
        accepted: bool,
    },
    Withdraw {
        id: SubscriptionId,
        shard: ShardId,
        sequence: Sequence,
        verdict: Withdrawn,
    },
    Decided(Decision),
    /// The router said that there is no more to do now.
    Settled,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum State {
    Waiting {
        from: MonoNs,
    },
    Running {
        tag: Tag,
        session: SessionId,
        deadline: MonoNs,
    },
    /// The slot is free, and the router has yet to say what follows.
    Ended {
        how: End,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    Result { result: AttemptResult, at: MonoNs, retry_after_ms: u32 },
    Excused { at: MonoNs },
    Deleted,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) task: TaskRef,
    pub(crate) state: State,
    /// Had an attempt here: nothing of its key passes it.
    began: bool,
    /// `max_attempts` when its last attempt ended, by which that attempt is judged.
    most: u32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) id: SubscriptionId,
    pub(crate) attached: bool,
    host: HostKey,
    credit: Credit,
}

pub(crate) type TaskKey = (SubscriptionId, ShardId, Sequence);

#[derive(Clone, Debug, Default)]
pub(crate) struct Auditor {
    pub(crate) now: MonoNs,
    pub(crate) settings: BTreeMap<SubscriptionId, SubscriptionSettings>,
    pub(crate) tasks: BTreeMap<TaskKey, Task>,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    tags: BTreeSet<Tag>,
}

macro_rules! rule {
    ($holds:expr, $($text:tt)+) => { if !$holds { return Err(format!($($text)+)); } };
}

fn key_of(id: SubscriptionId, task: &TaskRef) -> TaskKey {
    (id, task.shard, task.sequence)
}

fn rank(task: &TaskRef) -> (u64, u64) {
    (task.due.0, task.sequence.0)
}

impl Auditor {
    /// Takes the next event, or says which rule it breaks.
    pub(crate) fn take(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::Time(now) => self.now = *now,
            Event::Upsert(id, settings) => {
                self.settings.insert(*id, settings.clone());
            }
            Event::Remove(id) => {
                self.settings.remove(id);
                self.sessions.retain(|_, session| session.id != *id);
                for (_, task) in self.tasks.range_mut(of(*id)) {
                    task.task.attempt += u16::from(matches!(task.state, State::Running { .. }));
                    task.state = State::Ended { how: End::Deleted };
                }
            }
            Event::Offer(id, task) => {
                let state = if self.settings.contains_key(id) {
                    State::Waiting { from: task.not_before }
                } else {
                    State::Ended { how: End::Deleted }
                };
                let task = Task { task: *task, state, began: false, most: 0 };
                self.tasks.insert(key_of(*id, &task.task), task);
            }
            Event::Attach { id, session, host, credit, running } => {
                self.attach(*id, *session, *host, *credit, running);
            }
            Event::Credit(session, credit) => {
                if let Some(session) = self.sessions.get_mut(session) {
                    session.credit = *credit;
                }
            }
            Event::Detach(session, how) => self.detach(*session, *how),
            Event::Result { session, tag, result, retry_after_ms, accepted } => {
                let end = End::Result { result: *result, at: self.now, retry_after_ms: *retry_after_ms };
                let attached = self.sessions.get(session).is_some_and(|s| s.attached);
                let mine = |task: &&mut Task| matches!(task.state, State::Running { tag: t, session: s, .. } if (t, s) == (*tag, *session));
                let running = self.tasks.values_mut().find(mine).filter(|_| attached);
                rule!(running.is_some() == *accepted, "a stale result was accepted, or a true one refused");
                if let Some(task) = running {
                    let id = self.sessions[session].id;
                    task.end(end, &self.settings[&id]);
                }
            }
            Event::Withdraw { id, shard, sequence, verdict } => {
                let key = (*id, *shard, *sequence);
                let expected = match self.tasks.get(&key).map(|task| (task.state, task.task.attempt)) {
                    None => Withdrawn::NotHere,
                    Some((State::Waiting { .. }, _)) => Withdrawn::Removed,
                    Some((State::Running { .. }, attempt)) => Withdrawn::Running { attempt: attempt + 1 },
                    // Already decided, though not yet handed out: either it is gone or it waits again.
                    Some((State::Ended { .. }, _)) => *verdict,
                };
                rule!(*verdict == expected, "withdrawn {verdict:?} instead of {expected:?}");

                if *verdict == Withdrawn::Removed {
                    self.tasks.remove(&key);
                }
            }
            Event::Decided(decision) => self.decided(*decision)?,
            Event::Settled => self.settled()?,
        }
        Ok(())
    }

    fn attach(
        &mut self,
        id: SubscriptionId,
        session: SessionId,
        host: HostKey,
        credit: Credit,
        running: &[Tag],
    ) {
        let Some(settings) = self.settings.get(&id) else { return };
        self.sessions.insert(session, Session { id, attached: true, host, credit });
        for (_, task) in self.tasks.range_mut(of(id)) {
            let State::Running { tag, session: holder, deadline } = task.state else { continue };
            let held = self.sessions.get(&holder).is_none_or(|s| !s.attached && s.host == host);
            if running.contains(&tag) {
                task.state = State::Running { tag, session, deadline };
            } else if held {
                task.end(End::Excused { at: self.now }, settings);
            }
        }
    }

    fn detach(&mut self, id: SessionId, how: Detach) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.attached = false;
        let of = session.id;
        if how == Detach::Graceful {
            for task in self.tasks.values_mut() {
                if matches!(task.state, State::Running { session, .. } if session == id) {
                    task.end(End::Excused { at: self.now }, &self.settings[&of]);
                }
            }
        }
    }

    fn decided(&mut self, decision: Decision) -> Result<(), String> {
        match decision {
            Decision::Dispatch { subscription, session, tag, task, attempt, deadline_ms } => {
                self.dispatched(subscription, session, tag, &task, attempt, deadline_ms)
            }
            Decision::Complete { subscription, task, outcome } => {
                let key = key_of(subscription, &task);
                let ended = self.ended(key)?;
                let exhausted = self.is_exhausted(key);
                let known = &self.tasks[&key];
                rule!(known.task.attempt == task.attempt, "complete with a wrong count of attempts");
                let right = match (ended, outcome) {
                    (Some(End::Deleted), Outcome::SubscriptionDeleted) => true,
                    (Some(End::Result { result, .. }), outcome) => match result {
                        AttemptResult::Success => outcome == Outcome::Succeeded,
                        AttemptResult::PermanentFailure => outcome == Outcome::FailedPermanently,
                        AttemptResult::RetryableFailure => outcome == Outcome::AttemptsExhausted && exhausted,
                    },
                    (None | Some(End::Excused { .. }), Outcome::AttemptsExhausted) => exhausted,
                    _ => false,
                };
                rule!(right, "{outcome:?} after {ended:?}, exhausted: {exhausted}");
                self.tasks.remove(&key);
                Ok(())
            }
            Decision::AttemptFailed { subscription, task, attempt, next_due } => {
                self.failed(key_of(subscription, &task), &task, attempt, next_due)
            }
        }
    }

    /// How the task's attempt ended; `None` where it waits. Ends it where its deadline has passed.
    fn ended(&mut self, key: TaskKey) -> Result<Option<End>, String> {
        let now = self.now;
        let (sessions, settings) = (&self.sessions, &self.settings);
        let Some(task) = self.tasks.get_mut(&key) else {
            return Err(format!("a decision on {key:?}, which is complete or was never offered"));
        };
        if let State::Running { session, deadline, .. } = task.state {
            rule!(deadline <= now, "a running attempt ended before its deadline");
            let result = AttemptResult::RetryableFailure;
            let attached = sessions.get(&session).is_some_and(|s| s.attached);
            let how = if attached {
                End::Result { result, at: now, retry_after_ms: 0 }
            } else {
                End::Excused { at: now }
            };
            task.end(how, &settings[&key.0]);
        }
        Ok(match task.state {
            State::Ended { how } => Some(how),
            _ => None,
        })
    }

    fn is_exhausted(&self, key: TaskKey) -> bool {
        let Task { task, state, most, .. } = self.tasks[&key];
        let current = self.settings.get(&key.0).map_or(0, |settings| settings.max_attempts);
        let most = if matches!(state, State::Ended { .. }) { most } else { current };
        u32::from(task.attempt - task.excused) >= most
    }

    fn failed(&mut self, key: TaskKey, told: &TaskRef, attempt: u16, next_due: MonoNs) -> Result<(), String> {
        let Some(ended) = self.ended(key)? else { return Err("a waiting task failed".into()) };
        let exhausted = self.is_exhausted(key);
        let Some(settings) = self.settings.get(&key.0) else { return Err("no such subscription".into()) };
        let task = self.tasks.get_mut(&key).expect("ended says it is there");
        rule!((told.attempt, attempt) == (task.task.attempt, attempt), "a wrong attempt number");
        let counts_from = match ended {
            End::Deleted => return Err("a deleted task is tried again".into()),
            End::Excused { at } if task.task.excused < EXCUSED_ATTEMPTS_MAX => {
                task.task.excused += 1;
                rule!(next_due == at, "an excused attempt waits");
                None
            }
            End::Excused { at } => Some((at, 0)),
            End::Result { result, at, retry_after_ms } => {
                rule!(result == AttemptResult::RetryableFailure, "{result:?} is tried again");
                Some((at, retry_after_ms))
            }
        };
        if let Some((at, retry_after_ms)) = counts_from {
            rule!(!exhausted, "a task is tried again after its last attempt");
            let whole = settings.backoff_ms(u32::from(task.task.attempt - task.task.excused)) * 1_000_000;
            let least = whole - whole * u64::from(settings.jitter_permille) / 1_000;
            let asked = settings.max_backoff_ms.min(retry_after_ms.into()) * 1_000_000;
            let bounds = at.0 + least.max(asked)..=at.0 + whole.max(asked);
            rule!(bounds.contains(&next_due.0), "a backoff to {next_due:?}, not in {bounds:?}");
        }
        rule!(told.excused == task.task.excused, "a wrong count of excused attempts");
        task.state = State::Waiting { from: next_due };
        Ok(())
    }

    fn dispatched(
        &mut self,
        id: SubscriptionId,
        session: SessionId,
        tag: Tag,
        task: &TaskRef,
        attempt: u16,
        deadline_ms: u32,
    ) -> Result<(), String> {
        let Some(settings) = self.settings.get(&id) else { return Err("no such subscription".into()) };
        let Some(known) = self.tasks.get(&key_of(id, task)) else {
            return Err("a dispatch of a task that is complete or was never offered".into());
        };
        let State::Waiting { from } = known.state else {
            return Err(format!("a dispatch of a task that is {:?}", known.state));
        };
        rule!(from <= self.now, "a dispatch at {:?}, and its time is {from:?}", self.now);
        rule!(attempt == known.task.attempt + 1, "attempt {attempt} after {}", known.task.attempt);
        rule!(!self.is_exhausted(key_of(id, task)), "a dispatch beyond max_attempts");
        rule!(self.tags.insert(tag), "a tag is used twice");
        let running = self.running(id);
        let limit = settings.max_concurrent_dispatches as usize;
        rule!(limit == 0 || running < limit, "{running} run, and the limit is {limit}");

        let Some(to) = self.sessions.get(&session).filter(|s| s.attached && s.id == id) else {
            return Err("a dispatch to a session that is not attached".into());
        };
        let (tasks, bytes) = self.outstanding(session);
        let fits = tasks == 0 || bytes + u64::from(task.size_bytes) <= to.credit.bytes;
        rule!(
            tasks < to.credit.tasks && bytes < to.credit.bytes && fits,
            "{tasks} tasks, {bytes} bytes, and the credit is {:?}",
            to.credit
        );
        if task.key != 0 {
            let began = known.began || known.task.attempt > 0;
            for (_, other) in self.tasks.range(of(id)) {
                if other.task.key != task.key || other.task.sequence == task.sequence {
                    continue;
                }
                let gone = matches!(other.state, State::Ended { .. });
                rule!(gone || !other.began, "two tasks of one key are out");
                rule!(gone || began || rank(task) < rank(&other.task), "a task passed another of its key");
            }
        }
        rule!(u64::from(deadline_ms) == settings.attempt_deadline_ms, "a wrong deadline");
        let deadline = self.now.plus_ms(deadline_ms.into());
        let known = self.tasks.get_mut(&key_of(id, task)).expect("seen above");
        known.state = State::Running { tag, session, deadline };
        known.began = true;
        Ok(())
    }

    fn running(&self, id: SubscriptionId) -> usize {
        let tasks = self.tasks.range(of(id));
        tasks.filter(|(_, task)| matches!(task.state, State::Running { .. })).count()
    }

    fn outstanding(&self, id: SessionId) -> (u32, u64) {
        let mine = |task: &&Task| matches!(task.state, State::Running { session, .. } if session == id);
        let sizes = self.tasks.values().filter(mine).map(|task| u64::from(task.task.size_bytes));
        (sizes.clone().count() as u32, sizes.sum())
    }

    /// What must hold once nothing more is to be done.
    fn settled(&self) -> Result<(), String> {
        for (key, task) in &self.tasks {
            match task.state {
                State::Ended { .. } => return Err(format!("nothing was decided about {key:?}")),
                State::Running { deadline, .. } => {
                    rule!(deadline > self.now, "{key:?} runs on after its deadline");
                }
                State::Waiting { .. } => {}
            }
        }
        for (id, settings) in &self.settings {
            let limit = settings.max_concurrent_dispatches as usize;
            if limit != 0 && self.running(*id) >= limit {
                continue;
            }
            let may_go = |task: &&Task| matches!(task.state, State::Waiting { from } if from <= self.now);
            let tasks = self.tasks.range(of(*id)).map(|(_, task)| task);
            let waiting: Vec<&Task> = tasks.filter(may_go).collect();
            let ready = waiting.iter().filter(|task| self.key_is_free(*id, task)).count();
            // Whichever has its turn, perhaps one of which it is not sure here that its key is free: a session
            // that has room for the largest has room for it.
            let largest = waiting.iter().map(|task| task.task.size_bytes).max();
            let Some(largest) = largest.filter(|_| ready > 0) else { continue };
            for (session, to) in self.sessions.iter().filter(|(_, s)| s.attached && s.id == *id) {
                let (tasks, bytes) = self.outstanding(*session);
                let room = tasks < to.credit.tasks && bytes < to.credit.bytes;
                let fits = tasks == 0 || bytes + u64::from(largest) <= to.credit.bytes;
                rule!(!(room && fits), "{ready} tasks wait though {session:?} has room");
            }
        }
        Ok(())
    }

    /// Whether one of the task's key must be free to go, whatever the order: the one that began, or
    /// any where all may.
    fn key_is_free(&self, id: SubscriptionId, task: &Task) -> bool {
        let same = self.tasks.range(of(id)).map(|(_, other)| other).filter(|o| o.task.key == task.task.key);
        if task.task.key == 0 || task.began {
            return true;
        }
        let mut same = same.peekable();
        same.peek().is_some()
            && same.all(|o| !o.began && matches!(o.state, State::Waiting { from } if from <= self.now))
    }
}

impl Task {
    fn end(&mut self, how: End, settings: &SubscriptionSettings) {
        self.task.attempt += 1;
        self.most = settings.max_attempts;
        self.state = State::Ended { how };
    }
}

fn of(id: SubscriptionId) -> std::ops::RangeInclusive<TaskKey> {
    (id, ShardId(0), Sequence(0))..=(id, ShardId(u16::MAX), Sequence::MAX)
}
