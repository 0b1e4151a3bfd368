//! Arbitrary bytes as the records of one block.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| escapement_tests::fuzzing::engine_record(input));
