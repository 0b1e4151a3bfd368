//! Snapshots under way: for how long a shard keeps its files as they are, and who at this core's door asked for it.
//!
//! Somebody else copies the files; a core only leaves them alone. It does so until it is told to stop, the stream that
//! asked ends, the time is over, or the log would have to refuse publishes for it. Whoever copies asks at the end whether
//! the files were left alone all the time: only then is the copy one.

use std::collections::VecDeque;

use escapement_frontend::door::Refusal;
use escapement_protocol::frame::{AdminAnswer, SNAPSHOT_HOLD_MS_MAX, ShardCut, SnapshotInfo};
use escapement_protocol::{ErrorCode, MonoNs, ShardId};

use super::{Inside, Parcel};

/// Most snapshots at one time that were asked for at one core. More than anybody wants: one whose asker was killed stays
/// until its connection is known to be gone.
const ASKED_COUNT_MAX: usize = 32;

/// A snapshot's number begins with the core's at whose door it was asked for.
const SNAPSHOT_CORE_SHIFT: u32 = 48;

/// What ended a snapshot before it was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// Its time was over.
    Late,
    /// The log had no room left, and would have had some without it.
    LogFull,
    /// The shard has stopped, or does not serve.
    Stopped,
}

impl GivenUp {
    fn refusal(self, shard: ShardId) -> Refusal {
        let (code, why) = match self {
            GivenUp::Late => (
                ErrorCode::Unavailable,
                "its time was over before the files were copied; allow it more, or copy to a faster disk"
                    .to_owned(),
            ),
            GivenUp::LogFull => (
                ErrorCode::ResourceExhausted,
                format!(
                    "the log of shard {} was about to refuse publishes for it; try when less is published, or raise \
                     log_size_max",
                    shard.0
                ),
            ),
            GivenUp::Stopped => (
                ErrorCode::Unavailable,
                format!("shard {} is not serving, and a copy without it would lose what it holds", shard.0),
            ),
        };
        Refusal { code, message: format!("the snapshot was given up: {why}"), retry_after_ms: 0 }
    }
}

#[derive(Debug)]
struct Hold {
    snapshot: u64,
    until: MonoNs,
    given_up: Option<GivenUp>,
}

/// The snapshots that one shard keeps its files for.
#[derive(Debug, Default)]
pub(super) struct Holds(Vec<Hold>);

impl Holds {
    pub(super) fn begin(&mut self, snapshot: u64, until: MonoNs) {
        self.0.push(Hold { snapshot, until, given_up: None });
    }

    /// Ends a snapshot; answers what ended it before, if anything did.
    pub(super) fn end(&mut self, snapshot: u64) -> Option<GivenUp> {
        let at = self.0.iter().position(|hold| hold.snapshot == snapshot)?;
        self.0.swap_remove(at).given_up
    }

    /// Whether files are to be left alone.
    pub(super) fn is_any(&self) -> bool {
        self.0.iter().any(|hold| hold.given_up.is_none())
    }

    pub(super) fn give_up_late(&mut self, now: MonoNs) {
        self.give_up(GivenUp::Late, |hold| hold.until <= now);
    }

    pub(super) fn give_up_all(&mut self, why: GivenUp) {
        self.give_up(why, |_| true);
    }

    fn give_up(&mut self, why: GivenUp, which: impl Fn(&Hold) -> bool) {
        for hold in self.0.iter_mut().filter(|hold| hold.given_up.is_none()) {
            if which(hold) {
                hold.given_up = Some(why);
            }
        }
    }

    /// When the next one's time is over.
    pub(super) fn next_end(&self) -> Option<MonoNs> {
        self.0.iter().filter(|hold| hold.given_up.is_none()).map(|hold| hold.until).min()
    }
}

/// One core's part of what a snapshot asked: its shards' cuts, or the first shard that cannot give one.
type Cuts = Result<Box<[ShardCut]>, (ShardId, GivenUp)>;

/// What a core answers of a snapshot.
#[derive(Clone, Debug)]
pub enum HoldAnswer {
    /// Its shards keep their files from now on.
    Begun(Cuts),
    /// Its shards have let go; with the first that had done so before.
    Ended(Option<(ShardId, GivenUp)>),
}

/// A snapshot that a stream at this core's door asked for.
#[derive(Debug)]
struct Asked<S> {
    snapshot: u64,
    stream: S,
    /// Who waits for an answer, where somebody does.
    ticket: Option<u64>,
    hold_ms: u64,
    /// Cores that have not answered yet.
    missing_count: u16,
    cuts: Vec<ShardCut>,
    failed: Option<(ShardId, GivenUp)>,
    is_ending: bool,
}

/// The snapshots that streams at this core's door asked for, and answers on their way to that door.
#[derive(Debug)]
pub(super) struct Snapshots<S> {
    asked: Vec<Asked<S>>,
    next: u64,
    pub(super) answers: VecDeque<(u64, Result<AdminAnswer, Refusal>)>,
}

impl<S> Default for Snapshots<S> {
    fn default() -> Self {
        Snapshots { asked: Vec::new(), next: 1, answers: VecDeque::new() }
    }
}

impl<S: Copy + Eq + std::hash::Hash> Inside<S> {
    /// A stream asks that every shard keeps its files.
    pub(super) fn begin_snapshot(&mut self, ticket: u64, stream: S, hold_ms: u64) {
        if self.snapshots.asked.len() >= ASKED_COUNT_MAX {
            let message = format!("{ASKED_COUNT_MAX} snapshots are under way: wait for one to end");
            let refusal = Refusal { code: ErrorCode::TooManyRequests, message, retry_after_ms: 1_000 };
            return self.snapshots.answers.push_back((ticket, Err(refusal)));
        }
        let snapshot = u64::from(self.config.core) << SNAPSHOT_CORE_SHIFT | self.snapshots.next;
        self.snapshots.next += 1;
        let hold_ms = hold_ms.min(SNAPSHOT_HOLD_MS_MAX);
        self.snapshots.asked.push(Asked {
            snapshot,
            stream,
            ticket: Some(ticket),
            hold_ms,
            missing_count: self.config.core_count,
            cuts: Vec::new(),
            failed: None,
            is_ending: false,
        });
        let until = self.now.mono.plus_ms(hold_ms);
        self.tell_all_cores(&Parcel::Hold { snapshot, until: Some(until) });
    }

    /// A stream asks for the end of its snapshot.
    pub(super) fn end_snapshot(&mut self, ticket: u64, stream: S, snapshot: u64) {
        let mut asked = self.snapshots.asked.iter_mut();
        let found = asked.find(|asked| asked.snapshot == snapshot && asked.stream == stream);
        let Some(found) = found.filter(|asked| asked.ticket.is_none() && !asked.is_ending) else {
            let message = format!("no snapshot {snapshot} of this stream is under way: begin another");
            let refusal = Refusal { code: ErrorCode::Unavailable, message, retry_after_ms: 0 };
            return self.snapshots.answers.push_back((ticket, Err(refusal)));
        };
        found.ticket = Some(ticket);
        self.let_go(snapshot);
    }

    /// Streams have ended, and with them the snapshots that they asked for.
    pub(super) fn end_snapshots_of(&mut self, which: impl Fn(&S) -> bool) {
        let gone = self.snapshots.asked.iter_mut().filter(|asked| which(&asked.stream) && !asked.is_ending);
        let gone: Vec<u64> = gone.map(|asked| asked.snapshot).collect();
        for snapshot in gone {
            self.let_go(snapshot);
        }
    }

    fn let_go(&mut self, snapshot: u64) {
        if let Some(asked) = self.snapshots.asked.iter_mut().find(|asked| asked.snapshot == snapshot) {
            asked.is_ending = true;
            asked.failed = None;
            asked.missing_count = self.config.core_count;
            self.tell_all_cores(&Parcel::Hold { snapshot, until: None });
        }
    }

    fn tell_all_cores(&mut self, parcel: &Parcel) {
        for core in (0..self.config.core_count).filter(|core| *core != self.config.core) {
            self.mail[usize::from(core)].push(parcel.clone());
        }
        if let Parcel::Hold { snapshot, until } = *parcel {
            self.hold(snapshot, until);
        }
    }

    /// Every shard of this core begins to keep its files, or ends it.
    pub(super) fn hold(&mut self, snapshot: u64, until: Option<MonoNs>) {
        let answer = match until {
            Some(until) => HoldAnswer::Begun(self.shards_hold(snapshot, until)),
            None => {
                let shards = self.shards.iter_mut().flatten();
                let mut given_up = shards.map(|logged| (logged.id(), logged.end_hold(snapshot)));
                let first = given_up.find_map(|(shard, why)| Some((shard, why?)));
                given_up.for_each(drop);
                HoldAnswer::Ended(first)
            }
        };
        let core = (snapshot >> SNAPSHOT_CORE_SHIFT) as u16;
        if core == self.config.core {
            self.hold_answered(snapshot, answer);
        } else {
            self.mail[usize::from(core)].push(Parcel::HoldAnswer { snapshot, answer });
        }
    }

    fn shards_hold(&mut self, snapshot: u64, until: MonoNs) -> Cuts {
        let ids = (self.config.core..self.config.shard_count).step_by(usize::from(self.config.core_count));
        let held = self.shards.iter_mut().zip(ids).map(|(logged, id)| {
            let cut = logged.as_mut().and_then(|logged| logged.begin_hold(snapshot, until));
            cut.ok_or((ShardId(id), GivenUp::Stopped))
        });
        held.collect()
    }

    /// A core has answered: once all have, so does the door.
    pub(super) fn hold_answered(&mut self, snapshot: u64, answer: HoldAnswer) {
        let Some(at) = self.snapshots.asked.iter().position(|asked| asked.snapshot == snapshot) else {
            return;
        };
        let asked = &mut self.snapshots.asked[at];
        match answer {
            // An answer to the beginning that came after the stream had gone.
            HoldAnswer::Begun(_) if asked.is_ending => return,
            HoldAnswer::Begun(Ok(cuts)) => asked.cuts.extend(cuts),
            HoldAnswer::Begun(Err(failed)) | HoldAnswer::Ended(Some(failed)) => {
                asked.failed.get_or_insert(failed);
            }
            HoldAnswer::Ended(None) => {}
        }
        asked.missing_count -= 1;
        if asked.missing_count > 0 {
            return;
        }
        let refusal = asked.failed.map(|(shard, why)| why.refusal(shard));
        let ticket = asked.ticket.take();
        let answer = if asked.is_ending {
            self.snapshots.asked.swap_remove(at);
            refusal.map_or(Ok(AdminAnswer::SnapshotEnded), Err)
        } else if let Some(refusal) = refusal {
            self.let_go(snapshot);
            Err(refusal)
        } else {
            let mut shards = std::mem::take(&mut asked.cuts);
            shards.sort_unstable_by_key(|cut| cut.shard);
            Ok(AdminAnswer::SnapshotHeld(SnapshotInfo { snapshot, hold_ms: asked.hold_ms, shards }))
        };
        self.snapshots.answers.extend(ticket.map(|ticket| (ticket, answer)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_kept_while_any_snapshot_wants_them_and_each_learns_what_ended_it() {
        let mut holds = Holds::default();
        holds.begin(1, MonoNs(10));
        holds.begin(2, MonoNs(20));
        assert!(holds.is_any());
        assert_eq!(holds.next_end(), Some(MonoNs(10)));
        holds.give_up_late(MonoNs(10));
        assert!(holds.is_any(), "the second has time left");
        holds.give_up_all(GivenUp::LogFull);
        assert!(!holds.is_any());
        assert_eq!((holds.end(1), holds.end(2)), (Some(GivenUp::Late), Some(GivenUp::LogFull)));
        holds.begin(3, MonoNs(30));
        assert_eq!((holds.end(3), holds.end(3), holds.next_end()), (None, None, None));
    }
}
