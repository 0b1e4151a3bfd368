//! What a shard asks of a disk: operations in flight while it runs, and a synchronous [`Directory`] while it opens.

use std::fmt;
use std::io;

use crate::aligned::AlignedBuf;

/// A file in a shard's directory. Files are numbered and never renamed; see `docs/formats/wal-v1.md` for the log's and
/// `docs/formats/far-v1.md` for runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileId {
    /// A slot file of the log: `wal/0007.seg`.
    Slot(u32),
    /// The log's file `SUPER`.
    Super,
    /// A run of far-future events: `far/00000007.run`. No file of the log: its operations are none of [`crate::LocalWal`]'s.
    Run(u32),
}

impl FileId {
    /// Its path in the shard's directory, with `/` between the parts.
    #[must_use]
    pub fn path(self) -> String {
        self.to_string()
    }

    /// The directory that it lies in, in the shard's directory; `""` is that one itself.
    #[must_use]
    pub fn dir(self) -> &'static str {
        match self {
            FileId::Slot(_) => SEGMENT_DIR,
            FileId::Super => "",
            FileId::Run(_) => RUN_DIR,
        }
    }

    /// The slot whose file in [`SEGMENT_DIR`] has this name.
    #[must_use]
    pub fn from_slot_name(name: &str) -> Option<FileId> {
        let slot: u32 = name.strip_suffix(".seg")?.parse().ok()?;
        (format!("{slot:04}.seg") == name).then_some(FileId::Slot(slot))
    }

    /// The run whose file in [`RUN_DIR`] has this name.
    #[must_use]
    pub fn from_run_name(name: &str) -> Option<FileId> {
        let run: u32 = name.strip_suffix(".run")?.parse().ok()?;
        (format!("{run:08}.run") == name).then_some(FileId::Run(run))
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileId::Slot(slot) => write!(f, "{SEGMENT_DIR}/{slot:04}.seg"),
            FileId::Super => f.write_str("SUPER"),
            FileId::Run(run) => write!(f, "{RUN_DIR}/{run:08}.run"),
        }
    }
}

/// Directory of the slot files, in the shard's directory.
pub const SEGMENT_DIR: &str = "wal";

/// Directory of the run files, in the shard's directory. It may be missing as long as there is none.
pub const RUN_DIR: &str = "far";

/// Names an operation until it completes. Never reused by whoever made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

impl OpId {
    /// Set in the ids of operations that are not the log's: the log and another user share one disk, and whoever takes
    /// a completion tells by this bit whose it is. [`crate::LocalWal`] makes no id with it and takes no completion with it.
    pub const FOREIGN_BIT: u64 = 1 << 63;

    /// Whether the operation is not the log's.
    #[must_use]
    pub const fn is_foreign(self) -> bool {
        self.0 & OpId::FOREIGN_BIT != 0
    }
}

/// An operation that a shard wants done. Several may be in flight; their order does not matter.
#[derive(Debug)]
pub enum DiskOp {
    /// Write all of `buf` (aligned, a multiple of 4 KiB) at `offset`. It completes when the bytes are durable:
    /// `O_DIRECT` and `O_DSYNC`, or a write followed by `fdatasync`. A short write is an error.
    ///
    /// Past the end of a run it makes the file longer, and is complete once the new size is durable too; what lies
    /// between the old end and `offset` is zero. A slot file and `SUPER` keep their size.
    Write {
        /// For the completion.
        id: OpId,
        /// An existing file.
        file: FileId,
        /// In bytes, a multiple of 4 KiB.
        offset: u64,
        /// Comes back with the completion.
        buf: AlignedBuf,
    },
    /// Fill `buf` from `offset`, past the page cache. A short read is an error.
    Read {
        /// For the completion.
        id: OpId,
        /// An existing file.
        file: FileId,
        /// In bytes, a multiple of 4 KiB.
        offset: u64,
        /// Its length says how much to read. Comes back with the completion.
        buf: AlignedBuf,
    },
    /// Create the file, write zeros to all of it, sync it and its directory. Takes long: run it in the background.
    /// On failure remove what was made. For a run, [`RUN_DIR`] is made where it is missing; the directory of the slot
    /// files must be there.
    Create {
        /// For the completion.
        id: OpId,
        /// A file that does not exist.
        file: FileId,
        /// In bytes.
        size_bytes: u64,
    },
    /// Remove the file and sync its directory; a file that is not there is a success. Takes long, as
    /// [`DiskOp::Create`]. An operation of the same file that is in flight meanwhile may succeed or fail.
    Remove {
        /// For the completion.
        id: OpId,
        /// Which file.
        file: FileId,
    },
}

impl DiskOp {
    /// The id that the completion must carry.
    #[must_use]
    pub fn id(&self) -> OpId {
        match self {
            DiskOp::Write { id, .. }
            | DiskOp::Read { id, .. }
            | DiskOp::Create { id, .. }
            | DiskOp::Remove { id, .. } => *id,
        }
    }
}

/// An operation's end.
#[derive(Debug)]
pub struct DiskCompletion {
    /// Which operation.
    pub id: OpId,
    /// How it ended.
    pub result: io::Result<()>,
    /// The operation's buffer, where it had one.
    pub buf: Option<AlignedBuf>,
}

/// Bytes written at a time while a file is filled.
pub(crate) const FILL_SIZE_BYTES: usize = 1024 * 1024;

/// Synchronous access to one shard's directory, for opening, formatting and other rare work; never on a core's path.
///
/// Paths are relative, with `/` between the parts. A call that returned `Ok` has taken effect durably, except for
/// [`Directory::remove`] and [`Directory::rename`], which need [`Directory::sync_dir`].
pub trait Directory {
    /// Names of the entries of `dir` (`""` is the directory itself), in any order. Empty where it does not exist.
    ///
    /// # Errors
    /// Of the operating system, as for every method.
    fn list(&mut self, dir: &str) -> io::Result<Vec<String>>;

    /// Size of a file in bytes, `None` where there is none.
    ///
    /// # Errors
    /// As [`Directory::list`].
    fn size(&mut self, path: &str) -> io::Result<Option<u64>>;

    /// Whether a file is there.
    ///
    /// # Errors
    /// As [`Directory::list`].
    fn exists(&mut self, path: &str) -> io::Result<bool> {
        Ok(self.size(path)?.is_some())
    }

    /// Whether a directory is there. Where directories are not kept apart from what is in them, every one is.
    ///
    /// # Errors
    /// As [`Directory::list`].
    fn has_dir(&mut self, _dir: &str) -> io::Result<bool> {
        Ok(true)
    }

    /// Reads into `buf` from `offset`, past the page cache; answers how many bytes there were, less than
    /// `buf.len()` only at the end of the file. `offset` is a multiple of 4 KiB, `buf` aligned to 4 KiB.
    ///
    /// # Errors
    /// As [`Directory::list`].
    fn read_at(&mut self, path: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Overwrites part of an existing file, durably, or makes a run longer, see [`DiskOp::Write`]. Offset, length and
    /// address are multiples of 4 KiB.
    ///
    /// # Errors
    /// As [`Directory::list`].
    fn write_at(&mut self, path: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes a new file of zeros, written out and durable, its directory entry too. On failure nothing is left.
    ///
    /// # Errors
    /// As [`Directory::list`]; also where the file exists.
    fn create_zeroed(&mut self, path: &str, size_bytes: u64) -> io::Result<()>;

    /// Makes a new file as [`Directory::create_zeroed`] does, of what `fill` puts into each part of it: the part's offset, a
    /// multiple of 4 KiB, and its bytes, aligned and in any state.
    ///
    /// # Errors
    /// As [`Directory::create_zeroed`], or of `fill`.
    fn create_filled(
        &mut self,
        path: &str,
        size_bytes: u64,
        fill: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.create_zeroed(path, size_bytes)?;
        let mut buf = AlignedBuf::zeroed(FILL_SIZE_BYTES);
        for offset in (0..size_bytes).step_by(FILL_SIZE_BYTES) {
            let part = (size_bytes - offset).min(FILL_SIZE_BYTES as u64) as usize;
            fill(offset, &mut buf[..part])?;
            self.write_at(path, offset, &buf[..part])?;
        }
        Ok(())
    }

    /// Makes a directory, durably. It may exist.
    ///
    /// # Errors
    /// As [`Directory::list`].
    fn create_dir(&mut self, dir: &str) -> io::Result<()>;

    /// Removes a file; it must exist.
    ///
    /// # Errors
    /// As [`Directory::list`].
    fn remove(&mut self, path: &str) -> io::Result<()>;

    /// Gives a file another name, replacing what had it.
    ///
    /// # Errors
    /// As [`Directory::list`].
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Makes whatever a file shows durable, also what an earlier process wrote without a sync.
    ///
    /// # Errors
    /// As [`Directory::list`].
    fn sync(&mut self, path: &str) -> io::Result<()>;

    /// Makes the entries of `dir` durable.
    ///
    /// # Errors
    /// As [`Directory::list`].
    fn sync_dir(&mut self, dir: &str) -> io::Result<()>;
}

/// Does an operation at once, for tools, tests and hosts that keep a thread for it.
pub fn execute(dir: &mut dyn Directory, op: DiskOp) -> DiskCompletion {
    match op {
        DiskOp::Write { id, file, offset, buf } => {
            DiskCompletion { id, result: dir.write_at(&file.path(), offset, &buf), buf: Some(buf) }
        }
        DiskOp::Read { id, file, offset, mut buf } => {
            let result = dir.read_at(&file.path(), offset, &mut buf).and_then(|read| {
                if read == buf.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
            });
            DiskCompletion { id, result, buf: Some(buf) }
        }
        DiskOp::Create { id, file, size_bytes } => {
            DiskCompletion { id, result: create(dir, file, size_bytes), buf: None }
        }
        DiskOp::Remove { id, file } => DiskCompletion { id, result: remove(dir, file), buf: None },
    }
}

fn create(dir: &mut dyn Directory, file: FileId, size_bytes: u64) -> io::Result<()> {
    if let FileId::Run(_) = file {
        // Each time, though it is there mostly: a process that was killed may have made it and not its entry durable.
        dir.create_dir(RUN_DIR)?;
    }
    dir.create_zeroed(&file.path(), size_bytes)
}

fn remove(dir: &mut dyn Directory, file: FileId) -> io::Result<()> {
    let unless_missing = |done: io::Result<()>| match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    };
    unless_missing(dir.remove(&file.path()))?;
    // Also where the file was missing already: an earlier removal may have failed before its sync.
    unless_missing(dir.sync_dir(file.dir()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_name() {
        for number in [0, 7, 9_999, 10_000, 99_999_999, u32::MAX] {
            let (slot, run) = (FileId::Slot(number), FileId::Run(number));
            assert_eq!(slot.path().strip_prefix("wal/").and_then(FileId::from_slot_name), Some(slot));
            assert_eq!(run.path().strip_prefix("far/").and_then(FileId::from_run_name), Some(run));
        }
        for name in ["0.seg", "00000.seg", "+001.seg", "0001.tmp", "0001", "4294967296.seg", "lost+found"] {
            assert_eq!(FileId::from_slot_name(name), None, "{name}");
        }
        for name in ["7.run", "0007.run", "000000007.run", "+0000007.run", "00000007.seg", "4294967296.run"] {
            assert_eq!(FileId::from_run_name(name), None, "{name}");
        }
        assert_eq!(FileId::Run(7).path(), "far/00000007.run");
    }
}
