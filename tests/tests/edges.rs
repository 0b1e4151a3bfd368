//! The edges between the crates: who may depend on whom, and what a pure crate may not bring in.
//!
//! Only normal dependencies count: a test may look at anything.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const PREFIX: &str = "escapement-";

/// The allowed edges, as `crate -> crates it may use`. A crate that is missing here is a finding.
const ALLOWED: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("wal", &["protocol"]),
    ("router", &["protocol"]),
    ("engine", &["protocol", "router"]),
    ("frontend", &["protocol"]),
    ("delivery", &["protocol"]),
    ("client", &["protocol"]),
    ("node", &["protocol", "wal", "router", "engine", "frontend", "delivery", "client"]),
    ("loadgen", &["protocol", "client", "node"]),
    ("bench", &["protocol", "wal", "router", "engine"]),
    ("tests", &["protocol", "wal", "router", "engine", "frontend", "client", "node", "loadgen"]),
];

/// Crates that reach neither the operating system nor chance, whatever they depend on.
const PURE: &[&str] = &["protocol", "router", "engine"];
const IMPURE_PACKAGES: &[&str] = &[
    "tokio",
    "libc",
    "socket2",
    "io-uring",
    "rand",
    "getrandom",
    "rustix",
    "nix",
    "mio",
    "memmap2",
    "quinn",
    "quinn-proto",
];

/// An edge `from -> to` between two crates of the workspace, without their common prefix.
type Edge = (String, String);

/// The normal edges inside the workspace, from the output of `cargo metadata --no-deps`.
fn edges(metadata: &Value) -> BTreeSet<Edge> {
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let mut edges = BTreeSet::new();
    for package in packages {
        let from = short(&package["name"]);
        for dependency in package["dependencies"].as_array().expect("a list of dependencies") {
            let is_normal = dependency["kind"].is_null();
            if let (true, Some(to)) =
                (is_normal, dependency["name"].as_str().and_then(|n| n.strip_prefix(PREFIX)))
            {
                edges.insert((from.clone(), to.to_owned()));
            }
        }
    }
    edges
}

fn crates(metadata: &Value) -> BTreeSet<String> {
    metadata["packages"].as_array().expect("a list of packages").iter().map(|p| short(&p["name"])).collect()
}

fn short(name: &Value) -> String {
    let name = name.as_str().expect("a package's name");
    name.strip_prefix(PREFIX).unwrap_or(name).to_owned()
}

/// The edges that `allowed` does not list.
fn forbidden(edges: &BTreeSet<Edge>, allowed: &[(&str, &[&str])]) -> Vec<Edge> {
    let lists =
        |(from, to): &&Edge| allowed.iter().any(|(name, uses)| name == from && uses.contains(&to.as_str()));
    edges.iter().filter(|edge| !lists(edge)).cloned().collect()
}

/// The edges of the sentence in `docs/ARCHITECTURE.md` that starts with `Edges:`, as `user -> used`.
fn documented_edges(document: &str) -> BTreeSet<Edge> {
    let sentence = document.split_once("Edges:").expect("a sentence that starts with Edges:").1;
    let sentence = sentence.split('.').next().unwrap_or_default();
    let names =
        |text: &str| -> Vec<String> { text.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    sentence
        .split(';')
        .filter_map(|part| part.split_once('←'))
        .flat_map(|(used, users)| {
            let used = names(used);
            names(users)
                .into_iter()
                .flat_map(move |user| used.clone().into_iter().map(move |used| (user.clone(), used)))
        })
        .collect()
}

/// The packages of `IMPURE_PACKAGES` among the lines `name vX.Y.Z` that `cargo tree --prefix none` prints.
fn impure_packages(tree: &str) -> BTreeSet<&str> {
    tree.lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| IMPURE_PACKAGES.contains(name))
        .collect()
}

fn cargo(arguments: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root");
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--offline", "--locked"])
        .current_dir(root)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

fn workspace_metadata() -> Value {
    serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"]))
        .expect("metadata is JSON")
}

#[test]
fn no_crate_depends_on_one_that_it_must_not_know() {
    let metadata = workspace_metadata();
    let listed: BTreeSet<_> = ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(crates(&metadata), listed, "every crate has its line in the list of allowed edges");
    assert_eq!(forbidden(&edges(&metadata), ALLOWED), []);
}

#[test]
fn the_architecture_document_names_allowed_edges_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root");
    let document = fs::read_to_string(root.join("docs/ARCHITECTURE.md")).expect("the architecture document");
    let documented = documented_edges(&document);
    assert!(documented.contains(&("engine".to_owned(), "router".to_owned())), "{documented:?}");
    assert_eq!(forbidden(&documented, ALLOWED), []);
}

#[test]
fn pure_crates_bring_in_no_operating_system_and_no_chance() {
    for name in PURE {
        let package = format!("{PREFIX}{name}");
        let tree = cargo(&["tree", "-p", &package, "-e", "normal", "--prefix", "none", "--format", "{p}"]);
        assert!(tree.starts_with(&package), "{tree}");
        assert_eq!(impure_packages(&tree), BTreeSet::new(), "{name}");
    }
}

fn planted(dependencies: &str) -> Value {
    let text =
        format!(r#"{{"packages": [{{"name": "escapement-router", "dependencies": [{dependencies}]}}]}}"#);
    serde_json::from_str(&text).expect("planted metadata is JSON")
}

#[test]
fn a_planted_edge_is_found_and_a_dev_dependency_is_none() {
    let outward = planted(r#"{"name": "escapement-engine", "kind": null}, {"name": "slab", "kind": null}"#);
    assert_eq!(forbidden(&edges(&outward), ALLOWED), [("router".to_owned(), "engine".to_owned())]);
    let in_tests = planted(
        r#"{"name": "escapement-engine", "kind": "dev"}, {"name": "escapement-protocol", "kind": null}"#,
    );
    assert_eq!(forbidden(&edges(&in_tests), ALLOWED), []);
}

#[test]
fn a_planted_sentence_of_the_document_is_read_as_edges() {
    let edges = documented_edges("x\n\nEdges: `a` ← `b`, `c`; `b` ← `d`; everything ← `e`. `c` ← `f`.");
    let expected =
        [("b", "a"), ("c", "a"), ("d", "b")].map(|(user, used)| (user.to_owned(), used.to_owned()));
    assert_eq!(edges, BTreeSet::from(expected));
}

#[test]
fn a_planted_runtime_deep_in_a_tree_is_found() {
    assert_eq!(
        impure_packages("escapement-engine v0.1.0 (x)\nslab v0.4.1\ntokio v1.0.0\ntokio-util v1\n"),
        BTreeSet::from(["tokio"])
    );
}
