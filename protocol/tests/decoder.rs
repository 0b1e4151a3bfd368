//! The decoder against streams cut anywhere, and against bytes that nobody meant as frames.

mod samples;

use escapement_protocol::event::{Due, EventSpec};
use escapement_protocol::frame::{
    BODY_SIZE_BYTES_MIN, Frame, FrameDecoder, FrameError, FrameKind, PREFIX_SIZE_BYTES, PublishBatchWriter,
};
use escapement_protocol::{ErrorCode, EventView, FRAME_SIZE_BYTES_MAX, TopicId};
use proptest::prelude::*;
use samples::encoded;

fn kept(frame: &Frame<'_>) -> String {
    // Debug reads every field, item and event count, so that two equal texts are two equal frames.
    format!("{frame:?}")
}

/// Feeds `stream` in the pieces that `cuts` make of it.
fn decode(stream: &[u8], mut cuts: Vec<usize>) -> Result<Vec<String>, FrameError> {
    cuts.push(stream.len());
    cuts.sort_unstable();
    let mut decoder = FrameDecoder::new();
    let mut frames = Vec::new();
    let mut from = 0;
    for to in cuts {
        decoder.feed(&stream[from..to], |frame| {
            frames.push(kept(&frame));
            Ok(())
        })?;
        from = to;
    }
    decoder.finish()?;
    Ok(frames)
}

/// Reads everything that a session could read of a frame.
fn walk(frame: &Frame<'_>) -> usize {
    let events = match frame {
        Frame::PublishBatch(batch) => batch.events.iter(),
        Frame::PushBatch(batch) => batch.events.iter(),
        _ => return kept(frame).len(),
    };
    events.filter(|event| EventView::parse(event).is_ok()).count()
}

fn prefix(len: u32, kind: u8, version: u8, flags: u16) -> Vec<u8> {
    let mut out = len.to_le_bytes().to_vec();
    out.extend([kind, version]);
    out.extend(flags.to_le_bytes());
    out
}

fn large_frame(size_bytes: usize) -> Vec<u8> {
    let mut writer = PublishBatchWriter::new();
    writer.begin(TopicId(1), 0);
    let data = vec![7; 8_000];
    while writer.len_bytes() + data.len() < size_bytes {
        writer.push_spec(&EventSpec::new(Due::After(1), "a", &data)).expect("valid");
    }
    writer.finish_owned()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_stream_cut_anywhere_yields_the_same_frames(
        picks in prop::collection::vec(any::<prop::sample::Index>(), 1..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let samples = samples::frames();
        let picked: Vec<_> = picks.iter().map(|pick| &pick.get(&samples).1).collect();
        let stream: Vec<u8> = picked.iter().flat_map(|frame| encoded(frame)).collect();
        let cuts = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        let expected: Vec<_> = picked.iter().map(|frame| kept(frame)).collect();
        prop_assert_eq!(decode(&stream, cuts), Ok(expected));
    }

    #[test]
    fn random_bytes_are_a_typed_error_or_frames_never_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        kind in 1..=17u8,
    ) {
        let _ = FrameDecoder::new().feed(&bytes, |frame| { walk(&frame); Ok(()) });
        let mut framed = prefix(bytes.len() as u32, kind, 1, 0);
        framed.extend(&bytes);
        if let Err(error) = FrameDecoder::new().feed(&framed, |frame| { walk(&frame); Ok(()) }) {
            prop_assert!(matches!(error.code(), ErrorCode::MalformedFrame | ErrorCode::FrameLength));
        }
    }

    #[test]
    fn a_changed_frame_is_a_typed_error_or_another_frame_never_a_panic(
        pick in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = encoded(&pick.get(&samples::frames()).1);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Err(error) = FrameDecoder::new().feed(&bytes, |frame| { walk(&frame); Ok(()) }) {
            prop_assert!(matches!(
                error.code(),
                ErrorCode::MalformedFrame
                    | ErrorCode::FrameLength
                    | ErrorCode::UnknownFrame
                    | ErrorCode::UnsupportedVersion
            ));
        }
    }
}

#[test]
fn every_changed_bit_is_survived_and_one_of_a_prefix_is_noticed() {
    for (name, frame) in samples::frames() {
        let bytes = encoded(&frame);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let _ = FrameDecoder::new().feed(&changed, |frame| {
                walk(&frame);
                Ok(())
            });
            if bit / 8 < PREFIX_SIZE_BYTES {
                assert_ne!(decode(&changed, Vec::new()), Ok(vec![kept(&frame)]), "{name}, bit {bit}");
            }
        }
    }
}

#[test]
fn a_frame_cut_short_waits_and_ends_as_a_frame_length_error() {
    for (name, frame) in samples::frames() {
        let bytes = encoded(&frame);
        for cut in 1..bytes.len() {
            let mut decoder = FrameDecoder::new();
            decoder.feed(&bytes[..cut], |_| panic!("{name}: a frame from {cut} bytes")).expect("waits");
            assert_eq!(
                decoder.finish().map_err(|e| e.code()),
                Err(ErrorCode::FrameLength),
                "{name} at {cut}"
            );
        }
    }
}

#[test]
fn each_fault_of_a_prefix_has_its_error_before_any_body_comes() {
    let max = FRAME_SIZE_BYTES_MAX as u32;
    for (prefix, code) in [
        (prefix(max + 1, 1, 1, 0), ErrorCode::FrameLength),
        (prefix(u32::MAX, 3, 1, 0), ErrorCode::FrameLength),
        (prefix(BODY_SIZE_BYTES_MIN as u32 - 1, 10, 1, 0), ErrorCode::FrameLength),
        (prefix(0, 10, 1, 0), ErrorCode::FrameLength),
        (prefix(12, 1, 2, 0), ErrorCode::UnsupportedVersion),
        (prefix(12, 99, 0, 7), ErrorCode::UnsupportedVersion),
        (prefix(12, 0, 1, 0), ErrorCode::UnknownFrame),
        (prefix(12, 200, 1, 0), ErrorCode::UnknownFrame),
        (prefix(12, 1, 1, 1), ErrorCode::MalformedFrame),
        (prefix(12, 1, 1, 0x8000), ErrorCode::MalformedFrame),
    ] {
        let whole = FrameDecoder::new().feed(&prefix, |_| Ok(()));
        assert_eq!(whole.map_err(|error| error.code()), Err(code), "{prefix:?}");
        let mut decoder = FrameDecoder::new();
        let (first, last) = prefix.split_at(PREFIX_SIZE_BYTES - 1);
        decoder.feed(first, |_| Ok(())).expect("waits for the last byte");
        assert_eq!(decoder.feed(last, |_| Ok(())).map_err(|error| error.code()), Err(code));
    }
}

#[test]
fn a_frame_that_comes_whole_is_read_where_it_lies() {
    let stream = [large_frame(100_000), large_frame(50_000)].concat();
    let range = stream.as_ptr_range();
    let mut decoder = FrameDecoder::new();
    let mut count = 0;
    decoder
        .feed(&stream, |frame| {
            let Frame::PublishBatch(batch) = frame else { unreachable!() };
            assert!(range.contains(&batch.events.bytes().as_ptr()));
            count += 1;
            Ok(())
        })
        .expect("verifies");
    assert_eq!((count, decoder.held_size_bytes()), (2, 0));
}

#[test]
fn memory_grows_with_the_bytes_that_came_and_is_given_back() {
    let frame = large_frame(FRAME_SIZE_BYTES_MAX);
    let mut decoder = FrameDecoder::new();
    let mut fed = 0;
    let mut count = 0;
    for piece in frame.chunks(1_200) {
        fed += piece.len();
        decoder
            .feed(piece, |_| {
                count += 1;
                Ok(())
            })
            .expect("verifies");
        assert!(decoder.held_size_bytes() <= 2 * fed, "{} after {fed}", decoder.held_size_bytes());
        assert!(decoder.held_size_bytes() <= PREFIX_SIZE_BYTES + FRAME_SIZE_BYTES_MAX);
    }
    assert_eq!(count, 1);
    assert!(decoder.held_size_bytes() <= 64 * 1024, "{}", decoder.held_size_bytes());
}

#[test]
fn an_error_of_the_taker_ends_the_feed_with_it() {
    let mut stream = encoded(&Frame::Detach);
    stream.extend(encoded(&Frame::Detached));
    let mut seen = 0;
    let outcome = FrameDecoder::new().feed(&stream, |frame| {
        seen += 1;
        Err(FrameError::misplaced(frame.kind(), "no session is open"))
    });
    let expected = FrameError::misplaced(FrameKind::Detach, "no session is open");
    assert_eq!((seen, outcome), (1, Err(expected)));
}

#[test]
fn a_batch_without_events_or_with_numbers_beyond_the_last_is_refused() {
    let Some((_, Frame::PublishBatch(batch))) =
        samples::frames().into_iter().find(|(_, frame)| frame.kind() == FrameKind::PublishBatch)
    else {
        unreachable!()
    };
    for frame in [
        Frame::PublishBatch(escapement_protocol::frame::PublishBatch { events: Default::default(), ..batch }),
        Frame::PublishBatch(escapement_protocol::frame::PublishBatch { first_item: u64::MAX, ..batch }),
    ] {
        let outcome = decode(&encoded(&frame), Vec::new());
        assert_eq!(outcome.map_err(|error| error.code()), Err(ErrorCode::MalformedFrame));
    }
}

#[test]
fn padding_and_codes_of_fixed_structs_are_checked() {
    // The last byte of these frames is the padding of their last element.
    for kind in [FrameKind::PublishAck, FrameKind::PushBatch, FrameKind::ResultBatch] {
        let (_, frame) = samples::frames().into_iter().find(|(_, frame)| frame.kind() == kind).expect("one");
        let mut bytes = encoded(&frame);
        *bytes.last_mut().expect("not empty") = 1;
        let outcome = decode(&bytes, Vec::new());
        assert_eq!(outcome.map_err(|error| error.code()), Err(ErrorCode::MalformedFrame), "{kind:?}");
    }
    let (_, frame) =
        samples::frames().into_iter().find(|(_, frame)| frame.kind() == FrameKind::ResultBatch).expect("one");
    let mut bytes = encoded(&frame);
    let result_at = bytes.len() - 4;
    bytes[result_at] = 4;
    assert!(decode(&bytes, Vec::new()).is_err(), "a result of an unknown code");
}
