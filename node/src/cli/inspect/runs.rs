//! The runs of a shard: what the log says of each, beside what its file holds.

use std::io;
use std::path::Path;

use escapement_engine::far::{RunFiles, RunId};
use escapement_engine::names::format::NamesFooter;
use escapement_protocol::ShardId;
use escapement_wal::{Directory, FileId, FsDirectory, RUN_DIR};
use serde_json::{Value, json};

use crate::cli::moment::rfc3339;
use crate::cli::runs::{LoggedNames, LoggedRun, LoggedRuns, count_in, footer_of, last_due};
use crate::runs::RunDirectory;

pub(super) const RUN_COLUMNS: [&str; 14] = [
    "shard",
    "file",
    "run",
    "state",
    "bytes",
    "blocks",
    "moved",
    "loaded",
    "events",
    "pending",
    "cancelled",
    "first_due",
    "last_due",
    "names",
];

/// What a run is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunState {
    /// Its events may be needed.
    Open,
    /// All of it was loaded; the file goes soon, if it has not gone.
    Closed,
    /// The log does not know it.
    LeftOver,
    /// It is needed, and not there.
    Missing,
}

impl RunState {
    fn of(logged: Option<&LoggedRun>, is_there: bool) -> RunState {
        match logged {
            None => RunState::LeftOver,
            Some(logged) if !is_there && logged.is_needed() => RunState::Missing,
            Some(logged) if logged.closed => RunState::Closed,
            Some(_) => RunState::Open,
        }
    }

    fn name(self) -> &'static str {
        match self {
            RunState::Open => "open",
            RunState::Closed => "closed",
            RunState::LeftOver => "left over",
            RunState::Missing => "missing",
        }
    }
}

/// A row for each run that the log speaks of or that has a file, and what is wrong with those that are needed.
///
/// # Errors
/// Of the operating system.
pub(super) fn run_rows(
    shard: u16,
    dir: &Path,
    logged: &LoggedRuns,
) -> io::Result<(Vec<Vec<Value>>, Vec<String>)> {
    let mut files = RunDirectory(FsDirectory::read_only(dir));
    let names = files.0.list(RUN_DIR)?;
    let there = names.iter().filter_map(|name| FileId::from_run_name(name));
    let there = there.filter_map(|file| if let FileId::Run(run) = file { Some(RunId(run)) } else { None });
    let mut runs: Vec<RunId> =
        there.chain(logged.events.keys().chain(logged.names.keys()).copied()).collect();
    runs.sort_unstable();
    runs.dedup();
    let (mut rows, mut damage) = (Vec::new(), Vec::new());
    for run in runs {
        let (row, fault) = match logged.names.get(&run) {
            Some(names) => names_row(shard, run, *names, &mut files)?,
            None => run_row(shard, run, logged.events.get(&run), &mut files)?,
        };
        rows.push(row);
        damage.extend(fault.map(|fault| format!("{} {fault}", FileId::Run(run.0))));
    }
    Ok((rows, damage))
}

fn run_row(
    shard: u16,
    run: RunId,
    logged: Option<&LoggedRun>,
    files: &mut dyn RunFiles,
) -> io::Result<(Vec<Value>, Option<&'static str>)> {
    let size_bytes = files.size(run)?;
    let state = RunState::of(logged, size_bytes.is_some());
    let footer = match size_bytes {
        Some(size_bytes) => footer_of(files, ShardId(shard), run, size_bytes)?.ok(),
        None => None,
    };
    let is_unreadable = footer.is_none() && size_bytes.is_some() && logged.is_some();
    let fault = match state {
        RunState::Missing => Some("is missing, and holds events that the log needs"),
        _ if is_unreadable => Some("is damaged at its footer"),
        _ => None,
    };
    let last_due = footer.as_ref().and_then(|footer| last_due(files, ShardId(shard), run, footer));
    let of_log = |what: fn(&LoggedRun) -> u64| logged.map(what);
    let events = footer.as_ref().map(|footer| count_in(footer, 0..footer.index.len() as u32));
    let first_due = footer.as_ref().and_then(|footer| footer.index.first()).map(|place| place.first.0);
    let row = vec![
        json!(shard),
        json!(FileId::Run(run.0).path()),
        json!(run.0),
        json!(state.name()),
        json!(size_bytes),
        json!(footer.as_ref().map(|footer| footer.index.len())),
        json!(of_log(|logged| u64::from(logged.moved))),
        json!(of_log(|logged| u64::from(logged.loaded))),
        json!(events),
        json!(logged.zip(footer.as_ref()).map(|(logged, footer)| logged.pending(footer))),
        json!(of_log(|logged| logged.cancelled.len() as u64)),
        json!(first_due.map(rfc3339)),
        json!(last_due.map(rfc3339)),
        Value::Null,
    ];
    Ok((row, fault))
}

/// The row of a run of names, which has no events.
fn names_row(
    shard: u16,
    run: RunId,
    logged: LoggedNames,
    files: &mut dyn RunFiles,
) -> io::Result<(Vec<Value>, Option<&'static str>)> {
    let size_bytes = files.size(run)?;
    let footer = match size_bytes {
        Some(size_bytes) => {
            NamesFooter::read(size_bytes, ShardId(shard), run, |offset, len| files.read(run, offset, len))?
                .ok()
        }
        None => None,
    };
    let footer = footer.filter(|footer| footer.id == logged.footer_id);
    let (state, fault) = match (logged.is_ended, &footer, size_bytes) {
        (true, ..) => ("ended", None),
        (false, None, None) => ("missing", Some("is missing, and holds names that the log needs")),
        (false, None, Some(_)) => ("names", Some("is damaged at its footer")),
        (false, Some(footer), _) if footer.is_given_up => ("given up", None),
        (false, Some(_), _) => ("names", None),
    };
    let mut row = vec![
        json!(shard),
        json!(FileId::Run(run.0).path()),
        json!(run.0),
        json!(state),
        json!(size_bytes),
        json!(footer.as_ref().map(NamesFooter::block_count)),
    ];
    row.resize(RUN_COLUMNS.len() - 1, Value::Null);
    row.push(json!(footer.as_ref().map(|footer| footer.index.len())));
    Ok((row, fault))
}
