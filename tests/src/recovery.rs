//! Recovery of one shard, as the node does it when it starts.

use escapement_engine::far::{RunError, RunFiles};
use escapement_engine::{ApplyError, Shard, ShardConfig};
use escapement_node::runs::remove_left_over;
use escapement_protocol::Epoch;
use escapement_wal::{Directory, LocalWal, LogIdentity, OpenError, RecoveryReport, WalConfig, read};

/// Why a shard does not serve.
#[derive(Debug)]
pub enum Refusal {
    /// Its log does not open.
    Log(OpenError),
    /// A block's records can't be taken in.
    Records(u64, ApplyError),
    /// A run that is needed can't be read.
    Runs(RunError),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Log(error) => error.fmt(f),
            Refusal::Records(block, error) => write!(f, "block {block}: {error}"),
            Refusal::Runs(error) => error.fmt(f),
        }
    }
}

/// What recovery has found.
#[derive(Debug)]
pub struct Recovered {
    /// The shard, before [`Shard::recovered`].
    pub shard: Shard,
    /// Its log, open.
    pub log: LocalWal,
    /// What the log says of its opening.
    pub report: RecoveryReport,
}

/// Recovers the shard in `dir`, whose runs are `runs`.
///
/// # Errors
/// [`Refusal`].
///
/// # Panics
/// If a run that is left over can't be removed.
pub fn recover(
    dir: &mut dyn Directory,
    runs: &mut dyn RunFiles,
    identity: LogIdentity,
    wal: &WalConfig,
    config: ShardConfig,
) -> Result<Recovered, Refusal> {
    let mut shard = Shard::new(config);
    let mut unread = None;
    let read = read(dir, identity, wal, &mut |block| {
        if unread.is_none() {
            let replayed = shard.replay_block(block.seq.0, block.records, runs);
            unread = replayed.err().map(|error| (block.seq.0, error));
        }
    });
    let read = read.map_err(Refusal::Log)?;
    if let Some((block, error)) = unread {
        return Err(Refusal::Records(block, error));
    }
    shard.replayed().map_err(Refusal::Runs)?;
    let (log, report) = read.open(dir, Epoch(0)).map_err(Refusal::Log)?;
    remove_left_over(dir, &shard).expect("a file is removed");
    Ok(Recovered { shard, log, report })
}
