//! A disk in memory.

use std::collections::BTreeMap;
use std::io;

use super::Rng;
use super::file::{Luck, MemFile, Reach, SECTOR_SIZE_BYTES};
use crate::disk::{Directory, DiskCompletion, DiskOp, RUN_DIR};

/// Faults that a [`MemDisk`] shows from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// This many writes from now succeed, then one fails; what it left on the disk is a matter of luck.
    pub write_fails_after: Option<u32>,
    /// No file can be created.
    pub no_space: bool,
    /// This many changes through [`Directory`] from now succeed, then the power fails in the middle of one. From there
    /// on everything fails until [`MemDisk::power_cut`].
    pub power_fails_after: Option<u32>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Created { path: String },
    Removed { path: String, file: MemFile },
    Renamed { from: String, to: String, replaced: Option<MemFile> },
}

impl NameChange {
    fn dir(&self) -> &str {
        match self {
            NameChange::Created { path }
            | NameChange::Removed { path, .. }
            | NameChange::Renamed { to: path, .. } => parent(path),
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// Whether a write past the end makes the file longer.
fn may_grow(path: &str) -> bool {
    parent(path) == RUN_DIR
}

/// An in-memory disk that keeps, tears or drops unsynced sectors when it is killed or loses power. Seeded.
///
/// It is a [`Directory`], and it executes [`DiskOp`]s: [`MemDisk::submit`] takes them, [`MemDisk::step`] completes one
/// of them, chosen by the seed, so that completions come late and out of order. The clone of a disk has the same
/// future.
#[derive(Clone, Debug)]
pub struct MemDisk {
    files: BTreeMap<String, MemFile>,
    /// Not made durable by [`Directory::sync_dir`] yet, oldest first.
    name_changes: Vec<NameChange>,
    pending: Vec<PendingOp>,
    rng: Rng,
    faults: Faults,
    dead: bool,
}

/// [`DiskOp`] can't be cloned, on purpose; the disk's copy of its future can.
#[derive(Debug)]
struct PendingOp(DiskOp);

impl Clone for PendingOp {
    fn clone(&self) -> PendingOp {
        PendingOp(match &self.0 {
            DiskOp::Write { id, file, offset, buf } => {
                DiskOp::Write { id: *id, file: *file, offset: *offset, buf: buf.clone() }
            }
            DiskOp::Read { id, file, offset, buf } => {
                DiskOp::Read { id: *id, file: *file, offset: *offset, buf: buf.clone() }
            }
            DiskOp::Create { id, file, size_bytes } => {
                DiskOp::Create { id: *id, file: *file, size_bytes: *size_bytes }
            }
            DiskOp::Remove { id, file } => DiskOp::Remove { id: *id, file: *file },
        })
    }
}

impl MemDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> MemDisk {
        MemDisk {
            files: BTreeMap::new(),
            name_changes: Vec::new(),
            pending: Vec::new(),
            rng: Rng::new(seed),
            faults: Faults::default(),
            dead: false,
        }
    }

    /// Sets the faults to come.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Takes an operation.
    pub fn submit(&mut self, op: DiskOp) {
        self.pending.push(PendingOp(op));
    }

    /// Operations taken and not completed.
    #[must_use]
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// Completes one of the operations, any.
    pub fn step(&mut self) -> Option<DiskCompletion> {
        if self.pending.is_empty() {
            return None;
        }
        let chosen = self.rng.below(self.pending.len() as u64) as usize;
        let PendingOp(op) = self.pending.swap_remove(chosen);
        if let DiskOp::Write { id, file, offset, buf } = &op
            && self.write_fails()
        {
            let (id, file, offset) = (*id, *file, *offset);
            let luck = Luck::draw(&mut self.rng);
            self.apply_by_luck(&file.path(), offset, buf, luck, Reach::Medium);
            let DiskOp::Write { buf, .. } = op else { return None };
            let result = Err(io::Error::other("injected write error"));
            return Some(DiskCompletion { id, result, buf: Some(buf) });
        }
        Some(crate::disk::execute(self, op))
    }

    /// The process dies. What was in flight may have reached the disk, or its cache, or nothing; a later power cut may
    /// still lose what is in the cache, unless it is synced first.
    pub fn kill(&mut self) {
        self.stop(Reach::Cache);
    }

    /// The power fails and comes back: of everything that was not durable, an arbitrary part survives.
    pub fn power_cut(&mut self) {
        self.stop(Reach::Medium);
        let luck = Luck::draw(&mut self.rng);
        for file in self.files.values_mut() {
            file.power_cut(luck, &mut self.rng);
        }
        let kept_count = self.rng.below(self.name_changes.len() as u64 + 1) as usize;
        for change in self.name_changes.split_off(kept_count).into_iter().rev() {
            match change {
                NameChange::Created { path } => {
                    self.files.remove(&path);
                }
                NameChange::Removed { path, mut file } => {
                    file.power_cut(luck, &mut self.rng);
                    self.files.insert(path, file);
                }
                NameChange::Renamed { from, to, replaced } => {
                    if let Some(file) = self.files.remove(&to) {
                        self.files.insert(from, file);
                    }
                    self.files.extend(replaced.map(|file| (to, file)));
                }
            }
        }
        self.name_changes.clear();
        self.faults.power_fails_after = None;
        self.dead = false;
    }

    fn stop(&mut self, reach: Reach) {
        let luck = Luck::draw(&mut self.rng);
        for PendingOp(op) in std::mem::take(&mut self.pending) {
            match op {
                DiskOp::Read { .. } => {}
                DiskOp::Write { file, offset, buf, .. } => {
                    self.apply_by_luck(&file.path(), offset, &buf, luck, reach);
                }
                DiskOp::Create { file, size_bytes, .. } => self.create_by_luck(&file.path(), size_bytes),
                // Where the name is gone, a power cut may still bring it back: its directory was not synced.
                DiskOp::Remove { file, .. } if self.rng.one_in(2) => {
                    let _ = self.take_name(&file.path());
                }
                DiskOp::Remove { .. } => {}
            }
        }
    }

    /// The durable bytes of a file, for planting damage.
    pub fn bytes_mut(&mut self, path: &str) -> Option<&mut Vec<u8>> {
        self.files.get_mut(path).map(|file| &mut file.durable)
    }

    /// Adds a file with this content, or replaces one.
    pub fn put(&mut self, path: &str, bytes: Vec<u8>) {
        self.files.insert(path.to_owned(), MemFile::new(bytes));
    }

    /// Paths of all files.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    fn write_fails(&mut self) -> bool {
        match &mut self.faults.write_fails_after {
            None => false,
            Some(0) => {
                self.faults.write_fails_after = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
        }
    }

    /// Writes what luck keeps, as far as it got.
    fn apply_by_luck(&mut self, path: &str, offset: u64, bytes: &[u8], luck: Luck, reach: Reach) {
        if let Some(file) = self.files.get_mut(path) {
            file.write_by_luck((offset as usize, bytes), may_grow(path), (luck, reach), &mut self.rng);
        }
    }

    /// A creation that was cut short: the entry, where there is one, is not durable.
    fn create_by_luck(&mut self, path: &str, size_bytes: u64) {
        let sector_count = size_bytes / SECTOR_SIZE_BYTES as u64;
        let made_bytes = match self.rng.below(4) {
            0 => return,
            1 => size_bytes,
            _ if sector_count == 0 => 0,
            _ => self.rng.below(sector_count) * SECTOR_SIZE_BYTES as u64,
        };
        if !self.files.contains_key(path) {
            self.put(path, vec![0; made_bytes as usize]);
            self.name_changes.push(NameChange::Created { path: path.to_owned() });
        }
    }

    /// Takes a file's name away, not durably.
    fn take_name(&mut self, path: &str) -> io::Result<()> {
        let file = self.files.remove(path).ok_or(io::ErrorKind::NotFound)?;
        self.name_changes.push(NameChange::Removed { path: path.to_owned(), file });
        Ok(())
    }

    fn names_synced(&mut self, dir: &str) {
        self.name_changes.retain(|change| change.dir() != dir);
    }

    /// Counts a change; answers whether the power fails in the middle of it.
    fn power_fails(&mut self) -> io::Result<bool> {
        if self.dead {
            return Err(power_failed());
        }
        match &mut self.faults.power_fails_after {
            None => Ok(false),
            Some(0) => {
                self.dead = true;
                Ok(true)
            }
            Some(left) => {
                *left -= 1;
                Ok(false)
            }
        }
    }

    fn existing(&mut self, path: &str) -> io::Result<&mut MemFile> {
        self.files.get_mut(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn power_failed() -> io::Error {
    io::Error::other("the power failed")
}

impl Directory for MemDisk {
    fn list(&mut self, dir: &str) -> io::Result<Vec<String>> {
        let names = self.files.keys().filter_map(|path| match (dir, path.rsplit_once('/')) {
            ("", None) => Some(path.clone()),
            (dir, Some((parent, name))) if parent == dir => Some(name.to_owned()),
            _ => None,
        });
        Ok(names.collect())
    }

    fn size(&mut self, path: &str) -> io::Result<Option<u64>> {
        Ok(self.files.get(path).map(|file| file.size_bytes() as u64))
    }

    fn read_at(&mut self, path: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if self.dead {
            return Err(power_failed());
        }
        Ok(self.existing(path)?.read_at(offset as usize, buf))
    }

    fn write_at(&mut self, path: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(4096) && bytes.len().is_multiple_of(4096), "an unaligned direct write");
        if self.power_fails()? {
            let luck = Luck::draw(&mut self.rng);
            self.apply_by_luck(path, offset, bytes, luck, Reach::Medium);
            return Err(power_failed());
        }
        self.existing(path)?.write(offset as usize, bytes, may_grow(path))
    }

    fn create_zeroed(&mut self, path: &str, size_bytes: u64) -> io::Result<()> {
        if self.faults.no_space {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.files.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if self.power_fails()? {
            self.create_by_luck(path, size_bytes);
            return Err(power_failed());
        }
        self.put(path, vec![0; size_bytes as usize]);
        // The new entry is durable, and with it every change of names in its directory before it.
        self.names_synced(parent(path));
        Ok(())
    }

    fn create_dir(&mut self, _dir: &str) -> io::Result<()> {
        if self.power_fails()? { Err(power_failed()) } else { Ok(()) }
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        let failing = self.power_fails()?;
        self.take_name(path)?;
        if failing { Err(power_failed()) } else { Ok(()) }
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let failing = self.power_fails()?;
        let file = self.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        let replaced = self.files.insert(to.to_owned(), file);
        self.name_changes.push(NameChange::Renamed { from: from.to_owned(), to: to.to_owned(), replaced });
        if failing { Err(power_failed()) } else { Ok(()) }
    }

    fn sync(&mut self, path: &str) -> io::Result<()> {
        if self.power_fails()? {
            return Err(power_failed());
        }
        self.existing(path)?.sync();
        Ok(())
    }

    fn sync_dir(&mut self, dir: &str) -> io::Result<()> {
        if self.power_fails()? {
            return Err(power_failed());
        }
        self.names_synced(dir);
        Ok(())
    }
}
