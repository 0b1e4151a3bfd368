//! The conformance suite over every log there is, and over one that lies.

mod common;

use std::path::PathBuf;

use common::{IDENTITY, Rig};
use escapement_protocol::Epoch;
use escapement_wal::conformance::{Found, Subject, run};
use escapement_wal::memory::MemoryLog;
use escapement_wal::*;

struct InMemory(MemoryLog);

impl Subject for InMemory {
    fn log(&mut self) -> &mut dyn ShardLog {
        &mut self.0
    }

    fn drive(&mut self) -> bool {
        self.0.complete_one()
    }

    fn crash(&mut self) -> Vec<Found> {
        let mut found = Vec::new();
        self.0.crash(&mut |block| found.extend(Found::from_recovered(&block)));
        found
    }
}

struct OnMemDisk(Rig);

impl Subject for OnMemDisk {
    fn log(&mut self) -> &mut dyn ShardLog {
        &mut self.0.wal
    }

    fn drive(&mut self) -> bool {
        self.0.step()
    }

    fn crash(&mut self) -> Vec<Found> {
        self.0.disk.power_cut();
        self.0.reopen().expect("a log opens after a power cut").0
    }
}

/// On real files, with operations executed one by one; a crash drops those not executed.
struct OnFiles {
    dir: tempfile::TempDir,
    wal: LocalWal,
    config: WalConfig,
}

impl OnFiles {
    fn new(config: WalConfig) -> OnFiles {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
        let mut files = FsDirectory::new(dir.path());
        format_log(&mut files, IDENTITY, &config).expect("an empty directory can be formatted");
        let (wal, _) = open(&mut files, IDENTITY, &config, &mut |_| {}).expect("a new log opens");
        OnFiles { dir, wal, config }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }
}

impl Subject for OnFiles {
    fn log(&mut self) -> &mut dyn ShardLog {
        &mut self.wal
    }

    fn drive(&mut self) -> bool {
        let Some(op) = self.wal.poll_op() else { return false };
        let completion = disk::execute(&mut FsDirectory::new(self.path()), op);
        self.wal.on_completion(completion);
        true
    }

    fn crash(&mut self) -> Vec<Found> {
        let mut found = Vec::new();
        let mut visitor = |block: RecoveredBlock<'_>| found.extend(Found::from_recovered(&block));
        let mut files = FsDirectory::new(self.dir.path());
        let (wal, _) =
            open(&mut files, IDENTITY, &self.config, &mut visitor).expect("a log opens after a crash");
        self.wal = wal;
        found
    }
}

#[test]
fn the_log_in_memory_conforms() {
    run(&mut || Box::new(InMemory(MemoryLog::new())));
}

#[test]
fn the_local_log_conforms_on_an_in_memory_disk() {
    for seed in 0..6 {
        run(&mut || Box::new(OnMemDisk(Rig::new(seed, WalConfig::tiny()))));
    }
}

#[test]
fn the_local_log_conforms_with_one_block_in_flight() {
    let config = WalConfig { in_flight_count_max: 1, ..WalConfig::tiny() };
    run(&mut || Box::new(OnMemDisk(Rig::new(1, config))));
}

#[test]
fn the_local_log_conforms_where_a_segment_holds_only_one_large_block() {
    let config = WalConfig { segment_size_bytes: 20 * 1024, ..WalConfig::tiny() };
    run(&mut || Box::new(OnMemDisk(Rig::new(1, config))));
}

#[test]
fn the_local_log_conforms_on_files() {
    run(&mut || Box::new(OnFiles::new(WalConfig::tiny())));
}

/// A planted bug: durable as soon as submitted.
struct AcknowledgesEarly {
    subject: OnMemDisk,
    claimed: BlockSeq,
}

impl Subject for AcknowledgesEarly {
    fn log(&mut self) -> &mut dyn ShardLog {
        self
    }

    fn drive(&mut self) -> bool {
        self.subject.drive()
    }

    fn crash(&mut self) -> Vec<Found> {
        self.subject.crash()
    }
}

impl ShardLog for AcknowledgesEarly {
    fn epoch(&self) -> Epoch {
        self.subject.0.wal.epoch()
    }

    fn submit(&mut self, block: BlockContent<'_>) -> Result<BlockSeq, LogError> {
        self.claimed = self.subject.0.wal.submit(block)?;
        Ok(self.claimed)
    }

    fn ready(&self) -> bool {
        self.subject.0.wal.ready()
    }

    fn in_flight(&self) -> usize {
        self.subject.0.wal.in_flight()
    }

    fn durable(&self) -> BlockSeq {
        self.claimed.max(self.subject.0.wal.durable())
    }

    fn records_size_bytes_max(&self) -> usize {
        self.subject.0.wal.records_size_bytes_max()
    }

    fn read(&mut self, from: BlockSeq) -> Result<(), LogError> {
        self.subject.0.wal.read(from)
    }

    fn poll_read(&mut self) -> Option<Result<ReadChunk, LogError>> {
        self.subject.0.wal.poll_read()
    }

    fn trim(&mut self, upto: BlockSeq) {
        self.subject.0.wal.trim(upto);
    }

    fn error(&self) -> Option<LogError> {
        self.subject.0.wal.error()
    }
}

#[test]
#[should_panic(expected = "durable blocks were found after a crash")]
fn a_log_that_acknowledges_before_the_write_completes_is_caught() {
    run(&mut || {
        let subject = OnMemDisk(Rig::new(3, WalConfig::tiny()));
        Box::new(AcknowledgesEarly { subject, claimed: BlockSeq(0) })
    });
}
