//! What is told of logs that are not as they should be.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use escapement_engine::record::RecordWriter;
use escapement_protocol::{Sequence, ShardId, WallMs};
use escapement_wal::{BlockContent, FsDirectory, LogIdentity, ShardLog, WalConfig, disk, format_log, open};
use tempfile::TempDir;

use super::*;

/// A log of several segments whose last write is torn, if that is asked for.
fn log_of_segments() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut files = FsDirectory::new(dir.path());
    let config = WalConfig::tiny();
    let identity = LogIdentity { cluster: 1, shard: ShardId(0), shard_count: 1 };
    format_log(&mut files, identity, &config).unwrap();
    let (mut wal, _) = open(&mut files, identity, &config, &mut |_| {}).unwrap();
    let (mut records, mut record_count) = (Vec::new(), 0);
    let mut writer = RecordWriter::new(&mut records, &mut record_count);
    (0..100).for_each(|sequence| writer.mark(Sequence(sequence)));
    let mut left = 40;
    while left > 0 {
        let content = BlockContent { records: &records, record_count, leader_time: WallMs(1) };
        left -= u32::from(wal.submit(content).is_ok());
        while let Some(op) = wal.poll_op() {
            wal.on_completion(disk::execute(&mut files, op));
        }
    }
    dir
}

fn look(dir: &TempDir) -> (Vec<Value>, Vec<String>, bool) {
    let mut found = Found::new(0, None);
    found.look_at(dir.path()).unwrap();
    let blocks = SEGMENT_COLUMNS.iter().position(|column| *column == "blocks").unwrap();
    (found.rows.iter().map(|row| row[blocks].clone()).collect(), found.told, found.damaged)
}

fn blocks(counts: &[Value]) -> u64 {
    counts.iter().map(|count| count.as_u64().unwrap()).sum()
}

/// Changes a byte of the segment that comes at that place in the order of writing.
fn flip(dir: &TempDir, segment: usize, offset: u64) {
    let file = inspect(dir.path()).unwrap().segments[segment].file;
    let file = OpenOptions::new().read(true).write(true).open(dir.path().join(file.path())).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn a_whole_log_is_counted_over_its_segments_and_nothing_is_told() {
    let (counts, told, damaged) = look(&log_of_segments());
    assert_eq!((blocks(&counts), told, damaged), (41, Vec::new(), false), "and the epoch's first");
    assert!(counts.iter().filter(|count| **count != 0).count() > 2, "{counts:?}");
}

#[test]
fn a_damaged_block_in_the_middle_is_told_with_its_place() {
    let dir = log_of_segments();
    flip(&dir, 1, 3 * 4096 + 500);
    let (_, told, damaged) = look(&dir);
    assert!(damaged && told.len() == 1, "{told:?}");
    assert!(told[0].contains("from 12288 in wal/") && told[0].contains("acknowledged"), "{told:?}");
}

#[test]
fn a_missing_segment_is_told() {
    let dir = log_of_segments();
    let first = inspect(dir.path()).unwrap().segments[0].file.path();
    std::fs::remove_file(dir.path().join(first)).unwrap();
    let (_, told, damaged) = look(&dir);
    assert!(damaged && told[0].starts_with("blocks 1 to "), "{told:?}");
}

#[test]
fn a_truncated_file_is_told_with_both_sizes() {
    let dir = log_of_segments();
    let first = inspect(dir.path()).unwrap().segments[0].file.path();
    let file = OpenOptions::new().write(true).open(dir.path().join(&first)).unwrap();
    file.set_len(20_000).unwrap();
    let (_, told, damaged) = look(&dir);
    assert!(damaged && told.len() == 2, "{told:?}");
    assert_eq!(told[0], format!("{first} has 20000 bytes, and its header says 65536"));
    assert!(told[1].contains("missing"), "{told:?}");
}

#[test]
fn a_torn_last_write_is_told_and_is_no_damage() {
    let dir = log_of_segments();
    let seen = inspect(dir.path()).unwrap();
    let segment = seen.segments.iter().rposition(|segment| segment.extents().count() > 1).unwrap();
    let last = seen.segments[segment].extents().last().unwrap().frame.place.offset;
    flip(&dir, segment, u64::from(last) + 500);
    let (counts, told, damaged) = look(&dir);
    assert_eq!((blocks(&counts), damaged), (40, false), "{told:?}");
    assert!(told.len() == 1 && told[0].contains(&format!("a torn write at {last}")), "{told:?}");
}
