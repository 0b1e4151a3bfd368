//! Style as a test: what every file of the repository keeps to.
//!
//! Rules are functions from a text to findings, each tried on planted violations in its own file. This
//! file says which texts a rule is for, and holds the reviewed exceptions, each with its reason.

mod manifests;
mod markdown;
mod rules;
mod source;

use std::collections::BTreeSet;
use std::fs;

use escapement_protocol::ErrorCode;

use crate::source::{Finding, SourceFile, repository_root, repository_texts};

/// Files that may hold `unsafe`, and what for. Every other crate forbids it in its root.
const UNSAFE_FENCE: &[(&str, &str)] = &[
    ("protocol/src/generated/wire_v1.rs", "generated: reads of a verified FlatBuffer"),
    ("wal/src/aligned.rs", "page-aligned buffers for direct I/O"),
    ("wal/src/inspect/map.rs", "read-only maps of segments, for tools"),
    ("bench/src/clock.rs", "the CPU clock of a thread"),
    ("loadgen/src/bin/loadgen/sys.rs", "affinity, signals and accounts of processes"),
    ("node/tests/hosts/measure.rs", "CPU clocks, for figures"),
    ("router/tests/allocation.rs", "an allocator that counts"),
    ("engine/tests/allocation.rs", "an allocator that counts"),
    ("node/src/io/sys.rs", "system calls that no safe wrapper in the tree offers"),
    ("node/src/io/uring/mod.rs", "requests to the kernel that point into memory of ours"),
    ("node/src/io/uring/recv.rs", "receive buffers that the kernel fills"),
    ("node/src/io/uring/send.rs", "message headers of sends in flight"),
];

/// Files that may sleep, and why nothing can be waited for instead.
const SLEEPS_ALLOWED: &[(&str, &str)] = &[
    (
        "loadgen/src/bin/loadgen/node_process.rs",
        "a child's end within a deadline cannot be waited for otherwise",
    ),
    ("node/tests/hosts/measure.rs", "a wake is measured from a core that has gone to sleep"),
];

/// Crates that take time, randomness and outside bytes as arguments.
const PURE_CRATES: &[&str] = &["protocol", "router", "engine"];

fn is_rust(file: &SourceFile) -> bool {
    file.path.ends_with(".rs")
}

fn is_crate_root(file: &SourceFile) -> bool {
    file.path.ends_with("/src/lib.rs") || file.path.ends_with("/src/main.rs")
}

fn is_test(file: &SourceFile) -> bool {
    file.path.split('/').any(|part| part == "tests")
}

fn is_listed(list: &[(&str, &str)], path: &str) -> bool {
    list.iter().any(|(listed, _)| *listed == path)
}

/// Fails with every finding of `rule` over the files that `applies` picks, one a line.
#[track_caller]
fn hold(applies: impl Fn(&SourceFile) -> bool, rule: impl Fn(&SourceFile) -> Vec<Finding>) {
    let files: Vec<_> = repository_texts().into_iter().filter(applies).collect();
    assert!(!files.is_empty(), "the rule looks at no file");
    let report: Vec<_> = files
        .iter()
        .flat_map(|file| rule(file).into_iter().map(|f| format!("{}:{}: {}", file.path, f.line, f.what)))
        .collect();
    assert!(report.is_empty(), "\n{}\n", report.join("\n"));
}

#[test]
fn no_code_is_left_for_later() {
    hold(is_rust, |file| rules::placeholders(&file.text));
}

#[test]
fn every_test_that_is_written_runs() {
    hold(is_rust, |file| rules::ignored_tests(&file.text));
}

#[test]
fn nothing_sleeps_where_it_could_wait_for_something() {
    hold(
        |file| is_rust(file) && !is_listed(SLEEPS_ALLOWED, &file.path),
        |file| rules::sleeps(&file.text, is_test(file)),
    );
}

#[test]
fn no_file_is_too_long_to_read() {
    hold(is_rust, |file| rules::length(&file.text));
}

#[test]
fn unsafe_code_stays_inside_the_fence() {
    hold(|file| is_rust(file) && !is_listed(UNSAFE_FENCE, &file.path), |file| rules::unsafe_code(&file.text));
}

#[test]
fn crates_without_fenced_files_forbid_unsafe_code() {
    let is_fenced = |root: &str| {
        let sources = root.rsplit_once('/').map_or("", |(sources, _)| sources);
        UNSAFE_FENCE
            .iter()
            .any(|(listed, _)| listed.strip_prefix(sources).is_some_and(|rest| rest.starts_with('/')))
    };
    hold(is_crate_root, |file| rules::missing_forbid(&file.text, is_fenced(&file.path)));
}

#[test]
fn exceptions_name_files_that_exist_and_need_them() {
    let files = repository_texts();
    let find = |path: &str| {
        files
            .iter()
            .find(|file| file.path == path)
            .unwrap_or_else(|| panic!("{path} is listed and not there"))
    };
    for (path, reason) in UNSAFE_FENCE {
        assert!(!rules::unsafe_code(&find(path).text).is_empty(), "{path} needs no fence any more");
        assert!(reason.len() > 10, "{path}: say what the unsafe code is for");
    }
    for (path, reason) in SLEEPS_ALLOWED {
        let file = find(path);
        assert!(!rules::sleeps(&file.text, is_test(file)).is_empty(), "{path} sleeps no more");
        assert!(reason.len() > 10, "{path}: say why it sleeps");
    }
}

#[test]
fn every_crate_says_in_its_first_lines_what_it_is() {
    hold(is_crate_root, |file| rules::missing_crate_docs(&file.text));
}

#[test]
fn pure_crates_reach_for_no_clock_thread_or_file() {
    let is_pure = |file: &SourceFile| {
        PURE_CRATES
            .iter()
            .any(|name| file.path.strip_prefix(name).is_some_and(|rest| rest.starts_with("/src/")))
    };
    hold(|file| is_rust(file) && is_pure(file), |file| rules::impurities(&file.text));
}

fn is_manifest(file: &SourceFile) -> bool {
    file.path.ends_with("/Cargo.toml")
}

#[test]
fn every_dependency_of_a_crate_is_named_in_its_sources() {
    let files = repository_texts();
    hold(is_manifest, |manifest| {
        let folder = manifest.path.trim_end_matches("Cargo.toml");
        let sources = files.iter().filter(|file| is_rust(file) && file.path.starts_with(folder));
        manifests::unused_dependencies(&manifest.text, sources.map(|file| file.text.as_str()))
    });
}

#[test]
fn every_dependency_that_the_workspace_offers_is_taken() {
    let members: Vec<_> = repository_texts().into_iter().filter(is_manifest).collect();
    let taken: BTreeSet<_> =
        members.iter().flat_map(|manifest| manifests::dependencies(&manifest.text)).collect();
    hold(|file| file.path == "Cargo.toml", |file| manifests::unused_offers(&file.text, &taken));
}

#[test]
fn no_text_holds_a_tab() {
    hold(|_| true, |file| rules::tabs(&file.text));
}

#[test]
fn no_text_names_a_path_of_one_machine() {
    hold(|_| true, |file| rules::machine_paths(&file.text));
}

#[test]
fn links_between_documents_lead_somewhere() {
    let read = |path: &str| {
        let path = repository_root().join(path);
        if path.is_dir() { Some(String::new()) } else { fs::read_to_string(path).ok() }
    };
    hold(|file| file.path.ends_with(".md"), |file| markdown::broken_links(&file.path, &file.text, read));
}

#[test]
fn every_error_code_has_exactly_one_entry_in_the_errors_document() {
    let names: Vec<_> = ErrorCode::ALL.iter().map(|code| code.name()).collect();
    hold(|file| file.path == "docs/errors.md", |file| markdown::error_entries(&file.text, &names));
}
