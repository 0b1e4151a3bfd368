//! `escapement inspect`: what lies in a data directory, read and never changed.
//!
//! It believes what carries a checksum that holds, and follows the blocks' places and numbers. Whether they form one
//! chain, and what becomes of a log that misses some, is what opening it decides, not this.

mod records;
mod runs;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use escapement_engine::record::{Record, records};
use escapement_protocol::Outcome;
use escapement_wal::BlockKind;
use escapement_wal::format::{
    Block, SEGMENT_HEADER_SIZE_BYTES, SegmentHeaderError, Superblock, SuperblockError,
};
use escapement_wal::inspect::{InspectedSegment, Inspection, inspect};
use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::output::{Output, notice};
use super::runs::LoggedRuns;
use crate::data_dir::{read_identity, shard_name};
use records::describe;
use runs::{RUN_COLUMNS, run_rows};

const AFTER_HELP: &str = "\
A segment is live, ready for the next blocks, or free to be made ready; the old blocks of a free one are not \
listed. Acknowledged blocks that are missing are told and end the command with status 5; what was torn when a \
node was killed is only told. Inspecting a directory that a node serves shows what was on the disk while looking: \
where a segment is used again meanwhile, blocks seem to be missing that were not needed any more.

Runs, the files of far-future events, come in a second table: of how many of a run's blocks the events have moved \
there, of how many they are loaded into the log again, and how many of its events are pending there and nowhere else. \
A run that the log does not know is left over; the next start removes it. `escapement verify` checks every block.

Examples:
  escapement inspect /var/lib/escapement
  escapement -o json inspect /var/lib/escapement --shard 0 --records";

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct InspectArgs {
    /// The data directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Only this shard
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
    /// List every record of the live segments instead of counting them
    #[arg(long)]
    records: bool,
}

pub(super) fn run(args: &InspectArgs, out: &Output) -> Result<(), Failure> {
    let identity = read_identity(&args.dir)?;
    let shards = match args.shard {
        None => 0..identity.shard_count,
        Some(shard) if shard < identity.shard_count => shard..shard + 1,
        Some(_) => {
            return Err(Failure::usage(format!(
                "--shard: there are {} shards, from 0",
                identity.shard_count
            )));
        }
    };
    if !out.is_json() && !args.records {
        out.facts(&[
            ("node", json!(format!("{:016x}", identity.node))),
            ("cluster", json!(format!("{:016x}", identity.cluster))),
            ("shard_count", json!(identity.shard_count)),
            ("segment_size_bytes", json!(identity.segment_size_bytes)),
        ])?;
        out.line("")?;
    }
    let mut damaged = false;
    let (mut rows, mut run_rows) = (Vec::new(), Vec::new());
    for shard in shards {
        let mut found = Found::new(shard, args.records.then_some(out));
        found.look_at(&args.dir.join(shard_name(shard)))?;
        for what in &found.told {
            notice(&format!("shard {shard}: {what}"));
        }
        damaged |= found.damaged;
        rows.extend(found.rows);
        run_rows.extend(found.run_rows);
    }
    if !args.records {
        out.rows(&SEGMENT_COLUMNS, &rows)?;
    }
    if !args.records && !run_rows.is_empty() {
        if !out.is_json() {
            out.line("")?;
        }
        out.rows(&RUN_COLUMNS, &run_rows)?;
    }
    if damaged { Err(Failure::silent(Exit::Data)) } else { Ok(()) }
}

/// Why a shard could not be shown.
enum Fault {
    /// It cannot be read.
    Shard(String),
    /// Nobody reads what is printed.
    Output(Failure),
}

const SEGMENT_COLUMNS: [&str; 14] = [
    "shard",
    "file",
    "segment",
    "state",
    "first_block",
    "last_block",
    "blocks",
    "bytes",
    "records",
    "published",
    "relocated",
    "completed",
    "cancelled",
    "failed_attempts",
];

/// What the blocks of one segment hold. Events and tasks are counted, not the records that name many of them, and what
/// was cancelled apart from what completed otherwise.
#[derive(Debug, Default)]
struct Counts {
    first_block: Option<u64>,
    last_block: Option<u64>,
    blocks: u64,
    bytes: u64,
    records: u64,
    published: u64,
    relocated: u64,
    completed: u64,
    cancelled: u64,
    failed_attempts: u64,
}

/// What a segment file is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SegmentState {
    /// Its blocks are needed.
    Live,
    /// It was prepared for the next blocks, and has none yet.
    Ready,
    /// Its blocks are needed no more, or it never had any.
    Free,
    /// Its header is of another version.
    OtherFormat,
    /// Its header does not verify.
    Damaged,
}

impl SegmentState {
    /// Live where it may be; only its blocks tell it from one that is ready.
    fn of(segment: &InspectedSegment, superblock: &Superblock) -> SegmentState {
        match segment.header {
            Ok(header) if header.segment_id >= superblock.first_segment_id => SegmentState::Live,
            Ok(_) | Err(SegmentHeaderError::Blank) => SegmentState::Free,
            Err(SegmentHeaderError::OtherFormat(_)) => SegmentState::OtherFormat,
            Err(SegmentHeaderError::Damaged) => SegmentState::Damaged,
        }
    }

    fn name(self) -> &'static str {
        match self {
            SegmentState::Live => "live",
            SegmentState::Ready => "ready",
            SegmentState::Free => "free",
            SegmentState::OtherFormat => "other format",
            SegmentState::Damaged => "damaged",
        }
    }
}

/// Takes what is found in one shard.
struct Found<'a> {
    shard: u16,
    /// Where records are listed, if that was asked for.
    list: Option<&'a Output>,
    rows: Vec<Vec<Value>>,
    runs: LoggedRuns,
    run_rows: Vec<Vec<Value>>,
    /// What is not as it should be, or may not be.
    told: Vec<String>,
    /// Whether any of that is certain.
    damaged: bool,
}

/// How far a shard's blocks were found.
struct Cursor {
    next_block: u64,
    /// File and offset where the last block that was found ends.
    end: (String, u32),
    /// Whether something was written there that is no intact block.
    torn: bool,
    /// Highest block that anything found says was acknowledged.
    acknowledged: u64,
}

impl<'a> Found<'a> {
    fn new(shard: u16, list: Option<&'a Output>) -> Found<'a> {
        Found {
            shard,
            list,
            rows: Vec::new(),
            runs: LoggedRuns::default(),
            run_rows: Vec::new(),
            told: Vec::new(),
            damaged: false,
        }
    }

    fn tell_damage(&mut self, what: String) {
        self.damaged = true;
        self.told.push(what);
    }

    fn look_at(&mut self, dir: &Path) -> Result<(), Failure> {
        match self.follow(dir) {
            Ok(()) => Ok(()),
            Err(Fault::Shard(what)) => {
                self.tell_damage(what);
                Ok(())
            }
            Err(Fault::Output(failure)) => Err(failure),
        }
    }

    fn follow(&mut self, dir: &Path) -> Result<(), Fault> {
        let Inspection { superblock, segments } =
            inspect(dir).map_err(|error| Fault::Shard(format!("cannot read {error}")))?;
        let superblock = superblock.map_err(|error| Fault::Shard(super_fault(error)))?;
        let mut cursor = Cursor {
            next_block: superblock.first_block_seq.0,
            end: (format!("segment {}", superblock.first_segment_id), SEGMENT_HEADER_SIZE_BYTES as u32),
            torn: false,
            acknowledged: superblock.committed_through.0,
        };
        for segment in &segments {
            let mut state = SegmentState::of(segment, &superblock);
            let mut counts = Counts::default();
            if state == SegmentState::Live {
                counts = self.blocks_of(segment, &mut cursor)?;
                if counts.blocks == 0 && segment_id(segment) > Some(superblock.first_segment_id) {
                    state = SegmentState::Ready;
                }
            }
            self.rows.push(segment_row(self.shard, segment, state, &counts));
        }
        self.tell_of_missing(&cursor, cursor.acknowledged + 1);
        self.follow_runs(dir)
    }

    fn follow_runs(&mut self, dir: &Path) -> Result<(), Fault> {
        let (rows, damage) = run_rows(self.shard, dir, &self.runs)
            .map_err(|error| Fault::Shard(format!("cannot read its runs: {error}")))?;
        self.run_rows = rows;
        damage.into_iter().for_each(|what| self.tell_damage(what));
        Ok(())
    }

    /// Counts the blocks of a segment up to the first place that holds no intact one, and lists them where that was
    /// asked for.
    fn blocks_of(&mut self, segment: &InspectedSegment, cursor: &mut Cursor) -> Result<Counts, Fault> {
        let file = segment.file.path();
        if let Ok(header) = segment.header
            && header.segment_size_bytes != segment.size_bytes
        {
            let (has, says) = (segment.size_bytes, header.segment_size_bytes);
            self.tell_damage(format!("{file} has {has} bytes, and its header says {says}"));
        }
        let mut counts = Counts::default();
        let mut end = SEGMENT_HEADER_SIZE_BYTES as u32;
        let mut torn = false;
        for extent in segment.extents() {
            let said = extent.header.map_or(0, |header| header.committed_through.0);
            cursor.acknowledged = cursor.acknowledged.max(said);
            torn |= extent.frame.place.offset != end || extent.block.is_none();
            let Some(block) = extent.block.filter(|_| !torn) else { continue };
            if counts.blocks == 0 {
                self.tell_of_missing(cursor, block.header().block_seq.0);
            }
            end += extent.frame.size_bytes;
            counts.add_block(&block, extent.frame.size_bytes);
            self.add_records(&block, &mut counts)?;
        }
        if let Some(last) = counts.last_block {
            *cursor = Cursor { next_block: last + 1, end: (file, end), torn, ..*cursor };
        }
        Ok(counts)
    }

    /// Tells what of the blocks before `until` was not found.
    fn tell_of_missing(&mut self, cursor: &Cursor, until: u64) {
        let Cursor { next_block, end: (file, offset), torn, acknowledged } = cursor;
        if *next_block < until {
            self.tell_damage(format!(
                "blocks {next_block} to {} are missing or damaged, from {offset} in {file}; those to {acknowledged} \
                 were acknowledged",
                until - 1
            ));
        } else if *torn {
            self.told.push(format!(
                "{file} holds a torn write at {offset}, which nothing says was ever acknowledged"
            ));
        }
    }

    fn add_records(&mut self, block: &Block<'_>, counts: &mut Counts) -> Result<(), Fault> {
        let header = block.header();
        let place = Place { shard: self.shard, block: header.block_seq.0, epoch: header.epoch.0 };
        if let (Some(out), Some(name)) = (self.list, own_block(header.kind)) {
            out.line(&place.line(name, Value::Null, out)).map_err(Fault::Output)?;
        }
        for record in records(block.records()) {
            let record = record.map_err(|error| Fault::Shard(format!("block {}: {error}", place.block)))?;
            counts.add(&record);
            self.runs.take(&record);
            if let Some(out) = self.list {
                let (name, facts) = describe(&record);
                out.line(&place.line(name, facts, out)).map_err(Fault::Output)?;
            }
        }
        Ok(())
    }
}

fn segment_id(segment: &InspectedSegment) -> Option<u64> {
    segment.header.ok().map(|header| header.segment_id)
}

fn super_fault(error: SuperblockError) -> String {
    match error {
        SuperblockError::OtherFormat(found) => {
            format!("SUPER has format {found}, which this program does not read")
        }
        SuperblockError::NoQuorum { intact_count } => {
            format!("no two copies in SUPER agree ({intact_count} of 4 are intact)")
        }
    }
}

fn segment_row(shard: u16, segment: &InspectedSegment, state: SegmentState, counts: &Counts) -> Vec<Value> {
    vec![
        json!(shard),
        json!(segment.file.path()),
        json!(segment_id(segment)),
        json!(state.name()),
        json!(counts.first_block),
        json!(counts.last_block),
        json!(counts.blocks),
        json!(counts.bytes),
        json!(counts.records),
        json!(counts.published),
        json!(counts.relocated),
        json!(counts.completed),
        json!(counts.cancelled),
        json!(counts.failed_attempts),
    ]
}

impl Counts {
    fn add_block(&mut self, block: &Block<'_>, extent_size_bytes: u32) {
        let seq = block.header().block_seq.0;
        self.first_block.get_or_insert(seq);
        self.last_block = Some(seq);
        self.blocks += 1;
        self.bytes += u64::from(extent_size_bytes);
    }

    fn add(&mut self, record: &Record<'_>) {
        self.records += 1;
        match record {
            Record::Published { count, .. } => self.published += u64::from(*count),
            Record::Relocated { .. } => self.relocated += 1,
            Record::Completed { outcome: Outcome::Cancelled, sequences, .. } => {
                self.cancelled += sequences.count() as u64;
            }
            Record::GroupLeft { is_cancelled: true, sequences, .. } => {
                self.cancelled += sequences.count() as u64;
            }
            Record::Completed { sequences, .. } => self.completed += sequences.count() as u64,
            Record::AttemptFailed { .. } => self.failed_attempts += 1,
            Record::Topic { .. }
            | Record::Subscription { .. }
            | Record::Mark { .. }
            | Record::Run(_)
            | Record::Moved { .. }
            | Record::Loaded { .. }
            | Record::Names { .. }
            | Record::NamesForgotten { .. }
            | Record::NamesRun { .. }
            | Record::NamesRunEnded { .. }
            | Record::Group(_)
            | Record::GroupLeft { .. }
            | Record::CancelledInRunOfGroup { .. }
            | Record::CancelledInRun { .. }
            | Record::Rescheduled { .. }
            | Record::RescheduledInRun { .. } => {}
        }
    }
}

/// Name of a block of the log's own, which carries no records.
fn own_block(kind: BlockKind) -> Option<&'static str> {
    match kind {
        BlockKind::Data => None,
        BlockKind::Seal => Some("seal"),
        BlockKind::EpochOpen => Some("epoch_open"),
    }
}

/// Where a record stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    shard: u16,
    block: u64,
    epoch: u32,
}

impl Place {
    fn line(self, kind: &str, facts: Value, out: &Output) -> String {
        let Place { shard, block, epoch } = self;
        if out.is_json() {
            let mut line = json!({ "shard": shard, "block": block, "epoch": epoch, "kind": kind });
            if let (Value::Object(line), Value::Object(facts)) = (&mut line, facts) {
                line.extend(facts);
            }
            return line.to_string();
        }
        let facts: String = match &facts {
            Value::Object(facts) => facts.iter().map(|(name, value)| format!(" {name}={value}")).collect(),
            _ => String::new(),
        };
        format!("shard {shard} block {block} epoch {epoch} {kind}{facts}")
    }
}
