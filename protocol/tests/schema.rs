//! The committed code against the schema that it was generated from.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// As in `schema/generate.sh`.
const FLATC_VERSION: &str = "flatc version 25.12.19";

fn is_wanted(flatc: &Path) -> bool {
    let output = Command::new(flatc).arg("--version").output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim() == FLATC_VERSION)
}

#[test]
#[expect(clippy::print_stderr, reason = "a comparison that did not happen must not look like one that did")]
fn the_committed_code_is_what_flatc_makes_of_the_schema() {
    let flatc = env::var_os("FLATC").unwrap_or_else(|| "flatc".into());
    let flatc = Path::new(&flatc);
    if !is_wanted(flatc) {
        eprintln!("compared nothing: no {FLATC_VERSION} on PATH or in FLATC");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("schema");
    let status = Command::new(flatc)
        .args(["--rust", "-o"])
        .arg(&out)
        .arg(root.join("schema/wire_v1.fbs"))
        .status()
        .expect("flatc starts");
    assert!(status.success());
    let generated = fs::read_to_string(out.join("wire_v1_generated.rs")).expect("flatc wrote it");
    let committed = fs::read_to_string(root.join("src/generated/wire_v1.rs")).expect("it is committed");
    assert!(generated == committed, "run protocol/schema/generate.sh and commit what it writes");
}

#[test]
fn the_script_and_this_test_name_the_same_compiler() {
    let script = include_str!("../schema/generate.sh");
    assert!(script.contains(&format!("version=\"{FLATC_VERSION}\"")));
}
