//! A log on an in-memory disk, and what the tests do with it.
#![allow(dead_code, reason = "every test file uses another part")]

use escapement_protocol::{ShardId, WallMs};
use escapement_wal::conformance::Found;
use escapement_wal::memory::MemDisk;
use escapement_wal::*;

pub(crate) const IDENTITY: LogIdentity = LogIdentity { cluster: 0xc1, shard: ShardId(7), shard_count: 8 };

/// A log and its disk.
pub(crate) struct Rig {
    pub(crate) disk: MemDisk,
    pub(crate) wal: LocalWal,
    pub(crate) config: WalConfig,
}

impl Rig {
    pub(crate) fn new(seed: u64, config: WalConfig) -> Rig {
        let mut disk = MemDisk::new(seed);
        format_log(&mut disk, IDENTITY, &config).expect("an empty disk can be formatted");
        let (wal, _) = open(&mut disk, IDENTITY, &config, &mut |_| {}).expect("a new log opens");
        Rig { disk, wal, config }
    }

    /// Hands all operations to the disk.
    pub(crate) fn pump(&mut self) {
        while let Some(op) = self.wal.poll_op() {
            self.disk.submit(op);
        }
    }

    /// Completes one operation; answers whether there was one.
    pub(crate) fn step(&mut self) -> bool {
        self.pump();
        let completion = self.disk.step();
        let any = completion.is_some();
        if let Some(completion) = completion {
            self.wal.on_completion(completion);
        }
        self.pump();
        any
    }

    pub(crate) fn settle(&mut self) {
        while self.step() {}
    }

    pub(crate) fn submit(&mut self, records: &[u8]) -> Result<BlockSeq, LogError> {
        let leader_time = WallMs(records.len() as u64);
        let seq = self.wal.submit(BlockContent { records, record_count: 1, leader_time });
        self.pump();
        seq
    }

    /// Opens again, after a crash that the caller made.
    pub(crate) fn reopen(&mut self) -> Result<(Vec<Found>, RecoveryReport), OpenError> {
        let mut found = Vec::new();
        let config = self.config;
        let mut visitor = |block: RecoveredBlock<'_>| found.extend(Found::from_recovered(&block));
        let (wal, report) = open(&mut self.disk, IDENTITY, &config, &mut visitor)?;
        self.wal = wal;
        Ok((found, report))
    }
}

/// Records that tell which block they belong to.
pub(crate) fn records(tag: u64, size_bytes: usize) -> Vec<u8> {
    let mut bytes = tag.to_le_bytes().to_vec();
    bytes.extend((8..size_bytes.max(8)).map(|at| (at as u64 ^ tag) as u8));
    bytes
}
