//! The bytes of every frame, as files: a change of layout shows, and frames written by earlier builds stay readable.
//!
//! `ESCAPEMENT_WRITE_GOLDEN=1 cargo test -p escapement-protocol --test golden` writes files that are missing.
//! One that is there and differs is never overwritten: delete it first, and say in `docs/formats/wire-v1.md` why
//! the bytes changed.

mod samples;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::{env, fs};

use escapement_protocol::frame::{FrameDecoder, FrameKind};
use samples::encoded;

/// The folder, with the files that were to be written.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    if env::var_os("ESCAPEMENT_WRITE_GOLDEN").is_some() {
        for (name, frame) in samples::frames() {
            let path = folder.join(name).with_extension("bin");
            if !path.exists() {
                fs::write(&path, encoded(&frame)).expect("the folder can be written");
            }
        }
    }
    folder
});

fn golden(name: &str) -> Vec<u8> {
    let path = FOLDER.join(name).with_extension("bin");
    fs::read(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn frames_are_written_as_the_golden_files_have_them() {
    for (name, frame) in samples::frames() {
        assert_eq!(encoded(&frame), golden(name), "{name}");
    }
}

#[test]
fn golden_files_are_read_as_the_frames_they_were_written_from() {
    for (name, frame) in samples::frames() {
        let mut count = 0;
        let mut decoder = FrameDecoder::new();
        decoder
            .feed(&golden(name), |read| {
                assert_eq!(read, frame, "{name}");
                count += 1;
                Ok(())
            })
            .expect(name);
        assert_eq!((count, decoder.finish()), (1, Ok(())), "{name}");
    }
}

#[test]
fn every_kind_has_a_golden_file_and_every_file_a_frame() {
    let samples = samples::frames();
    let kinds: BTreeSet<FrameKind> = samples.iter().map(|(_, frame)| frame.kind()).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), FrameKind::ALL);
    let names: BTreeSet<String> = samples.iter().map(|(name, _)| format!("{name}.bin")).collect();
    let files: BTreeSet<String> = fs::read_dir(&*FOLDER)
        .expect("the folder is there")
        .map(|entry| entry.expect("the folder can be read").file_name().into_string().expect("a plain name"))
        .collect();
    assert_eq!(files, names);
}
