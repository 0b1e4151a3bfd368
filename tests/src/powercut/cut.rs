//! One cut: the disk as it may be after it, recovered and held to what was acknowledged before.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use escapement_engine::{Shard, ShardConfig};
use escapement_node::config::NodeConfig;
use escapement_node::data_dir::DataDir;
use escapement_node::runs::RunDirectory;
use escapement_protocol::{EventView, Sequence, ShardId, WallMs};
use escapement_wal::memory::Rng;
use escapement_wal::{FsDirectory, WalConfig};

use super::load::{Heard, ledger, node, number_of};
use super::log::WriteLog;
use super::rig::{Mount, empty_image, tool};
use crate::recovery::{Recovered, recover};

const SHARDS: u16 = 2;
/// Writes that a disk that lies may still forget.
const LIE_COUNT: usize = 100;

/// What cuts have shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Cuts.
    pub cuts: u64,
    /// Of these, in the formatting of the data directory, or before it.
    pub unformatted: u64,
    /// Of these, of a disk that lies, with a file system that can't be mounted.
    pub unmounted: u64,
    /// Of these, with events in runs.
    pub with_runs: u64,
    /// Entries of the disk's log that were in doubt, all cuts together.
    pub in_doubt: u64,
    /// Events that had to be pending, all cuts together.
    pub held: u64,
    /// Times that a node was started on what recovery had left.
    pub started: u64,
}

/// The disk's log, and the disk up to one of its flushes.
pub(super) struct Cutter<'a> {
    log: WriteLog,
    heard: &'a Heard,
    dir: &'a Path,
    program: &'a Path,
    base: File,
    /// Entries that the base has.
    done: usize,
    lies: bool,
    pub(super) counts: Counts,
}

/// A shard after recovery, and the events of its runs.
struct Found {
    shard: Shard,
    far: BTreeSet<(WallMs, Sequence)>,
}

impl<'a> Cutter<'a> {
    pub(super) fn new(
        log: &Path,
        heard: &'a Heard,
        (dir, program): (&'a Path, &'a Path),
        lies: bool,
    ) -> std::io::Result<Self> {
        let base = empty_image(&dir.join("base"))?;
        let log = WriteLog::open(log)?;
        Ok(Cutter { log, heard, dir, program, base, done: 0, lies, counts: Counts::default() })
    }

    /// Places to cut at, in order: half of them anywhere, half where something has just been acknowledged.
    pub(super) fn places(&self, count: u64, rng: &mut Rng) -> Vec<usize> {
        let acknowledged = &self.heard.acknowledged;
        // A file system whose beginnings a disk forgets is not even mounted.
        let late = acknowledged.get(acknowledged.len() / 2).filter(|_| self.lies).map(|event| event.at);
        let from = self.log.entry_at(late.unwrap_or(self.heard.from));
        let to = self.log.entry_at(self.heard.to);
        let mut all: Vec<usize> = (0..count)
            .map(|_| {
                if rng.one_in(2) || self.lies || acknowledged.is_empty() {
                    return from + rng.below((to - from).max(1) as u64) as usize;
                }
                let chosen = &acknowledged[rng.below(acknowledged.len() as u64) as usize];
                (self.log.entry_at(chosen.at) + rng.below(4) as usize).min(self.log.len())
            })
            .collect();
        all.sort_unstable();
        all
    }

    /// Cuts before entry `cut`, which is none before that of the last call.
    pub(super) fn cut(&mut self, cut: usize, rng: &mut Rng) -> Result<(), String> {
        // A name of its own: the loop device of the last one may still be there, with what it has cached.
        let image = self.dir.join(format!("image-{}", self.counts.cuts));
        self.image(&image, cut, rng).map_err(|error| format!("the image: {error}"))?;
        self.counts.cuts += 1;
        let mount = match Mount::new(&image, &self.dir.join("cut"), "loop") {
            Ok(mount) => mount,
            // What a disk forgets may be the file system's. That is noticed, and says nothing of what is tried here.
            Err(_) if self.lies => {
                self.counts.unmounted += 1;
                return std::fs::remove_file(&image).map_err(|error| format!("the image: {error}"));
            }
            Err(why) => return Err(why),
        };
        let held = self.examine(&mount.path.join("data"), self.log.position(cut));
        drop(mount);
        std::fs::remove_file(&image).map_err(|error| format!("the image: {error}"))?;
        held
    }

    fn image(&mut self, image: &Path, cut: usize, rng: &mut Rng) -> std::io::Result<()> {
        let last = if self.lies { cut.saturating_sub(LIE_COUNT) } else { cut };
        let certain = self.log.certain(last).max(self.done.min(cut));
        self.log.replay(&self.base, self.done..certain)?;
        self.done = certain;
        let (from, to) = (self.dir.join("base"), image);
        let copied = tool("cp", &["--sparse=always", &from.display().to_string(), &to.display().to_string()]);
        copied.map_err(std::io::Error::other)?;
        self.counts.in_doubt += (cut - certain) as u64;
        let disk = File::options().read(true).write(true).open(image)?;
        self.log.replay_some(&disk, certain..cut, rng)
    }

    /// Recovers what is left, and compares it with what was acknowledged before `position` of the disk's log.
    fn examine(&mut self, data: &Path, position: u64) -> Result<(), String> {
        let config = NodeConfig {
            data: data.to_owned(),
            shards: Some(SHARDS),
            segment_size_bytes: 1024 * 1024,
            segment_spares: 1,
            allow_tmpfs: true,
            ..NodeConfig::default()
        };
        if !DataDir::is_formatted(data) {
            self.counts.unformatted += 1;
        }
        let dir = DataDir::open_or_format(&config).map_err(|error| error.to_string())?;
        let last = self.heard.acknowledged.iter().map(|event| event.id.sequence.0).max().unwrap_or(0);
        let found = (0..SHARDS).map(|shard| examine_shard(&dir, ShardId(shard), last));
        let found = found.collect::<Result<Vec<Found>, String>>()?;
        drop(dir);
        self.counts.with_runs += u64::from(found.iter().any(|found| !found.far.is_empty()));
        for event in self.heard.acknowledged.iter().filter(|event| event.at <= position) {
            if self.heard.results.get(&event.number).is_some_and(|given| *given < position) {
                continue;
            }
            self.counts.held += 1;
            let Found { shard, far } = &found[usize::from(event.id.shard.0)];
            let due = WallMs(event.id.schedule_time_ms);
            let number = shard.event(event.id.sequence).and_then(|held| {
                number_of(EventView::trusted(held.bytes)?.id()).filter(|_| held.schedule_time() == due)
            });
            if number != Some(event.number) && !far.contains(&(due, event.id.sequence)) {
                return Err(format!("{event:?} was acknowledged and is not there"));
            }
        }
        let pending: u64 = found.iter().map(|found| found.shard.stats().pending).sum();
        if self.counts.cuts.is_multiple_of(10) {
            self.start_node(data, pending)?;
        }
        Ok(())
    }

    /// Starts a node on what recovery has left.
    fn start_node(&mut self, data: &Path, pending: u64) -> Result<(), String> {
        let node = node(self.program, data).start();
        let notice = node.notice("recovered ");
        node.kill();
        self.counts.started += 1;
        let expected = format!("{pending} pending events");
        if notice.starts_with(&expected) { Ok(()) } else { Err(format!("{expected}, and a node: {notice}")) }
    }
}

/// Recovers a shard, twice: the second time must change nothing. Holds that no event in memory is altered, up to sequence `last`.
fn examine_shard(dir: &DataDir, shard: ShardId, last: u64) -> Result<Found, String> {
    let wal = WalConfig::default();
    let config = ShardConfig {
        shard,
        shard_count: SHARDS,
        memory_bytes_max: 64 * 1024 * 1024,
        admission_per_s: 0,
        block_size_bytes_max: wal.records_size_bytes_max(),
        horizon_ms: 1_000,
        run_size_bytes: 1024 * 1024,
        names_run_size_bytes: 1 << 20,
        batch_count_max: 1_000,
        seed: 1,
    };
    let path = dir.shard_dir(shard);
    let mut runs = RunDirectory(FsDirectory::new(&path));
    let mut recovered_once = || {
        let files = &mut FsDirectory::new(&path);
        let recovered = recover(files, &mut runs, dir.log_identity(shard), &wal, config.clone());
        recovered.map_err(|why| format!("shard {} refuses: {why}", shard.0))
    };
    let Recovered { shard: found, .. } = recovered_once()?;
    if recovered_once()?.shard.state_hash() != found.state_hash() {
        return Err(format!("shard {} recovers to another state the second time", shard.0));
    }
    let ledger = ledger();
    let far = found.far_events(&mut runs).map_err(|error| error.to_string())?;
    for sequence in 1..=last {
        let Some(event) = found.event(Sequence(sequence)) else { continue };
        let view = EventView::trusted(event.bytes).ok_or("an event that does not parse")?;
        let number = number_of(view.id());
        if number.is_none_or(|number| ledger.data(number) != view.data()) {
            return Err(format!("sequence {sequence} of shard {} is altered", shard.0));
        }
    }
    Ok(Found { shard: found, far: far.into_iter().collect() })
}
