//! A file of the disk in memory: what is durable of it, what only a running machine shows, and which part of that
//! survives.

use std::collections::BTreeMap;
use std::io;

use super::Rng;

/// What the disk writes as one, in bytes. A power cut may still tear a sector, if rarely.
pub(super) const SECTOR_SIZE_BYTES: usize = 512;

/// Which of the sectors that are not durable survive a crash.
#[derive(Clone, Copy)]
pub(super) enum Luck {
    All,
    Nothing,
    Part,
}

impl Luck {
    pub(super) fn draw(rng: &mut Rng) -> Luck {
        match rng.below(8) {
            0 => Luck::All,
            1 => Luck::Nothing,
            _ => Luck::Part,
        }
    }

    fn keeps(self, rng: &mut Rng) -> bool {
        match self {
            Luck::All => true,
            Luck::Nothing => false,
            Luck::Part => rng.one_in(2),
        }
    }

    /// How many of `bytes`, a multiple of the sector's size and above 0, a file that was growing has grown by.
    fn grown_bytes(self, bytes: usize, rng: &mut Rng) -> usize {
        match self {
            Luck::All => bytes,
            Luck::Nothing => 0,
            Luck::Part => match rng.below(4) {
                0 => 0,
                1 => bytes,
                _ => rng.below((bytes / SECTOR_SIZE_BYTES) as u64) as usize * SECTOR_SIZE_BYTES,
            },
        }
    }
}

/// Where a write that was cut short may have got to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Medium,
    /// The machine goes on, so what is in its cache can be read.
    Cache,
}

#[derive(Clone, Debug, Default)]
pub(super) struct MemFile {
    pub(super) durable: Vec<u8>,
    /// Sectors that can be read and that a power cut may lose: written by a process that was killed before its write
    /// completed.
    cached: BTreeMap<usize, [u8; SECTOR_SIZE_BYTES]>,
    /// Bytes that the file is longer than what is durable of it, likewise.
    grown_bytes: usize,
}

impl MemFile {
    pub(super) fn new(durable: Vec<u8>) -> MemFile {
        MemFile { durable, ..MemFile::default() }
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.durable.len() + self.grown_bytes
    }

    pub(super) fn read_at(&self, offset: usize, buf: &mut [u8]) -> usize {
        let from = offset.min(self.size_bytes());
        let read = buf.len().min(self.size_bytes() - from);
        let durable = self.durable.get(from..).unwrap_or(&[]);
        let known = durable.len().min(read);
        buf[..known].copy_from_slice(&durable[..known]);
        buf[known..read].fill(0);
        let sectors = from / SECTOR_SIZE_BYTES..(from + read) / SECTOR_SIZE_BYTES;
        for (&sector, bytes) in self.cached.range(sectors) {
            let at = sector * SECTOR_SIZE_BYTES - from;
            buf[at..at + SECTOR_SIZE_BYTES].copy_from_slice(bytes);
        }
        read
    }

    /// Makes the durable part longer, zeros first.
    fn grow_durable(&mut self, size_bytes: usize) {
        let readable_bytes = self.size_bytes();
        if size_bytes > self.durable.len() {
            self.durable.resize(size_bytes, 0);
            self.grown_bytes = readable_bytes.saturating_sub(size_bytes);
        }
    }

    /// A write that completes, with the size where it `may_grow` the file.
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8], may_grow: bool) -> io::Result<()> {
        let end = offset + bytes.len();
        if may_grow {
            self.grow_durable(end);
        }
        let place = self.durable.get_mut(offset..end);
        place.ok_or_else(|| io::Error::other("a write past the end of the file"))?.copy_from_slice(bytes);
        for sector in offset / SECTOR_SIZE_BYTES..end / SECTOR_SIZE_BYTES {
            self.cached.remove(&sector);
        }
        Ok(())
    }

    /// A write that was cut short: luck keeps some of its sectors, and of the size that it gave the file.
    pub(super) fn write_by_luck(
        &mut self,
        (offset, bytes): (usize, &[u8]),
        may_grow: bool,
        (luck, reach): (Luck, Reach),
        rng: &mut Rng,
    ) {
        let old_bytes = if reach == Reach::Medium { self.durable.len() } else { self.size_bytes() };
        let grows_bytes = (offset + bytes.len()).saturating_sub(old_bytes);
        if may_grow && grows_bytes > 0 {
            let grown_bytes = luck.grown_bytes(grows_bytes, rng);
            match reach {
                Reach::Medium => self.grow_durable(old_bytes + grown_bytes),
                Reach::Cache => self.grown_bytes += grown_bytes,
            }
        }
        for (at, chunk) in bytes.chunks_exact(SECTOR_SIZE_BYTES).enumerate() {
            let sector = offset / SECTOR_SIZE_BYTES + at;
            let mut content = [0; SECTOR_SIZE_BYTES];
            content.copy_from_slice(chunk);
            match reach {
                Reach::Medium => {
                    self.cached.remove(&sector);
                    self.write_sector(sector, &content, luck, rng);
                }
                Reach::Cache if luck.keeps(rng) => {
                    self.cached.insert(sector, content);
                }
                Reach::Cache => {}
            }
        }
        let end_sector = self.size_bytes() / SECTOR_SIZE_BYTES;
        self.cached.retain(|&sector, _| sector < end_sector);
    }

    /// Writes a sector where luck keeps it; rarely only its first bytes. Nothing behind the end of what is durable.
    fn write_sector(&mut self, sector: usize, bytes: &[u8; SECTOR_SIZE_BYTES], luck: Luck, rng: &mut Rng) {
        if !luck.keeps(rng) {
            return;
        }
        let torn = matches!(luck, Luck::Part) && rng.one_in(16);
        let kept = if torn { rng.below(SECTOR_SIZE_BYTES as u64) as usize } else { SECTOR_SIZE_BYTES };
        let start = sector * SECTOR_SIZE_BYTES;
        if let Some(place) = self.durable.get_mut(start..start + kept) {
            place.copy_from_slice(&bytes[..kept]);
        }
    }

    /// The power fails: luck keeps some of what was not durable.
    pub(super) fn power_cut(&mut self, luck: Luck, rng: &mut Rng) {
        if self.grown_bytes > 0 {
            let grown_bytes = luck.grown_bytes(self.grown_bytes, rng);
            self.durable.resize(self.durable.len() + grown_bytes, 0);
            self.grown_bytes = 0;
        }
        for (sector, bytes) in std::mem::take(&mut self.cached) {
            self.write_sector(sector, &bytes, luck, rng);
        }
    }

    pub(super) fn sync(&mut self) {
        self.durable.resize(self.size_bytes(), 0);
        self.grown_bytes = 0;
        for (sector, bytes) in std::mem::take(&mut self.cached) {
            let start = sector * SECTOR_SIZE_BYTES;
            self.durable[start..start + SECTOR_SIZE_BYTES].copy_from_slice(&bytes);
        }
    }
}
