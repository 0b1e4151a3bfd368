//! `escapement snapshot`: a copy of the directory of a node that goes on serving.
//!
//! The node is asked to keep its files; the copying is this process's. So a peer can make a node neither read nor write
//! files for it: whoever may read the directory may copy it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use escapement_client::Client;
use serde_json::json;

use super::connect::ConnectArgs;
use super::failure::{Exit, Failure};
use super::output::{Output, notice};
use crate::config::units::parse_duration;
use crate::data_dir::{Copied, DirCopy, DirCopyError};

const AFTER_HELP: &str = "\
Run it on the node's machine, as a user who may read the data directory. The node keeps serving; until the files are \
copied it frees no part of its logs. What was acknowledged before the command began is in the copy.

Runs of far-future events are linked where --to lies on the same file system, and copied else. A copy for another machine \
is best written to a disk of its own, or copied on from there. The copy appears under its name once it is whole, durable \
and read back; until then it is DIR.partial.

The copy is a node of its own, with the same events: never let both deliver to the same subscribers, or each event comes \
from both. See docs/operating/data-directory.md.

Examples:
  escapement snapshot --data /var/lib/escapement --to /mnt/backup/escapement-monday
  escapement -o json snapshot --data ./data --to ./copy --timeout 30m";

/// Arguments of `snapshot`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct SnapshotArgs {
    /// Data directory of the node, on this machine
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where the copy is to be: a path that is free
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Longest that the node is to keep its files for the copy; an hour at most
    #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) fn run(args: &SnapshotArgs, out: &Output) -> Result<(), Failure> {
    let started = Instant::now();
    let copy = DirCopy::begin(&args.data, &args.to)?;
    let (copied, held) = args.connect.run(async |client| take(&client, copy, args.timeout).await)?;
    let facts = [
        ("snapshot", json!(args.to)),
        ("shards", json!(copied.shard_count)),
        ("log_bytes", json!(copied.log_size_bytes)),
        ("runs_linked", json!(copied.linked_run_count)),
        ("linked_bytes", json!(copied.linked_size_bytes)),
        ("runs_copied", json!(copied.copied_run_count)),
        ("copied_bytes", json!(copied.copied_size_bytes)),
        ("held_ms", json!(millis(held))),
        ("took_ms", json!(millis(started.elapsed()))),
    ];
    out.facts(&facts)
}

/// Makes the copy; answers how large it is, and how long the node kept its files.
async fn take(client: &Client, copy: DirCopy, timeout: Duration) -> Result<(Copied, Duration), Failure> {
    let node_id = client.node().await?.node_id;
    if node_id != copy.node_id() {
        let text = format!(
            "the directory is that of node {:016x}, and node {node_id:016x} answered: give the directory that it serves",
            copy.node_id()
        );
        return Err(Failure::new(Exit::Data, text));
    }
    let asked = Instant::now();
    let held = client.begin_snapshot(timeout).await?;
    notice(&format!("copying {} shards", held.shards.len()));
    let cuts = held.shards.clone();
    // On another thread, so that the connection, with which the node's promise ends, is kept up meanwhile.
    let (copy, copied) = off_thread(move || {
        let copied = copy.copy(&cuts);
        (copy, copied)
    })
    .await?;
    // Where the node gave up, that says more than what came of it here.
    client.end_snapshot(held.snapshot).await?;
    let (copied, held_for) = (copied?, asked.elapsed());
    off_thread(move || copy.finish(&held.shards)).await??;
    Ok((copied, held_for))
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Failure::new(Exit::Failed, "the copying has a bug: see its message above"))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl From<DirCopyError> for Failure {
    fn from(error: DirCopyError) -> Failure {
        match error {
            DirCopyError::Dir(error) => error.into(),
            DirCopyError::Exists { .. } => Failure::usage(error.to_string()),
            _ => Failure::new(Exit::Data, error.to_string()),
        }
    }
}
