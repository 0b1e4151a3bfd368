//! The kept inputs of the fuzz targets, run as ordinary tests.
//!
//! Seeds are written by the real encoders: after a change of a format, write them anew with
//! `ESCAPEMENT_WRITE_SEEDS=1 cargo test -p escapement-tests --test fuzz_corpus`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use escapement_tests::fuzzing::{TARGETS, Target};

/// Names the input at hand: captured, and shown only where its target panics.
#[expect(clippy::print_stdout, reason = "a panic inside a target does not know its input's name")]
fn announce(target: &Target, input: &str) {
    println!("{}: {input}", target.name);
}

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

fn corpus_folder(target: &Target) -> PathBuf {
    fuzz_folder().join("corpus").join(target.name)
}

fn seed_file(target: &Target, name: &str) -> PathBuf {
    corpus_folder(target).join(format!("seed-{name}"))
}

fn inputs(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = corpus_folder(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries
        .map(|entry| entry.expect("a folder's entry").path())
        .map(|path| {
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path, bytes)
        })
        .collect()
}

#[test]
fn every_kept_input_passes_its_target() {
    for target in TARGETS {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "{} has no inputs", target.name);
        for (path, input) in inputs {
            announce(target, &path.to_string_lossy());
            (target.run)(&input);
        }
    }
}

#[test]
fn every_cut_and_every_flipped_bit_of_a_seed_passes_its_target() {
    for target in TARGETS {
        for (name, seed) in (target.seeds)() {
            announce(target, name);
            // Large seeds are sampled: neighbouring bits of a payload tell nothing new.
            let stride = seed.len() / 1024 + 1;
            for cut in (0..seed.len()).step_by(stride) {
                (target.run)(&seed[..cut]);
            }
            for bit in (0..seed.len() * 8).step_by(stride) {
                let mut changed = seed.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                (target.run)(&changed);
            }
        }
    }
}

#[test]
fn committed_seeds_are_what_the_encoders_write() {
    let is_rewriting = std::env::var_os("ESCAPEMENT_WRITE_SEEDS").is_some();
    for target in TARGETS {
        for (name, seed) in (target.seeds)() {
            let path = seed_file(target, name);
            if is_rewriting {
                fs::create_dir_all(corpus_folder(target)).expect("a folder for the corpus");
                fs::write(&path, &seed).expect("a seed is written");
            }
            let committed = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(
                committed == seed,
                "{} is not what the encoder writes: is the format meant to change?",
                path.display()
            );
        }
    }
}

#[test]
fn every_target_is_one_file_for_the_fuzzer_and_one_function_here() {
    let files = fs::read_dir(fuzz_folder().join("fuzz_targets")).expect("the fuzzer's targets");
    let files: BTreeSet<_> = files
        .map(|entry| entry.expect("a folder's entry").path())
        .map(|path| path.file_stem().expect("a file").to_string_lossy().into_owned())
        .collect();
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).expect("the fuzzer's manifest");
    let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(files, names);
    for name in names {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is missing in fuzz/Cargo.toml");
    }
}
