//! Run files beside a log: same disk, same operations, no business of the log's.

mod common;

use std::collections::BTreeSet;
use std::io;

use common::{IDENTITY, Rig, records};
use escapement_protocol::WallMs;
use escapement_wal::memory::{Faults, MemDisk};
use escapement_wal::*;

const FIRST: u64 = OpId::FOREIGN_BIT;
const PAGE: usize = 4096;

fn create(id: u64, run: u32) -> DiskOp {
    DiskOp::Create { id: OpId(id), file: FileId::Run(run), size_bytes: 0 }
}

fn write(id: u64, run: u32, page: usize, byte: u8, page_count: usize) -> DiskOp {
    let mut buf = AlignedBuf::zeroed(page_count * PAGE);
    buf.fill(byte);
    DiskOp::Write { id: OpId(id), file: FileId::Run(run), offset: (page * PAGE) as u64, buf }
}

fn read(id: u64, run: u32, page_count: usize) -> DiskOp {
    let buf = AlignedBuf::zeroed(page_count * PAGE);
    DiskOp::Read { id: OpId(id), file: FileId::Run(run), offset: 0, buf }
}

fn remove(id: u64, run: u32) -> DiskOp {
    DiskOp::Remove { id: OpId(id), file: FileId::Run(run) }
}

fn done(dir: &mut dyn Directory, op: DiskOp) -> io::Result<()> {
    let id = op.id();
    let completion = disk::execute(dir, op);
    assert_eq!(completion.id, id);
    completion.result
}

/// The bytes that stand at the start of each page of a run, `None` where there is no such file.
fn pages(dir: &mut dyn Directory, run: u32) -> Option<Vec<u8>> {
    let path = FileId::Run(run).path();
    let size_bytes = dir.size(&path).expect("the disk works")?;
    let mut buf = AlignedBuf::zeroed(size_bytes as usize);
    assert_eq!(dir.read_at(&path, 0, &mut buf).expect("the disk works"), buf.len());
    Some(buf.chunks(PAGE).map(|page| page[0]).collect())
}

/// A run's life, by whatever executes operations.
fn a_run_is_made_extended_read_and_removed(mut execute: impl FnMut(DiskOp) -> DiskCompletion) {
    let mut end = |op: DiskOp| {
        let id = op.id();
        let completion = execute(op);
        assert_eq!(completion.id, id);
        completion.result.map(|()| completion.buf)
    };
    assert_eq!(end(read(FIRST, 1, 1)).expect_err("not made yet").kind(), io::ErrorKind::NotFound);
    for run in [1, 2] {
        assert!(end(create(FIRST, run)).expect("the first makes the directory too").is_none());
        assert_eq!(end(read(FIRST, run, 1)).expect_err("empty").kind(), io::ErrorKind::UnexpectedEof);
        for page in 0..3 {
            end(write(FIRST + 1 + page as u64, run, page, b'a' + page as u8, 1)).expect("it grows");
        }
        assert_eq!(end(create(FIRST, run)).expect_err("it is there").kind(), io::ErrorKind::AlreadyExists);
        let found = end(read(FIRST, run, 3)).expect("three pages").expect("a read brings its buffer back");
        assert!(found.chunks(PAGE).zip(b"abc").all(|(page, byte)| page.iter().all(|found| found == byte)));
        assert_eq!(end(read(FIRST, run, 4)).expect_err("three pages").kind(), io::ErrorKind::UnexpectedEof);
        end(remove(FIRST, run)).expect("it is there");
        assert_eq!(end(read(FIRST, run, 3)).expect_err("removed").kind(), io::ErrorKind::NotFound);
        let refused = end(write(FIRST, run, 3, b'd', 1)).expect_err("removed");
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
    }
}

#[test]
fn runs_live_and_end_on_files_and_in_memory() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let mut files = FsDirectory::new(root.path());
    a_run_is_made_extended_read_and_removed(|op| disk::execute(&mut files, op));
    let mut memory = MemDisk::new(1);
    a_run_is_made_extended_read_and_removed(|op| {
        memory.submit(op);
        memory.step().expect("one is pending")
    });
}

#[test]
fn more_runs_than_a_directory_keeps_open_are_all_written_and_read() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let mut files = FsDirectory::new(root.path());
    for run in 0..70 {
        done(&mut files, create(FIRST, run)).expect("a new number");
        done(&mut files, write(FIRST, run, 0, run as u8, 1)).expect("it is there");
    }
    let open = std::fs::read_dir("/proc/self/fd").expect("Linux").filter(|fd| {
        let target = fd.as_ref().map(|fd| std::fs::read_link(fd.path()));
        matches!(target, Ok(Ok(target)) if target.starts_with(root.path()))
    });
    assert_eq!(open.count(), 64);
    for run in 0..70 {
        assert_eq!(pages(&mut files, run), Some(vec![run as u8]));
    }
}

/// Two runs, the first with one page, and an operation on the second in flight when the machine stops.
fn stopped_in(op: impl Fn() -> DiskOp, seed: u64, killed_first: bool) -> MemDisk {
    let mut disk = MemDisk::new(seed);
    for op in [create(FIRST, 1), write(FIRST, 1, 0, b'a', 1)] {
        disk.submit(op);
        disk.step().expect("one is pending").result.expect("the disk works");
    }
    disk.submit(op());
    if killed_first {
        disk.kill();
    }
    disk.power_cut();
    disk
}

#[test]
fn a_power_cut_decides_what_becomes_of_operations_in_flight() {
    for killed_first in [false, true] {
        let seen = |op: &dyn Fn() -> DiskOp, run: u32| -> BTreeSet<Option<Vec<u8>>> {
            (0..300).map(|seed| pages(&mut stopped_in(op, seed, killed_first), run)).collect()
        };
        assert_eq!(seen(&|| create(FIRST, 2), 2), [None, Some(vec![])].into(), "made or not");
        assert_eq!(seen(&|| remove(FIRST, 1), 1), [None, Some(vec![b'a'])].into(), "removed or not");
        let written = seen(&|| write(FIRST, 1, 1, b'b', 2), 1);
        for outcome in [&b"a"[..], b"ab", b"abb", b"a\0\0", b"a\0b", b"ab\0"] {
            assert!(written.contains(&Some(outcome.to_vec())), "{outcome:?} is not among {written:?}");
        }
        assert!(written.iter().flatten().all(|pages| pages[0] == b'a' && pages.len() <= 3), "{written:?}");
    }
}

#[test]
fn what_has_completed_survives_every_crash() {
    for seed in 0..200 {
        let mut disk = MemDisk::new(seed);
        for op in [create(FIRST, 1), create(FIRST, 2), write(FIRST, 1, 0, b'a', 2), remove(FIRST, 2)] {
            disk.submit(op);
            disk.step().expect("one is pending").result.expect("the disk works");
        }
        disk.submit(write(FIRST, 1, 2, b'b', 1));
        if seed % 2 == 0 {
            disk.kill();
        }
        disk.power_cut();
        assert!(pages(&mut disk, 1).expect("made").starts_with(b"aa"), "seed {seed}");
        assert_eq!(pages(&mut disk, 2), None, "seed {seed}");
    }
}

#[test]
fn a_sync_keeps_what_a_killed_process_left() {
    let mut grown = 0;
    for seed in 0..100 {
        let mut disk = MemDisk::new(seed);
        disk.submit(create(FIRST, 1));
        disk.step().expect("one is pending").result.expect("the disk works");
        disk.submit(write(FIRST, 1, 0, b'a', 2));
        disk.kill();
        let before = pages(&mut disk, 1);
        disk.sync("far/00000001.run").expect("the disk works");
        disk.power_cut();
        assert_eq!(pages(&mut disk, 1), before, "seed {seed}");
        grown += usize::from(before.is_some_and(|pages| !pages.is_empty()));
    }
    assert!(grown > 0);
}

#[test]
fn a_full_disk_and_a_failed_write_end_a_runs_operation_with_an_error() {
    let mut disk = MemDisk::new(1);
    disk.submit(create(FIRST, 1));
    disk.step().expect("one is pending").result.expect("the disk works");
    disk.set_faults(Faults { no_space: true, write_fails_after: Some(0), ..Faults::default() });
    disk.submit(create(FIRST, 2));
    let refused = disk.step().expect("one is pending").result.expect_err("the disk is full");
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    disk.submit(write(FIRST, 1, 0, b'a', 1));
    let failed = disk.step().expect("one is pending");
    assert!(failed.result.is_err() && failed.buf.is_some());
}

#[test]
fn a_log_opens_and_is_inspected_beside_runs_and_leaves_them_alone() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let mut files = FsDirectory::new(root.path());
    let mut memory = MemDisk::new(1);
    let config = WalConfig::tiny();
    for dir in [&mut files as &mut dyn Directory, &mut memory] {
        format_log(dir, IDENTITY, &config).expect("an empty directory can be formatted");
        done(dir, create(FIRST, 7)).expect("a new number");
        done(dir, write(FIRST, 7, 0, b'a', 2)).expect("it grows");
        dir.create_zeroed("far/stray", 4096).expect("the disk works");
        for _ in 0..2 {
            open(dir, IDENTITY, &config, &mut |_| {}).expect("a log beside runs opens");
        }
        assert_eq!(pages(dir, 7), Some(b"aa".to_vec()));
        let mut names = dir.list(RUN_DIR).expect("the disk works");
        names.sort();
        assert_eq!(names, ["00000007.run", "stray"]);
    }
    let seen = inspect::inspect(root.path()).expect("a log beside runs can be inspected");
    assert!(
        seen.superblock.is_ok()
            && seen.segments.iter().all(|segment| matches!(segment.file, FileId::Slot(_)))
    );
}

#[test]
fn runs_without_a_log_are_not_formatted_over() {
    let mut disk = MemDisk::new(1);
    done(&mut disk, create(FIRST, 7)).expect("a new number");
    let error = format_log(&mut disk, IDENTITY, &WalConfig::tiny()).expect_err("a run is here");
    assert!(matches!(error, OpenError::AlreadyFormatted { found } if found == "far/00000007.run"));
}

#[test]
fn a_removed_run_is_gone_and_a_missing_one_is_no_error() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let mut files = FsDirectory::new(root.path());
    let mut memory = MemDisk::new(1);
    for dir in [&mut files as &mut dyn Directory, &mut memory] {
        done(dir, remove(FIRST, 1)).expect("neither file nor directory is there");
        dir.create_dir(RUN_DIR).expect("the disk works");
        dir.create_zeroed("far/00000001.run", 4096).expect("the disk works");
        done(dir, remove(FIRST + 1, 1)).expect("the file is there");
        assert_eq!(dir.list(RUN_DIR).expect("the disk works"), Vec::<String>::new());
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
