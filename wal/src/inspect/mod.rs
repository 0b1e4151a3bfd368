//! Looking at a log without opening it: for tools, on a closed directory or beside a running node.
//!
//! Sealed segments are mapped, the one being written is copied, free ones are not read beyond their header. Nothing is
//! written. Never call this from a core: a page fault or an error of the medium would stop it.

mod map;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use memmap2::Mmap;

use crate::disk::{FileId, SEGMENT_DIR};
use crate::format::{
    Block, BlockHeader, EXTENT_ALIGN_BYTES, FRAME_SIZE_BYTES, Frame, Place, SEGMENT_HEADER_SIZE_BYTES,
    SegmentHeader, SegmentHeaderError, Superblock, SuperblockError, decode_extent,
};

/// A log as found on the disk.
#[derive(Debug)]
pub struct Inspection {
    /// What `SUPER` says.
    pub superblock: Result<Superblock, SuperblockError>,
    /// Every slot file, in the order of their segments; those without a segment come last.
    pub segments: Vec<InspectedSegment>,
}

/// One slot file.
#[derive(Debug)]
pub struct InspectedSegment {
    /// Which file.
    pub file: FileId,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// What it says it holds.
    pub header: Result<SegmentHeader, SegmentHeaderError>,
    /// Whether a later segment holds blocks, so that this one is not written any more.
    pub sealed: bool,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Mapped(Mmap),
    Copied(Vec<u8>),
    /// Never used, prepared, or without a readable header.
    None,
}

/// An extent, or what is left of one.
#[derive(Clone, Copy, Debug)]
pub struct InspectedExtent<'a> {
    /// What its frame says.
    pub frame: Frame,
    /// The block's header, where its own checksum holds.
    pub header: Option<BlockHeader>,
    /// The block, where its checksum holds and the padding is zero.
    pub block: Option<Block<'a>>,
}

/// Looks at the log in `root`, a shard's directory.
///
/// # Errors
/// Of the operating system, with the path that it is about. Damage is no error: it is part of the answer.
pub fn inspect(root: &Path) -> io::Result<Inspection> {
    let super_path = root.join(FileId::Super.path());
    let superblock = Superblock::choose(&about(&super_path, std::fs::read(&super_path))?);
    let segment_dir = root.join(SEGMENT_DIR);
    let mut segments = Vec::new();
    for entry in about(&segment_dir, std::fs::read_dir(&segment_dir))? {
        let entry = about(&segment_dir, entry)?;
        if let Some(file) = FileId::from_slot_name(&entry.file_name().to_string_lossy()) {
            segments.push(about(&entry.path(), look(&entry.path(), file))?);
        }
    }
    segments.sort_by_key(|(segment, _)| {
        (segment.header.map_or(u64::MAX, |header| header.segment_id), segment.file)
    });
    let newest_used = segments.iter().rposition(|(_, used)| *used);
    let mut inspected = Vec::with_capacity(segments.len());
    for (at, (mut segment, used)) in segments.into_iter().enumerate() {
        let path = root.join(segment.file.path());
        segment.sealed = used && Some(at) < newest_used;
        segment.content = match (used, segment.sealed) {
            (false, _) => Content::None,
            (true, true) => Content::Mapped(about(&path, map::map(&path))?),
            (true, false) => Content::Copied(about(&path, std::fs::read(&path))?),
        };
        inspected.push(segment);
    }
    Ok(Inspection { superblock, segments: inspected })
}

/// Says of an error which path it is about.
fn about<T>(path: &Path, done: io::Result<T>) -> io::Result<T> {
    done.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Reads header and first frame; answers also whether the segment that the header names has its first extent.
fn look(path: &Path, file: FileId) -> io::Result<(InspectedSegment, bool)> {
    let opened = File::open(path)?;
    let size_bytes = opened.metadata()?.len();
    let mut head = vec![0; (SEGMENT_HEADER_SIZE_BYTES + EXTENT_ALIGN_BYTES).min(size_bytes as usize)];
    opened.read_exact_at(&mut head, 0)?;
    let header = SegmentHeader::parse(&head);
    let first = head.get(SEGMENT_HEADER_SIZE_BYTES..).and_then(|bytes| Frame::parse(bytes).ok());
    let used = match (header, first) {
        (Ok(header), Some(frame)) => {
            let offset = SEGMENT_HEADER_SIZE_BYTES as u32;
            frame.place == Place { segment_id: header.segment_id, offset }
        }
        _ => false,
    };
    Ok((InspectedSegment { file, size_bytes, header, sealed: false, content: Content::None }, used))
}

impl InspectedSegment {
    /// Everything in the file that has a frame of this segment and this place, in order, damaged blocks included.
    /// Nothing where the file has no readable header.
    pub fn extents(&self) -> impl Iterator<Item = InspectedExtent<'_>> {
        let bytes: &[u8] = match &self.content {
            Content::Mapped(map) => map,
            Content::Copied(bytes) => bytes,
            Content::None => &[],
        };
        let segment_id = self.header.map_or(0, |header| header.segment_id);
        let mut offset = SEGMENT_HEADER_SIZE_BYTES;
        std::iter::from_fn(move || {
            while let Some(extent) = bytes.get(offset..).filter(|rest| rest.len() >= EXTENT_ALIGN_BYTES) {
                let place = Place { segment_id, offset: offset as u32 };
                match Frame::parse(extent) {
                    Ok(frame) if frame.place == place => {
                        offset += frame.size_bytes as usize;
                        let header = BlockHeader::parse(&extent[FRAME_SIZE_BYTES..]);
                        let block = header.and_then(|header| decode_extent(extent, &frame, header));
                        return Some(InspectedExtent { frame, header, block });
                    }
                    _ => offset += EXTENT_ALIGN_BYTES,
                }
            }
            None
        })
    }
}
