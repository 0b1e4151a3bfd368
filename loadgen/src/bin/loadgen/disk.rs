//! What a data directory takes on its disk.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Name of the directories that hold runs of far-future events, one in each shard's.
const FAR_DIR: &str = "far";

/// Size of what `st_blocks` counts.
const STAT_BLOCK_SIZE_BYTES: u64 = 512;

/// Allocated bytes of a data directory, which are more than those written where files are prepared ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskUse {
    /// Runs of far-future events.
    pub(crate) far_bytes: u64,
    /// Everything else: the segments of the logs, and a few small files.
    pub(crate) log_bytes: u64,
}

impl DiskUse {
    pub(crate) fn bytes(self) -> u64 {
        self.far_bytes + self.log_bytes
    }

    /// Adds up a directory that may change meanwhile: what is gone when it is looked at does not count.
    ///
    /// # Errors
    /// Where the directory itself, or one in it, can't be read.
    pub(crate) fn of(dir: &Path) -> io::Result<DiskUse> {
        let mut all = DiskUse::default();
        all.add(dir, false)?;
        Ok(all)
    }

    fn add(&mut self, dir: &Path, is_far: bool) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if metadata.is_dir() {
                self.add(&entry.path(), is_far || entry.file_name() == FAR_DIR)?;
                continue;
            }
            let bytes = metadata.blocks() * STAT_BLOCK_SIZE_BYTES;
            *(if is_far { &mut self.far_bytes } else { &mut self.log_bytes }) += bytes;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_logs_are_added_up_apart_over_all_shards() {
        let place = tempfile::tempdir().expect("a directory");
        for shard in ["shard-0000", "shard-0001"] {
            let far = place.path().join(shard).join(FAR_DIR);
            fs::create_dir_all(&far).expect("made");
            fs::write(far.join("00000001.run"), vec![1; 8_192]).expect("written");
            fs::write(place.path().join(shard).join("00000001.seg"), vec![1; 65_536]).expect("written");
        }
        let used = DiskUse::of(place.path()).expect("readable");
        assert!((16_384..131_072).contains(&used.far_bytes), "{used:?}");
        assert!((131_072..262_144).contains(&used.log_bytes), "{used:?}");
        assert_eq!(used.bytes(), used.far_bytes + used.log_bytes);
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        let place = tempfile::tempdir().expect("a directory");
        assert!(DiskUse::of(&place.path().join("none")).is_err());
    }
}
