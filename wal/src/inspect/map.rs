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
    // A running engine may recycle the segment and overwrite it in place; readers of the map treat its bytes as
    // untrusted: every value is copied out before it is judged, and a block that changes while it is read fails its
    // checksum or is reported as it was at one moment.
    unsafe { Mmap::map(&file) }
}
