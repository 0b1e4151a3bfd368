//! Planted bugs: faults of the composition, which the simulator must notice.

use std::borrow::Cow;
use std::io;

use escapement_engine::groups::Group;
use escapement_engine::record::{HEADER_SIZE_BYTES, Record, RecordWriter, records};
use escapement_wal::Directory;
use escapement_wal::memory::MemDisk;

/// A fault planted in the simulator's composition root, never in the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The host calls writes done when it has taken them.
    AckBeforeDurable,
    /// Cores are given a wall clock that is ahead.
    ClockAhead,
    /// The host tries a failed write again and says that it is done.
    RetryAfterError,
    /// The end of a disk operation never reaches its core.
    LostCompletion,
    /// The mesh loses mail.
    LostMail,
    /// Recovery does not apply the last block.
    LastBlockForgotten,
    /// Recovery applies nothing, so that sequences are given out again.
    SequencesAgain,
    /// A push leaves twice.
    PushTwice,
    /// Cut connections are reported to the core as if the subscriber had left.
    CutAsLeft,
    /// The host reports the wrong end of bytes: a result's bytes are fed again.
    EventAltered,
    /// A new incarnation opens its logs under the epoch of the last, so that results of old attempts count.
    EpochAgain,
    /// A start does not carry control objects to the shards that miss them.
    ControlForgotten,
    /// The host reports files as created whose directory entries the next power cut may lose.
    CreationNotDurable,
    /// Recovery stands on what it read without making it durable.
    RecoveryNotSynced,
    /// Results are read and never reach their core, so that slots leak until their deadlines.
    ResultsForgotten,
    /// The host sleeps through the moments that a core wants to be woken at.
    LostWakeup,
    /// The wall clock starts from the machine's, whatever the log has seen.
    ClockBackwards,
    /// The mesh hands over mail twice.
    MailTwice,
    /// The boot clock is read before the real-time clock, and a thread may be stopped in between.
    ClocksCrossed,
    /// Datagrams go to the core after the one that their connection id names. Seen only over QUIC.
    SteeredAstray,
    /// The host calls writes to runs done and does not do them.
    RunWriteLost,
    /// Recovery does not find the files of runs.
    RunsForgotten,
    /// Answers about what is pending leave on another stream of their connection.
    AnswersAstray,
    /// Cores are given the wall clock as it was a while ago.
    ClockStale,
    /// Requests to create a subscription lose their misfire policy on the way, and get another.
    PolicyAltered,
    /// A node is told that its files are copied before they are.
    FilesLetGo,
    /// Questions about counts go to the shard after the one that they name.
    QuestionsAstray,
    /// The next page of a listing does not go back to memory for what was loaded while runs were listed.
    ListingNotRepeated,
    /// The next page of a listing begins a block of a run too late.
    ListingBlockSkipped,
    /// A page of a listing does not say that its shard is out of service.
    MissingNotTold,
    /// Recovery leaves out the names of events that were stated again when their blocks were freed.
    NamesForgotten,
    /// Recovery takes events in without the names that they were published under.
    NamesNotRead,
    /// Recovery does not read that names are in a run.
    NamesRunsForgotten,
    /// Recovery takes the windows of all names in runs for passed.
    NamesRunsEndedEarly,
    /// Recovery does not read that an event in the log was rescheduled.
    RescheduleForgotten,
    /// The copy of a rescheduled event, once the block that says so is trimmed, does not say so.
    RescheduleNotCopied,
    /// A rescheduled event is pushed as if it was due when its id says.
    RescheduledDueLost,
    /// Operations on groups go to the shard after the one that they name.
    OperationsAstray,
    /// Recovery does not read that a group was cancelled.
    GroupForgotten,
    /// Recovery does not read that a group's cancellation was taken back.
    UndoForgotten,
}

/// Whether the last that happened to a group's operations is that one was taken back.
fn was_undone(group: &Group) -> bool {
    group.operations.iter().any(|operation| operation.undone.is_some())
}

/// A block's records as recovery is shown them.
pub(super) fn altered_records(bug: Option<Bug>, block: &[u8]) -> Cow<'_, [u8]> {
    let is_altered = |record: &Record<'_>| match bug {
        Some(Bug::RescheduleForgotten) => matches!(record, Record::Rescheduled { .. }),
        Some(Bug::RescheduleNotCopied) => matches!(record, Record::Relocated { forward: Some(_), .. }),
        Some(Bug::GroupForgotten) => matches!(record, Record::Group(group) if !was_undone(group)),
        Some(Bug::UndoForgotten) => matches!(record, Record::Group(group) if was_undone(group)),
        _ => false,
    };
    if bug.is_none() || !records(block).flatten().any(|record| is_altered(&record)) {
        return block.into();
    }
    let (mut altered, mut rest) = (Vec::new(), block);
    for record in records(block).flatten() {
        let body_size_bytes = rest[4..8].iter().rev().fold(0, |len, byte| len << 8 | usize::from(*byte));
        let (whole, after) = rest.split_at(HEADER_SIZE_BYTES + body_size_bytes);
        rest = after;
        match record {
            Record::Rescheduled { .. } | Record::Group(_) if is_altered(&record) => {}
            Record::Relocated { topic, sequence, forward: Some(forward), ref progress, event, .. }
                if is_altered(&record) =>
            {
                let due = forward.schedule_time;
                let mut count = 0;
                let mut writer = RecordWriter::new(&mut altered, &mut count);
                writer.relocated(topic, sequence, due, (None, false), progress, event);
            }
            _ => altered.extend_from_slice(whole),
        }
    }
    altered.into()
}

impl Bug {
    /// Every one.
    pub const ALL: &'static [Bug] = &[
        Bug::AckBeforeDurable,
        Bug::ClockAhead,
        Bug::RetryAfterError,
        Bug::LostCompletion,
        Bug::LostMail,
        Bug::LastBlockForgotten,
        Bug::SequencesAgain,
        Bug::PushTwice,
        Bug::CutAsLeft,
        Bug::EventAltered,
        Bug::EpochAgain,
        Bug::ControlForgotten,
        Bug::CreationNotDurable,
        Bug::RecoveryNotSynced,
        Bug::ResultsForgotten,
        Bug::LostWakeup,
        Bug::ClockBackwards,
        Bug::MailTwice,
        Bug::ClocksCrossed,
        Bug::SteeredAstray,
        Bug::RunWriteLost,
        Bug::RunsForgotten,
        Bug::AnswersAstray,
        Bug::ClockStale,
        Bug::PolicyAltered,
        Bug::FilesLetGo,
        Bug::QuestionsAstray,
        Bug::ListingNotRepeated,
        Bug::ListingBlockSkipped,
        Bug::MissingNotTold,
        Bug::NamesForgotten,
        Bug::NamesNotRead,
        Bug::NamesRunsForgotten,
        Bug::NamesRunsEndedEarly,
        Bug::RescheduleForgotten,
        Bug::RescheduleNotCopied,
        Bug::RescheduledDueLost,
        Bug::OperationsAstray,
        Bug::GroupForgotten,
        Bug::UndoForgotten,
    ];

    /// The one with this name, as it is written here.
    #[must_use]
    pub fn named(name: &str) -> Option<Bug> {
        Bug::ALL.iter().copied().find(|bug| format!("{bug:?}") == name)
    }
}

impl Bug {
    /// What recovery makes of a block's records under this bug.
    pub(super) fn altered(self, block: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = block;
        while let Some(header) = rest.first_chunk::<HEADER_SIZE_BYTES>() {
            let body_len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
            let Some((record, after)) = rest.split_at_checked(HEADER_SIZE_BYTES + body_len) else { break };
            rest = after;
            match (self, records(record).next()) {
                (Bug::NamesForgotten, Some(Ok(Record::Names { .. })))
                | (Bug::NamesRunsForgotten, Some(Ok(Record::NamesRun { .. }))) => {}
                (Bug::NamesRunsEndedEarly, Some(Ok(Record::NamesRun { run, footer_id }))) => {
                    let mut count = 0;
                    let mut writer = RecordWriter::new(&mut out, &mut count);
                    writer.names_run(run, footer_id);
                    writer.names_run_ended(run);
                }
                (
                    Bug::NamesNotRead,
                    Some(Ok(Record::Published { topic, first_sequence, count, accepted, events, .. })),
                ) => RecordWriter::new(&mut out, &mut 0).published(
                    topic,
                    first_sequence,
                    count,
                    accepted,
                    events,
                ),
                _ => out.extend_from_slice(record),
            }
        }
        out
    }
}

/// A host's access to its directory that calls synced what is not.
pub(super) struct Unsynced<'a>(pub(super) &'a mut MemDisk);

impl Directory for Unsynced<'_> {
    fn list(&mut self, dir: &str) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }

    fn size(&mut self, path: &str) -> io::Result<Option<u64>> {
        self.0.size(path)
    }

    fn read_at(&mut self, path: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(path, offset, buf)
    }

    fn write_at(&mut self, path: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(path, offset, bytes)
    }

    fn create_zeroed(&mut self, path: &str, size_bytes: u64) -> io::Result<()> {
        self.0.create_zeroed(path, size_bytes)
    }

    fn create_dir(&mut self, dir: &str) -> io::Result<()> {
        self.0.create_dir(dir)
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.0.remove(path)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn sync(&mut self, _path: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&mut self, _dir: &str) -> io::Result<()> {
        Ok(())
    }
}
