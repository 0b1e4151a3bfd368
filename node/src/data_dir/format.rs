//! Formatting: from an empty directory to one with an identity and an empty log for each shard.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use escapement_protocol::ShardId;
use escapement_wal::{FsDirectory, WalConfig, format_log};

use super::{Contents, DataDirError, IDENTITY, IDENTITY_NEW, Identity, KEYS, Keys, shard_name, sync_dir};
use crate::config::NodeConfig;
use crate::io::random_bytes;

/// Formats a directory that is locked and has no identity.
pub(super) fn format(config: &NodeConfig, contents: &Contents) -> Result<(), DataDirError> {
    let path = &config.data;
    let identity = Identity {
        node: u64::from_le_bytes(random()?),
        cluster: u64::from_le_bytes(random()?),
        shard_count: config.shard_count_of_new_directory(),
        segment_size_bytes: config.segment_size_bytes,
    };
    let keys = Keys { reset: random()?, token: random()? };

    // From here to the rename, what is in the directory may be thrown away: no event was ever accepted into it.
    let new = path.join(IDENTITY_NEW);
    write_durably(&new, &identity.encode(), 0o644)?;
    for shard in &contents.shards {
        let unfinished = path.join(shard);
        fs::remove_dir_all(&unfinished).map_err(DataDirError::io("remove", &unfinished))?;
    }
    write_durably(&path.join(KEYS), &keys.encode(), 0o600)?;
    for shard in 0..identity.shard_count {
        format_shard(config, &identity, ShardId(shard))?;
    }
    let done = path.join(IDENTITY);
    fs::rename(&new, &done).map_err(DataDirError::io("rename", &new))?;
    sync_dir(path)
}

fn format_shard(config: &NodeConfig, identity: &Identity, shard: ShardId) -> Result<(), DataDirError> {
    let path = config.data.join(shard_name(shard.0));
    fs::DirBuilder::new().mode(0o700).create(&path).map_err(DataDirError::io("create", &path))?;
    sync_dir(&config.data)?;
    let wal = WalConfig {
        segment_size_bytes: identity.segment_size_bytes,
        spare_count: config.segment_spares_of(identity.shard_count),
        ..WalConfig::default()
    };
    format_log(&mut FsDirectory::new(path), identity.log(shard), &wal)
        .map_err(|source| DataDirError::Format { shard: shard.0, source })
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], DataDirError> {
    random_bytes().map_err(DataDirError::Random)
}

pub(super) fn write_durably(path: &Path, text: &str, mode: u32) -> Result<(), DataDirError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(DataDirError::io("write", path))?;
    sync_dir(super::parent_of(path))
}
