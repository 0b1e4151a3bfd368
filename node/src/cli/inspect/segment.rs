//! One shard's files, read block by block.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use escapement_wal::FileId;
use escapement_wal::disk::SEGMENT_DIR;
use escapement_wal::format::{
    Block, FRAME_SIZE_BYTES, Frame, Place, SEGMENT_HEADER_SIZE_BYTES, SegmentHeader, SegmentHeaderError,
    Superblock, SuperblockError,
};

/// A shard's superblock and segment files.
pub(super) struct Shard {
    pub(super) superblock: Superblock,
    pub(super) segments: Vec<Segment>,
}

/// One segment file.
pub(super) struct Segment {
    path: PathBuf,
    file: FileId,
    header: Result<SegmentHeader, SegmentHeaderError>,
}

/// What a segment file is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SegmentState {
    /// Its blocks are needed.
    Live,
    /// It was prepared for the next blocks, and has none yet.
    Ready,
    /// Its blocks are needed no more, or it never had any.
    Free,
    /// Its header is of another version.
    OtherFormat,
    /// Its header does not verify.
    Damaged,
}

impl SegmentState {
    pub(super) fn name(self) -> &'static str {
        match self {
            SegmentState::Live => "live",
            SegmentState::Ready => "ready",
            SegmentState::Free => "free",
            SegmentState::OtherFormat => "other format",
            SegmentState::Damaged => "damaged",
        }
    }
}

pub(super) fn read_shard(dir: &Path) -> Result<Shard, String> {
    let super_path = dir.join(FileId::SUPER.path());
    let bytes =
        fs::read(&super_path).map_err(|error| format!("cannot read {}: {error}", super_path.display()))?;
    let superblock = Superblock::choose(&bytes).map_err(|error| match error {
        SuperblockError::OtherFormat(found) => {
            format!("SUPER has format {found}, which this program does not read")
        }
        SuperblockError::NoQuorum { intact_count } => {
            format!("no two copies in SUPER agree ({intact_count} of 4 are intact)")
        }
    })?;
    let wal = dir.join(SEGMENT_DIR);
    let list = || -> io::Result<Vec<Segment>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&wal)? {
            let entry = entry?;
            if let Some(file) = FileId::from_slot_name(&entry.file_name().to_string_lossy()) {
                segments.push(Segment::open(entry.path(), file)?);
            }
        }
        Ok(segments)
    };
    let segments = list().map_err(|error| format!("cannot read {}: {error}", wal.display()))?;
    Ok(Shard { superblock, segments })
}

impl Segment {
    fn open(path: PathBuf, file: FileId) -> io::Result<Segment> {
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER_SIZE_BYTES);
        File::open(&path)?.take(SEGMENT_HEADER_SIZE_BYTES as u64).read_to_end(&mut bytes)?;
        Ok(Segment { path, file, header: SegmentHeader::parse(&bytes) })
    }

    pub(super) fn file_name(&self) -> String {
        self.file.path()
    }

    /// Number of the segment that the file holds.
    pub(super) fn id(&self) -> Option<u64> {
        self.header.ok().map(|header| header.segment_id)
    }

    /// Sorts by the order of writing, files without a segment last.
    pub(super) fn order(&self) -> (u64, u32) {
        (self.id().unwrap_or(u64::MAX), self.file.0)
    }

    /// Live where it may be; only its blocks tell it from one that is ready.
    pub(super) fn state(&self, superblock: &Superblock) -> SegmentState {
        match self.header {
            Ok(header) if header.segment_id >= superblock.first_segment_id => SegmentState::Live,
            Ok(_) | Err(SegmentHeaderError::Blank) => SegmentState::Free,
            Err(SegmentHeaderError::OtherFormat(_)) => SegmentState::OtherFormat,
            Err(SegmentHeaderError::Damaged) => SegmentState::Damaged,
        }
    }

    /// Hands over the blocks in order, each with the bytes that it takes on the disk, until the first place that holds
    /// no intact one. `each` ends it early with an error.
    ///
    /// # Errors
    /// Of reading, outside; of `each`, inside.
    pub(super) fn for_each_block<E>(
        &self,
        mut each: impl FnMut(&Block<'_>, u64) -> Result<(), E>,
    ) -> io::Result<Result<(), E>> {
        let Some(segment_id) = self.id() else { return Ok(Ok(())) };
        let mut file = BufReader::with_capacity(1024 * 1024, File::open(&self.path)?);
        io::copy(&mut file.by_ref().take(SEGMENT_HEADER_SIZE_BYTES as u64), &mut io::sink())?;
        let mut offset = SEGMENT_HEADER_SIZE_BYTES as u32;
        let mut extent = vec![0; FRAME_SIZE_BYTES];
        loop {
            extent.truncate(FRAME_SIZE_BYTES);
            if !read_whole(&mut file, &mut extent)? {
                return Ok(Ok(()));
            }
            let frame = match Frame::parse(&extent) {
                Ok(frame) if frame.place == (Place { segment_id, offset }) => frame,
                _ => return Ok(Ok(())),
            };
            extent.resize(frame.size_bytes as usize, 0);
            if !read_whole(&mut file, &mut extent[FRAME_SIZE_BYTES..])? {
                return Ok(Ok(()));
            }
            let Some(block) = Block::parse(&extent[FRAME_SIZE_BYTES..]) else { return Ok(Ok(())) };
            if let Err(ended) = each(&block, frame.size_bytes.into()) {
                return Ok(Err(ended));
            }
            offset += frame.size_bytes;
        }
    }
}

/// Whether the file had that many bytes left.
fn read_whole(file: &mut impl Read, buf: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buf) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}
