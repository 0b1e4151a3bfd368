//! The files of a shard's runs, as recovery needs them.

use std::io;

use escapement_engine::Shard;
use escapement_engine::far::{RunFiles, RunId};
use escapement_wal::{AlignedBuf, Directory, FileId, RUN_DIR};

/// A shard's directory, as [`RunFiles`].
#[derive(Debug)]
pub struct RunDirectory<D>(pub D);

impl<D: Directory> RunFiles for RunDirectory<D> {
    fn size(&mut self, run: RunId) -> io::Result<Option<u64>> {
        self.0.size(&FileId::Run(run.0).path())
    }

    fn read(&mut self, run: RunId, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut buf = AlignedBuf::new();
        buf.set_len_stale(len);
        let read = self.0.read_at(&FileId::Run(run.0).path(), offset, &mut buf)?;
        Ok(buf[..read].to_vec())
    }
}

/// Removes the files of runs that the log does not know: a crash came before the record that would have made them count.
///
/// # Errors
/// Of the operating system.
pub fn remove_left_over(dir: &mut dyn Directory, shard: &Shard) -> io::Result<()> {
    let needed = shard.runs();
    let names = dir.list(RUN_DIR)?;
    let runs = names.iter().filter_map(|name| FileId::from_run_name(name));
    let left_over = runs.filter(|file| !matches!(file, FileId::Run(run) if needed.contains(&RunId(*run))));
    let mut any = false;
    for file in left_over {
        dir.remove(&file.path())?;
        any = true;
    }
    if any { dir.sync_dir(RUN_DIR) } else { Ok(()) }
}
