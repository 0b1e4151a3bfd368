//! Starting the node: every shard recovers from its disk, and is held to what was durable and acknowledged.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use escapement_engine::record::{Record, records};
use escapement_engine::{Shard, ShardConfig, newest_control};
use escapement_node::core::{Core, CoreConfig, core_of};
use escapement_node::io::WallClock;
use escapement_node::runs::{RunDirectory, remove_left_over};
use escapement_protocol::{Epoch, Outcome, Sequence, ShardId, SubscriptionId, WallMs};
use escapement_router::Credit;
use escapement_wal::format::{Block, FRAME_SIZE_BYTES};
use escapement_wal::memory::{Faults, MemDisk, Rng};
use escapement_wal::{
    BlockKind, BlockSeq, Directory, DiskOp, FileId, LocalWal, LogIdentity, OpId, OpenError, RecoveredBlock,
    RecoveryReport, ShardLog, format_log, last_epoch, open, read,
};

use super::bug::{Bug, Unsynced, altered_records};
use super::node::Node;
use super::world::{Happening, NS_PER_MS, World};

pub(super) const CLUSTER: u64 = 7;

/// A shard's disk, and what is known of what was written to it.
#[derive(Debug)]
pub(super) struct ShardDisk {
    pub(super) disk: MemDisk,
    formatted: bool,
    /// Digests of the records of each data block handed to the disk, until recovery says that it is gone.
    blocks: BTreeMap<u64, u64>,
    /// Blocks of this incarnation whose end has not reached the core.
    in_flight: BTreeMap<OpId, u64>,
    /// The newest block handed to the disk.
    newest: u64,
    /// Every block up to here is durable, as the core knows.
    durable: u64,
    poisoned: bool,
    /// The shard's state when it crashed: at which block, and its hash.
    pub(super) at_crash: Option<(u64, u64)>,
    /// Operations that a planted bug has called done.
    pub(super) called_done: BTreeSet<OpId>,
    /// Files that a planted bug has called created before their directory entries were durable.
    pub(super) not_entered: Vec<String>,
}

impl ShardDisk {
    pub(super) fn new(seed: u64) -> ShardDisk {
        ShardDisk {
            disk: MemDisk::new(seed),
            formatted: false,
            blocks: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            newest: 0,
            durable: 0,
            poisoned: false,
            at_crash: None,
            called_done: BTreeSet::new(),
            not_entered: Vec::new(),
        }
    }

    /// Notes an operation on its way to the disk.
    pub(super) fn note_op(&mut self, op: &DiskOp) {
        let DiskOp::Write { id, file: FileId::Slot(_), offset, buf } = op else { return };
        if *offset == 0 {
            return;
        }
        let block = Block::parse(&buf[FRAME_SIZE_BYTES..]).expect("a log writes blocks behind its headers");
        let seq = block.header().block_seq.0;
        if block.header().kind == BlockKind::Data {
            self.blocks.insert(seq, digest(block.records()));
        }
        self.in_flight.insert(*id, seq);
        self.newest = seq;
    }

    /// Notes an end that the core is about to learn of.
    pub(super) fn note_end(&mut self, id: OpId, succeeded: bool, is_write: bool) {
        if !succeeded && is_write && !id.is_foreign() {
            self.poisoned = true;
        }
        if self.in_flight.remove(&id).is_some() && !self.poisoned {
            self.durable = self.in_flight.values().min().map_or(self.newest, |first| first - 1);
        }
    }

    /// A crash decides what becomes of directory entries that are not durable.
    pub(super) fn lose_entries(&mut self, power: bool, rng: &mut Rng) {
        for path in self.not_entered.drain(..) {
            if power && rng.one_in(2) && self.disk.remove(&path).is_ok() {
                self.disk.sync_dir("wal").expect("the power is back");
            }
        }
    }

    /// The shard's state at the end of its incarnation.
    pub(super) fn note_crash(&mut self, state_hash: u64) {
        self.at_crash = Some((self.durable, state_hash));
        self.in_flight.clear();
        self.called_done.clear();
        self.poisoned = false;
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(8).map(|chunk| chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
    words.fold(bytes.len() as u64, |hash, word| {
        (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}

/// Why a start did not succeed.
enum NoStart {
    /// The power failed during it.
    Crashed,
    Refused(String),
}

struct Recovered {
    shard: Shard,
    log: LocalWal,
    report: RecoveryReport,
}

impl World {
    /// Starts the node, or crashes while it starts.
    pub(super) fn boot(&mut self) {
        if self.node.is_some() {
            return;
        }
        let mut recovered = Vec::new();
        let left_out = self.left_out();
        let least = self.least_epoch();
        for shard in 0..self.plan.shards {
            if left_out == Some(shard) {
                self.note(format_args!("shard {shard} is left out"));
                recovered.push(None);
                continue;
            }
            let cut = self.crashes_left > 0 && !self.is_calm() && self.rng.one_in(5);
            let power_fails_after = cut.then(|| self.rng.below(12) as u32);
            let faults = Faults { power_fails_after, ..Faults::default() };
            self.disks[usize::from(shard)].disk.set_faults(faults);
            match self.recover(shard, least) {
                Ok(shard) => recovered.push(Some(shard)),
                Err(NoStart::Crashed) => return self.crashed_in_recovery(),
                Err(NoStart::Refused(why)) => {
                    return self.judge.breach(format!("shard {shard} refuses: {why}"));
                }
            }
        }
        let failing = self.crashes_left > 0 && !self.is_calm() && self.rng.one_in(8);
        for disk in &mut self.disks {
            let write_fails_after = (failing && self.rng.one_in(2)).then(|| self.rng.below(16) as u32);
            disk.disk.set_faults(Faults { write_fails_after, ..Faults::default() });
        }
        self.incarnation += 1;
        let leader = recovered.iter().flatten().map(|r| r.report.leader_time).max().filter(|time| time.0 > 0);
        let real_ns = match leader {
            // A machine without a battery begins in 1970.
            Some(_) if !self.is_calm() && self.rng.one_in(10) && !self.plan.has_standstills => self.now_ns,
            _ => self.real_ns(),
        };
        let leader = leader.filter(|_| self.options.bug != Some(Bug::ClockBackwards));
        let clock = WallClock::start(self.reading(real_ns), leader, true).expect("the clock is confirmed");
        self.start(recovered, clock, real_ns);
        self.light_fuse();
        if left_out.is_some() {
            self.counts.shards_out += 1;
            self.restart_later();
        }
    }

    /// The shard of several that this start refuses, if it does: as if it was damaged, and is mended before the next.
    fn left_out(&mut self) -> Option<u16> {
        let may_be =
            self.goes_on_without() && self.incarnation > 0 && self.crashes_left > 0 && !self.is_calm();
        if !may_be || !self.out_rng.one_in(3) {
            return None;
        }
        let shard = self.out_rng.below(self.plan.shards.into()) as u16;
        self.disks[usize::from(shard)].formatted.then_some(shard)
    }

    fn crashed_in_recovery(&mut self) {
        self.note(format_args!("crash in recovery"));
        self.counts.crashes += 1;
        self.counts.recovery_crashes += 1;
        self.crashes_left = self.crashes_left.saturating_sub(1);
        for disk in &mut self.disks {
            disk.disk.power_cut();
        }
        let after_ns = self.rng.below(50 * NS_PER_MS);
        self.queue.push(self.now_ns + after_ns, Happening::Boot);
    }

    pub(super) fn shard_config(&self, shard: u16) -> ShardConfig {
        ShardConfig {
            shard: ShardId(shard),
            shard_count: self.plan.shards,
            memory_bytes_max: self.plan.memory_bytes_max,
            admission_per_s: 0,
            block_size_bytes_max: self.plan.wal.records_size_bytes_max(),
            horizon_ms: self.plan.horizon_ms,
            run_size_bytes: self.plan.run_size_bytes,
            names_run_size_bytes: self.plan.names_run_size_bytes,
            batch_count_max: self.plan.batch_count_max,
            seed: self.seed ^ u64::from(shard),
        }
    }

    /// Recovers one shard. Twice on copies of the disk as well: recovering again must change nothing.
    fn recover(&mut self, shard: u16, least: Epoch) -> Result<Recovered, NoStart> {
        let config = self.shard_config(shard);
        let identity = LogIdentity { cluster: CLUSTER, shard: ShardId(shard), shard_count: self.plan.shards };
        let bug = self.options.bug.filter(|_| self.incarnation > 0);
        let twice = self.rng.one_in(8);
        let wal = self.plan.wal;
        let state = &mut self.disks[usize::from(shard)];
        if !state.formatted {
            match format_log(&mut state.disk, identity, &wal) {
                Ok(()) => state.formatted = true,
                Err(OpenError::Io { .. }) => {
                    // Whoever formats begins again from nothing: no data directory is there before its logs are.
                    let seed = self.rng.next_u64();
                    self.disks[usize::from(shard)] = ShardDisk::new(seed);
                    return Err(NoStart::Crashed);
                }
                Err(error) => return Err(NoStart::Refused(error.to_string())),
            }
        }
        let before = twice.then(|| state.disk.clone());
        let mut state_shard = Shard::new(config.clone());
        let mut runs = RunDirectory(match bug {
            Some(Bug::RunsForgotten) => MemDisk::new(0),
            _ => state.disk.clone(),
        });
        runs.0.set_faults(Faults::default());
        let mut faults: Vec<String> = Vec::new();
        let mut seen: Vec<(u64, u64)> = Vec::new();
        let mut own_blocks: Vec<u64> = Vec::new();
        let at_crash = state.at_crash;
        // A planted bug has to be found by what the node promised, which takes no look inside.
        let mut compared = self.options.bug.is_some();
        let mut compare = |shard: &Shard, faults: &mut Vec<String>| {
            if let Some((block, hash)) = at_crash
                && !std::mem::replace(&mut compared, true)
                && shard.state_hash() != hash
            {
                faults.push(format!("its state at block {block} is not what it was before the crash"));
            }
        };
        let mut ends: Vec<(SubscriptionId, Outcome, Sequence, WallMs)> = Vec::new();
        let mut last_data: Option<(u64, Vec<u8>)> = None;
        let mut take_in = |block: RecoveredBlock<'_>| {
            if at_crash.is_some_and(|(durable, _)| block.seq.0 > durable) {
                compare(&state_shard, &mut faults);
            }
            if block.kind == BlockKind::Data {
                seen.push((block.seq.0, digest(block.records)));
                for record in records(block.records).flatten() {
                    if let Record::Completed { subscription, outcome, sequences, .. } = record
                        && matches!(outcome, Outcome::Expired | Outcome::Skipped)
                    {
                        let at = block.leader_time;
                        ends.extend(sequences.iter().map(|sequence| (subscription, outcome, sequence, at)));
                    }
                }
            } else {
                own_blocks.push(block.seq.0);
            }
            let mut apply = |seq: u64, records: &[u8]| {
                let altered = altered_records(bug, records);
                if let Err(error) = state_shard.replay_block(seq, &altered, &mut runs) {
                    faults.push(format!("block {seq}: {error}"));
                }
            };
            match bug {
                Some(Bug::SequencesAgain) => {}
                Some(Bug::LastBlockForgotten) => {
                    if let Some((seq, records)) = last_data.replace((block.seq.0, block.records.to_vec())) {
                        apply(seq, &records);
                    }
                }
                Some(
                    bug @ (Bug::NamesForgotten
                    | Bug::NamesNotRead
                    | Bug::NamesRunsForgotten
                    | Bug::NamesRunsEndedEarly),
                ) => {
                    apply(block.seq.0, &bug.altered(block.records));
                }
                _ => apply(block.seq.0, block.records),
            }
        };
        let opened = match bug {
            Some(Bug::RecoveryNotSynced) => {
                let mut disk = Unsynced(&mut state.disk);
                read(&mut disk, identity, &wal, &mut take_in).and_then(|log| log.open(&mut disk, least))
            }
            _ => {
                let disk = &mut state.disk;
                read(disk, identity, &wal, &mut take_in).and_then(|log| log.open(disk, least))
            }
        };
        let (log, report) = match opened {
            Ok(opened) => opened,
            Err(OpenError::Io { .. }) => return Err(NoStart::Crashed),
            Err(error) => return Err(NoStart::Refused(error.to_string())),
        };
        if let Err(error) = state_shard.replayed() {
            faults.push(error.to_string());
        }
        compare(&state_shard, &mut faults);
        for seq in own_blocks.iter().filter(|seq| at_crash.is_none_or(|(durable, _)| **seq > durable)) {
            // A recovery that was cut short has put the opening of its epoch where a lost block was.
            state.blocks.remove(seq);
        }
        state.hold_to_chain(&seen, &report, &mut faults);
        state.durable = log.durable().0;
        state.newest = state.durable;
        // Recovery has made what it found durable: should another shard's recovery crash, it is found again.
        state.at_crash = Some((report.last.0, state_shard.state_hash()));
        if let Some(fault) = faults.into_iter().next() {
            return Err(NoStart::Refused(fault));
        }
        if let Some(before) = before {
            let hash = state_shard.state_hash();
            self.recover_twice(before, &config, identity, hash)?;
        }
        self.trace.number(state_shard.state_hash());
        self.note(format_args!(
            "shard {shard} recovered blocks {} to {} under epoch {}, {:?}",
            report.first, report.last, report.epoch.0, report.end
        ));
        let far: BTreeMap<Sequence, WallMs> = match state_shard.far_events(&mut runs) {
            Ok(events) => events.into_iter().map(|(due, sequence)| (sequence, due)).collect(),
            Err(error) => return Err(NoStart::Refused(error.to_string())),
        };
        if far.len() as u64 != state_shard.stats().far {
            return Err(NoStart::Refused("events in runs are not counted rightly".into()));
        }
        let held = |sequence| match state_shard.event(sequence) {
            Some(event) => Some((event.due, Some(event.forward.map_or(0, |forward| forward.version)))),
            None => far.get(&sequence).map(|due| (*due, None)),
        };
        self.judge.recovered(ShardId(shard), held);
        for (subscription, outcome, sequence, at) in ends {
            let held = state_shard.registry().subscription(subscription);
            let index = held.and_then(|held| self.plan.subscription_named(&held.settings.name));
            self.judge.ended((ShardId(shard), sequence), index, outcome, at);
        }
        if remove_left_over(&mut self.disks[usize::from(shard)].disk, &state_shard).is_err() {
            return Err(NoStart::Crashed);
        }
        Ok(Recovered { shard: state_shard, log, report })
    }

    fn recover_twice(
        &mut self,
        mut disk: MemDisk,
        config: &ShardConfig,
        identity: LogIdentity,
        expected: u64,
    ) -> Result<(), NoStart> {
        disk.set_faults(Faults::default());
        for round in 0..2 {
            let mut shard = Shard::new(config.clone());
            let mut runs = RunDirectory(disk.clone());
            let mut error = None;
            let opened = open(&mut disk, identity, &self.plan.wal, &mut |block| {
                error = error.take().or(shard.replay_block(block.seq.0, block.records, &mut runs).err());
            });
            if let Err(error) = opened {
                return Err(NoStart::Refused(format!("recovered again, round {round}: {error}")));
            }
            if let Some(error) = error {
                return Err(NoStart::Refused(format!("recovered again, round {round}: {error}")));
            }
            if shard.state_hash() != expected && self.options.bug.is_none() {
                return Err(NoStart::Refused("recovering again gives another state".into()));
            }
            disk.power_cut();
        }
        Ok(())
    }

    /// The least epoch that this start opens logs with, as the node has it.
    fn least_epoch(&mut self) -> Epoch {
        let shards = self.plan.shards;
        let disks = (0..).zip(&mut self.disks).filter(|(_, state)| state.formatted);
        let epochs = disks.filter_map(|(shard, state)| {
            let identity = LogIdentity { cluster: CLUSTER, shard: ShardId(shard), shard_count: shards };
            last_epoch(&mut state.disk, identity).ok()
        });
        Epoch(epochs.max().unwrap_or_default().0 + 1)
    }

    /// The epoch that the shards' fences carry.
    fn fence_epochs(&self, recovered: &[Option<Recovered>]) -> Vec<Option<Epoch>> {
        let highest = recovered.iter().flatten().map(|r| r.report.epoch).max().unwrap_or_default();
        let epoch = self.epoch_of(highest);
        recovered.iter().map(|r| r.as_ref().map(|_| epoch)).collect()
    }

    fn start(&mut self, recovered: Vec<Option<Recovered>>, clock: WallClock, real_ns: u64) {
        let mut node = Node::new(self.incarnation, clock, self.plan.cores);
        let now = self.read_clock_at(&mut node, real_ns);
        node.started_ms = now.wall.0;
        let epochs = self.fence_epochs(&recovered);
        let all_serve = epochs.iter().all(Option::is_some);
        node.serving = epochs.iter().flatten().count() as u16;
        let shards = || recovered.iter().flatten().map(|r| &r.shard);
        let (version, control) = newest_control(shards());
        let newest = shards().map(Shard::registry).max_by_key(|registry| registry.version()).cloned();
        let mut by_core: Vec<Vec<Option<(Shard, LocalWal)>>> =
            (0..self.plan.cores).map(|_| Vec::new()).collect();
        for ((number, recovered), epoch) in (0..self.plan.shards).zip(recovered).zip(&epochs) {
            let opened = recovered.zip(*epoch).map(|(Recovered { mut shard, log, .. }, epoch)| {
                shard.recovered(now, epoch);
                (shard, log)
            });
            let core = core_of(ShardId(number), self.plan.cores);
            by_core[usize::from(core)].push(opened);
        }
        for (index, shards) in (0..self.plan.cores).zip(by_core) {
            let config = CoreConfig {
                core: index,
                core_count: self.plan.cores,
                shard_count: self.plan.shards,
                epochs: epochs.clone(),
                node_id: 1,
                commit: self.plan.commit,
                intake_size_bytes_max: 4 * 1024,
                credit_max: Credit { tasks: 1_000, bytes: 1 << 20 },
            };
            let mut core = Core::new(config, shards);
            if let Some(newest) = &newest {
                core.hold_registry(newest);
            }
            if self.options.bug != Some(Bug::ControlForgotten) {
                core.catch_up(now, version, &control);
            }
            let quic = self.server(index);
            node.add(core, quic);
        }
        self.trace.line(self.now_ns, format_args!("start {} at wall {}", self.incarnation, now.wall));
        self.judge.started(self.incarnation, now.wall, all_serve);
        self.node = Some(node);
        for core in 0..self.plan.cores {
            self.wake_core(core, 0);
        }
    }

    fn epoch_of(&self, epoch: Epoch) -> Epoch {
        match self.options.bug {
            Some(Bug::EpochAgain) => Epoch(1),
            _ => epoch,
        }
    }
}

impl ShardDisk {
    /// Every block that was found is one that was written, and none that was durable is missing.
    fn hold_to_chain(&mut self, seen: &[(u64, u64)], report: &RecoveryReport, faults: &mut Vec<String>) {
        let durable = self.at_crash.map_or(0, |(durable, _)| durable);
        if report.last < BlockSeq(durable) {
            faults.push(format!("blocks up to {durable} were durable, and recovery ends at {}", report.last));
        }
        for (seq, digest) in seen {
            if self.blocks.get(seq) != Some(digest) {
                faults.push(format!("block {seq} is not what was written"));
            }
        }
        let found: BTreeSet<u64> = seen.iter().map(|(seq, _)| *seq).collect();
        let missing = self.blocks.range(report.first.0..=report.last.0).find(|(seq, _)| !found.contains(seq));
        if let Some((seq, _)) = missing {
            faults.push(format!("block {seq} is missing inside the recovered chain"));
        }
        self.blocks.retain(|seq, _| *seq >= report.first.0 && *seq <= report.last.0);
    }
}
