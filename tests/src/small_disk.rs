//! A small real file system, to fill: ext4 in a file, through a loop device.
//!
//! It takes root and Linux; [`missing`] says what is not there.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::powercut::rig::{Mount, lacking, text, tool};

/// Why there can be none here.
#[must_use]
pub fn missing() -> Option<String> {
    lacking(&["losetup", "mkfs.ext4", "mount", "umount"], &["/dev/loop-control"])
}

/// A mounted file system. Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    mount: Mount,
}

impl SmallDisk {
    /// Makes one of that size, its files in `dir`.
    ///
    /// # Errors
    /// Which tool failed, or the operating system.
    pub fn new(dir: &Path, size_bytes: u64) -> Result<SmallDisk, String> {
        let image = dir.join("image");
        let made = File::create(&image).and_then(|file| file.set_len(size_bytes));
        made.map_err(|error| error.to_string())?;
        // Without blocks kept for root, as which the test runs: full is full.
        tool("mkfs.ext4", &["-q", "-F", "-m", "0", "-b", "4096", "-J", "size=4", text(&image)])?;
        Ok(SmallDisk { mount: Mount::new(&image, &dir.join("small"), "loop")? })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount.path
    }

    fn ballast(&self) -> PathBuf {
        self.mount.path.join("ballast")
    }

    /// Fills it but for so many bytes.
    ///
    /// # Errors
    /// Of the operating system, another than that it is full.
    pub fn fill_but(&self, left_bytes: u64) -> io::Result<()> {
        let mut file = File::create(self.ballast())?;
        let piece = vec![0x5a; 1 << 20];
        loop {
            match file.write_all(&piece) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error),
            }
        }
        let size_bytes = file.metadata()?.len();
        file.set_len(size_bytes.saturating_sub(left_bytes))?;
        file.sync_all()
    }

    /// Gives the space back.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn free(&self) -> io::Result<()> {
        std::fs::remove_file(self.ballast())
    }
}
