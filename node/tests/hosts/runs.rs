//! Claims about files that are many: made empty, extended, removed, and only some of them open.

use std::path::Path;

use super::*;

/// Files that a host may keep open.
const OPEN_COUNT_MAX: usize = 64;

fn create(run: u32) -> DiskOp {
    DiskOp::Create { id: OpId(u64::from(run)), file: FileId::Run(run), size_bytes: 0 }
}

fn write(run: u32, page: u64) -> DiskOp {
    let buf = pattern(4096, run as u8 ^ page as u8);
    DiskOp::Write { id: OpId(u64::from(run)), file: FileId::Run(run), offset: page * 4096, buf }
}

fn read(run: u32, len: usize) -> DiskOp {
    let buf = AlignedBuf::zeroed(len);
    DiskOp::Read { id: OpId(u64::from(run)), file: FileId::Run(run), offset: 0, buf }
}

fn remove(run: u32) -> DiskOp {
    DiskOp::Remove { id: OpId(u64::from(run)), file: FileId::Run(run) }
}

fn done(rig: &mut Rig, op: DiskOp) -> std::io::Result<Option<AlignedBuf>> {
    let id = op.id();
    rig.io.disk_submit(SHARD, op);
    let completion = rig.complete(1).remove(0);
    assert_eq!(completion.id, id);
    completion.result.map(|()| completion.buf)
}

/// Descriptors of this process that name a file under `dir`, removed ones too.
fn open_count(dir: &Path) -> usize {
    let targets = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    targets.filter(|target| target.starts_with(dir)).count()
}

/// Waits until at most `most` files are open: a host may close one a turn after it gave it up.
fn wait_for_open_count(rig: &mut Rig, most: usize) {
    let start = Instant::now();
    while open_count(rig.dir.path()) > most {
        assert!(start.elapsed() < PATIENCE, "{} files are open", open_count(rig.dir.path()));
        rig.turn(&mut Vec::new());
    }
}

pub(super) fn a_run_is_made_extended_read_and_removed(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    for run in [1, 2] {
        assert!(done(&mut rig, create(run)).unwrap().is_none(), "the first makes the directory too");
        for page in 0..3 {
            done(&mut rig, write(run, page)).unwrap();
            let path = rig.dir.path().join(FileId::Run(run).path());
            assert_eq!(fs::metadata(path).unwrap().len(), (page + 1) * 4096);
        }
        let found = done(&mut rig, read(run, 3 * 4096)).unwrap().unwrap();
        for (page, content) in (0..).zip(found.chunks(4096)) {
            assert!(content == &pattern(4096, run as u8 ^ page)[..], "page {page}");
        }
        let beyond = done(&mut rig, read(run, 4 * 4096)).unwrap_err();
        assert_eq!(beyond.kind(), std::io::ErrorKind::UnexpectedEof);
        assert_eq!(done(&mut rig, create(run)).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
        assert!(done(&mut rig, remove(run)).unwrap().is_none());
        assert_eq!(done(&mut rig, read(run, 4096)).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        assert_eq!(done(&mut rig, write(run, 0)).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        done(&mut rig, remove(run)).expect("a file that is not there is as good as removed");
    }
    assert_eq!(fs::read_dir(rig.dir.path().join("far")).unwrap().count(), 0);
}

pub(super) fn a_removed_run_is_not_kept_open(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    done(&mut rig, create(1)).unwrap();
    done(&mut rig, write(1, 0)).unwrap();
    assert!(open_count(rig.dir.path()) > 0, "a file stays open for its next use");
    done(&mut rig, remove(1)).unwrap();
    wait_for_open_count(&mut rig, 0);
}

pub(super) fn of_many_runs_all_are_read_and_few_stay_open(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    let runs = 0..OPEN_COUNT_MAX as u32 + 20;
    for make in [create, |run| write(run, 0)] {
        runs.clone().for_each(|run| rig.io.disk_submit(SHARD, make(run)));
        for completion in rig.complete(runs.len()) {
            completion.result.unwrap();
        }
    }
    wait_for_open_count(&mut rig, OPEN_COUNT_MAX);
    for round in 0..3 {
        runs.clone().for_each(|run| rig.io.disk_submit(SHARD, read(run, 4096)));
        for completion in rig.complete(runs.len()) {
            completion.result.unwrap();
            let run = completion.id.0 as u8;
            assert!(completion.buf.unwrap()[..] == pattern(4096, run)[..], "run {run}, round {round}");
        }
    }
    for run in runs {
        done(&mut rig, read(run, 4096)).unwrap();
    }
    wait_for_open_count(&mut rig, OPEN_COUNT_MAX);
}

pub(super) fn a_run_that_cannot_be_opened_ends_its_operation_with_the_error(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    // A directory is in the way, and a link that leads to itself.
    let path = |run| rig.dir.path().join(FileId::Run(run).path());
    fs::create_dir_all(path(1)).unwrap();
    std::os::unix::fs::symlink(path(2), path(2)).unwrap();
    for run in [1, 2] {
        for op in [read(run, 4096), write(run, 0)] {
            rig.io.disk_submit(SHARD, op);
            let completion = rig.complete(1).remove(0);
            assert!(completion.result.is_err(), "run {run}");
            assert_eq!(completion.buf.unwrap().len(), 4096);
        }
    }
    done(&mut rig, create(3)).unwrap();
    done(&mut rig, write(3, 0)).expect("others are not affected");
}
