//! Finding out what each segment file holds.

use super::error::OpenError;
use crate::aligned::AlignedBuf;
use crate::config::LogIdentity;
use crate::disk::{Directory, FileId, SEGMENT_DIR};
use crate::format::{Frame, SEGMENT_HEADER_SIZE_BYTES, SegmentHeader, SegmentHeaderError};

/// What a slot file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// The header is zero: never used, or erased.
    Blank,
    /// A segment, by its header, or by its first frame where the header is damaged.
    Segment { id: u64, header_intact: bool },
    /// Neither header nor first frame can be read.
    Unknown,
    /// Shorter than a segment, and without a header: what a crash left of a file that was being created.
    Unfinished,
    /// The number is not in use, though higher ones are.
    Absent,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) number: u32,
    pub(super) content: Content,
}

impl Slot {
    pub(super) fn file(&self) -> FileId {
        FileId::Slot(self.number)
    }

    pub(super) fn segment_id(&self) -> Option<u64> {
        match self.content {
            Content::Segment { id, .. } => Some(id),
            _ => None,
        }
    }
}

/// Looks at every file in `wal/`; the result is indexed by slot number.
pub(super) fn survey(
    dir: &mut dyn Directory,
    identity: &LogIdentity,
    segment_size_bytes: u64,
) -> Result<Vec<Slot>, OpenError> {
    let mut numbers = Vec::new();
    for name in dir.list(SEGMENT_DIR).map_err(OpenError::io("list", SEGMENT_DIR))? {
        match FileId::from_slot_name(&name) {
            // A stray file with a huge number must not become a huge table.
            Some(FileId::Slot(number)) if number < SLOT_NUMBER_MAX => numbers.push(number),
            _ => return Err(OpenError::UnexpectedFile { name }),
        }
    }
    numbers.sort_unstable();
    let slot_count = numbers.last().map_or(0, |last| last + 1);
    let mut slots: Vec<Slot> =
        (0..slot_count).map(|number| Slot { number, content: Content::Absent }).collect();
    for number in numbers {
        slots[number as usize].content = look(dir, number, identity, segment_size_bytes)?;
    }
    for (at, slot) in slots.iter().enumerate() {
        let Some(segment_id) = slot.segment_id() else { continue };
        if let Some(other) = slots[at + 1..].iter().find(|other| other.segment_id() == Some(segment_id)) {
            return Err(OpenError::DuplicateSegment { first: slot.file(), second: other.file(), segment_id });
        }
    }
    Ok(slots)
}

const SLOT_NUMBER_MAX: u32 = 1 << 20;

fn look(
    dir: &mut dyn Directory,
    number: u32,
    identity: &LogIdentity,
    segment_size_bytes: u64,
) -> Result<Content, OpenError> {
    let file = FileId::Slot(number);
    let path = file.path();
    let found_bytes = dir.size(&path).map_err(OpenError::io("size", &path))?.unwrap_or(0);
    // The header and the first frame.
    let mut head = AlignedBuf::zeroed(2 * SEGMENT_HEADER_SIZE_BYTES);
    let read = dir.read_at(&path, 0, &mut head).map_err(OpenError::io("read", &path))?;
    head.set_len_stale(read);
    let header = SegmentHeader::parse(&head);
    if let Err(SegmentHeaderError::OtherFormat(found)) = header {
        return Err(OpenError::OtherFormat { file, found });
    }
    let headless = match header {
        Ok(_) => false,
        Err(SegmentHeaderError::Blank) => true,
        Err(_) => read < SEGMENT_HEADER_SIZE_BYTES,
    };
    if found_bytes < segment_size_bytes && headless {
        return Ok(Content::Unfinished);
    }
    if found_bytes != segment_size_bytes {
        return Err(OpenError::SegmentSize { file, found_bytes, expected_bytes: segment_size_bytes });
    }
    let first_frame = head.get(SEGMENT_HEADER_SIZE_BYTES..).and_then(|bytes| Frame::parse(bytes).ok());
    match (header, first_frame) {
        (Ok(header), _) => {
            let home =
                (header.cluster, header.shard, header.slot) == (identity.cluster, identity.shard, number);
            if !home {
                let SegmentHeader { cluster, shard, slot, .. } = header;
                return Err(OpenError::ForeignSegment { file, cluster, shard: shard.0, slot });
            }
            Ok(Content::Segment { id: header.segment_id, header_intact: true })
        }
        (Err(_), Some(frame)) if frame.place.offset as usize == SEGMENT_HEADER_SIZE_BYTES => {
            Ok(Content::Segment { id: frame.place.segment_id, header_intact: false })
        }
        (Err(SegmentHeaderError::Blank), _) => Ok(Content::Blank),
        (Err(_), _) => Ok(Content::Unknown),
    }
}
