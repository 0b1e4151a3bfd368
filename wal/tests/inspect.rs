//! Looking at a log from outside.

mod common;

use common::{IDENTITY, records};
use escapement_protocol::WallMs;
use escapement_wal::*;

#[test]
fn an_inspection_shows_every_block_and_does_not_hide_damage() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let mut files = FsDirectory::new(dir.path());
    let config = WalConfig::tiny();
    format_log(&mut files, IDENTITY, &config).expect("an empty directory can be formatted");
    let (mut wal, _) = open(&mut files, IDENTITY, &config, &mut |_| {}).expect("a new log opens");
    let mut written = Vec::new();
    for tag in 0..40 {
        let bytes = records(tag, 100 + 300 * tag as usize);
        loop {
            let content = BlockContent { records: &bytes, record_count: 1, leader_time: WallMs(tag) };
            let submitted = wal.submit(content);
            while let Some(op) = wal.poll_op() {
                wal.on_completion(disk::execute(&mut files, op));
            }
            if submitted.is_ok() {
                break;
            }
        }
        written.push(bytes);
    }

    let seen = inspect::inspect(dir.path()).expect("a log can be inspected beside its node");
    assert_eq!(seen.superblock.expect("SUPER is intact").epoch.0, 1);
    assert!(seen.segments.iter().filter(|segment| segment.sealed).count() >= 2);
    let found: Vec<Vec<u8>> = seen
        .segments
        .iter()
        .flat_map(|segment| segment.extents())
        .map(|extent| extent.block.expect("every block is intact"))
        .filter(|block| block.header().kind == BlockKind::Data)
        .map(|block| block.records().to_vec())
        .collect();
    assert_eq!(found, written);

    let damaged = seen.segments[0].file.path();
    let mut sector = AlignedBuf::zeroed(4096);
    files.read_at(&damaged, 8192, &mut sector).expect("readable");
    sector[1_000] ^= 1;
    files.write_at(&damaged, 8192, &sector).expect("writable");
    let seen = inspect::inspect(dir.path()).expect("damage is no error");
    let broken = seen.segments[0].extents().filter(|extent| extent.block.is_none()).count();
    assert_eq!(broken, 1);
    let whole: usize = seen.segments.iter().map(|segment| segment.extents().count()).sum();
    assert_eq!(whole, written.len() + 1, "a damaged block is shown, with the block that opened the epoch");
}

#[test]
fn a_log_without_its_segment_folder_is_refused_without_a_token() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let mut files = FsDirectory::new(dir.path());
    let config = WalConfig::tiny();
    format_log(&mut files, IDENTITY, &config).expect("an empty directory can be formatted");
    open(&mut files, IDENTITY, &config, &mut |_| {}).expect("a new log opens");
    std::fs::remove_dir_all(dir.path().join("wal")).expect("it is there");
    let mut files = FsDirectory::new(dir.path());
    let refused = open(&mut files, IDENTITY, &config, &mut |_| {}).expect_err("nothing is left to open");
    assert!(matches!(refused, OpenError::SegmentsMissing { .. }), "{refused}");
}
