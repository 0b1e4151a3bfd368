//! A copy of a data directory that a node serves meanwhile.
//!
//! The node keeps its files as they are for as long as this takes; see `crate::core` for how it does. The copy is made
//! under another name, `DIR.partial`, made durable, and renamed last: a directory of the wanted name is whole. A node can
//! be started on it only with its `IDENTITY`, which is written last too.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use escapement_protocol::ShardId;
use escapement_protocol::frame::ShardCut;
use escapement_wal::disk::RUN_DIR;
use escapement_wal::format::Checksum;
use escapement_wal::{
    BlockSeq, CopyError, FileId, FsDirectory, LogCut, LogIdentity, WalConfig, check_copy, copy_log,
};

use super::format::{random, write_durably};
use super::{
    Contents, DataDirError, IDENTITY, Identity, KEYS, Keys, LOCK, create_durably, parent_of, read_identity,
    shard_name, sync_dir,
};

/// Why a directory was not copied. Nothing under the wanted name was made.
#[derive(Debug, thiserror::Error)]
pub enum DirCopyError {
    /// Reading one of the directories, or writing the other.
    #[error(transparent)]
    Dir(#[from] DataDirError),
    /// Something has the wanted name.
    #[error("{path} is there already: give a path that is free", path = .path.display())]
    Exists {
        /// The wanted path.
        path: PathBuf,
    },
    /// Another copy to the same path is being made.
    #[error("another snapshot is being written to {path}: wait for it, or give another path", path = .path.display())]
    Busy {
        /// Where it is written.
        path: PathBuf,
    },
    /// The node does not have the shards that the directory has.
    #[error(
        "the node answered for {found} shards, and the directory has {expected}: give the directory that it serves"
    )]
    Shards {
        /// How many the node answered for.
        found: usize,
        /// How many there are.
        expected: u16,
    },
    /// A shard's log.
    #[error("shard {shard}: {source}")]
    Log {
        /// The shard.
        shard: u16,
        /// Why.
        source: CopyError,
    },
}

/// How much was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Shards.
    pub shard_count: u16,
    /// Bytes of the logs' files.
    pub log_size_bytes: u64,
    /// Run files, of which the copy has a name and no bytes of its own.
    pub linked_run_count: u64,
    /// Bytes of those.
    pub linked_size_bytes: u64,
    /// Run files that were copied: the file system links none, or the copy lies on another.
    pub copied_run_count: u64,
    /// Bytes of those.
    pub copied_size_bytes: u64,
}

/// A copy under way. Dropped before it is finished, it removes what it made.
#[derive(Debug)]
pub struct DirCopy {
    from: PathBuf,
    to: PathBuf,
    partial: PathBuf,
    identity: Identity,
    is_finished: bool,
    /// Keeps other copies to this place away.
    _lock: File,
}

impl DirCopy {
    /// Begins a copy of the data directory `from` that is to be at `to`.
    ///
    /// # Errors
    /// [`DirCopyError`].
    pub fn begin(from: &Path, to: &Path) -> Result<DirCopy, DirCopyError> {
        let identity = read_identity(from)?;
        let name = to.file_name().filter(|_| !to.exists());
        let name = name.ok_or_else(|| DirCopyError::Exists { path: to.to_owned() })?;
        let mut partial_name = name.to_owned();
        partial_name.push(".partial");
        let partial = to.with_file_name(partial_name);
        create_durably(&partial)?;
        // One that a killed copy left is begun anew, and only one: not what somebody else keeps under this name.
        let contents = Contents::survey(&partial)?;
        if let Some(found) = contents.foreign {
            return Err(DataDirError::Foreign { path: partial, found }.into());
        }
        let lock = lock(&partial)?;
        for entry in fs::read_dir(&partial).map_err(DataDirError::io("list", &partial))? {
            let entry = entry.map_err(DataDirError::io("list", &partial))?;
            let path = entry.path();
            let removed = match entry.file_name() {
                name if name == LOCK => Ok(()),
                _ if path.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            };
            removed.map_err(DataDirError::io("remove", &path))?;
        }
        Ok(DirCopy {
            from: from.to_owned(),
            to: to.to_owned(),
            partial,
            identity,
            is_finished: false,
            _lock: lock,
        })
    }

    /// The number of the node whose directory is copied.
    #[must_use]
    pub fn node_id(&self) -> u64 {
        self.identity.node
    }

    /// Copies every shard as the node says that it stands, while it keeps its files.
    ///
    /// # Errors
    /// [`DirCopyError`].
    pub fn copy(&self, cuts: &[ShardCut]) -> Result<Copied, DirCopyError> {
        let shard_count = self.identity.shard_count;
        let is_complete = cuts.len() == usize::from(shard_count)
            && cuts.iter().zip(0..).all(|(cut, shard)| cut.shard == ShardId(shard));
        if !is_complete {
            return Err(DirCopyError::Shards { found: cuts.len(), expected: shard_count });
        }
        let mut copied = Copied { shard_count, ..Copied::default() };
        for cut in cuts {
            let (from, to) = (self.from.join(shard_name(cut.shard.0)), self.shard_dir(cut.shard));
            fs::DirBuilder::new().mode(0o700).create(&to).map_err(DataDirError::io("create", &to))?;
            copy_runs(&from, &to, &mut copied)?;
            let log = copy_log(
                &mut FsDirectory::read_only(from),
                &mut FsDirectory::new(to),
                self.log_identity(cut.shard),
                &self.wal_config(),
                &log_cut(cut),
            );
            copied.log_size_bytes +=
                log.map_err(|source| DirCopyError::Log { shard: cut.shard.0, source })?.size_bytes;
        }
        Ok(copied)
    }

    /// Reads every log of the copy back, makes it a node's, and gives it its name. The node need not keep its files for
    /// this.
    ///
    /// # Errors
    /// [`DirCopyError`].
    pub fn finish(mut self, cuts: &[ShardCut]) -> Result<(), DirCopyError> {
        for cut in cuts {
            let mut dir = FsDirectory::read_only(self.shard_dir(cut.shard));
            check_copy(&mut dir, self.log_identity(cut.shard), &self.wal_config(), &log_cut(cut))
                .map_err(|source| DirCopyError::Log { shard: cut.shard.0, source })?;
        }
        // A node of its own, with secrets of its own: what the original signed is not the copy's.
        let keys = Keys { reset: random()?, token: random()? };
        let identity = Identity { node: u64::from_le_bytes(random()?), ..self.identity };
        sync_dir(&self.partial)?;
        write_durably(&self.partial.join(KEYS), &keys.encode(), 0o600)?;
        write_durably(&self.partial.join(IDENTITY), &identity.encode(), 0o644)?;
        if self.to.exists() {
            return Err(DirCopyError::Exists { path: self.to.clone() });
        }
        fs::rename(&self.partial, &self.to).map_err(DataDirError::io("rename", &self.partial))?;
        self.is_finished = true;
        Ok(sync_dir(parent_of(&self.to))?)
    }

    fn shard_dir(&self, shard: ShardId) -> PathBuf {
        self.partial.join(shard_name(shard.0))
    }

    fn log_identity(&self, shard: ShardId) -> LogIdentity {
        self.identity.log(shard)
    }

    fn wal_config(&self) -> WalConfig {
        WalConfig { segment_size_bytes: self.identity.segment_size_bytes, ..WalConfig::default() }
    }
}

impl Drop for DirCopy {
    fn drop(&mut self) {
        if !self.is_finished {
            // What cannot be removed is begun anew by the next copy to this place.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

fn lock(partial: &Path) -> Result<File, DirCopyError> {
    let path = partial.join(LOCK);
    let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = opened.map_err(DataDirError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DirCopyError::Busy { path: partial.to_owned() }),
        Err(TryLockError::Error(error)) => Err(DataDirError::io("lock", &path)(error).into()),
    }
}

fn log_cut(cut: &ShardCut) -> LogCut {
    LogCut {
        epoch: cut.epoch,
        first_segment_id: cut.first_segment_id,
        first_block_seq: BlockSeq(cut.first_block_seq),
        first_prev_checksum: Checksum(cut.first_prev_checksum),
        through: BlockSeq(cut.through_block_seq),
        end_segment_id: cut.end_segment_id,
        end_offset: cut.end_offset,
    }
}

/// Gives the copy every run file. A run is never changed once the log speaks of it, so that another name for its file is
/// enough. One that is still being written is no part of the log that is copied, and the first start removes it.
fn copy_runs(from: &Path, to: &Path, copied: &mut Copied) -> Result<(), DataDirError> {
    let from = from.join(RUN_DIR);
    let names = match fs::read_dir(&from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(DataDirError::io("list", &from))?,
    };
    let to_runs = to.join(RUN_DIR);
    fs::DirBuilder::new().mode(0o700).create(&to_runs).map_err(DataDirError::io("create", &to_runs))?;
    for entry in names {
        let name = entry.map_err(DataDirError::io("list", &from))?.file_name();
        if name.to_str().and_then(FileId::from_run_name).is_none() {
            continue;
        }
        let (source, target) = (from.join(&name), to_runs.join(&name));
        let linked = fs::hard_link(&source, &target);
        let done = linked.and_then(|()| fs::metadata(&target)).map(|file| (file.len(), true));
        let done = done.or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Err(error),
            _ => copy_run(&source, &target).map(|size_bytes| (size_bytes, false)),
        });
        match done {
            // Its removal had been under way before the node was asked to keep its files.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(DataDirError::io("copy", &source)(error)),
            Ok((size_bytes, true)) => {
                copied.linked_run_count += 1;
                copied.linked_size_bytes += size_bytes;
            }
            Ok((size_bytes, false)) => {
                copied.copied_run_count += 1;
                copied.copied_size_bytes += size_bytes;
            }
        }
    }
    sync_dir(&to_runs)?;
    sync_dir(to)
}

fn copy_run(source: &Path, target: &Path) -> io::Result<u64> {
    let size_bytes = fs::copy(source, target)?;
    File::open(target)?.sync_all()?;
    Ok(size_bytes)
}
