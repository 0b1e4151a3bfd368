use std::collections::BTreeMap;

use escapement_protocol::{Epoch, ShardId, WallMs};

use super::*;
use crate::log::BlockSeq;
use crate::memory::Rng;

const DOCUMENT: &str = include_str!("../../../docs/formats/wal-v1.md");

fn header(records: &[u8]) -> BlockHeader {
    BlockHeader {
        kind: BlockKind::Data,
        prev_checksum: Checksum(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100),
        cluster: 0xc1c2_c3c4_c5c6_c7c8,
        shard: ShardId(7),
        epoch: Epoch(3),
        block_seq: BlockSeq(42),
        committed_through: BlockSeq(41),
        leader_time: WallMs(1_795_000_000_123),
        record_count: 2,
        records_size_bytes: records.len() as u32,
    }
}

const PLACE: Place = Place { segment_id: 9, offset: 8192 };
const RECORDS: &[u8] = b"tick, then tock.";

fn golden_extent() -> AlignedBuf {
    let mut buf = AlignedBuf::new();
    encode_extent(&mut buf, PLACE, &header(RECORDS), RECORDS);
    buf
}

fn segment_header() -> SegmentHeader {
    SegmentHeader {
        cluster: 5,
        shard: ShardId(7),
        slot: 12,
        segment_id: 34,
        segment_size_bytes: 64 << 20,
        first_seq_min: BlockSeq(56),
        epoch: Epoch(78),
    }
}

fn superblock(generation: u64) -> Superblock {
    Superblock {
        generation,
        cluster: 5,
        shard: ShardId(7),
        shard_count: 8,
        epoch: Epoch(9),
        segment_size_bytes: 64 << 20,
        committed_through: BlockSeq(10),
        first_segment_id: 11,
        first_block_seq: BlockSeq(12),
        first_prev_checksum: Checksum(13),
    }
}

/// The lines of the document's section with this title.
fn section(title: &str) -> impl Iterator<Item = &'static str> {
    let heading = format!("### {title}");
    let mut lines = DOCUMENT.lines().skip_while(move |line| *line != heading);
    assert!(lines.next().is_some(), "the document has a section {title}");
    lines.take_while(|line| !line.starts_with('#'))
}

/// Offset and size of every field in a section's table.
fn documented_fields(title: &str) -> BTreeMap<String, (usize, usize)> {
    let rows = section(title).filter(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    cells
        .filter_map(|cells| Some((cells[3].to_owned(), (cells[1].parse().ok()?, cells[2].parse().ok()?))))
        .collect()
}

fn assert_documented(title: &str, size_bytes: usize, fields: &[(&str, usize, usize)]) {
    let expected: BTreeMap<String, (usize, usize)> =
        fields.iter().map(|&(name, at, size)| (name.to_owned(), (at, size))).collect();
    assert_eq!(documented_fields(title), expected, "{title}");
    let mut end = 0;
    let mut ranges: Vec<(usize, usize)> = expected.into_values().collect();
    ranges.sort_unstable();
    for (at, size) in ranges {
        assert_eq!(at, end, "{title} has neither gap nor overlap");
        end += size;
    }
    assert_eq!(end, size_bytes, "{title} ends where its fields end");
}

#[test]
fn the_documents_tables_state_the_offsets_of_the_code() {
    assert_documented(
        "Segment header",
        SEGMENT_HEADER_SIZE_BYTES,
        &[
            ("checksum", segment::at::CHECKSUM, 8),
            ("magic", segment::at::MAGIC, 4),
            ("format", segment::at::FORMAT, 2),
            ("reserved", segment::at::RESERVED, 2),
            ("cluster", segment::at::CLUSTER, 8),
            ("shard", segment::at::SHARD, 2),
            ("reserved 2", segment::at::RESERVED_2, 2),
            ("slot", segment::at::SLOT, 4),
            ("segment_id", segment::at::SEGMENT_ID, 8),
            ("segment_size", segment::at::SEGMENT_SIZE, 8),
            ("first_seq_min", segment::at::FIRST_SEQ_MIN, 8),
            ("epoch", segment::at::EPOCH, 4),
            ("padding", segment::at::PADDING, SEGMENT_HEADER_SIZE_BYTES - segment::at::PADDING),
        ],
    );
    assert_documented(
        "Frame",
        FRAME_SIZE_BYTES,
        &[
            ("magic", frame::at::MAGIC, 4),
            ("format", frame::at::FORMAT, 2),
            ("reserved", frame::at::RESERVED, 2),
            ("segment_id", frame::at::SEGMENT_ID, 8),
            ("offset", frame::at::OFFSET, 4),
            ("extent_size", frame::at::EXTENT_SIZE, 4),
            ("block_size", frame::at::BLOCK_SIZE, 4),
            ("crc32c", frame::at::CRC, 4),
        ],
    );
    assert_documented(
        "Block header",
        BLOCK_HEADER_SIZE_BYTES,
        &[
            ("checksum", block::at::CHECKSUM, 16),
            ("header_checksum", block::at::HEADER_CHECKSUM, 8),
            ("magic", block::at::MAGIC, 4),
            ("format", block::at::FORMAT, 2),
            ("kind", block::at::KIND, 2),
            ("prev_checksum", block::at::PREV_CHECKSUM, 16),
            ("cluster", block::at::CLUSTER, 8),
            ("shard", block::at::SHARD, 2),
            ("reserved", block::at::RESERVED, 2),
            ("epoch", block::at::EPOCH, 4),
            ("block_seq", block::at::BLOCK_SEQ, 8),
            ("committed_through", block::at::COMMITTED_THROUGH, 8),
            ("leader_time", block::at::LEADER_TIME, 8),
            ("record_count", block::at::RECORD_COUNT, 4),
            ("records_size", block::at::RECORDS_SIZE, 4),
        ],
    );
    assert_documented(
        "SUPER copy",
        SUPER_COPY_SIZE_BYTES,
        &[
            ("checksum", superblock::at::CHECKSUM, 16),
            ("magic", superblock::at::MAGIC, 4),
            ("format", superblock::at::FORMAT, 2),
            ("reserved", superblock::at::RESERVED, 2),
            ("reserved 2", superblock::at::RESERVED_2, 8),
            ("generation", superblock::at::GENERATION, 8),
            ("cluster", superblock::at::CLUSTER, 8),
            ("shard", superblock::at::SHARD, 2),
            ("shard_count", superblock::at::SHARD_COUNT, 2),
            ("epoch", superblock::at::EPOCH, 4),
            ("segment_size", superblock::at::SEGMENT_SIZE, 8),
            ("committed_through", superblock::at::COMMITTED_THROUGH, 8),
            ("first_segment_id", superblock::at::FIRST_SEGMENT_ID, 8),
            ("first_block_seq", superblock::at::FIRST_BLOCK_SEQ, 8),
            ("reserved 3", superblock::at::RESERVED_3, 8),
            ("first_prev_checksum", superblock::at::FIRST_PREV_CHECKSUM, 16),
            ("padding", superblock::at::PADDING, SUPER_COPY_SIZE_BYTES - superblock::at::PADDING),
        ],
    );
}

#[test]
fn the_document_states_the_magic_numbers_and_limits_of_the_code() {
    for (title, magic) in [
        ("Segment header", segment::SEGMENT_MAGIC),
        ("Frame", frame::FRAME_MAGIC),
        ("Block header", block::BLOCK_MAGIC),
        ("SUPER copy", superblock::SUPER_MAGIC),
    ] {
        let magic = String::from_utf8(magic.to_vec()).expect("magic numbers are letters");
        assert!(section(title).any(|line| line.contains(&format!("`{magic}`"))), "{title}");
    }
    let limits: BTreeMap<String, String> = section("Limits in numbers")
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            Some((cells.get(1)?.to_string(), cells.get(2)?.to_string()))
        })
        .collect();
    for (name, value) in [
        ("format version", FORMAT_VERSION.into()),
        ("extent alignment", EXTENT_ALIGN_BYTES),
        ("extent size", EXTENT_SIZE_BYTES_MAX),
        ("records in a block", RECORDS_SIZE_BYTES_MAX),
        ("blocks in flight", IN_FLIGHT_COUNT_MAX),
        ("in-flight window", IN_FLIGHT_WINDOW_BYTES as usize),
        ("copies in SUPER", SUPER_COPY_COUNT),
    ] {
        assert_eq!(limits.get(name), Some(&value.to_string()), "{name}");
    }
}

#[test]
fn the_document_lists_every_recovery_case() {
    use crate::recovery::table::RecoveryCase as Case;
    let cases = [
        Case::SegmentMissing,
        Case::SegmentEnd,
        Case::Blank,
        Case::FrameDamaged,
        Case::FrameElsewhere,
        Case::HeaderDamaged,
        Case::HeaderForeign,
        Case::BodyDamaged,
        Case::SequenceBehind,
        Case::SequenceAhead,
        Case::ChainBroken,
        Case::EpochRegressed,
        Case::Accept,
    ];
    let listed: Vec<&str> = section("What stands at a place")
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert_eq!(listed, cases.map(|case| format!("{case:?}")).to_vec());
}

#[test]
fn an_extent_has_the_documents_golden_bytes() {
    let extent = golden_extent();
    let used = EXTENT_OVERHEAD_BYTES + RECORDS.len();
    let hex: String = extent[..used].iter().map(|byte| format!("{byte:02x}")).collect();
    let documented: String = section("Golden extent")
        .skip_while(|line| *line != "```text")
        .skip(1)
        .take_while(|line| *line != "```")
        .flat_map(str::split_whitespace)
        .collect();
    assert_eq!(hex, documented);
    assert!(extent[used..].iter().all(|&byte| byte == 0));
}

#[test]
fn what_is_written_is_read_back() {
    for size_bytes in [1, 100, 4096 - 128, 4096 - 127, 100_000, RECORDS_SIZE_BYTES_MAX] {
        let records = vec![7; size_bytes];
        let mut buf = AlignedBuf::new();
        let checksum = encode_extent(&mut buf, PLACE, &header(&records), &records);
        assert_eq!(buf.len(), extent_size_bytes(size_bytes));
        let frame = Frame::parse(&buf).expect("just written");
        assert_eq!((frame.place, frame.size_bytes as usize), (PLACE, buf.len()));
        let read = BlockHeader::parse(&buf[FRAME_SIZE_BYTES..]).expect("just written");
        assert_eq!(read, header(&records));
        let block = decode_extent(&buf, &frame, read).expect("just written");
        assert_eq!((block.records(), block.checksum()), (&records[..], checksum));
        assert_eq!(Block::parse(block.bytes()), Some(block), "a block needs no frame");
    }

    let mut buf = AlignedBuf::new();
    segment_header().encode(&mut buf);
    assert_eq!(SegmentHeader::parse(&buf), Ok(segment_header()));

    superblock(1).encode_pair(&mut buf);
    let mut file = buf.clone();
    superblock(2).encode_pair(&mut buf);
    file.extend_from_slice(&buf);
    assert_eq!(Superblock::choose(&file), Ok(superblock(2)));
}

#[test]
fn no_flipped_bit_of_an_extent_goes_unnoticed() {
    let mut extent = golden_extent();
    // Every bit of what carries something, and one of every byte of the padding.
    let used = EXTENT_OVERHEAD_BYTES + RECORDS.len();
    for bit in (0..used * 8).chain((used..extent.len()).map(|byte| byte * 8 + byte % 8)) {
        extent[bit / 8] ^= 1 << (bit % 8);
        let intact = Frame::parse(&extent).ok().filter(|frame| frame.place == PLACE).and_then(|frame| {
            decode_extent(&extent, &frame, BlockHeader::parse(&extent[FRAME_SIZE_BYTES..])?)
        });
        assert_eq!(intact, None, "bit {bit}");
        extent[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn no_flipped_bit_of_a_segment_header_goes_unnoticed() {
    let mut buf = AlignedBuf::new();
    segment_header().encode(&mut buf);
    for bit in 0..buf.len() * 8 {
        buf[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(SegmentHeader::parse(&buf), Err(SegmentHeaderError::Damaged), "bit {bit}");
        buf[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn one_flipped_bit_of_super_changes_nothing() {
    let mut buf = AlignedBuf::new();
    superblock(3).encode_pair(&mut buf);
    let pair = buf.clone();
    buf.extend_from_slice(&pair);
    for bit in (0..buf.len() * 8).step_by(13) {
        buf[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Superblock::choose(&buf), Ok(superblock(3)), "bit {bit}");
        buf[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn decoders_take_any_bytes() {
    let mut rng = Rng::new(1);
    for _ in 0..20_000 {
        let mut bytes = golden_extent()[..160].to_vec();
        bytes.truncate(rng.below(161) as usize);
        for _ in 0..rng.below(4) {
            if !bytes.is_empty() {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] = rng.next_u64() as u8;
            }
        }
        let _ = Block::parse(bytes.get(FRAME_SIZE_BYTES..).unwrap_or_default());
        let _ = SegmentHeader::parse(&bytes);
        let _ = Superblock::choose(&bytes);
        if let (Ok(frame), Some(header)) =
            (Frame::parse(&bytes), BlockHeader::parse(bytes.get(FRAME_SIZE_BYTES..).unwrap_or_default()))
        {
            let _ = decode_extent(&bytes, &frame, header);
        }
    }
}

#[test]
fn a_header_that_states_the_impossible_is_not_believed() {
    let lies: [fn(&mut BlockHeader); 4] = [
        |header| header.records_size_bytes = RECORDS_SIZE_BYTES_MAX as u32 + 1,
        |header| header.committed_through = header.block_seq,
        |header| header.record_count = 0,
        |header| header.kind = BlockKind::Seal,
    ];
    for lie in lies {
        let mut stated = header(RECORDS);
        lie(&mut stated);
        let mut block = vec![0; BLOCK_HEADER_SIZE_BYTES];
        stated.seal(&mut block);
        assert_eq!(BlockHeader::parse(&block), None, "{stated:?}");
    }
}
