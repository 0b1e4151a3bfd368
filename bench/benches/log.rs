//! Building and verifying a block, and recovery from blocks that are in memory.
#![allow(missing_docs, reason = "criterion_group! generates an undocumented function")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use escapement_bench::clock::Stopwatch;
use escapement_bench::shard::{log_of, recover};
use escapement_engine::record::records;
use escapement_protocol::{Epoch, ShardId, WallMs};
use escapement_wal::format::{
    BlockHeader, Checksum, FRAME_SIZE_BYTES, Frame, Place, decode_extent, encode_extent,
};
use escapement_wal::{AlignedBuf, BlockKind, BlockSeq};

/// Events in the log that is recovered.
const EVENTS: usize = 1 << 20;

const PLACE: Place = Place { segment_id: 1, offset: 4_096 };

fn build(buf: &mut AlignedBuf, seq: u64, records: &[u8]) {
    let header = BlockHeader {
        kind: BlockKind::Data,
        prev_checksum: Checksum(seq.into()),
        cluster: 1,
        shard: ShardId(0),
        epoch: Epoch(1),
        block_seq: BlockSeq(seq),
        committed_through: BlockSeq(seq - 1),
        leader_time: WallMs(1),
        record_count: 1,
        records_size_bytes: records.len() as u32,
    };
    encode_extent(buf, PLACE, &header, black_box(records));
}

/// The records of an extent, verified as recovery does.
fn verify(extent: &[u8]) -> &[u8] {
    let frame = Frame::parse(black_box(extent)).expect("a frame");
    let header = BlockHeader::parse(&extent[FRAME_SIZE_BYTES..]).expect("a header");
    decode_extent(extent, &frame, header).expect("a whole block").records()
}

fn times(n: u64, mut run: impl FnMut()) -> Duration {
    let watch = Stopwatch::start();
    (0..n).for_each(|_| run());
    watch.elapsed()
}

fn blocks(c: &mut Criterion) {
    let mut group = c.benchmark_group("block");
    for (name, size) in [("4_KiB", 4 << 10), ("64_KiB", 64 << 10), ("256_KiB", 256 << 10)] {
        let content: Vec<u8> = (0..size).map(|at| (at * 31) as u8).collect();
        let mut buf = AlignedBuf::new();
        group.throughput(Throughput::Bytes(size));
        group.bench_function(format!("build/{name}"), |b| {
            b.iter_custom(|n| times(n, || build(&mut buf, 2, &content)));
        });
        group.bench_function(format!("verify/{name}"), |b| {
            b.iter_custom(|n| times(n, || assert_eq!(verify(&buf).len() as u64, size)));
        });
    }
    group.finish();
}

fn recovery(c: &mut Criterion) {
    let extents: Vec<AlignedBuf> = (1..)
        .zip(log_of(EVENTS))
        .map(|(seq, records)| {
            let mut buf = AlignedBuf::new();
            build(&mut buf, seq, &records);
            buf
        })
        .collect();
    let count: usize = extents.iter().map(|extent| records(verify(extent)).count()).sum();
    let mut group = c.benchmark_group("recovery");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    // A record publishes 512 events, or ends as many.
    assert_eq!(count, 2 + EVENTS / 512 + EVENTS / 1_024);
    group.throughput(Throughput::Elements((EVENTS + EVENTS / 2) as u64));
    group.bench_function("verify_and_apply", |b| {
        b.iter_custom(|n| {
            times(n, || {
                let shard = recover(extents.iter().map(|extent| verify(extent)));
                assert_eq!(shard.stats().pending, (EVENTS / 2) as u64);
            })
        });
    });
    group.finish();
}

criterion_group!(benches, blocks, recovery);
criterion_main!(benches);
