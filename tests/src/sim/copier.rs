//! A client that takes snapshots: it asks the node to keep its files, copies them from the disks a shard at a time while
//! everything goes on, and holds each copy that the node confirms to what was acknowledged before it asked.

use std::collections::BTreeSet;

use escapement_engine::Shard;
use escapement_node::runs::RunDirectory;
use escapement_protocol::frame::{AdminRequest, Frame, SnapshotInfo};
use escapement_protocol::{Sequence, ShardId};
use escapement_wal::format::Checksum;
use escapement_wal::memory::{MemDisk, Rng};
use escapement_wal::{
    AlignedBuf, BlockSeq, Directory, LogCut, LogIdentity, RUN_DIR, check_copy, copy_log, open,
};

use super::bug::Bug;
use super::control::{Received, hello, written};
use super::judge::Key;
use super::net::connection_of;
use super::recovery::CLUSTER;
use super::world::{Who, World};

#[derive(Debug)]
pub(super) struct Copier {
    /// Of its own: seeds without snapshots stay as they are.
    rng: Rng,
    connection: Option<u64>,
    requests: u64,
    under_way: Option<Copying>,
}

#[derive(Debug)]
struct Copying {
    /// Acknowledged and not ended when the snapshot was asked for.
    owed: BTreeSet<Key>,
    held: Option<SnapshotInfo>,
    copies: Vec<Result<MemDisk, String>>,
    is_ending: bool,
    is_confirmed: bool,
}

impl Copier {
    pub(super) fn new(seed: u64) -> Copier {
        Copier { rng: Rng::new(seed ^ 0x736e_6170), connection: None, requests: 0, under_way: None }
    }

    pub(super) fn cut(&mut self, connection: u64) {
        if self.connection == Some(connection) {
            self.connection = None;
            self.under_way = None;
        }
    }
}

impl World {
    pub(super) fn copier_wakes(&mut self) {
        if self.is_calm() {
            return;
        }
        let after_ms = 1 + self.copier.rng.below(if self.copier.under_way.is_some() { 100 } else { 30 });
        self.wake(Who::Copier, after_ms);
        let connection = match self.copier.connection {
            Some(connection) => connection,
            None => {
                let Some(connection) = self.connect(Who::Copier) else { return };
                self.copier.connection = Some(connection);
                self.send(connection, 0, &hello(), Vec::new());
                connection
            }
        };
        if self.copier.under_way.is_none() {
            let owed = self.judge.outstanding().into_iter().map(|(key, _)| key).collect();
            self.copier.under_way =
                Some(Copying { owed, held: None, copies: Vec::new(), is_ending: false, is_confirmed: false });
            let hold_ms = if self.copier.rng.one_in(5) { 100 } else { 60_000 };
            return self.ask_of_copier(connection, AdminRequest::Snapshot { hold_ms });
        }
        self.copy_next();
        self.end_copying(connection);
    }

    fn ask_of_copier(&mut self, connection: u64, body: AdminRequest) {
        self.copier.requests += 1;
        let bytes = written(&Frame::Admin { request: self.copier.requests, body });
        self.send(connection, 0, &bytes, Vec::new());
    }

    fn copy_next(&mut self) {
        let wal = self.plan.wal;
        let Some(copying) = &mut self.copier.under_way else { return };
        let Some(held) = &copying.held else { return };
        let Some(cut) = held.shards.get(copying.copies.len()) else { return };
        let shard = cut.shard;
        let identity = LogIdentity { cluster: CLUSTER, shard, shard_count: self.plan.shards };
        let cut = LogCut {
            epoch: cut.epoch,
            first_segment_id: cut.first_segment_id,
            first_block_seq: BlockSeq(cut.first_block_seq),
            first_prev_checksum: Checksum(cut.first_prev_checksum),
            through: BlockSeq(cut.through_block_seq),
            end_segment_id: cut.end_segment_id,
            end_offset: cut.end_offset,
        };
        let from = &mut self.disks[usize::from(shard.0)].disk;
        let mut copy = MemDisk::new(0);
        let copied = copy_log(from, &mut copy, identity, &wal, &cut)
            .and_then(|_| check_copy(&mut copy, identity, &wal, &cut))
            .map_err(|error| error.to_string())
            .and_then(|()| copy_runs(from, &mut copy).map_err(|error| format!("its runs: {error}")));
        copying.copies.push(copied.map(|()| copy));
        self.note(format_args!("shard {} copied through block {}", shard.0, cut.through));
    }

    /// Asks whether the files were kept, once they are copied.
    fn end_copying(&mut self, connection: u64) {
        let early = self.options.bug == Some(Bug::FilesLetGo);
        let Some(copying) = &mut self.copier.under_way else { return };
        let Some(held) = &copying.held else { return };
        let is_copied = copying.copies.len() == held.shards.len();
        let snapshot = held.snapshot;
        if is_copied && copying.is_confirmed {
            return self.judge_copies();
        }
        if !copying.is_ending && (early || is_copied) {
            copying.is_ending = true;
            self.ask_of_copier(connection, AdminRequest::EndSnapshot { snapshot });
        }
    }

    pub(super) fn copier_frame(&mut self, stream: u64, frame: Received) {
        if self.copier.connection != Some(connection_of(stream)) {
            return;
        }
        let Some(copying) = &mut self.copier.under_way else { return };
        match frame {
            Received::SnapshotHeld(held) => {
                copying.held = Some(held);
                self.end_copying(connection_of(stream));
            }
            Received::SnapshotEnded => {
                copying.is_confirmed = true;
                self.end_copying(connection_of(stream));
            }
            // Given up, or a shard that stops.
            Received::Error { request, .. } if request > 0 => self.copier.under_way = None,
            _ => {}
        }
    }

    /// A copy that was confirmed opens, and holds all that was acknowledged before it was asked for and is still owed.
    fn judge_copies(&mut self) {
        let Some(Copying { owed, copies, .. }) = self.copier.under_way.take() else { return };
        self.counts.snapshots += 1;
        let still: BTreeSet<Key> = self.judge.outstanding().into_iter().map(|(key, _)| key).collect();
        for (shard, copy) in (0..).zip(copies) {
            let pending = match copy.and_then(|copy| self.pending_in(shard, copy)) {
                Ok(pending) => pending,
                Err(error) => {
                    return self.judge.breach(format!("the copy of shard {shard} was confirmed: {error}"));
                }
            };
            let mine = owed.intersection(&still).filter(|key| key.0 == ShardId(shard));
            if let Some(key) = mine.into_iter().find(|key| !pending.contains(&key.1)) {
                self.judge
                    .breach(format!("event {key:?} was acknowledged before a snapshot and is not in it"));
            }
        }
    }

    /// Starts a shard on a copy; answers what is pending there.
    fn pending_in(&self, shard: u16, mut copy: MemDisk) -> Result<BTreeSet<Sequence>, String> {
        let identity = LogIdentity { cluster: CLUSTER, shard: ShardId(shard), shard_count: self.plan.shards };
        let mut state = Shard::new(self.shard_config(shard));
        let mut runs = RunDirectory(copy.clone());
        let mut fault = None;
        let opened = open(&mut copy, identity, &self.plan.wal, &mut |block| {
            let replayed = state.replay_block(block.seq.0, block.records, &mut runs);
            fault = fault.take().or(replayed.err().map(|error| error.to_string()));
        });
        opened.map_err(|error| error.to_string())?;
        fault.map_or(Ok(()), Err)?;
        state.replayed().map_err(|error| error.to_string())?;
        let far = state.far_events(&mut runs).map_err(|error| error.to_string())?;
        let far: BTreeSet<Sequence> = far.into_iter().map(|(_, sequence)| sequence).collect();
        let all = self.judge.outstanding().into_iter().map(|(key, _)| key.1);
        Ok(all.filter(|sequence| state.event(*sequence).is_some() || far.contains(sequence)).collect())
    }
}

fn copy_runs(from: &mut MemDisk, to: &mut MemDisk) -> std::io::Result<()> {
    for name in from.list(RUN_DIR)? {
        let path = format!("{RUN_DIR}/{name}");
        let size_bytes = from.size(&path)?.unwrap_or(0) as usize;
        let mut bytes = AlignedBuf::zeroed(size_bytes);
        let read = from.read_at(&path, 0, &mut bytes)?;
        to.create_zeroed(&path, 0)?;
        to.write_at(&path, 0, &bytes[..read])?;
    }
    Ok(())
}
