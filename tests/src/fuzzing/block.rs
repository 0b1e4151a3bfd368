//! The log's headers, frames and blocks: what verifies is what was written, and no changed byte goes unseen.

use escapement_protocol::{Epoch, ShardId, WallMs};
use escapement_wal::BlockSeq;
use escapement_wal::format::{
    BLOCK_HEADER_SIZE_BYTES, Block, BlockHeader, BlockKind, Checksum, EXTENT_ALIGN_BYTES, FRAME_SIZE_BYTES,
    Frame, Place, RECORDS_SIZE_BYTES_MAX, SegmentHeader, Superblock,
};

/// Bytes of an input that choose a block's fields; the rest are its records.
const FIELDS_SIZE_BYTES: usize = 64;

/// Reads `input` as each thing of the log's format, and then writes a block with fields and records taken from it.
///
/// # Panics
/// Where something verifies that no encoder writes, a sealed block does not read back, or a changed byte of one
/// is not noticed.
pub fn wal_block(input: &[u8]) {
    as_it_is(input);
    sealed(input);
}

fn as_it_is(input: &[u8]) {
    if let Ok(frame) = Frame::parse(input) {
        assert_eq!(frame.to_bytes(), input[..FRAME_SIZE_BYTES]);
    }
    if let Some(block) = Block::parse(input) {
        let mut again = block.bytes().to_vec();
        assert_eq!(block.header().seal(&mut again), block.checksum());
        assert_eq!(again, block.bytes());
        assert_eq!(block.records().len(), block.header().records_size_bytes as usize);
    }
    // Their checksums cover a whole page, so that an input verifies only where it came from an encoder.
    let _ = (SegmentHeader::parse(input), Superblock::choose(input));
}

fn sealed(input: &[u8]) {
    let Some((fields, records)) = input.split_first_chunk::<FIELDS_SIZE_BYTES>() else { return };
    let records = &records[..records.len().min(RECORDS_SIZE_BYTES_MAX)];
    let header = header(fields, records);
    let mut bytes = vec![0; BLOCK_HEADER_SIZE_BYTES];
    bytes.extend_from_slice(records);
    let checksum = header.seal(&mut bytes);

    let is_data = header.kind == BlockKind::Data;
    let is_possible = header.committed_through < header.block_seq
        && is_data == (header.record_count > 0)
        && is_data != records.is_empty();
    match Block::parse(&bytes) {
        Some(block) => {
            assert!(is_possible, "{header:?}");
            assert_eq!((*block.header(), block.checksum(), block.records()), (header, checksum, records));
            assert_eq!(BlockHeader::parse(&bytes), Some(header));
            changed_byte_is_noticed(bytes, fields);
        }
        None => assert!(!is_possible, "{header:?}"),
    }
    frame_reads_back(&header, fields);
}

fn changed_byte_is_noticed(mut bytes: Vec<u8>, fields: &[u8; FIELDS_SIZE_BYTES]) {
    let at = u64_at(fields, 48) as usize % bytes.len();
    bytes[at] ^= 1 << (fields[56] % 8);
    assert_eq!(Block::parse(&bytes), None, "byte {at} of {} changed", bytes.len());
    assert_eq!(Block::parse(&bytes[..at]), None);
}

fn frame_reads_back(header: &BlockHeader, fields: &[u8; FIELDS_SIZE_BYTES]) {
    let block_size_bytes = BLOCK_HEADER_SIZE_BYTES + header.records_size_bytes as usize;
    let offset = (u64_at(fields, 48) as u32) & !(EXTENT_ALIGN_BYTES as u32 - 1);
    let frame = Frame {
        place: Place { segment_id: u64_at(fields, 56) | 1, offset },
        size_bytes: (FRAME_SIZE_BYTES + block_size_bytes).next_multiple_of(EXTENT_ALIGN_BYTES) as u32,
        block_size_bytes: block_size_bytes as u32,
    };
    let mut bytes = frame.to_bytes();
    assert_eq!(Frame::parse(&bytes), Ok(frame));
    let at = usize::from(fields[0]) % bytes.len();
    bytes[at] ^= 1 << (fields[1] % 8);
    assert!(Frame::parse(&bytes).is_err(), "byte {at} of a frame changed");
}

fn header(fields: &[u8; FIELDS_SIZE_BYTES], records: &[u8]) -> BlockHeader {
    BlockHeader {
        kind: [BlockKind::Data, BlockKind::Seal, BlockKind::EpochOpen][usize::from(fields[0]) % 3],
        prev_checksum: Checksum(u128::from(u64_at(fields, 40)) << 64 | u128::from(u64_at(fields, 8))),
        cluster: u64_at(fields, 8),
        shard: ShardId(u64_at(fields, 1) as u16),
        epoch: Epoch(u64_at(fields, 3) as u32),
        block_seq: BlockSeq(u64_at(fields, 16)),
        committed_through: BlockSeq(u64_at(fields, 24)),
        leader_time: WallMs(u64_at(fields, 32)),
        record_count: u64_at(fields, 40) as u32,
        records_size_bytes: records.len() as u32,
    }
}

fn u64_at(fields: &[u8; FIELDS_SIZE_BYTES], at: usize) -> u64 {
    fields[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// A block and a frame as the log writes them, and fields for blocks of each kind.
pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let fields = |kind: u8, record_count: u8, records: &[u8]| {
        let mut input = vec![0; FIELDS_SIZE_BYTES];
        input[0] = kind;
        input[16] = 8;
        input[24] = 7;
        input[40] = record_count;
        input.extend_from_slice(records);
        input
    };
    let records = [0x5a; 40];
    let data = fields(0, 2, &records);
    let mut block = vec![0; BLOCK_HEADER_SIZE_BYTES];
    block.extend_from_slice(&records);
    let (chosen, _) = data.split_first_chunk().expect("fields are there");
    header(chosen, &records).seal(&mut block);
    let place = Place { segment_id: 3, offset: 2 * EXTENT_ALIGN_BYTES as u32 };
    let size_bytes = EXTENT_ALIGN_BYTES as u32;
    let frame = Frame { place, size_bytes, block_size_bytes: block.len() as u32 }.to_bytes();
    vec![
        ("block", block),
        ("frame", frame.to_vec()),
        ("fields-data", data),
        ("fields-seal", fields(1, 0, &[])),
        ("fields-epoch-open", fields(2, 0, &[])),
        ("fields-impossible", fields(0, 0, &records)),
    ]
}
