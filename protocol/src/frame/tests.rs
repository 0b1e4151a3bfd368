use super::*;

fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    FrameWriter::new().write(frame, &mut out).expect("the frame fits");
    out
}

#[test]
fn every_kind_reads_back_as_it_was_written() {
    let mut seen = Vec::new();
    for (name, frame) in samples::frames() {
        let bytes = encoded(&frame);
        let mut count = 0;
        FrameDecoder::new()
            .feed(&bytes, |read| {
                assert_eq!(read, frame, "{name}");
                count += 1;
                Ok(())
            })
            .expect(name);
        assert_eq!(count, 1, "{name}");
        seen.push(frame.kind());
    }
    seen.dedup();
    assert_eq!(seen, FrameKind::ALL);
}
