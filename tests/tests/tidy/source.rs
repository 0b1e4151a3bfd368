//! The repository's texts, and the part of a Rust text that is code.

use std::fs;
use std::path::{Path, PathBuf};

/// One text of the repository. `path` is relative to the root, with `/` between its parts.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// What a rule objects to, and where. Lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) line: usize,
    pub(crate) what: String,
}

impl Finding {
    pub(crate) fn new(line: usize, what: impl Into<String>) -> Self {
        Finding { line, what: what.into() }
    }
}

const TEXT_EXTENSIONS: &[&str] = &["rs", "md", "toml", "sh", "fbs"];
const TEXT_NAMES: &[&str] = &["run", "LICENSE-MIT", "LICENSE-APACHE"];
/// Build outputs, inputs of the fuzzer, and what may lie in a checkout without being part of the project.
const SKIPPED_FOLDERS: &[&str] = &["target", "corpus", "artifacts", "coverage", "shared"];

pub(crate) fn repository_root() -> PathBuf {
    let tests_crate = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests_crate.parent().expect("the tests crate lies in the repository's root").to_owned()
}

/// Every text of the repository, in the order of its path.
pub(crate) fn repository_texts() -> Vec<SourceFile> {
    let root = repository_root();
    let mut files = Vec::new();
    collect(&root, &root, &mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.iter().any(|file| file.path == "Cargo.toml"), "the walk starts at the repository's root");
    files
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<SourceFile>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for entry in entries.map(|entry| entry.expect("a folder's entry")) {
        let path = entry.path();
        let name = entry.file_name().into_string().expect("names in the repository are UTF-8");
        let kind = entry.file_type().expect("an entry's type");
        if kind.is_dir() {
            let is_hidden = name.starts_with('.') && name != ".ci";
            let is_output = SKIPPED_FOLDERS.contains(&name.as_str()) || name.starts_with("target-");
            if !is_hidden && !is_output {
                collect(root, &path, files);
            }
        } else if kind.is_file() && is_text(&name) {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let relative = path.strip_prefix(root).expect("the walk stays inside the root");
            files.push(SourceFile { path: relative.to_string_lossy().replace('\\', "/"), text });
        }
    }
}

fn is_text(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    TEXT_NAMES.contains(&name) || extension.is_some_and(|e| TEXT_EXTENSIONS.contains(&e))
}

/// The text with every comment, string and character literal blanked out, line breaks kept.
///
/// Rules about code read this, so that a rule may name what it forbids and a comment may discuss it.
pub(crate) fn code_only(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut previous = ' ';
    while let Some(c) = rest.chars().next() {
        let in_word = previous.is_alphanumeric() || previous == '_';
        let skipped = literal_or_comment_len(rest, in_word);
        if skipped == 0 {
            out.push(c);
            previous = c;
            rest = &rest[c.len_utf8()..];
        } else {
            let (blanked, after) = rest.split_at(skipped);
            out.extend(blanked.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            previous = ' ';
            rest = after;
        }
    }
    out
}

/// Bytes of the comment or literal at the start of `text`; 0 where neither starts there.
fn literal_or_comment_len(text: &str, in_word: bool) -> usize {
    let bytes = text.as_bytes();
    match bytes {
        [b'/', b'/', ..] => text.find('\n').unwrap_or(text.len()),
        [b'/', b'*', ..] => block_comment_len(bytes),
        [b'"', ..] => quoted_len(bytes, b'"'),
        [b'\'', b'\\', ..] => quoted_len(bytes, b'\''),
        [b'\'', ..] => {
            // A lifetime has no quote behind its first character.
            let mut chars = text[1..].char_indices();
            match (chars.next(), chars.next()) {
                (Some((_, c)), Some((at, '\''))) if c != '\'' => at + 2,
                _ => 0,
            }
        }
        [b'r', ..] if !in_word => raw_string_len(text, 1),
        [b'b' | b'c', b'r', ..] if !in_word => raw_string_len(text, 2),
        _ => 0,
    }
}

fn block_comment_len(bytes: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at..] {
            [b'/', b'*', ..] => {
                depth += 1;
                at += 2;
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    bytes.len()
}

fn quoted_len(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b if b == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn raw_string_len(text: &str, prefix: usize) -> usize {
    let hashes = text[prefix..].bytes().take_while(|b| *b == b'#').count();
    let open = prefix + hashes;
    if text.as_bytes().get(open) != Some(&b'"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    text[open + 1..].find(&close).map_or(text.len(), |at| open + 1 + at + close.len())
}

/// Lines of `code` that hold `word` with no letter, digit or underscore next to it.
pub(crate) fn lines_with_word(code: &str, word: &str) -> Vec<usize> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let holds = |line: &str| {
        line.match_indices(word)
            .any(|(at, _)| !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part))
    };
    (1..).zip(code.lines()).filter(|(_, line)| holds(line)).map(|(number, _)| number).collect()
}

/// What stands before the unit tests of a file, which by this project's custom come last.
pub(crate) fn before_unit_tests(code: &str) -> &str {
    code.split_once("#[cfg(test)]").map_or(code, |(before, _)| before)
}

mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_code_stays() {
        let text = "let a = \"un\\\"safe\"; // unsafe\nlet b = 'u'; /* un /* sa */ fe */ let c: &'a str = r#\"x\"y\"#;";
        let code = code_only(text);
        assert_eq!(code.lines().count(), 2);
        assert!(code.starts_with("let a =") && code.contains("let b =") && code.contains("let c: &'a str ="));
        assert!(!code.contains("safe") && !code.contains('x') && !code.contains('y') && !code.contains("fe"));
    }

    #[test]
    fn escaped_quotes_raw_identifiers_and_lifetimes_do_not_swallow_code() {
        for text in [
            "'\\'' kept",
            "'\"' kept",
            "r#type kept",
            "fn f<'a>(x: &'a u8) kept",
            "b\"\\\\\" kept",
            "'é' kept",
        ] {
            assert!(code_only(text).ends_with("kept"), "{text}");
        }
    }

    #[test]
    fn a_word_is_found_only_where_it_stands_alone() {
        assert_eq!(lines_with_word("unsafe_code\nan unsafe block\nunsafe{", "unsafe"), [2, 3]);
    }

    #[test]
    fn the_walk_finds_this_file_and_no_build_output() {
        let files = repository_texts();
        assert!(files.iter().any(|file| file.path == "tests/tests/tidy/source.rs"));
        assert!(files.iter().all(|file| !file.path.split('/').any(|part| part.starts_with("target"))));
    }
}
