//! `escapement verify`: whether a data directory is whole, read and never changed.
//!
//! A log is read as a start reads it, and replayed; what replaying reads of runs is only a part of them, so that each file
//! is read as well, block for block. One shard after the other, and of a run one block at a time: what is pending in the log
//! is in memory for as long as its shard is looked at.

mod run;
mod shard;

use std::path::PathBuf;

use escapement_protocol::ShardId;
use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::output::{Output, object, stated};
use crate::data_dir::{DataDirError, check_keys, keep_still, read_identity, shard_name};
pub(super) use shard::replay_config;
use shard::{Checked, check_shard};

const AFTER_HELP: &str = "\
No node may serve the directory meanwhile, and none can be started on it until this ends. Shards are looked at one after \
the other; what is pending in a shard's log has to fit into memory, as when a node serves it.

What is damaged is told with its place and with what to do, and ends the command with status 1. What is only noted is as \
a crash may leave it: a write that was torn before it was acknowledged, a file of a run that does not count yet. The next \
start sees to that by itself.

Examples:
  escapement verify /var/lib/escapement
  escapement -o json verify /mnt/backup/escapement --shard 0";

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct VerifyArgs {
    /// The data directory, or a copy of one
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Only this shard
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
}

/// Something that is not as it was written, or that a crash has left.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// `None` where it is about the whole directory.
    shard: Option<ShardId>,
    /// Its path in the shard's directory, or in the data directory; empty where it is about no one file.
    file: String,
    /// Of the log, or of the run that the file is.
    block: Option<u64>,
    /// Where that begins in the file, in bytes.
    offset: Option<u64>,
    is_damage: bool,
    /// What it is and means, and what to do.
    what: String,
}

impl Finding {
    fn damaged(shard: ShardId, file: String, what: String) -> Finding {
        Finding { shard: Some(shard), file, block: None, offset: None, is_damage: true, what }
    }

    fn noted(shard: ShardId, file: String, what: String) -> Finding {
        Finding { is_damage: false, ..Finding::damaged(shard, file, what) }
    }

    fn kind(&self) -> &'static str {
        if self.is_damage { "damaged" } else { "noted" }
    }

    fn line(&self, out: &Output) -> String {
        let Finding { shard, file, block, offset, what, .. } = self;
        if out.is_json() {
            let facts = [
                ("finding", json!(self.kind())),
                ("shard", json!(shard.map(|shard| shard.0))),
                ("file", stated(file)),
                ("block", json!(block)),
                ("offset", json!(offset)),
                ("what", json!(what)),
            ];
            return object(facts.into_iter()).to_string();
        }
        let shard = shard.map(|shard| format!(" shard {}", shard.0)).unwrap_or_default();
        let file = if file.is_empty() { String::new() } else { format!(" {file}") };
        let offset = offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default();
        format!("{}:{shard}{file}{offset}: {what}", self.kind())
    }
}

const COLUMNS: [&str; 8] =
    ["shard", "blocks", "records", "pending", "far", "runs", "checked_bytes", "damaged"];

pub(super) fn run(args: &VerifyArgs, out: &Output) -> Result<(), Failure> {
    let _still = keep_still(&args.dir).map_err(refused)?;
    let mut findings = Vec::new();
    let mut rows = Vec::new();
    let root = |file: &str, error: &DataDirError| Finding {
        shard: None,
        ..Finding::damaged(ShardId(0), file.to_owned(), error.to_string())
    };
    match read_identity(&args.dir) {
        Ok(identity) => {
            findings.extend(check_keys(&args.dir).err().map(|error| root("KEYS", &error)));
            for shard in args.shards(identity.shard_count)? {
                let log = identity.log(ShardId(shard));
                let checked = check_shard(&args.dir.join(shard_name(shard)), log);
                rows.push(row(shard, &checked));
                findings.extend(checked.findings);
            }
        }
        Err(error @ DataDirError::Damaged { .. }) => findings.push(root("IDENTITY", &error)),
        Err(error) => return Err(error.into()),
    }
    out.rows(&COLUMNS, &rows)?;
    if !findings.is_empty() && !out.is_json() {
        out.line("")?;
    }
    for finding in &findings {
        out.line(&finding.line(out))?;
    }
    let is_damaged = findings.iter().any(|finding| finding.is_damage);
    if is_damaged { Err(Failure::silent(Exit::Failed)) } else { Ok(()) }
}

impl VerifyArgs {
    fn shards(&self, shard_count: u16) -> Result<std::ops::Range<u16>, Failure> {
        match self.shard {
            None => Ok(0..shard_count),
            Some(shard) if shard < shard_count => Ok(shard..shard + 1),
            Some(_) => Err(Failure::usage(format!("--shard: there are {shard_count} shards, from 0"))),
        }
    }
}

fn refused(error: DataDirError) -> Failure {
    match error {
        DataDirError::Locked { path, pid } => {
            let process = pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
            let path = path.display();
            let text = format!(
                "{path} is served by a node{process}: stop it first, or verify a snapshot of the directory"
            );
            Failure::new(Exit::Data, text)
        }
        error => error.into(),
    }
}

fn row(shard: u16, checked: &Checked) -> Vec<Value> {
    let Checked { blocks, records, pending, far, runs, bytes, findings } = checked;
    let damaged = findings.iter().filter(|finding| finding.is_damage).count();
    vec![
        json!(shard),
        json!(blocks),
        json!(records),
        json!(pending),
        json!(far),
        json!(runs),
        json!(bytes),
        json!(damaged),
    ]
}
