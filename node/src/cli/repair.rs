//! `escapement repair`: what a damaged log would have to give up, said before anything is; and giving it up.
//!
//! Without a token it only looks. With the token of one finding it keeps a copy of what it erases in `quarantine/`, writes
//! the report, and only then opens the log with that loss accepted, as a start with the setting of that name does.

mod loss;
mod names;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use escapement_protocol::ShardId;
use escapement_wal::inspect::{InspectedSegment, inspect};
use escapement_wal::{FileId, FsDirectory, LogIdentity, WalConfig, open};

use super::failure::{Exit, Failure};
use super::output::{Output, notice};
use crate::config::settings::token;
use crate::data_dir::{lock_for_repair, read_identity, shard_name};
use loss::{Assessed, LostBlocks, assess};
use names::LostNames;

const QUARANTINE: &str = "quarantine";
const REPORT: &str = "report";

const AFTER_HELP: &str = "\
Without --accept-loss it changes nothing: it lists each shard that would not serve, and for damaged blocks of a log what giving \
them up costs, as far as it can still be read: events that are lost, and events that come again because the record of their \
end is lost; for a damaged run of names, which events could be accepted a second time. The token in that list names exactly \
this loss.

With the token, the files that hold what is given up are copied to quarantine/TOKEN in the shard's directory, the report \
is written there and to --report, and the log ends before the damage from then on, or the run has no names any more. No node \
may serve the directory meanwhile.

A run file of events that is missing or damaged cannot be given up: the log still speaks of its events. Restore it from a snapshot.

Examples:
  escapement repair /var/lib/escapement
  escapement repair /var/lib/escapement --accept-loss 5f1c0a9be2d3c4b1 --report loss.txt";

/// Arguments of `repair`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct RepairArgs {
    /// The data directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Give up the damage that has this token
    #[arg(long, value_name = "TOKEN", value_parser = token)]
    accept_loss: Option<u64>,
    /// Write the list to this file, too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(super) fn run(args: &RepairArgs, out: &Output) -> Result<(), Failure> {
    let identity = read_identity(&args.dir)?;
    let _lock = lock_for_repair(&args.dir)?;
    let mut lines = Vec::new();
    let mut chosen: Option<Chosen> = None;
    let mut refused_count = 0;
    for shard in (0..identity.shard_count).map(ShardId) {
        let dir = args.dir.join(shard_name(shard.0));
        match assess(&dir, identity.log(shard)) {
            Assessed::Whole => {}
            Assessed::Refused(why) => {
                refused_count += 1;
                lines.push(loss::refusal_line(shard, &why, out.is_json()));
            }
            Assessed::Lost(lost) => {
                refused_count += 1;
                let is_chosen = args.accept_loss == Some(lost.token);
                if args.accept_loss.is_none() || is_chosen {
                    lines.extend(lost.lines(is_chosen, out.is_json()));
                }
                if is_chosen {
                    chosen = Some(Chosen { shard, dir, loss: Loss::Blocks(lost) });
                }
            }
            Assessed::LostNames(lost) => {
                refused_count += 1;
                let is_chosen = args.accept_loss == Some(lost.token);
                if args.accept_loss.is_none() || is_chosen {
                    lines.extend(lost.lines(is_chosen, out.is_json()));
                }
                if is_chosen {
                    chosen = Some(Chosen { shard, dir, loss: Loss::Names(lost) });
                }
            }
        }
    }
    if let Some(token) = args.accept_loss {
        let Some(Chosen { shard, dir, loss }) = chosen else {
            let text = format!(
                "--accept-loss {token:016x} fits no damage, and nothing was given up: run repair without it for the list"
            );
            return Err(Failure::new(Exit::Data, text));
        };
        let report: String = lines.iter().map(|line| format!("{line}\n")).collect();
        if let Some(path) = &args.report {
            write_durably(path, &report).map_err(failed("write", path))?;
        }
        let kept = quarantine(&dir, &loss, &report).map_err(failed("copy the damaged files to", &dir))?;
        match &loss {
            Loss::Blocks(lost) => give_up(&dir, identity.log(shard), lost)?,
            Loss::Names(lost) => lost.give_up(&dir).map_err(failed("give up runs in", &dir))?,
        }
        notice(&format!("what was given up is kept in {}", kept.display()));
    } else if let Some(path) = &args.report {
        let report: String = lines.iter().map(|line| format!("{line}\n")).collect();
        write_durably(path, &report).map_err(failed("write", path))?;
    }
    lines.iter().try_for_each(|line| out.line(line))?;
    match (args.accept_loss, refused_count) {
        (None, 0) => notice("every shard can serve: nothing has to be given up"),
        (None, _) => return Err(Failure::silent(Exit::Data)),
        (Some(_), _) => {}
    }
    Ok(())
}

/// The finding that is to be given up.
struct Chosen {
    shard: ShardId,
    dir: PathBuf,
    loss: Loss,
}

enum Loss {
    Blocks(Box<LostBlocks>),
    Names(LostNames),
}

impl Loss {
    fn token(&self) -> u64 {
        match self {
            Loss::Blocks(lost) => lost.token,
            Loss::Names(lost) => lost.token,
        }
    }

    /// The files of which something is erased.
    fn files(&self, dir: &Path) -> io::Result<Vec<FileId>> {
        match self {
            Loss::Blocks(lost) => {
                let is_behind = |segment: &InspectedSegment| {
                    segment.header.map_or(true, |header| header.segment_id >= lost.segment_id)
                };
                let segments = inspect(dir)?.segments;
                let files = segments.iter().filter(|segment| is_behind(segment)).map(|segment| segment.file);
                Ok(files.chain([FileId::Super]).collect())
            }
            Loss::Names(lost) => {
                let there = lost.runs.iter().map(|lost| lost.file());
                Ok(there.filter(|file| dir.join(file.path()).exists()).collect())
            }
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.display().to_string();
    move |error| Failure::new(Exit::Data, format!("cannot {action} {path}: {error}; nothing was given up"))
}

/// Copies the files of which something is given up. A copy that is there is of the same loss, and may hold what a repair
/// that was cut short has erased since.
fn quarantine(dir: &Path, loss: &Loss, report: &str) -> io::Result<PathBuf> {
    let all = dir.join(QUARANTINE);
    let token = loss.token();
    let (kept, partial) = (all.join(format!("{token:016x}")), all.join(format!("{token:016x}.partial")));
    if kept.exists() {
        return Ok(kept);
    }
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&partial)?;
    for file in loss.files(dir)? {
        let copy = partial.join(file.path());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(partial.join(file.dir()))?;
        fs::copy(dir.join(file.path()), &copy)?;
        File::open(&copy)?.sync_all()?;
        sync_dir(&partial.join(file.dir()))?;
    }
    write_durably(&partial.join(REPORT), report)?;
    sync_dir(&partial)?;
    fs::rename(&partial, &kept)?;
    sync_dir(&all)?;
    sync_dir(dir)?;
    Ok(kept)
}

fn give_up(dir: &Path, identity: LogIdentity, lost: &LostBlocks) -> Result<(), Failure> {
    let config = WalConfig { accept_loss: Some(lost.token), ..WalConfig::default() };
    let opened = open(&mut FsDirectory::new(dir), identity, &config, &mut |_| {});
    let (_, report) = opened.map_err(|error| Failure::new(Exit::Data, error.to_string()))?;
    match report.accepted_loss {
        Some(_) => Ok(()),
        None => Err(Failure::new(Exit::Failed, "the log opened without a loss: look at it with verify")),
    }
}

fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
