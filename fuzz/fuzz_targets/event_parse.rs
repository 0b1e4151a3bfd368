//! Arbitrary bytes as one event.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| escapement_tests::fuzzing::event_parse(input));
