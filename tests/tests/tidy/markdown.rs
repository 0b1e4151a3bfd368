//! The rules for documents: links that resolve, and one entry for each error code.

use std::collections::BTreeSet;

use crate::source::Finding;

/// A link's target and its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) line: usize,
    pub(crate) target: String,
}

/// The inline links of a document, fenced blocks and code spans left out.
pub(crate) fn links(text: &str) -> Vec<Link> {
    let mut found = Vec::new();
    for (line, prose) in prose_lines(text) {
        let prose = without_code_spans(prose);
        for (at, _) in prose.match_indices("](") {
            let target = prose[at + 2..].split(')').next().unwrap_or_default();
            let target = target.split_whitespace().next().unwrap_or_default();
            found.push(Link { line, target: target.to_owned() });
        }
    }
    found
}

/// Links of the document at `path` to a file or a heading that is not there.
///
/// `read` gives the text of a file of the repository, an empty one for a folder, `None` where nothing is.
pub(crate) fn broken_links(path: &str, text: &str, read: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Link { line, target } in links(text) {
        if target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
        let linked =
            if file.is_empty() { Some(text.to_owned()) } else { resolve(path, file).and_then(|p| read(&p)) };
        match linked {
            None => findings.push(Finding::new(line, format!("a link to {target}, which is not there"))),
            Some(linked) if !anchor.is_empty() && file_has_anchors(path, file) => {
                if !anchors(&linked).contains(anchor) {
                    findings
                        .push(Finding::new(line, format!("a link to {target}, a heading that is not there")));
                }
            }
            Some(_) => {}
        }
    }
    findings
}

fn file_has_anchors(path: &str, file: &str) -> bool {
    (if file.is_empty() { path } else { file }).ends_with(".md")
}

/// `target` as seen from the folder of `path`; `None` where it leaves the repository.
fn resolve(path: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// What the headings of a document are called in links to them, by GitHub's rule.
fn anchors(text: &str) -> BTreeSet<String> {
    prose_lines(text)
        .filter_map(|(_, line)| heading(line))
        .map(|title| {
            title
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

fn heading(line: &str) -> Option<&str> {
    let title = line.trim_start_matches('#');
    let level = line.len() - title.len();
    ((1..=6).contains(&level) && title.starts_with(' ')).then(|| title.trim())
}

/// Lines outside fenced blocks, numbered from 1.
fn prose_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_fence = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_fence ^= is_fence;
        !in_fence && !is_fence
    })
}

fn without_code_spans(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("` `")
}

/// Error codes that `docs/errors.md` does not explain, and entries that explain no code.
///
/// An entry is a heading or a table row that starts with the code's name.
pub(crate) fn error_entries(text: &str, names: &[&str]) -> Vec<Finding> {
    let mut explained = BTreeSet::new();
    let mut findings = Vec::new();
    for (line, prose) in prose_lines(text) {
        let Some(name) = entry_name(prose) else { continue };
        if !names.contains(&name) {
            findings.push(Finding::new(line, format!("an entry for {name}, which is no error code")));
        }
        if !explained.insert(name) {
            findings.push(Finding::new(line, format!("a second entry for {name}")));
        }
    }
    let missing = names.iter().filter(|name| !explained.contains(*name));
    findings.extend(missing.map(|name| Finding::new(0, format!("no entry for {name}"))));
    findings
}

fn entry_name(line: &str) -> Option<&str> {
    let start = heading(line).or_else(|| line.strip_prefix('|'))?;
    let word = start.split(['|', ' ']).map(|word| word.trim_matches('`')).find(|word| !word.is_empty())?;
    let is_name = word.len() > 3 && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    is_name.then_some(word)
}

mod tests {
    use super::*;

    fn read(path: &str) -> Option<String> {
        match path {
            "docs/a.md" => Some("# The A\n\n## `b`, and c\n".to_owned()),
            "docs" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn a_link_to_a_missing_file_or_heading_is_found() {
        let text = "[x](a.md)\n[x](b.md)\n[x](a.md#b-and-c)\n[x](a.md#d)\n[x](../docs/)\n[x](../../up.md)\n[x](#own)\n";
        let lines: Vec<_> = broken_links("docs/x.md", text, read).iter().map(|f| f.line).collect();
        assert_eq!(lines, [2, 4, 6, 7]);
    }

    #[test]
    fn outside_addresses_and_code_are_no_links_of_ours() {
        let text = "[x](https://example.com/a#b)\n`[x](gone.md)`\n```\n[x](gone.md)\n```\n";
        assert_eq!(broken_links("docs/x.md", text, read), []);
    }

    #[test]
    fn two_links_on_one_line_are_both_seen() {
        let targets: Vec<_> =
            links("[a](x.md), `c`, [b](y.md \"title\")").into_iter().map(|link| link.target).collect();
        assert_eq!(targets, ["x.md", "y.md"]);
    }

    #[test]
    fn a_code_without_an_entry_and_an_entry_without_a_code_are_found() {
        let text = "| name | why |\n|---|---|\n| `FRAME_LENGTH` | x |\n\n### GONE_CODE\n";
        let whats: Vec<_> =
            error_entries(text, &["FRAME_LENGTH", "NEW_CODE"]).into_iter().map(|f| f.what).collect();
        assert_eq!(whats, ["an entry for GONE_CODE, which is no error code", "no entry for NEW_CODE"]);
    }
}
