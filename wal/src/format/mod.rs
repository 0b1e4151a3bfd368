//! Byte forms of the log, pure. `docs/formats/wal-v1.md` is their specification; a test compares the two.
//!
//! ```text
//! segment file   header (4 KiB) | extent | extent | …          extents begin on 4 KiB boundaries
//! extent         frame (32) | block | zero padding to 4 KiB     at most 512 KiB
//! block          header (96) | records                          position-independent, chained by checksum
//! SUPER          4 copies of 4 KiB
//! ```
//!
//! Integers are little-endian. Padding and reserved bytes are zero, and checked. Decoders take any bytes and
//! answer `None` or an error; they never panic.

mod block;
mod frame;
mod segment;
mod superblock;

pub use block::{BLOCK_HEADER_SIZE_BYTES, Block, BlockHeader, BlockKind, Checksum};
pub use frame::{FRAME_SIZE_BYTES, Frame, FrameError, Place};
pub use segment::{SEGMENT_HEADER_SIZE_BYTES, SegmentHeader, SegmentHeaderError};
pub use superblock::{
    SUPER_COPY_COUNT, SUPER_COPY_SIZE_BYTES, SUPER_SIZE_BYTES, Superblock, SuperblockError,
};

use crate::aligned::{AlignedBuf, PAGE_SIZE_BYTES};

/// Version of the formats that this crate writes, and the only one it reads.
pub const FORMAT_VERSION: u16 = 1;

/// Extents begin on multiples of this and are multiples of it, in bytes: no sector that holds acknowledged bytes
/// is ever written again.
pub const EXTENT_ALIGN_BYTES: usize = PAGE_SIZE_BYTES;

/// Largest extent (frame, block and padding), in bytes.
pub const EXTENT_SIZE_BYTES_MAX: usize = 512 * 1024;

/// Bytes of an extent before its records: the frame and the block's header.
pub const EXTENT_OVERHEAD_BYTES: usize = FRAME_SIZE_BYTES + BLOCK_HEADER_SIZE_BYTES;

/// Most bytes of records in one block.
pub const RECORDS_SIZE_BYTES_MAX: usize = EXTENT_SIZE_BYTES_MAX - EXTENT_OVERHEAD_BYTES;

/// Most blocks in flight to the disk at one time.
pub const IN_FLIGHT_COUNT_MAX: usize = 4;

/// Bytes behind the last accepted block that a write in flight at a crash can have touched in one segment.
pub const IN_FLIGHT_WINDOW_BYTES: u64 = (IN_FLIGHT_COUNT_MAX * EXTENT_SIZE_BYTES_MAX) as u64;

const _: () = assert!(EXTENT_OVERHEAD_BYTES == 128, "records begin on a multiple of 8");
const _: () = assert!(EXTENT_SIZE_BYTES_MAX.is_multiple_of(EXTENT_ALIGN_BYTES));

/// Size of the extent that holds `records_size_bytes` bytes of records, in bytes.
#[must_use]
pub const fn extent_size_bytes(records_size_bytes: usize) -> usize {
    (EXTENT_OVERHEAD_BYTES + records_size_bytes).next_multiple_of(EXTENT_ALIGN_BYTES)
}

/// Writes frame, block and padding into `buf`, replacing its content; answers the block's checksum.
///
/// # Panics
/// If `records` is larger than [`RECORDS_SIZE_BYTES_MAX`], or its size is not the one that `header` states.
pub fn encode_extent(buf: &mut AlignedBuf, place: Place, header: &BlockHeader, records: &[u8]) -> Checksum {
    assert!(records.len() <= RECORDS_SIZE_BYTES_MAX, "{} bytes of records in one block", records.len());
    assert_eq!(records.len(), header.records_size_bytes as usize);
    let size_bytes = extent_size_bytes(records.len()) as u32;
    let block_size_bytes = (BLOCK_HEADER_SIZE_BYTES + records.len()) as u32;
    buf.clear();
    buf.extend_from_slice(&Frame { place, size_bytes, block_size_bytes }.to_bytes());
    buf.set_len_stale(EXTENT_OVERHEAD_BYTES);
    buf.extend_from_slice(records);
    let checksum = header.seal(&mut buf[FRAME_SIZE_BYTES..]);
    buf.pad_to_page();
    checksum
}

/// The block in the extent that `bytes` begins with, if everything in it is as it was written, to the last byte of the
/// padding. `frame` and `header` were read from the same bytes.
#[must_use]
pub fn decode_extent<'a>(bytes: &'a [u8], frame: &Frame, header: BlockHeader) -> Option<Block<'a>> {
    let extent = bytes.get(..frame.size_bytes as usize)?;
    let block_size_bytes = BLOCK_HEADER_SIZE_BYTES + header.records_size_bytes as usize;
    let padding = extent.get(FRAME_SIZE_BYTES + block_size_bytes..)?;
    if block_size_bytes != frame.block_size_bytes as usize || !is_zero(padding) {
        return None;
    }
    Block::with_header(header, &extent[FRAME_SIZE_BYTES..])
}

/// `N` bytes at `at`, or `None` past the end.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

fn u128_at(bytes: &[u8], at: usize) -> Option<u128> {
    field(bytes, at).map(u128::from_le_bytes)
}

/// In strides, which the compiler turns into wide ones: a page of padding is most of a small block's verification.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|stride| stride.iter().fold(0, |mixed, byte| mixed | byte) == 0)
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

#[cfg(test)]
mod tests;
