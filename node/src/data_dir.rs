//! The data directory: whose it is, who may open it, and how it comes to be.
//!
//! ```text
//! LOCK          held with flock by the node that serves; holds its process id
//! IDENTITY      node, cluster, shard count, segment size; written last by formatting
//! IDENTITY.new  there exactly while formatting is under way
//! KEYS          secrets of the node, readable by its owner only
//! shard-0007/   one for each shard, the log's
//! ```
//!
//! `docs/operating/data-directory.md` specifies the files. Formatting writes `IDENTITY.new` first and renames it to
//! `IDENTITY` last, each step durable before the next. So a directory without `IDENTITY` that has `IDENTITY.new` never
//! held an event, unless a log in it was opened, and is formatted anew; one that has neither, but has shards, lost its `IDENTITY` and is refused.

mod copy;
mod files;
mod format;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use escapement_protocol::{Epoch, ShardId};
use escapement_wal::disk::SEGMENT_DIR;
use escapement_wal::format::{EXTENT_ALIGN_BYTES, SEGMENT_HEADER_SIZE_BYTES, Superblock};
use escapement_wal::{LogIdentity, OpenError};

use crate::config::{ConfigError, NodeConfig};
pub use copy::{Copied, DirCopy, DirCopyError};
pub use files::{FileFault, IDENTITY_FORMAT, Identity};
use files::{Keys, SECRET_SIZE_BYTES};

const LOCK: &str = "LOCK";
const IDENTITY: &str = "IDENTITY";
const IDENTITY_NEW: &str = "IDENTITY.new";
const KEYS: &str = "KEYS";
/// What `mkfs` leaves at the root of a file system.
const LOST_AND_FOUND: &str = "lost+found";

/// File systems that live in memory, by the number that `statfs` gives.
const MEMORY_FILE_SYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Why a data directory is not opened. Unless it says otherwise, nothing in it but `LOCK` was changed.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another node serves it.
    #[error("{path} is served by another node{}: stop it first, or give another directory", pid_text(*pid), path = .path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Its process, where `LOCK` says.
        pid: Option<u32>,
    },
    /// It holds something else.
    #[error(
        "{path} is no data directory, and not empty ({found:?} is in it): give an empty directory, or a new one",
        path = .path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// One of its entries.
        found: String,
    },
    /// Shards without `IDENTITY`.
    #[error(
        "{path} holds shards but no IDENTITY: restore that file from a copy; the directory is not formatted over them",
        path = .path.display()
    )]
    NoIdentity {
        /// The directory.
        path: PathBuf,
    },
    /// As if formatting had been cut short, but a log in it was in use.
    #[error(
        "{path} has IDENTITY.new and no IDENTITY, as formatting leaves it when it is cut short, but {shard} in it was in \
         use: rename IDENTITY.new back to IDENTITY where that is what it was, or restore IDENTITY from a copy; the \
         directory is not formatted over its events",
        path = .path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// One of its shards.
        shard: String,
    },
    /// A file lies where the directory, or one around it, is to be.
    #[error("{path} is no directory: give another path, or move that file away", path = .path.display())]
    NoDirectory {
        /// The file.
        path: PathBuf,
    },
    /// The directory cannot be created.
    #[error("cannot create {path}: {source}; create it yourself for the user that serves, or give another directory", path = .path.display())]
    NotCreated {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is none, and none was to be made.
    #[error("{path} is no data directory: it has no IDENTITY", path = .path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// Written by another version.
    #[error(
        "{path} has format {found}, and this program reads format {IDENTITY_FORMAT}: {}", if *found > IDENTITY_FORMAT {
            "start the newer program that wrote it"
        } else {
            "convert it with the program that wrote it"
        }, path = .path.display()
    )]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// The version that it states.
        found: u32,
    },
    /// A file is damaged.
    #[error("{path} cannot be believed ({what}): restore it from a copy", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A shard's directory is gone.
    #[error("{path} is missing: restore it from a copy; it held acknowledged events", path = .path.display())]
    ShardMissing {
        /// The shard's directory.
        path: PathBuf,
    },
    /// Another number of shards was asked for.
    #[error(
        "{path} was formatted with {formatted} shards and cannot have {asked}: start with --shards {formatted} or \
         without the flag, or format another directory",
        path = .path.display()
    )]
    ShardCount {
        /// The directory.
        path: PathBuf,
        /// Its shards.
        formatted: u16,
        /// What was asked for.
        asked: u16,
    },
    /// What its shards would get of something is too little.
    #[error(transparent)]
    Shares(#[from] ConfigError),
    /// It lies in memory.
    #[error(
        "{path} lies in memory, where a restart of the machine loses it: give a directory on a disk, or --allow-tmpfs",
        path = .path.display()
    )]
    InMemory {
        /// The directory.
        path: PathBuf,
    },
    /// A shard's log could not be made. The directory stays unformatted, and the next start begins anew.
    #[error("cannot format the log of shard {shard}: {source}")]
    Format {
        /// The shard.
        shard: u16,
        /// Why.
        source: OpenError,
    },
    /// There were no random bytes to format with.
    #[error("cannot read random bytes from the operating system: {0}")]
    Random(io::Error),
    /// The operating system refused. While formatting, the next start begins anew.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map(|pid| format!(", process {pid}")).unwrap_or_default()
}

impl DataDirError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
        let path = path.to_owned();
        move |source| DataDirError::Io { action, path, source }
    }
}

/// A formatted data directory, locked for as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Identity,
    keys: Keys,
    is_new: bool,
    /// Closing it lets go of the lock.
    _lock: File,
}

impl DataDir {
    /// Opens the directory that `config` names, and formats it where it is new or empty.
    ///
    /// Formatting writes zeros to every segment file that is prepared, which takes about a second per GiB. Afterwards
    /// every shard has an empty log: one that is missing later was lost.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn open_or_format(config: &NodeConfig) -> Result<DataDir, DataDirError> {
        let path = &config.data;
        if !config.allow_tmpfs {
            let around = nearest_existing(path);
            if lies_in_memory(around).map_err(DataDirError::io("look at", around))? {
                return Err(DataDirError::InMemory { path: path.clone() });
            }
        }
        create_durably(path)?;
        let before = Contents::survey(path)?;
        before.refuse_foreign(path)?;
        let lock = lock(path)?;
        // Who held the lock before may have formatted in between.
        let contents = Contents::survey(path)?;
        contents.refuse_foreign(path)?;
        let is_new = !contents.has_identity;
        if is_new {
            contents.refuse_used(path)?;
            config.check_shares(config.shard_count_of_new_directory(), config.segment_size_bytes)?;
            format::format(config, &contents)?;
        }
        let identity = read_identity(path)?;
        if let Some(asked) = config.shards.filter(|asked| *asked != identity.shard_count) {
            return Err(DataDirError::ShardCount {
                path: path.clone(),
                formatted: identity.shard_count,
                asked,
            });
        }
        config.check_shares(identity.shard_count, identity.segment_size_bytes)?;
        let keys = read_file(&path.join(KEYS), Keys::parse)?;
        let data = DataDir { path: path.clone(), identity, keys, is_new, _lock: lock };
        data.check_shards()?;
        if !is_new && contents.has_new_identity {
            // A crash came between two steps of the rename's durability: formatting was complete.
            remove(&path.join(IDENTITY_NEW))?;
        }
        Ok(data)
    }

    /// Whether the directory at `path` has been formatted, as far as its names tell.
    #[must_use]
    pub fn is_formatted(path: &Path) -> bool {
        path.join(IDENTITY).exists()
    }

    fn check_shards(&self) -> Result<(), DataDirError> {
        for shard in 0..self.identity.shard_count {
            let path = self.shard_dir(ShardId(shard));
            if !path.is_dir() {
                return Err(DataDirError::ShardMissing { path });
            }
        }
        Ok(())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was formatted just now.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The node's number: random, made by formatting.
    #[must_use]
    pub fn node_id(&self) -> u64 {
        self.identity.node
    }

    /// The cluster's number: random, made by formatting.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        self.identity.cluster
    }

    /// Number of shards.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.identity.shard_count
    }

    /// The directory of a shard.
    ///
    /// # Panics
    /// If there is no such shard.
    #[must_use]
    pub fn shard_dir(&self, shard: ShardId) -> PathBuf {
        assert!(shard.0 < self.identity.shard_count, "no shard {}", shard.0);
        self.path.join(shard_name(shard.0))
    }

    /// Whose log a shard's is.
    #[must_use]
    pub fn log_identity(&self, shard: ShardId) -> LogIdentity {
        self.identity.log(shard)
    }

    /// Secret that stateless resets are made from.
    #[must_use]
    pub fn reset_secret(&self) -> &[u8; SECRET_SIZE_BYTES] {
        &self.keys.reset
    }

    /// Secret that address tokens are made from.
    #[must_use]
    pub fn token_secret(&self) -> &[u8; SECRET_SIZE_BYTES] {
        &self.keys.token
    }
}

/// Reads whose directory it is, without locking or changing it: for tools that only look.
///
/// # Errors
/// [`DataDirError::Missing`], or what is wrong with the file.
pub fn read_identity(path: &Path) -> Result<Identity, DataDirError> {
    let file = path.join(IDENTITY);
    match read_file(&file, Identity::parse) {
        Err(DataDirError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(DataDirError::Missing { path: path.to_owned() })
        }
        result => result,
    }
}

/// Whether the node's secrets can be read, without locking or changing them: for tools that only look.
///
/// # Errors
/// What is wrong with the file.
pub fn check_keys(path: &Path) -> Result<(), DataDirError> {
    read_file(&path.join(KEYS), Keys::parse).map(drop)
}

/// Keeps nodes away from a directory for as long as the answer lives, and changes nothing: for tools that need it to hold
/// still. `None` where there is no `LOCK`, as in a copy without it: no node ever served there.
///
/// # Errors
/// [`DataDirError::Locked`], or why `LOCK` cannot be read.
pub fn keep_still(path: &Path) -> Result<Option<File>, DataDirError> {
    let file_path = path.join(LOCK);
    let mut file = match File::open(&file_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(DataDirError::io("open", &file_path))?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(locked(path, &mut file)),
        Err(TryLockError::Error(error)) => Err(DataDirError::io("lock", &file_path)(error)),
    }
}

/// Keeps nodes and other tools away from a directory for as long as the answer lives: for a tool that changes it.
///
/// # Errors
/// [`DataDirError::Locked`], or why `LOCK` cannot be written.
pub fn lock_for_repair(path: &Path) -> Result<File, DataDirError> {
    lock(path)
}

fn locked(path: &Path, file: &mut File) -> DataDirError {
    let mut text = String::new();
    let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
    DataDirError::Locked { path: path.to_owned(), pid }
}

/// Name of a shard's directory.
#[must_use]
pub fn shard_name(shard: u16) -> String {
    format!("shard-{shard:04}")
}

/// What lies in a directory.
#[derive(Debug, Default)]
struct Contents {
    has_identity: bool,
    has_new_identity: bool,
    shards: Vec<String>,
    foreign: Option<String>,
}

impl Contents {
    fn survey(path: &Path) -> Result<Contents, DataDirError> {
        let mut contents = Contents::default();
        for entry in fs::read_dir(path).map_err(DataDirError::io("list", path))? {
            let name = entry.map_err(DataDirError::io("list", path))?.file_name();
            let name = name.to_string_lossy().into_owned();
            match name.as_str() {
                IDENTITY => contents.has_identity = true,
                IDENTITY_NEW => contents.has_new_identity = true,
                LOCK | KEYS | LOST_AND_FOUND => {}
                shard if is_shard_name(shard) => contents.shards.push(name),
                _ => contents.foreign = Some(name),
            }
        }
        Ok(contents)
    }

    /// Refuses what formatting would be wrong for. A directory with an identity may hold other things too.
    fn refuse_foreign(&self, path: &Path) -> Result<(), DataDirError> {
        if self.has_identity {
            return Ok(());
        }
        if let Some(found) = &self.foreign {
            return Err(DataDirError::Foreign { path: path.to_owned(), found: found.clone() });
        }
        if !self.shards.is_empty() && !self.has_new_identity {
            return Err(DataDirError::NoIdentity { path: path.to_owned() });
        }
        Ok(())
    }

    /// Refuses shards that formatting did not leave: an `IDENTITY.new` may be an `IDENTITY` that somebody renamed.
    fn refuse_used(&self, path: &Path) -> Result<(), DataDirError> {
        for shard in &self.shards {
            let dir = path.join(shard);
            if was_opened(&dir).map_err(DataDirError::io("look into", &dir))? {
                return Err(DataDirError::InUse { path: path.to_owned(), shard: shard.clone() });
            }
        }
        Ok(())
    }
}

/// Whether a shard's directory holds more than formatting puts there.
fn was_opened(dir: &Path) -> io::Result<bool> {
    let superblock = match fs::read(dir.join("SUPER")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        read => Some(Superblock::choose(&read?)),
    };
    // It comes whole or not at all, and counts how often the log was opened.
    if superblock.is_some_and(|found| found.map_or(true, |superblock| superblock.epoch > Epoch(0))) {
        return Ok(true);
    }
    let segments = match fs::read_dir(dir.join(SEGMENT_DIR)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    for segment in segments {
        // Every opening writes a block, and the first one lies behind the header.
        let mut block = [0; EXTENT_ALIGN_BYTES];
        let file = File::open(segment?.path())?;
        let read = file.read_at(&mut block, SEGMENT_HEADER_SIZE_BYTES as u64)?;
        if block[..read].iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_shard_name(name: &str) -> bool {
    let number = name.strip_prefix("shard-").and_then(|digits| digits.parse().ok());
    number.is_some_and(|number| shard_name(number) == name)
}

/// Creates a directory and those around it, and makes that last.
fn create_durably(path: &Path) -> Result<(), DataDirError> {
    if path.is_dir() {
        return Ok(());
    }
    if path.exists() {
        return Err(DataDirError::NoDirectory { path: path.to_owned() });
    }
    let parent = parent_of(path);
    create_durably(parent)?;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        created => created.map_err(|source| DataDirError::NotCreated { path: path.to_owned(), source })?,
    }
    sync_dir(parent)
}

/// The path itself where it exists, or else the nearest directory around it that does: where it would be created.
fn nearest_existing(path: &Path) -> &Path {
    let mut path = path;
    while !path.exists() && path != Path::new(".") {
        path = parent_of(path);
    }
    path
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Whether what lies here is lost when the machine restarts.
///
/// # Errors
/// Of the operating system, where there is no such directory for example.
pub fn lies_in_memory(path: &Path) -> io::Result<bool> {
    let found = rustix::fs::statfs(path)?;
    Ok(MEMORY_FILE_SYSTEMS.contains(&(found.f_type as u64)))
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let file_path = path.join(LOCK);
    let opened =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&file_path);
    let mut file = opened.map_err(DataDirError::io("open", &file_path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(locked(path, &mut file)),
        Err(TryLockError::Error(error)) => return Err(DataDirError::io("lock", &file_path)(error)),
    }
    // Only a help for who is refused: nothing depends on it.
    let _ =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

fn read_file<T>(path: &Path, parse: impl FnOnce(&str) -> Result<T, FileFault>) -> Result<T, DataDirError> {
    let bytes = fs::read(path).map_err(DataDirError::io("read", path))?;
    let text = String::from_utf8(bytes).map_err(|_| FileFault::Damaged("it is not text"));
    text.and_then(|text| parse(&text)).map_err(|fault| match fault {
        FileFault::OtherFormat(found) => DataDirError::OtherFormat { path: path.to_owned(), found },
        FileFault::Damaged(what) => DataDirError::Damaged { path: path.to_owned(), what },
    })
}

fn remove(path: &Path) -> Result<(), DataDirError> {
    fs::remove_file(path).map_err(DataDirError::io("remove", path))?;
    sync_dir(parent_of(path))
}

fn sync_dir(path: &Path) -> Result<(), DataDirError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(DataDirError::io("sync", path))
}

#[cfg(test)]
mod tests;
