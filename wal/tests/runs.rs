//! Run files beside a log: same disk, same operations, no business of the log's.

mod common;

use std::io;

use common::{Rig, records};
use escapement_protocol::WallMs;
use escapement_wal::*;

const FIRST: u64 = OpId::FOREIGN_BIT;

fn remove(id: u64, run: u32) -> DiskOp {
    DiskOp::Remove { id: OpId(id), file: FileId::Run(run) }
}

fn done(dir: &mut dyn Directory, op: DiskOp) -> io::Result<()> {
    let id = op.id();
    let completion = disk::execute(dir, op);
    assert_eq!(completion.id, id);
    completion.result
}

#[test]
fn a_removed_run_is_gone_and_a_missing_one_is_no_error() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let mut files = FsDirectory::new(root.path());
    let mut memory = memory::MemDisk::new(1);
    for dir in [&mut files as &mut dyn Directory, &mut memory] {
        done(dir, remove(FIRST, 1)).expect("neither file nor directory is there");
        dir.create_dir(disk::RUN_DIR).expect("the disk works");
        dir.create_zeroed("far/00000001.run", 4096).expect("the disk works");
        done(dir, remove(FIRST + 1, 1)).expect("the file is there");
        assert_eq!(dir.list(disk::RUN_DIR).expect("the disk works"), Vec::<String>::new());
        done(dir, remove(FIRST + 2, 1)).expect("the file is missing");
    }
}

#[test]
fn a_log_makes_no_foreign_operation() {
    let mut rig = Rig::new(1, WalConfig::tiny());
    for tag in 0..40 {
        let records = records(tag, 6_000);
        let block = BlockContent { records: &records, record_count: 1, leader_time: WallMs(tag) };
        while rig.wal.submit(block).is_err() {
            rig.wal.trim(BlockSeq(u64::MAX));
            while let Some(op) = rig.wal.poll_op() {
                assert!(!op.id().is_foreign(), "{op:?}");
                rig.disk.submit(op);
            }
            assert!(rig.step());
        }
    }
}

#[test]
#[should_panic(expected = "not the log's")]
fn a_foreign_completion_is_not_taken_for_the_logs() {
    let mut rig = Rig::new(1, WalConfig::tiny());
    rig.settle();
    rig.wal.on_completion(DiskCompletion { id: OpId(FIRST), result: Ok(()), buf: None });
}
