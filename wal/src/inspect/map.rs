//! Read-only maps of segment files.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a whole file.
///
/// # Errors
/// Of the operating system.
pub(super) fn map(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: slot files are never truncated while they exist under their name, so that no page of the map goes away.
    // A running node may recycle the segment and overwrite it in place. Whoever reads the map therefore trusts none of
    // its bytes, not even those of a block whose checksum held a moment ago: frames, headers and records are each parsed
    // by code that checks every length against the slice that it has.
    unsafe { Mmap::map(&file) }
}
