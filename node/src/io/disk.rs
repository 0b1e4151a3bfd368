//! The log's files, and the threads that do for them what must not hold up a core.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use escapement_protocol::ShardId;
use escapement_wal::disk::execute;
use escapement_wal::{DiskCompletion, DiskOp, FileId, FsDirectory};

use super::pin;
use super::waker::Waker;

/// Files kept open by one user of [`LogFiles`]; a shard writes to one and reads from few.
pub(super) const OPEN_COUNT_MAX: usize = 64;

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

/// Files of [`ShardDirs`], open for direct and durable writing.
#[derive(Debug)]
pub(super) struct LogFiles {
    dirs: ShardDirs,
    /// The least recently opened first. A slot file is never renamed, so an open one stays the right one.
    open: Vec<((ShardId, FileId), Rc<File>)>,
}

impl LogFiles {
    pub(super) fn new(dirs: ShardDirs) -> Self {
        LogFiles { dirs, open: Vec::new() }
    }

    /// The file, opened at its first use.
    pub(super) fn file(&mut self, shard: ShardId, file: FileId) -> io::Result<Rc<File>> {
        let key = (shard, file);
        let at = match self.open.iter().rposition(|(open, _)| *open == key) {
            Some(at) => at,
            None => {
                let opened = Rc::new(open_log_file(&self.dirs.of(shard).join(file.path()))?);
                if self.open.len() == OPEN_COUNT_MAX {
                    self.open.remove(0);
                }
                self.open.push((key, opened));
                self.open.len() - 1
            }
        };
        Ok(Rc::clone(&self.open[at].1))
    }
}

/// Past the page cache where the file system can, and durable with every write.
fn open_log_file(path: &Path) -> io::Result<File> {
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
    dirs: ShardDirs,
    submit: Option<mpsc::Sender<(ShardId, DiskOp)>>,
    completions: mpsc::Receiver<(ShardId, DiskCompletion)>,
    thread: Option<JoinHandle<()>>,
}

impl DiskThread {
    pub(super) fn start(name: &str, dirs: &ShardDirs, waker: Waker) -> io::Result<Self> {
        let (submit, operations) = mpsc::channel::<(ShardId, DiskOp)>();
        let (finished, completions) = mpsc::channel();
        let shard_dirs = dirs.dirs.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            pin::leave_the_cores_cpu();
            let mut dirs: Vec<_> =
                shard_dirs.into_iter().map(|(shard, dir)| (shard, FsDirectory::new(dir))).collect();
            for (shard, op) in operations {
                let (_, dir) = dirs.iter_mut().find(|(owned, _)| *owned == shard).expect("checked by submit");
                let completion = execute(dir, op);
                if finished.send((shard, completion)).is_err() {
                    break;
                }
                waker.wake();
            }
        })?;
        Ok(DiskThread { dirs: dirs.clone(), submit: Some(submit), completions, thread: Some(thread) })
    }

    /// Hands an operation over.
    ///
    /// # Panics
    /// If the directory of `shard` was not given, or the thread panicked.
    pub(super) fn submit(&self, shard: ShardId, op: DiskOp) {
        self.dirs.of(shard);
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
    create: DiskThread,
}

impl DiskThreads {
    pub(super) fn start(dirs: &ShardDirs, waker: &Waker) -> io::Result<Self> {
        let start = |name| DiskThread::start(name, dirs, waker.clone());
        Ok(DiskThreads { write: start("log-write")?, read: start("log-read")?, create: start("log-create")? })
    }

    pub(super) fn submit(&self, shard: ShardId, op: DiskOp) {
        match op {
            DiskOp::Write { .. } => self.write.submit(shard, op),
            DiskOp::Read { .. } => self.read.submit(shard, op),
            DiskOp::Create { .. } | DiskOp::Remove { .. } => self.create.submit(shard, op),
        }
    }

    pub(super) fn completions(&self, each: &mut dyn FnMut(ShardId, DiskCompletion)) {
        for thread in [&self.write, &self.read, &self.create] {
            thread.completions(each);
        }
    }
}
