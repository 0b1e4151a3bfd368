//! What a disk was told, in order: the log that `blklogwrites` keeps, in the form of the kernel's dm-log-writes.
//!
//! A sector with the superblock, then entries: a sector that says what was written where, and what was written. Numbers
//! are little-endian; sectors have 512 bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use escapement_wal::memory::Rng;

const SECTOR_SIZE_BYTES: usize = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLAG_FLUSH: u64 = 1;
const FLAG_FUA: u64 = 2;
const FLAG_DISCARD: u64 = 4;
/// Bytes copied at a time.
const COPY_SIZE_BYTES: u64 = 1024 * 1024;

/// One entry.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where the entry begins in the log, and where it ends.
    at: u64,
    end: u64,
    /// On the disk, in bytes.
    offset: u64,
    size_bytes: u64,
    flags: u64,
}

impl Entry {
    fn is(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }
}

/// The log of a disk.
#[derive(Debug)]
pub(super) struct WriteLog {
    file: File,
    entries: Vec<Entry>,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

impl WriteLog {
    /// Reads where everything is.
    pub(super) fn open(path: &Path) -> io::Result<WriteLog> {
        let file = File::open(path)?;
        let mut sector = [0; SECTOR_SIZE_BYTES];
        file.read_exact_at(&mut sector, 0)?;
        let is_known = word(&sector, 0) == MAGIC && word(&sector, 8) == 1 && word(&sector, 24) as u32 == 512;
        assert!(is_known, "a log of another form: {:?}", &sector[..32]);
        let count = word(&sector, 16);
        let mut entries = Vec::new();
        let mut at = SECTOR_SIZE_BYTES as u64;
        for _ in 0..count {
            file.read_exact_at(&mut sector, at)?;
            let (offset, size_bytes) = (word(&sector, 0) * 512, word(&sector, 8) * 512);
            let flags = word(&sector, 16);
            let held = if flags & FLAG_DISCARD == 0 { size_bytes } else { 0 };
            let end = at + SECTOR_SIZE_BYTES as u64 + held;
            entries.push(Entry { at, end, offset, size_bytes, flags });
            at = end;
        }
        Ok(WriteLog { file, entries })
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of the log before this entry.
    pub(super) fn position(&self, entry: usize) -> u64 {
        self.entries
            .get(entry)
            .map_or_else(|| self.entries.last().map_or(0, |last| last.end), |entry| entry.at)
    }

    /// The first entry that begins at this position or behind it.
    pub(super) fn entry_at(&self, position: u64) -> usize {
        self.entries.partition_point(|entry| entry.at < position)
    }

    /// How many of the entries before `cut` are certain to be on the disk: those up to its last flush.
    pub(super) fn certain(&self, cut: usize) -> usize {
        self.entries[..cut].iter().rposition(|entry| entry.is(FLAG_FLUSH)).map_or(0, |flush| flush + 1)
    }

    /// Brings whole entries to a disk.
    pub(super) fn replay(&self, disk: &File, entries: std::ops::Range<usize>) -> io::Result<()> {
        self.entries[entries].iter().try_for_each(|entry| self.copy(disk, entry, 0, entry.size_bytes))
    }

    /// Brings to a disk what luck keeps of entries that were not flushed.
    pub(super) fn replay_some(
        &self,
        disk: &File,
        entries: std::ops::Range<usize>,
        rng: &mut Rng,
    ) -> io::Result<()> {
        // All, nothing, or any sectors.
        let luck = rng.below(6);
        for entry in &self.entries[entries] {
            if entry.is(FLAG_FUA) || luck == 0 {
                self.copy(disk, entry, 0, entry.size_bytes)?;
                continue;
            }
            if luck == 1 || rng.one_in(3) {
                continue;
            }
            let is_torn = rng.one_in(3);
            for from in (0..entry.size_bytes).step_by(SECTOR_SIZE_BYTES) {
                if !is_torn || rng.one_in(2) {
                    self.copy(disk, entry, from, from + SECTOR_SIZE_BYTES as u64)?;
                }
            }
        }
        Ok(())
    }

    fn copy(&self, disk: &File, entry: &Entry, from: u64, to: u64) -> io::Result<()> {
        let mut at = from;
        while at < to {
            let mut bytes = vec![0; (to - at).min(COPY_SIZE_BYTES) as usize];
            if !entry.is(FLAG_DISCARD) {
                self.file.read_exact_at(&mut bytes, entry.at + SECTOR_SIZE_BYTES as u64 + at)?;
            }
            disk.write_all_at(&bytes, entry.offset + at)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }
}
