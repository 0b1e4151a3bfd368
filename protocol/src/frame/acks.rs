//! Acknowledgements of publishes: the part that only some carry, and the frame, laid out by hand.

use super::batch::{Head, VECTOR_HEAD_SIZE_BYTES, body_len, vector_head};
use super::{AckException, AckRun, Fixed, FrameError, FrameKind, Prefix, PublishAck};
use crate::WallMs;

/// Bytes of a `PublishAck` body before its runs.
const ACK_HEAD_SIZE_BYTES: usize = 48;
/// The same, where words follow.
const WORDED_ACK_HEAD_SIZE_BYTES: usize = 56;
/// The same, where duplicates follow, and words, which may be empty.
const FULL_ACK_HEAD_SIZE_BYTES: usize = 64;

/// An accepted item that had been published before, within its topic's `dedup_window`. The item is in a run as any
/// accepted one is: that run names the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckDuplicate {
    /// Its number on the stream.
    pub item: u64,
    /// When the original is scheduled for, which its id carries and this item may not state.
    pub schedule_time: WallMs,
}

impl Fixed for AckDuplicate {
    type Bytes = [u8; 16];

    fn split(bytes: &[u8]) -> &[Self::Bytes] {
        bytes.as_chunks().0
    }

    fn from_wire(bytes: &[u8; 16]) -> Option<Self> {
        let (item, schedule_time) = bytes.split_first_chunk::<8>()?;
        let schedule_time = WallMs(u64::from_le_bytes(*schedule_time.first_chunk()?));
        Some(AckDuplicate { item: u64::from_le_bytes(*item), schedule_time })
    }

    fn to_wire(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.item.to_le_bytes());
        out[8..].copy_from_slice(&self.schedule_time.0.to_le_bytes());
        out
    }
}

/// ```text
///  0 root = 16 | 4 vtable: 12, 24, through_item 8, durability 20, runs 4, exceptions 16
/// 16 table: to vtable 12 | 20 to runs 24 | 24 through_item | 32 to exceptions | 36 durability | 37 zeros
/// 44 length | 48 runs | zeros | length | exceptions
/// ```
fn plain_ack_head(ack: &PublishAck<'_>) -> [u8; ACK_HEAD_SIZE_BYTES] {
    let exceptions_at = ACK_HEAD_SIZE_BYTES + ack.runs.len() * size_of::<<AckRun as Fixed>::Bytes>() + 4;
    Head([0; ACK_HEAD_SIZE_BYTES])
        .u32(0, 16)
        .u16s(4, &[12, 24, 8, 20, 4, 16])
        .u32(16, 12)
        .u32(20, 44 - 20)
        .u64(24, ack.through_item)
        .u32(32, exceptions_at - 32)
        .byte(36, ack.durability.0)
        .u32(44, ack.runs.len())
        .0
}

/// ```text
///  0 root = 24 | 4 zeros | 10 vtable: 14, 28, through_item 8, durability 20, runs 4, exceptions 16, exhausted 24
/// 24 table: to vtable 14 | 28 to runs 24 | 32 through_item | 40 to exceptions | 44 durability | 45 zeros
/// 48 to exhausted | 52 length | 56 runs | zeros | length | exceptions | length | exhausted | zeros
/// ```
fn worded_ack_head(ack: &PublishAck<'_>) -> [u8; WORDED_ACK_HEAD_SIZE_BYTES] {
    let runs_size_bytes = ack.runs.len() * size_of::<<AckRun as Fixed>::Bytes>();
    let exceptions_at = WORDED_ACK_HEAD_SIZE_BYTES + runs_size_bytes + 4;
    let exceptions_size_bytes = ack.exceptions.len() * size_of::<<AckException as Fixed>::Bytes>();
    let exhausted_at = exceptions_at + 4 + exceptions_size_bytes;
    Head([0; WORDED_ACK_HEAD_SIZE_BYTES])
        .u32(0, 24)
        .u16s(10, &[14, 28, 8, 20, 4, 16, 24])
        .u32(24, 14)
        .u32(28, 52 - 28)
        .u64(32, ack.through_item)
        .u32(40, exceptions_at - 40)
        .byte(44, ack.durability.0)
        .u32(48, exhausted_at - 48)
        .u32(52, ack.runs.len())
        .0
}

/// ```text
///  0 root = 24 | 4 zeros | 8 vtable: 16, 32, through_item 8, durability 20, runs 4, exceptions 16, exhausted 24, duplicates 28
/// 24 table: to vtable 16 | 28 to runs 32 | 32 through_item | 40 to exceptions | 44 durability | 45 zeros
/// 48 to exhausted | 52 to duplicates | 56 zeros | 60 length | 64 runs | zeros | length | exceptions | zeros | length
/// duplicates | length | exhausted | zeros
/// ```
fn full_ack_head(ack: &PublishAck<'_>) -> [u8; FULL_ACK_HEAD_SIZE_BYTES] {
    let exceptions_at = body_len(FULL_ACK_HEAD_SIZE_BYTES, &ack.runs) + 4;
    let duplicates_at = body_len(exceptions_at + 4, &ack.exceptions) + 4;
    let exhausted_at = body_len(duplicates_at + 4, &ack.duplicates);
    Head([0; FULL_ACK_HEAD_SIZE_BYTES])
        .u32(0, 24)
        .u16s(8, &[16, 32, 8, 20, 4, 16, 24, 28])
        .u32(24, 16)
        .u32(28, 60 - 28)
        .u64(32, ack.through_item)
        .u32(40, exceptions_at - 40)
        .byte(44, ack.durability.0)
        .u32(48, exhausted_at - 48)
        .u32(52, duplicates_at - 52)
        .u32(60, ack.runs.len())
        .0
}

/// Appends a frame.
///
/// # Errors
/// It would be longer than a frame may be; `out` is then as it was.
pub fn encode_publish_ack(ack: &PublishAck<'_>, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let words = ack.exhausted.as_bytes();
    let has_duplicates = !ack.duplicates.is_empty();
    let has_words = has_duplicates || !words.is_empty();
    // Its length, and the zero that closes it.
    let words_size_bytes = if has_words { (4 + words.len() + 1).next_multiple_of(8) } else { 0 };
    let head = match (has_duplicates, has_words) {
        (true, _) => &full_ack_head(ack)[..],
        (false, true) => &worded_ack_head(ack),
        (false, false) => &plain_ack_head(ack),
    };
    let mut len_bytes = body_len(head.len(), &ack.runs);
    len_bytes = body_len(len_bytes + VECTOR_HEAD_SIZE_BYTES, &ack.exceptions);
    if has_duplicates {
        len_bytes = body_len(len_bytes + VECTOR_HEAD_SIZE_BYTES, &ack.duplicates);
    }
    len_bytes += words_size_bytes;
    out.extend_from_slice(&Prefix { kind: FrameKind::PublishAck, len_bytes }.to_bytes()?);
    out.extend_from_slice(head);
    ack.runs.append_to(out);
    out.extend_from_slice(&vector_head(ack.exceptions.len()));
    ack.exceptions.append_to(out);
    if has_duplicates {
        out.extend_from_slice(&vector_head(ack.duplicates.len()));
        ack.duplicates.append_to(out);
    }
    if has_words {
        let end = out.len() + words_size_bytes;
        out.extend_from_slice(&(words.len() as u32).to_le_bytes());
        out.extend_from_slice(words);
        out.resize(end, 0);
    }
    Ok(())
}
