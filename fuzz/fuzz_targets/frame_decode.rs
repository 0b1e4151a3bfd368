//! Arbitrary bytes as a stream of frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| escapement_tests::fuzzing::frame_decode(input));
