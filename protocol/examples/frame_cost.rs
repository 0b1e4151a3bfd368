//! What an event costs on its way through the frames, printed as nanoseconds:
//! `cargo run --release -p escapement-protocol --example frame_cost`
#![expect(clippy::print_stdout, reason = "a program whose result is what it prints")]

use std::hint::black_box;
use std::time::Instant;

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
const ROUNDS: usize = 200;
const PASSES: usize = 10;

/// Nanoseconds for one of `per_pass` things: the least of many short rounds, which is what it costs
/// when nothing else wants the core.
fn measure(per_pass: usize, mut pass: impl FnMut()) -> f64 {
    let round = |_| {
        let start = Instant::now();
        (0..PASSES).for_each(|_| pass());
        start.elapsed().as_nanos() as f64 / (PASSES * per_pass) as f64
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
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

fn main() {
    let event = event();
    println!("{} bytes an event, {} ns to check one", event.len(), {
        let ns = measure(1_000, || {
            for _ in 0..1_000 {
                black_box(EventView::parse(black_box(&event)).expect("a valid event"));
            }
        });
        format!("{ns:.1}")
    });
    println!("ns for each event                          batch 16   batch 64");
    let line = |name: &str, cost: &mut dyn FnMut(usize) -> f64| {
        println!("{name:<42} {:>8.1}   {:>8.1}", cost(16), cost(64));
    };
    line("PublishBatch: decode", &mut |batch| {
        let stream = publish_stream(batch);
        measure(FRAMES * batch, || decode(black_box(&stream), false))
    });
    line("PublishBatch: decode and check events", &mut |batch| {
        let stream = publish_stream(batch);
        measure(FRAMES * batch, || decode(black_box(&stream), true))
    });
    line("PublishBatch: the same, split each 1,200 B", &mut |batch| {
        let stream = publish_stream(batch);
        measure(FRAMES * batch, || {
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
        })
    });
    line("PublishBatch: collect and finish", &mut |batch| {
        let (mut writer, mut out) = (PublishBatchWriter::new(), Vec::new());
        writer.begin(TopicId(1), 0);
        measure(batch, || {
            out.clear();
            (0..batch).for_each(|_| writer.push(black_box(&event)));
            writer.finish(black_box(&mut out));
        })
    });
    line("PushBatch: decode, walk and check events", &mut |batch| {
        let stream = push_stream(batch);
        measure(FRAMES * batch, || decode(black_box(&stream), true))
    });
    line("PushBatch: collect and finish", &mut |batch| {
        let (mut writer, mut out) = (PushBatchWriter::new(), Vec::new());
        writer.begin(SubscriptionId(1), Epoch(1));
        measure(batch, || {
            out.clear();
            (0..batch).for_each(|number| writer.push(push_item(number), black_box(&event)));
            writer.finish(black_box(&mut out));
        })
    });
    line("ResultBatch: encode, decode and walk", &mut |batch| {
        let result = |number| ResultItem {
            tag: Tag(number as u64),
            retry_after_ms: 0,
            result: AttemptResult::Success,
        };
        let results: Vec<_> = (0..batch).map(result).collect();
        let mut out = Vec::new();
        measure(batch, || {
            out.clear();
            encode_results(Items::from(black_box(&results[..])), &mut out).expect("it fits");
            decode(&out, true);
        })
    });
    let runs = [AckRun { first_sequence: Sequence(1), accepted: WallMs(1), count: 64, shard: ShardId(0) }];
    let mut out = Vec::new();
    let ack = measure(1, || {
        out.clear();
        let ack = PublishAck {
            through_item: 64,
            durability: Durability::LOCAL_DISK,
            runs: black_box(&runs[..]).into(),
            exceptions: Items::default(),
        };
        encode_publish_ack(&ack, &mut out).expect("it fits");
        decode(&out, false);
    });
    let mut writer = FrameWriter::new();
    let small = measure(1, || {
        out.clear();
        writer.write(&Frame::Credit(Credit { tasks: 1, bytes: 2 }), &mut out).expect("it fits");
        decode(&out, false);
    });
    println!(
        "PublishAck of one run, encode and decode: {ack:.0} ns; Credit, through the builder: {small:.0} ns"
    );
}
