//! What a shard that would not serve has lost, as far as its files still say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use escapement_engine::Shard;
use escapement_engine::far::{RunFiles, RunId};
use escapement_engine::record::{Record, published_events, records};
use escapement_protocol::{EventId, EventView, Sequence, ShardId, TopicId, WallMs};
use escapement_wal::inspect::inspect;
use escapement_wal::{FileId, FsDirectory, LogIdentity, OpenError, RecoveredBlock, WalConfig, check};
use serde_json::{Value, json};

use super::super::moment::rfc3339;
use super::super::output::object;
use super::super::runs::{LoggedRuns, footer_of, last_due};
use super::super::verify::replay_config;
use super::names::LostNames;
use crate::open_files::explained;
use crate::runs::RunDirectory;

/// What a start would make of a shard.
pub(super) enum Assessed {
    Whole,
    /// It refuses, and there is nothing to be given up that would change it.
    Refused(String),
    /// It refuses for damaged blocks of its log, which can be given up.
    Lost(Box<LostBlocks>),
    /// It refuses, or would stop, for damaged runs of names, which can be given up.
    LostNames(LostNames),
}

/// An event that the damage concerns.
#[derive(Debug)]
struct Concerned {
    topic: Option<TopicId>,
    due: Option<WallMs>,
    id: String,
}

/// Acknowledged blocks that cannot be read, and all behind them.
#[derive(Debug)]
pub(super) struct LostBlocks {
    shard: ShardId,
    pub(super) token: u64,
    /// Where the damage begins.
    pub(super) segment_id: u64,
    first: u64,
    last: u64,
    /// Acknowledged blocks of which nothing can be read.
    unreadable_count: u64,
    record_count: u64,
    /// Published or stated there, and nowhere else.
    given_up: BTreeMap<Sequence, Concerned>,
    /// Ended there: they are pending again.
    again: BTreeMap<Sequence, Concerned>,
    /// Rescheduled there: they are due as they were before.
    as_before: BTreeMap<Sequence, Concerned>,
    /// Groups with operations there: these are taken back.
    groups: BTreeSet<String>,
    /// Topics and subscriptions created there.
    objects: Vec<String>,
    topics: BTreeMap<TopicId, String>,
    /// Events that stay.
    kept_count: u64,
}

/// Reads a shard as a start would.
pub(super) fn assess(dir: &Path, identity: LogIdentity) -> Assessed {
    let mut shard = Shard::new(replay_config(identity));
    let mut files = RunDirectory(FsDirectory::read_only(dir));
    let mut runs = LoggedRuns::default();
    let mut fault = None;
    let mut visit = |block: RecoveredBlock<'_>| {
        records(block.records).map_while(Result::ok).for_each(|record| runs.take(&record));
        if fault.is_none() {
            let replayed = shard.replay_block(block.seq.0, block.records, &mut files);
            fault = replayed.err().map(|error| format!("block {}: {error}", block.seq));
        }
    };
    let found = check(&mut FsDirectory::read_only(dir), identity, &WalConfig::default(), &mut visit);
    match found {
        Ok(_) => {
            let lost = match LostNames::look(identity.shard, &mut files, &runs) {
                Ok(lost) => lost,
                Err(error) => return Assessed::Refused(format!("a run of names can't be read: {error}")),
            };
            // What is wrong with those can be given up; anything else can't.
            let refused = fault.or_else(|| {
                shard.replayed().err().filter(|error| !lost.is_of(error)).map(|error| error.to_string())
            });
            match refused {
                None if lost.runs.is_empty() => Assessed::Whole,
                None => Assessed::LostNames(lost),
                Some(why) => {
                    Assessed::Refused(format!("{why}; {}", cost_of_runs(identity.shard, &mut files, &runs)))
                }
            }
        }
        Err(OpenError::Corrupt { first, last, segment_id, token, .. }) => {
            let mut lost = LostBlocks {
                shard: identity.shard,
                token,
                segment_id,
                first: first.0,
                last: last.0,
                unreadable_count: 0,
                record_count: 0,
                given_up: BTreeMap::new(),
                again: BTreeMap::new(),
                as_before: BTreeMap::new(),
                groups: BTreeSet::new(),
                objects: Vec::new(),
                topics: BTreeMap::new(),
                kept_count: shard.stats().pending,
            };
            match lost.read(dir, &shard) {
                Ok(()) => Assessed::Lost(Box::new(lost)),
                Err(error) => Assessed::Refused(error.to_string()),
            }
        }
        Err(error) => Assessed::Refused(explained(&error)),
    }
}

/// What the runs hold that a start needs and cannot read.
fn cost_of_runs(shard: ShardId, files: &mut dyn RunFiles, runs: &LoggedRuns) -> String {
    let mut costs = Vec::new();
    for (RunId(number), run) in runs.events.iter().filter(|(_, run)| run.is_needed() && !run.closed) {
        let id = RunId(*number);
        let moved: u64 =
            run.moves.iter().filter(|part| part.blocks.end > run.loaded).map(|part| part.count).sum();
        let size_bytes = files.size(id).ok().flatten();
        let footer = size_bytes.and_then(|size_bytes| footer_of(files, shard, id, size_bytes).ok()?.ok());
        let name = FileId::Run(*number).path();
        costs.push(match (&footer, size_bytes) {
            (Some(footer), _) => {
                let first = footer.index.get(run.loaded as usize).map(|place| place.first.0);
                let until = last_due(files, shard, id, footer);
                let moment = |due: Option<WallMs>| due.map_or_else(|| "?".to_owned(), rfc3339);
                format!(
                    "{name} holds {} pending events, due {} to {}",
                    run.pending(footer),
                    moment(first),
                    moment(until)
                )
            }
            (None, Some(_)) => {
                format!("{name} is damaged, with up to {moved} pending events of unknown due times")
            }
            (None, None) => {
                format!("{name} is missing, with up to {moved} pending events of unknown due times")
            }
        });
    }
    format!(
        "a run can't be given up, since the log speaks of its events: restore it from a snapshot. {}",
        costs.join("; ")
    )
}

pub(super) fn refusal_line(shard: ShardId, why: &str, as_json: bool) -> String {
    if as_json {
        let facts = [("finding", json!("refused")), ("shard", json!(shard.0)), ("what", json!(why))];
        return object(facts.into_iter()).to_string();
    }
    format!("shard {} would not serve: {why}", shard.0)
}

impl LostBlocks {
    /// Reads what is left of the blocks from the damage on. `shard` is what all before it come to.
    fn read(&mut self, dir: &Path, shard: &Shard) -> std::io::Result<()> {
        self.topics =
            shard.registry().topics().iter().map(|topic| (topic.id, topic.settings.name.clone())).collect();
        let inspected = inspect(dir)?;
        let extents = inspected.segments.iter().flat_map(|segment| segment.extents());
        let mut blocks: Vec<_> = extents
            .filter_map(|extent| extent.block)
            .filter(|block| block.header().block_seq.0 >= self.first)
            .collect();
        blocks.sort_by_key(|block| block.header().block_seq);
        let readable: BTreeSet<u64> = blocks.iter().map(|block| block.header().block_seq.0).collect();
        let known = readable.range(self.first..=self.last).count() as u64;
        self.unreadable_count = self.last + 1 - self.first - known;
        for block in blocks {
            for record in records(block.records()).map_while(Result::ok) {
                self.record_count += 1;
                self.take(&record, shard);
            }
        }
        Ok(())
    }

    fn take(&mut self, record: &Record<'_>, shard: &Shard) {
        match record {
            Record::Published { topic, first_sequence, accepted, events, .. } => {
                for (sequence, due, event) in published_events(*first_sequence, *accepted, events) {
                    self.given_up.insert(sequence, concerned(*topic, due, event));
                }
            }
            Record::Relocated { topic, sequence, due, forward, event, .. } => {
                let scheduled = forward.map_or(*due, |forward| forward.schedule_time);
                match shard.event(*sequence) {
                    Some(held) if held.forward != *forward => {
                        self.as_before.insert(*sequence, concerned(*topic, scheduled, event));
                    }
                    None if !self.as_before.contains_key(sequence) => {
                        self.given_up.insert(*sequence, concerned(*topic, scheduled, event));
                    }
                    _ => {}
                }
            }
            Record::Rescheduled { sequence, .. } => {
                if let Some(held) = shard.event(*sequence) {
                    self.as_before.insert(*sequence, concerned(held.topic, held.schedule_time(), held.bytes));
                }
            }
            Record::RescheduledInRun { topic, sequence, forward, event, .. }
                if !self.given_up.contains_key(sequence) =>
            {
                let event = concerned(*topic, forward.schedule_time, event);
                self.as_before.insert(*sequence, event);
            }
            Record::Completed { sequences, last, .. } => {
                sequences.iter().for_each(|sequence| self.ends(sequence, *last, shard));
            }
            Record::GroupLeft { is_cancelled: true, sequences, .. } => {
                sequences.iter().for_each(|sequence| self.ends(sequence, true, shard));
            }
            Record::Group(group)
                if group.operations != shard.operations_on_group(group.topic, &group.name) =>
            {
                let number = || format!("number {}", group.topic.0);
                let topic = self.topics.get(&group.topic).cloned().unwrap_or_else(number);
                self.groups.insert(format!("{} of topic {topic}", group.name));
            }
            Record::CancelledInRunOfGroup { key: (due, sequence), .. } => {
                let again = Concerned { topic: None, due: Some(*due), id: String::new() };
                self.again.insert(*sequence, again);
            }
            Record::CancelledInRun { events, .. } => {
                // What was rescheduled out of a run is said again with what was cancelled there.
                for (due, sequence) in events.iter().filter(|key| !self.as_before.contains_key(&key.1)) {
                    let again = Concerned { topic: None, due: Some(due), id: String::new() };
                    self.again.insert(sequence, again);
                }
            }
            Record::Topic { id, settings, .. } => {
                let is_new = self.topics.insert(*id, settings.name.clone()).is_none();
                if is_new {
                    self.objects.push(format!("topic {}", settings.name));
                }
            }
            Record::Subscription { id, settings, .. } if shard.registry().subscription(*id).is_none() => {
                self.objects.push(format!("subscription {}", settings.name));
            }
            // What they say stays true, or is found out again by the next start.
            _ => {}
        }
    }

    /// A task of an event ended there, or the event with its `last` one.
    fn ends(&mut self, sequence: Sequence, last: bool, shard: &Shard) {
        let was_there = self.given_up.contains_key(&sequence);
        if was_there && last {
            self.given_up.remove(&sequence);
        } else if let Some(event) = self.as_before.remove(&sequence) {
            self.again.insert(sequence, event);
        } else if !was_there {
            self.comes_again(sequence, shard);
        }
    }

    fn comes_again(&mut self, sequence: Sequence, shard: &Shard) {
        let again =
            shard.event(sequence).map_or(Concerned { topic: None, due: None, id: String::new() }, |event| {
                concerned(event.topic, event.schedule_time(), event.bytes)
            });
        self.again.insert(sequence, again);
    }

    /// The report, a line for the loss and one for each event.
    pub(super) fn lines(&self, is_accepted: bool, as_json: bool) -> Vec<String> {
        let LostBlocks { token, first, last, unreadable_count, record_count, kept_count, .. } = self;
        let (given_up, again, as_before) = (self.given_up.len(), self.again.len(), self.as_before.len());
        let summary = if as_json {
            let facts = [
                ("finding", json!(if is_accepted { "given_up" } else { "loss" })),
                ("shard", json!(self.shard.0)),
                ("token", json!(format!("{token:016x}"))),
                ("first_block", json!(first)),
                ("last_block", json!(last)),
                ("unreadable_blocks", json!(unreadable_count)),
                ("records", json!(record_count)),
                ("events_given_up", json!(given_up)),
                ("events_again", json!(again)),
                ("events_due_as_before", json!(as_before)),
                ("groups_as_before", json!(self.groups)),
                ("objects", json!(self.objects)),
                ("pending_kept_in_log", json!(kept_count)),
            ];
            object(facts.into_iter()).to_string()
        } else {
            let verb = if is_accepted { "gives up" } else { "would give up" };
            let listed =
                |names: Vec<&str>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let objects = listed(self.objects.iter().map(String::as_str).collect());
            let groups = listed(self.groups.iter().map(String::as_str).collect());
            format!(
                "shard {} {verb} blocks {first} to {last}, of which {unreadable_count} cannot be read and hold what nobody knows: \
                 with {record_count} readable records, {given_up} events are lost, {again} come again, {as_before} are due as before \
                 they were rescheduled; groups of which operations are lost: {groups}; topics and subscriptions lost: {objects}; {kept_count} pending events stay in the log, and all runs; token {token:016x}",
                self.shard.0
            )
        };
        let lost = self.given_up.iter().map(|(sequence, event)| ("given_up", *sequence, event));
        let again = self.again.iter().map(|(sequence, event)| ("again", *sequence, event));
        let before = self.as_before.iter().map(|(sequence, event)| ("due_as_before", *sequence, event));
        let events = lost.chain(again).chain(before);
        let events = events.map(|(what, sequence, event)| self.line(what, sequence, event, as_json));
        std::iter::once(summary).chain(events).collect()
    }

    fn line(&self, what: &str, sequence: Sequence, event: &Concerned, as_json: bool) -> String {
        let event_id =
            event.due.map(|due| EventId { shard: self.shard, sequence, schedule_time_ms: due.0 }.to_string());
        let topic = event
            .topic
            .map(|topic| self.topics.get(&topic).cloned().unwrap_or_else(|| format!("number {}", topic.0)));
        let due = event.due.map(rfc3339);
        if as_json {
            let id = if event.id.is_empty() { Value::Null } else { json!(event.id) };
            let facts = [
                ("event", json!(what)),
                ("shard", json!(self.shard.0)),
                ("sequence", json!(sequence.0)),
                ("event_id", json!(event_id)),
                ("topic", json!(topic)),
                ("id", id),
                ("schedule_time", json!(due)),
            ];
            return object(facts.into_iter()).to_string();
        }
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "?".to_owned());
        format!(
            "  {what}: event {} of topic {}, id {:?}, due {}, sequence {}",
            or_unknown(event_id),
            or_unknown(topic),
            event.id,
            or_unknown(due),
            sequence.0
        )
    }
}

fn concerned(topic: TopicId, due: WallMs, event: &[u8]) -> Concerned {
    let id = EventView::trusted(event).map(|view| String::from_utf8_lossy(view.id()).into_owned());
    Concerned { topic: Some(topic), due: Some(due), id: id.unwrap_or_default() }
}
