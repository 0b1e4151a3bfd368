//! Arbitrary bytes as parts of the log, and as fields and records of a block.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| escapement_tests::fuzzing::wal_block(input));
