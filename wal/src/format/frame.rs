//! The frame: binds a block to the place where it was meant to lie, so that a stale block of a recycled segment and a
//! misdirected write are told from a good one.

use super::{
    EXTENT_ALIGN_BYTES, EXTENT_SIZE_BYTES_MAX, FORMAT_VERSION, is_zero, put, u16_at, u32_at, u64_at,
};

/// Size of a frame, in bytes.
pub const FRAME_SIZE_BYTES: usize = 32;

pub(super) const FRAME_MAGIC: [u8; 4] = *b"ESWF";

pub(super) mod at {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const FORMAT: usize = 4;
    pub(crate) const RESERVED: usize = 6;
    pub(crate) const SEGMENT_ID: usize = 8;
    pub(crate) const OFFSET: usize = 16;
    pub(crate) const EXTENT_SIZE: usize = 20;
    pub(crate) const BLOCK_SIZE: usize = 24;
    pub(crate) const CRC: usize = 28;
}

/// Where an extent lies in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Segment, numbered from 1 in the order of writing; not the number of its file.
    pub segment_id: u64,
    /// Offset in the segment's file, in bytes.
    pub offset: u32,
}

/// A frame's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where the extent was meant to lie.
    pub place: Place,
    /// Size of the extent, in bytes.
    pub size_bytes: u32,
    /// Size of the block behind the frame, without padding, in bytes.
    pub block_size_bytes: u32,
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// All zero: nothing was ever written here.
    Blank,
    /// Something else.
    Damaged,
}

impl Frame {
    /// The byte form.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; FRAME_SIZE_BYTES] {
        let mut bytes = [0; FRAME_SIZE_BYTES];
        put(&mut bytes, at::MAGIC, FRAME_MAGIC);
        put(&mut bytes, at::FORMAT, FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, at::SEGMENT_ID, self.place.segment_id.to_le_bytes());
        put(&mut bytes, at::OFFSET, self.place.offset.to_le_bytes());
        put(&mut bytes, at::EXTENT_SIZE, self.size_bytes.to_le_bytes());
        put(&mut bytes, at::BLOCK_SIZE, self.block_size_bytes.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..at::CRC]);
        put(&mut bytes, at::CRC, crc.to_le_bytes());
        bytes
    }

    /// Reads the frame at the start of `bytes`.
    ///
    /// # Errors
    /// [`FrameError`] where there is none, or one whose sizes cannot be.
    pub fn parse(bytes: &[u8]) -> Result<Frame, FrameError> {
        let bytes = bytes.get(..FRAME_SIZE_BYTES).ok_or(FrameError::Damaged)?;
        if is_zero(bytes) {
            return Err(FrameError::Blank);
        }
        Frame::parse_present(bytes).ok_or(FrameError::Damaged)
    }

    fn parse_present(bytes: &[u8]) -> Option<Frame> {
        let covered = bytes.get(..at::CRC)?;
        if u32_at(bytes, at::CRC)? != crc32c::crc32c(covered)
            || !bytes.starts_with(&FRAME_MAGIC)
            || u16_at(bytes, at::FORMAT)? != FORMAT_VERSION
            || u16_at(bytes, at::RESERVED)? != 0
        {
            return None;
        }
        let frame = Frame {
            place: Place { segment_id: u64_at(bytes, at::SEGMENT_ID)?, offset: u32_at(bytes, at::OFFSET)? },
            size_bytes: u32_at(bytes, at::EXTENT_SIZE)?,
            block_size_bytes: u32_at(bytes, at::BLOCK_SIZE)?,
        };
        let used = (frame.block_size_bytes as usize).checked_add(FRAME_SIZE_BYTES)?;
        let plausible = used <= EXTENT_SIZE_BYTES_MAX
            && frame.size_bytes as usize == used.next_multiple_of(EXTENT_ALIGN_BYTES)
            && (frame.place.offset as usize).is_multiple_of(EXTENT_ALIGN_BYTES)
            && frame.place.segment_id != 0;
        plausible.then_some(frame)
    }
}
