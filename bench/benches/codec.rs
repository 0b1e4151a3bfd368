//! What an event costs on its way through the frames.
#![allow(missing_docs, reason = "criterion_group! generates an undocumented function")]

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use escapement_bench::clock::Stopwatch;
use escapement_protocol::event::{Due, EventSpec};
use escapement_protocol::frame::{
    AckRun, Credit, Durability, Frame, FrameDecoder, FrameWriter, Items, PublishAck, PublishBatchWriter,
    PushBatchWriter, PushItem, ResultItem, encode_publish_ack, encode_results,
};
use escapement_protocol::{
    AttemptResult, Epoch, EventView, Sequence, ShardId, SubscriptionId, Tag, TopicId, WallMs,
};

/// Frames in a stream: a few hundred KiB, which stays in the second-level cache as a core's working set does.
const FRAMES: usize = 64;

fn measure(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, per_pass: usize, mut pass: impl FnMut()) {
    group.throughput(Throughput::Elements(per_pass as u64));
    group.bench_function(name, |b| {
        b.iter_custom(|n| {
            let watch = Stopwatch::start();
            (0..n).for_each(|_| pass());
            watch.elapsed()
        });
    });
}

fn event() -> Vec<u8> {
    let mut out = Vec::new();
    EventSpec::new(Due::After(1_500), "0123456789ab", &[7; 128]).encode(&mut out).expect("a valid event");
    out
}

fn push_item(number: usize) -> PushItem {
    PushItem {
        tag: Tag(number as u64),
        sequence: Sequence(number as u64),
        schedule_time: WallMs(1_800_000_000_000),
        deadline_ms: 30_000,
        topic: TopicId(1),
        shard: ShardId(0),
        attempt: 1,
    }
}

fn publish_stream(batch: usize) -> Vec<u8> {
    let (event, mut writer, mut stream) = (event(), PublishBatchWriter::new(), Vec::new());
    writer.begin(TopicId(1), 0);
    for _ in 0..FRAMES {
        (0..batch).for_each(|_| writer.push(&event));
        writer.finish(&mut stream);
    }
    stream
}

fn push_stream(batch: usize) -> Vec<u8> {
    let (event, mut writer, mut stream) = (event(), PushBatchWriter::new(), Vec::new());
    writer.begin(SubscriptionId(1), Epoch(1));
    for _ in 0..FRAMES {
        (0..batch).for_each(|number| writer.push(push_item(number), &event));
        writer.finish(&mut stream);
    }
    stream
}

fn decode(stream: &[u8], walk: bool) {
    FrameDecoder::new()
        .feed(stream, |frame| {
            match frame {
                Frame::PublishBatch(batch) if walk => {
                    for event in batch.events {
                        black_box(EventView::parse(event).expect("a valid event"));
                    }
                }
                Frame::PushBatch(batch) if walk => {
                    for (item, event) in batch.iter() {
                        black_box((item, EventView::parse(event).expect("a valid event")));
                    }
                }
                Frame::ResultBatch(batch) if walk => batch.results.iter().for_each(|result| {
                    black_box(result);
                }),
                other => {
                    black_box(&other);
                }
            }
            Ok(())
        })
        .expect("the stream verifies");
}

fn codec(c: &mut Criterion) {
    let event = event();
    let mut group = c.benchmark_group("codec");
    measure(&mut group, "event/check", 1_000, || {
        for _ in 0..1_000 {
            black_box(EventView::parse(black_box(&event)).expect("a valid event"));
        }
    });
    for batch in [16, 64] {
        let stream = publish_stream(batch);
        let per_pass = FRAMES * batch;
        measure(&mut group, &format!("publish_batch/decode/{batch}"), per_pass, || {
            decode(black_box(&stream), false);
        });
        measure(&mut group, &format!("publish_batch/decode_and_check/{batch}"), per_pass, || {
            decode(black_box(&stream), true);
        });
        measure(&mut group, &format!("publish_batch/decode_and_check_split/{batch}"), per_pass, || {
            let mut decoder = FrameDecoder::new();
            for piece in stream.chunks(1_200) {
                let fed = decoder.feed(piece, |frame| {
                    let Frame::PublishBatch(batch) = frame else { return Ok(()) };
                    for event in batch.events {
                        black_box(EventView::parse(event).expect("a valid event"));
                    }
                    Ok(())
                });
                fed.expect("the stream verifies");
            }
        });
        let (mut writer, mut out) = (PublishBatchWriter::new(), Vec::new());
        writer.begin(TopicId(1), 0);
        measure(&mut group, &format!("publish_batch/encode/{batch}"), batch, || {
            out.clear();
            (0..batch).for_each(|_| writer.push(black_box(&event)));
            writer.finish(black_box(&mut out));
        });
        let stream = push_stream(batch);
        measure(&mut group, &format!("push_batch/decode_and_check/{batch}"), per_pass, || {
            decode(black_box(&stream), true);
        });
        let mut writer = PushBatchWriter::new();
        writer.begin(SubscriptionId(1), Epoch(1));
        measure(&mut group, &format!("push_batch/encode/{batch}"), batch, || {
            out.clear();
            (0..batch).for_each(|number| writer.push(push_item(number), black_box(&event)));
            writer.finish(black_box(&mut out));
        });
        let result = |number| ResultItem {
            tag: Tag(number as u64),
            retry_after_ms: 0,
            result: AttemptResult::Success,
        };
        let results: Vec<_> = (0..batch).map(result).collect();
        measure(&mut group, &format!("result_batch/encode_and_decode/{batch}"), batch, || {
            out.clear();
            encode_results(Items::from(black_box(&results[..])), &mut out).expect("it fits");
            decode(&out, true);
        });
    }
    let runs = [AckRun { first_sequence: Sequence(1), accepted: WallMs(1), count: 64, shard: ShardId(0) }];
    let mut out = Vec::new();
    measure(&mut group, "publish_ack/encode_and_decode", 1, || {
        out.clear();
        let ack = PublishAck {
            through_item: 64,
            durability: Durability::LOCAL_DISK,
            runs: black_box(&runs[..]).into(),
            exceptions: Items::default(),
            exhausted: "",
            duplicates: Items::default(),
        };
        encode_publish_ack(&ack, &mut out).expect("it fits");
        decode(&out, false);
    });
    let mut writer = FrameWriter::new();
    measure(&mut group, "credit/encode_and_decode", 1, || {
        out.clear();
        writer.write(&Frame::Credit(Credit { tasks: 1, bytes: 2 }), &mut out).expect("it fits");
        decode(&out, false);
    });
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
