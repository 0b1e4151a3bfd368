//! Looking at a log as opening would, without opening it.

mod common;

use common::{IDENTITY, records};
use escapement_protocol::WallMs;
use escapement_wal::format::{SUPER_COPY_SIZE_BYTES, Superblock};
use escapement_wal::*;

/// A log of a few segments in `dir`.
fn log_in(dir: &tempfile::TempDir) -> FsDirectory {
    let mut files = FsDirectory::new(dir.path());
    let config = WalConfig::tiny();
    format_log(&mut files, IDENTITY, &config).expect("an empty directory can be formatted");
    let (mut wal, _) = open(&mut files, IDENTITY, &config, &mut |_| {}).expect("a new log opens");
    for tag in 0..12 {
        let records = records(tag, 9_000);
        let content = BlockContent { records: &records, record_count: 1, leader_time: WallMs(1) };
        wal.submit(content).expect("one block is in flight at a time");
        while let Some(op) = wal.poll_op() {
            wal.on_completion(disk::execute(&mut files, op));
        }
    }
    files
}

type Blocks = Vec<(BlockSeq, Vec<u8>)>;

fn checked(files: &mut dyn Directory) -> Result<(Blocks, RecoveryReport), OpenError> {
    let mut blocks = Vec::new();
    let mut visit = |block: RecoveredBlock<'_>| blocks.push((block.seq, block.records.to_vec()));
    let report = check(files, IDENTITY, &WalConfig::tiny(), &mut visit)?;
    Ok((blocks, report))
}

#[test]
fn a_check_finds_what_opening_finds_and_writes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(log_in(&dir));
    let mut files = FsDirectory::read_only(dir.path());
    let path = FileId::Slot(0).path();
    assert!(files.write_at(&path, 0, &AlignedBuf::zeroed(4096)).is_err() && files.remove(&path).is_err());
    let (blocks, report) = checked(&mut files).expect("intact");
    let again = checked(&mut files).expect("still intact");
    assert_eq!((&blocks, &report), (&again.0, &again.1));

    let mut opened = Vec::new();
    let mut visit = |block: RecoveredBlock<'_>| opened.push((block.seq, block.records.to_vec()));
    let (_, found) = open(&mut FsDirectory::new(dir.path()), IDENTITY, &WalConfig::tiny(), &mut visit)
        .expect("a check has changed nothing");
    assert_eq!(blocks, opened);
    assert_eq!(found, RecoveryReport { epoch: found.epoch, ..report });
    assert_eq!(found.epoch.0, report.epoch.0 + 1, "only opening begins an epoch");
}

#[test]
fn damage_is_refused_as_opening_refuses_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut files = log_in(&dir);
    let mut page = AlignedBuf::zeroed(4096);
    let path = FileId::Slot(0).path();
    files.read_at(&path, 8192, &mut page).expect("the disk works");
    page[200] ^= 1;
    files.write_at(&path, 8192, &page).expect("the disk works");
    let refused = checked(&mut FsDirectory::read_only(dir.path())).expect_err("acknowledged");
    let again = open(&mut files, IDENTITY, &WalConfig::tiny(), &mut |_| {}).expect_err("acknowledged");
    assert!(matches!(refused, OpenError::Corrupt { first: BlockSeq(2), offset: 8192, .. }), "{refused}");
    assert_eq!(refused.to_string(), again.to_string());
}

#[test]
fn a_damaged_copy_of_super_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(log_in(&dir));
    let path = dir.path().join(FileId::Super.path());
    let mut bytes = std::fs::read(&path).expect("the disk works");
    let before = Superblock::generations(&bytes);
    assert!(before.iter().all(|generation| generation.is_some() && *generation == before[0]));
    bytes[2 * SUPER_COPY_SIZE_BYTES + 100] ^= 1;
    let after = Superblock::generations(&bytes);
    assert_eq!(after, [before[0], before[1], None, before[3]]);
    assert_eq!(Superblock::generations(&bytes[..5000]), [before[0], None, None, None]);
}
