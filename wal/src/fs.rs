//! A [`Directory`] on a file system.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::aligned::AlignedBuf;
use crate::disk::{Directory, FILL_SIZE_BYTES};

/// Files kept open: the runs of a shard may be thousands.
const OPEN_COUNT_MAX: usize = 64;

/// A shard's directory on a file system, read and written with `O_DIRECT`, and `O_DSYNC` for each write.
///
/// Where the file system refuses `O_DIRECT` it falls back to the page cache, still with `O_DSYNC`.
/// Keeps the files used last open until it is dropped.
#[derive(Debug)]
pub struct FsDirectory {
    root: PathBuf,
    writable: bool,
    /// The least recently used first.
    open: Vec<(String, File)>,
}

impl FsDirectory {
    /// The directory at `root`, which must exist.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> FsDirectory {
        FsDirectory { root: root.into(), writable: true, open: Vec::new() }
    }

    /// The same for tools that only look: files are opened for reading, and what would change one fails.
    #[must_use]
    pub fn read_only(root: impl Into<PathBuf>) -> FsDirectory {
        FsDirectory { writable: false, ..FsDirectory::new(root) }
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn file(&mut self, path: &str) -> io::Result<&File> {
        let file = match self.close(path) {
            Some(open) => open,
            None => {
                let mut options = OpenOptions::new();
                let file = open_direct(options.read(true).write(self.writable), &self.root.join(path))?;
                if self.open.len() == OPEN_COUNT_MAX {
                    self.open.remove(0);
                }
                (path.to_owned(), file)
            }
        };
        let at = self.open.len();
        self.open.push(file);
        Ok(&self.open[at].1)
    }

    /// Takes a file out of those kept open.
    fn close(&mut self, path: &str) -> Option<(String, File)> {
        let at = self.open.iter().rposition(|(open, _)| open == path)?;
        Some(self.open.remove(at))
    }

    fn refuse_change(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::ErrorKind::ReadOnlyFilesystem.into()) }
    }

    fn parent(&self, path: &str) -> PathBuf {
        let path = self.root.join(path);
        path.parent().unwrap_or(&self.root).to_owned()
    }
}

/// Opens for direct, synchronous writes; through the page cache where the file system knows no direct ones.
fn open_direct(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    match options.custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            options.create_new(false).create(false).custom_flags(libc::O_DSYNC).open(path)
        }
        opened => opened,
    }
}

fn sync_path(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Directory for FsDirectory {
    fn list(&mut self, dir: &str) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.root.join(dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn size(&mut self, path: &str) -> io::Result<Option<u64>> {
        match std::fs::metadata(self.root.join(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            metadata => Ok(Some(metadata?.len())),
        }
    }

    fn has_dir(&mut self, dir: &str) -> io::Result<bool> {
        match std::fs::metadata(self.root.join(dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            metadata => Ok(metadata?.is_dir()),
        }
    }

    fn read_at(&mut self, path: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let file = self.file(path)?;
        let mut done = 0;
        while done < buf.len() {
            match file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&mut self, path: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.refuse_change()?;
        self.file(path)?.write_all_at(bytes, offset)
    }

    fn create_zeroed(&mut self, path: &str, size_bytes: u64) -> io::Result<()> {
        self.create_filled(path, size_bytes, &mut |_, buf| {
            buf.fill(0);
            Ok(())
        })
    }

    fn create_filled(
        &mut self,
        path: &str,
        size_bytes: u64,
        fill_part: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.refuse_change()?;
        let full = self.root.join(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        // Each write alone would be synchronous: one sync at the end is what this needs.
        let file = match options.custom_flags(libc::O_DIRECT).open(&full) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                // Some file systems refuse the flag only after they made the file.
                options.create_new(false).create(true).custom_flags(0).open(&full)
            }
            opened => opened,
        }?;
        let filled = fill(&file, size_bytes, fill_part).and_then(|()| file.sync_all());
        if let Err(error) = filled.and_then(|()| sync_path(&self.parent(path))) {
            // The error that led here says more than one of the removal would.
            let _ = std::fs::remove_file(&full);
            return Err(error);
        }
        Ok(())
    }

    fn create_dir(&mut self, dir: &str) -> io::Result<()> {
        self.refuse_change()?;
        std::fs::create_dir_all(self.root.join(dir))?;
        sync_path(&self.parent(dir))
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.refuse_change()?;
        self.close(path);
        std::fs::remove_file(self.root.join(path))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.refuse_change()?;
        self.close(from);
        self.close(to);
        std::fs::rename(self.root.join(from), self.root.join(to))
    }

    fn sync(&mut self, path: &str) -> io::Result<()> {
        self.file(path)?.sync_data()
    }

    fn sync_dir(&mut self, dir: &str) -> io::Result<()> {
        sync_path(&self.root.join(dir))
    }
}

fn fill(
    file: &File,
    size_bytes: u64,
    fill_part: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buf = AlignedBuf::zeroed(FILL_SIZE_BYTES);
    for offset in (0..size_bytes).step_by(FILL_SIZE_BYTES) {
        let part = (size_bytes - offset).min(FILL_SIZE_BYTES as u64) as usize;
        fill_part(offset, &mut buf[..part])?;
        file.write_all_at(&buf[..part], offset)?;
    }
    Ok(())
}
