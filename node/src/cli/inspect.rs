//! `escapement inspect`: what lies in a data directory, read and never changed.
//!
//! It looks at each segment by itself and believes what carries a checksum that holds. Whether the blocks form one
//! chain and nothing acknowledged is missing is what opening the log decides, not this.

mod segment;

use std::path::{Path, PathBuf};

use escapement_engine::record::{Record, records};
use escapement_wal::BlockKind;
use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::moment::rfc3339;
use super::output::{Output, notice};
use crate::data_dir::{read_identity, shard_name};
use segment::{Segment, SegmentState, Shard, read_shard};

const AFTER_HELP: &str = "\
A segment is live, ready for the next blocks, or free to be made ready; the old blocks of a free one are not
listed. Inspecting a directory that a
node serves shows what was on the disk while looking.

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
    let mut rows = Vec::new();
    for shard in shards {
        match inspect_shard(&args.dir, shard, args.records, out) {
            Ok(found) => rows.extend(found),
            Err(Fault::Shard(what)) => {
                damaged = true;
                notice(&format!("shard {shard}: {what}"));
            }
            Err(Fault::Output(failure)) => return Err(failure),
        }
    }
    if !args.records {
        out.rows(&SEGMENT_COLUMNS, &rows)?;
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

const SEGMENT_COLUMNS: [&str; 13] = [
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
    "failed_attempts",
];

/// What the blocks of one segment hold. Events and tasks are counted, not the records that name many of them.
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
    failed_attempts: u64,
}

fn inspect_shard(dir: &Path, shard: u16, list: bool, out: &Output) -> Result<Vec<Vec<Value>>, Fault> {
    let Shard { superblock, mut segments } =
        read_shard(&dir.join(shard_name(shard))).map_err(Fault::Shard)?;
    segments.sort_by_key(Segment::order);
    let mut rows = Vec::with_capacity(segments.len());
    for segment in segments {
        let mut state = segment.state(&superblock);
        let mut counts = Counts::default();
        if state == SegmentState::Live {
            counts = count(&segment, shard, list, out)?;
            if counts.blocks == 0 && segment.id() > Some(superblock.first_segment_id) {
                state = SegmentState::Ready;
            }
        }
        rows.push(segment_row(shard, &segment, state, &counts));
    }
    Ok(rows)
}

/// Counts what a segment holds, and lists it where that was asked for.
fn count(segment: &Segment, shard: u16, list: bool, out: &Output) -> Result<Counts, Fault> {
    let mut counts = Counts::default();
    let counted = segment.for_each_block(|block, extent_size_bytes| {
        let header = block.header();
        counts.first_block.get_or_insert(header.block_seq.0);
        counts.last_block = Some(header.block_seq.0);
        counts.blocks += 1;
        counts.bytes += extent_size_bytes;
        let place = Place { shard, block: header.block_seq.0, epoch: header.epoch.0 };
        if let (true, Some(name)) = (list, own_block(header.kind)) {
            out.line(&place.line(name, Value::Null, out)).map_err(Fault::Output)?;
        }
        for record in records(block.records()) {
            let record = record.map_err(|error| Fault::Shard(format!("block {}: {error}", place.block)))?;
            counts.add(&record);
            if list {
                let (name, facts) = describe(&record);
                out.line(&place.line(name, facts, out)).map_err(Fault::Output)?;
            }
        }
        Ok(())
    });
    counted.map_err(|error| Fault::Shard(format!("cannot read {}: {error}", segment.file_name())))??;
    Ok(counts)
}

fn segment_row(shard: u16, segment: &Segment, state: SegmentState, counts: &Counts) -> Vec<Value> {
    vec![
        json!(shard),
        json!(segment.file_name()),
        json!(segment.id()),
        json!(state.name()),
        json!(counts.first_block),
        json!(counts.last_block),
        json!(counts.blocks),
        json!(counts.bytes),
        json!(counts.records),
        json!(counts.published),
        json!(counts.relocated),
        json!(counts.completed),
        json!(counts.failed_attempts),
    ]
}

impl Counts {
    fn add(&mut self, record: &Record<'_>) {
        self.records += 1;
        match record {
            Record::Published { count, .. } => self.published += u64::from(*count),
            Record::Relocated { .. } => self.relocated += 1,
            Record::Completed { sequences, .. } => self.completed += sequences.count() as u64,
            Record::AttemptFailed { .. } => self.failed_attempts += 1,
            Record::Topic { .. } | Record::Subscription { .. } | Record::Mark { .. } => {}
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

/// A record's name, and what there is to say of it.
fn describe(record: &Record<'_>) -> (&'static str, Value) {
    match record {
        Record::Published { topic, first_sequence, count, accepted, events } => (
            "published",
            json!({
                "topic": topic.0, "first_sequence": first_sequence.0, "count": count,
                "accepted": rfc3339(*accepted), "bytes": events.len(),
            }),
        ),
        Record::Relocated { topic, sequence, due, progress, event } => (
            "relocated",
            json!({
                "topic": topic.0, "sequence": sequence.0, "due": rfc3339(*due), "tasks": progress.len(),
                "bytes": event.len(),
            }),
        ),
        Record::Completed { subscription, outcome, last, sequences } => (
            "completed",
            json!({
                "subscription": subscription.0, "outcome": format!("{outcome:?}"), "last": last,
                "sequences": sequences.iter().map(|sequence| sequence.0).collect::<Vec<_>>(),
            }),
        ),
        Record::AttemptFailed { subscription, sequence, attempt, excused, next_due } => (
            "attempt_failed",
            json!({
                "subscription": subscription.0, "sequence": sequence.0, "attempt": attempt, "excused": excused,
                "next_due": rfc3339(*next_due),
            }),
        ),
        Record::Topic { id, version, settings } => {
            ("topic", json!({ "topic": id.0, "version": version, "name": settings.name }))
        }
        Record::Subscription { id, version, topic, settings } => (
            "subscription",
            json!({ "subscription": id.0, "version": version, "topic": topic.0, "name": settings.name }),
        ),
        Record::Mark { next_sequence } => ("mark", json!({ "next_sequence": next_sequence.0 })),
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
