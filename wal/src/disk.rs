//! What the log asks of a disk: operations in flight while it runs, and a synchronous [`Directory`] while it opens.

use std::fmt;
use std::io;

use crate::aligned::AlignedBuf;

/// A file of the log. Slot files are numbered and never renamed; see `docs/formats/wal-v1.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

impl FileId {
    /// The file `SUPER`.
    pub const SUPER: FileId = FileId(u32::MAX);

    /// Its path in the shard's directory, with `/` between the parts.
    #[must_use]
    pub fn path(self) -> String {
        self.to_string()
    }

    /// The slot whose file in `wal/` has this name.
    #[must_use]
    pub fn from_slot_name(name: &str) -> Option<FileId> {
        let slot: u32 = name.strip_suffix(".seg")?.parse().ok()?;
        (slot != u32::MAX && format!("{slot:04}.seg") == name).then_some(FileId(slot))
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == FileId::SUPER { f.write_str("SUPER") } else { write!(f, "wal/{:04}.seg", self.0) }
    }
}

/// Directory of the slot files, in the shard's directory.
pub const SEGMENT_DIR: &str = "wal";

/// Names an operation until it completes. Never reused by one log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// An operation that the log wants done. Several may be in flight; their order does not matter.
#[derive(Debug)]
pub enum DiskOp {
    /// Write all of `buf` (aligned, a multiple of 4 KiB) at `offset`. It completes when the bytes are durable:
    /// `O_DIRECT` and `O_DSYNC`, or a write followed by `fdatasync`. A short write is an error.
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
    /// On failure remove what was made.
    Create {
        /// For the completion.
        id: OpId,
        /// A file that does not exist.
        file: FileId,
        /// In bytes.
        size_bytes: u64,
    },
}

impl DiskOp {
    /// The id that the completion must carry.
    #[must_use]
    pub fn id(&self) -> OpId {
        match self {
            DiskOp::Write { id, .. } | DiskOp::Read { id, .. } | DiskOp::Create { id, .. } => *id,
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

    /// Reads into `buf` from `offset`, past the page cache; answers how many bytes there were, less than
    /// `buf.len()` only at the end of the file. `offset` is a multiple of 4 KiB, `buf` aligned to 4 KiB.
    ///
    /// # Errors
    /// As [`Directory::list`].
    fn read_at(&mut self, path: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Overwrites part of an existing file, durably. Offset, length and address are multiples of 4 KiB.
    ///
    /// # Errors
    /// As [`Directory::list`].
    fn write_at(&mut self, path: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes a new file of zeros, written out and durable, its directory entry too. On failure nothing is left.
    ///
    /// # Errors
    /// As [`Directory::list`]; also where the file exists.
    fn create_zeroed(&mut self, path: &str, size_bytes: u64) -> io::Result<()>;

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
            DiskCompletion { id, result: dir.create_zeroed(&file.path(), size_bytes), buf: None }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_one_name() {
        for slot in [0, 7, 9_999, 10_000] {
            let path = FileId(slot).path();
            assert_eq!(path.strip_prefix("wal/").and_then(FileId::from_slot_name), Some(FileId(slot)));
        }
        for name in ["0.seg", "00000.seg", "+001.seg", "0001.tmp", "0001", "4294967295.seg", "lost+found"] {
            assert_eq!(FileId::from_slot_name(name), None, "{name}");
        }
    }
}
