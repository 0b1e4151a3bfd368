//! The rules for Rust files and for texts of any kind. Each takes text in and gives findings out.

use crate::source::{Finding, before_unit_tests, code_only, lines_with_word};

/// Longest hand-written Rust file, in lines.
pub(crate) const LINES_MAX: usize = 900;

/// Code that stands in for code that is not there yet.
pub(crate) fn placeholders(text: &str) -> Vec<Finding> {
    let code = code_only(text);
    ["todo!", "unimplemented!"]
        .iter()
        .flat_map(|name| {
            code_lines_with(&code, name).map(move |line| Finding::new(line, format!("{name} in the tree")))
        })
        .collect()
}

/// Tests that are written down and do not run.
pub(crate) fn ignored_tests(text: &str) -> Vec<Finding> {
    let code = code_only(text);
    (1..)
        .zip(code.lines())
        .filter(|(_, line)| {
            line.contains("#[ignore") || (line.contains("cfg_attr") && line.contains("ignore"))
        })
        .map(|(line, _)| Finding::new(line, "an ignored test: run it, or delete it"))
        .collect()
}

/// Waiting for time to pass, where something to wait for could be named.
///
/// An async sleep is a timer and has its uses in the client; in tests it is a guess about another's speed.
pub(crate) fn sleeps(text: &str, is_test: bool) -> Vec<Finding> {
    let code = code_only(text);
    let names: &[&str] = if is_test { &["thread::sleep", "time::sleep"] } else { &["thread::sleep"] };
    names
        .iter()
        .flat_map(|name| {
            code_lines_with(&code, name)
                .map(move |line| Finding::new(line, format!("{name}: wait for an event instead")))
        })
        .collect()
}

/// Files too long to be read in one go. Generated files say so in their first lines.
pub(crate) fn length(text: &str) -> Vec<Finding> {
    let is_generated = text
        .lines()
        .take(5)
        .any(|line| line.contains("@generated") || line.contains("automatically generated"));
    let count = text.lines().count();
    if count <= LINES_MAX || is_generated {
        return Vec::new();
    }
    vec![Finding::new(
        count,
        format!("{count} lines, where {LINES_MAX} are the limit: split by what changes together"),
    )]
}

/// `unsafe` outside the fence: one finding, at the first of them.
pub(crate) fn unsafe_code(text: &str) -> Vec<Finding> {
    let lines = lines_with_word(&code_only(text), "unsafe");
    let first = lines.first().map(|&line| {
        Finding::new(
            line,
            format!("unsafe in {} lines of a file that is not on the fenced list", lines.len()),
        )
    });
    first.into_iter().collect()
}

/// Crate roots that do not forbid unsafe code though no file of theirs is on the fenced list.
pub(crate) fn missing_forbid(root: &str, is_fenced: bool) -> Vec<Finding> {
    if is_fenced || code_only(root).contains("#![forbid(unsafe_code)]") {
        return Vec::new();
    }
    vec![Finding::new(1, "no #![forbid(unsafe_code)], and no fenced file in this crate")]
}

/// Crate roots that do not say in their first lines what the crate is.
pub(crate) fn missing_crate_docs(root: &str) -> Vec<Finding> {
    let docs: Vec<_> = root.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let words = docs.iter().flat_map(|line| line.split_whitespace()).count();
    if words >= 5 {
        return Vec::new();
    }
    vec![Finding::new(1, "a crate's root starts with //! and a sentence on what the crate is")]
}

/// Time, threads and the operating system in a room that takes them as arguments.
pub(crate) fn impurities(text: &str) -> Vec<Finding> {
    const FORBIDDEN: &[&str] = &[
        "Instant::now",
        "SystemTime",
        "std::fs",
        "std::net",
        "std::thread",
        "std::env",
        "std::process",
        "RefCell",
    ];
    let code = code_only(text);
    let code = before_unit_tests(&code);
    FORBIDDEN
        .iter()
        .flat_map(|name| {
            code_lines_with(code, name).map(move |line| Finding::new(line, format!("{name} in a pure crate")))
        })
        .collect()
}

/// Tabs: two readers would see two indentations.
pub(crate) fn tabs(text: &str) -> Vec<Finding> {
    lines_where(text, |line| line.contains('\t'), "a tab")
}

/// Paths that exist on one machine only.
pub(crate) fn machine_paths(text: &str) -> Vec<Finding> {
    let places = ["home", "root", "work", "Users"].map(|folder| format!("/{folder}/"));
    let names_a_place = |line: &str| {
        places.iter().any(|place| {
            line.match_indices(place.as_str())
                .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-/~}".contains(c)))
        })
    };
    lines_where(text, names_a_place, "an absolute path of one machine")
}

fn lines_where(text: &str, objects: impl Fn(&str) -> bool, what: &str) -> Vec<Finding> {
    (1..)
        .zip(text.lines())
        .filter(|(_, line)| objects(line))
        .map(|(line, _)| Finding::new(line, what))
        .collect()
}

fn code_lines_with<'a>(code: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    (1..).zip(code.lines()).filter(move |(_, line)| line.contains(name)).map(|(line, _)| line)
}

mod tests {
    use super::*;

    fn lines(findings: &[Finding]) -> Vec<usize> {
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_placeholder_is_found_in_code_and_not_in_a_comment() {
        assert_eq!(
            lines(&placeholders("// todo!()\nfn f() { todo!() }\nfn g() { unimplemented!(\"x\") }")),
            [2, 3]
        );
    }

    #[test]
    fn an_ignored_test_is_found_in_either_spelling() {
        let text = "#[test]\n#[ignore = \"slow\"]\nfn a() {}\n#[cfg_attr(windows, ignore)]\nfn b() {}\n";
        assert_eq!(lines(&ignored_tests(text)), [2, 4]);
    }

    #[test]
    fn an_async_sleep_is_found_in_tests_only_and_a_blocking_one_everywhere() {
        let text = "std::thread::sleep(d);\ntokio::time::sleep(d).await;\n";
        assert_eq!(lines(&sleeps(text, false)), [1]);
        assert_eq!(lines(&sleeps(text, true)), [1, 2]);
    }

    #[test]
    fn a_file_one_line_too_long_is_found_unless_generated() {
        let fits = "x\n".repeat(LINES_MAX);
        assert_eq!(length(&fits), []);
        assert_eq!(length(&format!("{fits}x\n")).len(), 1);
        assert_eq!(length(&format!("// @generated\n{fits}x\n")), []);
    }

    #[test]
    fn unsafe_is_found_in_blocks_functions_and_impls_and_not_in_lint_names() {
        let text = "#![forbid(unsafe_code)]\nunsafe { f() }\nunsafe fn g() {}\nunsafe impl Send for X {}\n";
        assert_eq!(lines(&unsafe_code(text)), [2]);
        assert!(unsafe_code(text)[0].what.contains("3 lines"));
        assert_eq!(unsafe_code("#![forbid(unsafe_code)]\n// unsafe\n"), []);
    }

    #[test]
    fn a_crate_without_fenced_files_has_to_forbid_unsafe_code() {
        assert_eq!(missing_forbid("//! Docs.\n", false).len(), 1);
        assert_eq!(missing_forbid("// #![forbid(unsafe_code)]\n", false).len(), 1);
        assert_eq!(missing_forbid("//! Docs.\n", true), []);
        assert_eq!(missing_forbid("//! Docs.\n#![forbid(unsafe_code)]\n", false), []);
    }

    #[test]
    fn a_crate_root_without_a_sentence_is_found() {
        assert_eq!(missing_crate_docs("//! placeholder\n").len(), 1);
        assert_eq!(missing_crate_docs("use std::fmt;\n//! Late words do not count here at all.\n").len(), 1);
        assert_eq!(missing_crate_docs("//! What this crate is for.\n"), []);
    }

    #[test]
    fn a_clock_in_a_pure_crate_is_found_but_not_in_its_unit_tests() {
        let text = "fn f() { std::time::Instant::now(); }\n#[cfg(test)]\nmod tests { use std::fs; }\n";
        assert_eq!(lines(&impurities(text)), [1]);
    }

    #[test]
    fn tabs_are_found_inside_and_before_text() {
        assert_eq!(lines(&tabs("\ta\nb\nc\td\n")), [1, 3]);
    }

    #[test]
    fn a_path_of_one_machine_is_found_and_a_relative_one_is_not() {
        let home = concat!("see /", "home/me/x\n");
        let inside = concat!("a/", "home/x and ../", "work/y and ~/", "work/z\n");
        assert_eq!(lines(&machine_paths(&format!("{home}{inside}"))), [1]);
    }
}
