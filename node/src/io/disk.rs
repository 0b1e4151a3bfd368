//! The shards' files, and the threads that do for them what must not hold up a core.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::{self, JoinHandle};

use escapement_protocol::ShardId;
use escapement_wal::disk::execute;
use escapement_wal::{DiskCompletion, DiskOp, FileId, FsDirectory};

use super::pin;
use super::waker::Waker;

/// Files that a core keeps open: a shard writes to one of its log and reads from few, but its runs may be thousands.
const OPEN_COUNT_MAX: usize = 64;

/// Where the files of some shards are.
#[derive(Clone, Debug)]
pub(super) struct ShardDirs {
    dirs: Vec<(ShardId, PathBuf)>,
}

impl ShardDirs {
    pub(super) fn new(dirs: Vec<(ShardId, PathBuf)>) -> Self {
        ShardDirs { dirs }
    }

    /// # Panics
    /// If there is none of `shard`.
    pub(super) fn of(&self, shard: ShardId) -> &Path {
        let dir = self.dirs.iter().find(|(owned, _)| *owned == shard);
        let (_, dir) = dir.unwrap_or_else(|| panic!("this host was not given a directory of {shard:?}"));
        dir
    }
}

/// Open files of one core, the least recently used first. A file is never renamed, so an open one stays the right one.
#[derive(Debug)]
pub(super) struct Recent<F> {
    open: Vec<((ShardId, FileId), F)>,
}

impl<F> Default for Recent<F> {
    fn default() -> Self {
        Recent { open: Vec::new() }
    }
}

impl<F: Clone> Recent<F> {
    pub(super) fn find(&mut self, key: (ShardId, FileId)) -> Option<F> {
        let at = self.open.iter().rposition(|(open, _)| *open == key)?;
        self.open[at..].rotate_left(1);
        self.open.last().map(|(_, file)| file.clone())
    }

    /// Keeps a file that was just opened, and closes the one used longest ago of those that `is_idle` says no
    /// operation uses. Where all are in use the new one is not kept: it closes with its operation.
    pub(super) fn keep(&mut self, key: (ShardId, FileId), file: &F, is_idle: impl Fn(&F) -> bool) {
        // Operations that came together opened it together; one of them is kept.
        if self.find(key).is_some() {
            return;
        }
        if self.open.len() == OPEN_COUNT_MAX {
            let Some(closed) = self.open.iter().position(|(_, open)| is_idle(open)) else { return };
            self.open.remove(closed);
        }
        self.open.push((key, file.clone()));
    }

    /// Gives up a file, for one that is to be removed or was: an open one would keep its space.
    pub(super) fn forget(&mut self, key: (ShardId, FileId)) -> Option<F> {
        let at = self.open.iter().position(|(open, _)| *open == key)?;
        Some(self.open.remove(at).1)
    }
}

/// Files of [`ShardDirs`], open for direct and durable writing. Its clones are one: the threads of a core share it.
#[derive(Clone, Debug)]
pub(super) struct ShardFiles {
    dirs: ShardDirs,
    /// Held for a look-up only, never while a file is opened or used.
    recent: Arc<Mutex<Recent<Arc<File>>>>,
}

impl ShardFiles {
    pub(super) fn new(dirs: ShardDirs) -> Self {
        ShardFiles { dirs, recent: Arc::default() }
    }

    fn recent(&self) -> MutexGuard<'_, Recent<Arc<File>>> {
        self.recent.lock().expect("nothing panics while it holds this")
    }

    /// The file, opened at its first use. It stays open for as long as the answer is held.
    pub(super) fn file(&self, shard: ShardId, file: FileId) -> io::Result<Arc<File>> {
        let key = (shard, file);
        if let Some(open) = self.recent().find(key) {
            return Ok(open);
        }
        let opened = Arc::new(open_file(&self.dirs.of(shard).join(file.path()))?);
        self.recent().keep(key, &opened, |open| Arc::strong_count(open) == 1);
        Ok(opened)
    }

    /// Does an operation on this thread.
    fn execute(&self, shard: ShardId, op: DiskOp) -> DiskCompletion {
        match op {
            DiskOp::Write { id, file, offset, buf } => {
                let result = self.file(shard, file).and_then(|file| file.write_all_at(&buf, offset));
                DiskCompletion { id, result, buf: Some(buf) }
            }
            DiskOp::Read { id, file, offset, mut buf } => {
                let result = self.file(shard, file).and_then(|file| file.read_exact_at(&mut buf, offset));
                DiskCompletion { id, result, buf: Some(buf) }
            }
            DiskOp::Create { .. } => execute(&mut FsDirectory::new(self.dirs.of(shard)), op),
            DiskOp::Remove { file, .. } => {
                let completion = execute(&mut FsDirectory::new(self.dirs.of(shard)), op);
                // The last of it closes here, not on the core: that gives its space back and takes long.
                let closing = self.recent().forget((shard, file));
                drop(closing);
                completion
            }
        }
    }
}

/// Past the page cache where the file system can, and durable with every write.
fn open_file(path: &Path) -> io::Result<File> {
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    match open(libc::O_DIRECT | libc::O_DSYNC | libc::O_CLOEXEC) {
        // A file system without direct I/O: through the cache, as durable.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(libc::O_DSYNC | libc::O_CLOEXEC),
        result => result,
    }
}

/// A thread that executes operations one after the other, and wakes the core after each.
///
/// Dropped, it finishes what it was given.
#[derive(Debug)]
pub(super) struct DiskThread {
    files: ShardFiles,
    submit: Option<mpsc::Sender<(ShardId, DiskOp)>>,
    completions: mpsc::Receiver<(ShardId, DiskCompletion)>,
    thread: Option<JoinHandle<()>>,
}

impl DiskThread {
    pub(super) fn start(name: &str, files: &ShardFiles, waker: Waker) -> io::Result<Self> {
        let (submit, operations) = mpsc::channel::<(ShardId, DiskOp)>();
        let (finished, completions) = mpsc::channel();
        let shard_files = files.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            pin::leave_the_cores_cpu();
            for (shard, op) in operations {
                let completion = shard_files.execute(shard, op);
                if finished.send((shard, completion)).is_err() {
                    break;
                }
                waker.wake();
            }
        })?;
        Ok(DiskThread { files: files.clone(), submit: Some(submit), completions, thread: Some(thread) })
    }

    /// Hands an operation over.
    ///
    /// # Panics
    /// If the directory of `shard` was not given, or the thread panicked.
    pub(super) fn submit(&self, shard: ShardId, op: DiskOp) {
        self.files.dirs.of(shard);
        let submit = self.submit.as_ref().expect("open until dropped");
        submit.send((shard, op)).expect("the disk thread has panicked");
    }

    pub(super) fn completions(&self, each: &mut dyn FnMut(ShardId, DiskCompletion)) {
        for (shard, completion) in self.completions.try_iter() {
            each(shard, completion);
        }
    }
}

impl Drop for DiskThread {
    fn drop(&mut self) {
        self.submit = None;
        if let Some(thread) = self.thread.take() {
            // Its panic was already reported by itself, and by the next `submit`.
            let _ = thread.join();
        }
    }
}

/// A thread for each kind of operation, so that a slow kind does not hold up the commits.
#[derive(Debug)]
pub(super) struct DiskThreads {
    write: DiskThread,
    read: DiskThread,
    runs: DiskThread,
    create: DiskThread,
}

impl DiskThreads {
    pub(super) fn start(dirs: ShardDirs, waker: &Waker) -> io::Result<Self> {
        let files = ShardFiles::new(dirs);
        let start = |name| DiskThread::start(name, &files, waker.clone());
        Ok(DiskThreads {
            write: start("log-write")?,
            read: start("log-read")?,
            runs: start("runs")?,
            create: start("log-create")?,
        })
    }

    pub(super) fn submit(&self, shard: ShardId, op: DiskOp) {
        let thread = match op {
            DiskOp::Write { file: FileId::Run(_), .. } | DiskOp::Read { file: FileId::Run(_), .. } => {
                &self.runs
            }
            DiskOp::Write { .. } => &self.write,
            DiskOp::Read { .. } => &self.read,
            DiskOp::Create { .. } | DiskOp::Remove { .. } => &self.create,
        };
        thread.submit(shard, op);
    }

    pub(super) fn completions(&self, each: &mut dyn FnMut(ShardId, DiskCompletion)) {
        for thread in [&self.write, &self.read, &self.runs, &self.create] {
            thread.completions(each);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(run: usize) -> (ShardId, FileId) {
        (ShardId(0), FileId::Run(run as u32))
    }

    fn keep(recent: &mut Recent<Arc<usize>>, run: usize) {
        recent.keep(key(run), &Arc::new(run), |open| Arc::strong_count(open) == 1);
    }

    #[test]
    fn the_file_used_longest_ago_is_closed_unless_an_operation_uses_it() {
        let mut recent = Recent::default();
        (0..OPEN_COUNT_MAX).for_each(|run| keep(&mut recent, run));
        let in_use = recent.find(key(1)).expect("it was kept");
        for run in 2..OPEN_COUNT_MAX {
            recent.find(key(run)).expect("it was kept");
        }
        keep(&mut recent, OPEN_COUNT_MAX);
        assert!(recent.find(key(0)).is_none(), "all others were used after it");
        keep(&mut recent, OPEN_COUNT_MAX + 1);
        assert!(recent.find(key(2)).is_none(), "run 1 was used before it, and still is");
        assert_eq!(recent.find(key(1)).as_deref(), Some(&*in_use));
    }

    #[test]
    fn where_all_files_are_in_use_another_is_not_kept() {
        let mut recent = Recent::default();
        (0..OPEN_COUNT_MAX).for_each(|run| keep(&mut recent, run));
        let in_use: Vec<_> = (0..OPEN_COUNT_MAX).map(|run| recent.find(key(run))).collect();
        keep(&mut recent, OPEN_COUNT_MAX);
        assert!(recent.find(key(OPEN_COUNT_MAX)).is_none());
        drop(in_use);
        keep(&mut recent, OPEN_COUNT_MAX);
        assert!(recent.find(key(OPEN_COUNT_MAX)).is_some());
    }
}
