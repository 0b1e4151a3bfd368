//! The rules for manifests: what is declared is used.

use std::collections::BTreeSet;

use crate::source::{Finding, code_only, lines_with_word};

/// Dependencies that a manifest declares, of any kind.
pub(crate) fn dependencies(manifest: &str) -> BTreeSet<String> {
    let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|kind| manifest.get(*kind)?.as_table())
        .flat_map(|table| table.keys().cloned())
        .collect()
}

/// Dependencies of a crate that none of its sources names.
pub(crate) fn unused_dependencies<'a>(
    manifest: &str,
    sources: impl Iterator<Item = &'a str>,
) -> Vec<Finding> {
    let mut unnamed = dependencies(manifest);
    for source in sources {
        let code = code_only(source);
        unnamed.retain(|name| lines_with_word(&code, &name.replace('-', "_")).is_empty());
    }
    let found = unnamed.iter();
    found.map(|name| Finding::new(line_of(manifest, name), format!("no source names {name}"))).collect()
}

/// Dependencies that the workspace's manifest offers and no member takes.
pub(crate) fn unused_offers(workspace: &str, taken: &BTreeSet<String>) -> Vec<Finding> {
    let manifest: toml::Table = workspace.parse().expect("a manifest is TOML");
    let offered = manifest["workspace"]["dependencies"].as_table().expect("a table of dependencies");
    let unused = offered.keys().filter(|name| !taken.contains(*name));
    unused.map(|name| Finding::new(line_of(workspace, name), format!("no crate takes {name}"))).collect()
}

fn line_of(manifest: &str, name: &str) -> usize {
    let declares = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['.', ' ', '=']));
    manifest.lines().position(declares).map_or(1, |at| at + 1)
}

mod tests {
    use super::*;

    const MANIFEST: &str = "[dependencies]\nquinn.workspace = true\nquinn-proto = \"1\"\n\
                            [dev-dependencies]\ntempfile.workspace = true\n";

    #[test]
    fn a_dependency_is_used_where_code_names_it_and_not_where_a_comment_does() {
        let sources = ["use quinn_proto::Transmit; // and quinn", "tempfile::tempdir()"];
        let expected = Finding::new(2, "no source names quinn");
        assert_eq!(unused_dependencies(MANIFEST, sources.into_iter()), [expected]);
    }

    #[test]
    fn an_offer_that_no_crate_takes_is_found() {
        let workspace = "[workspace.dependencies]\nquinn = \"0.11\"\nslab = \"0.4\"\n";
        let expected = Finding::new(3, "no crate takes slab");
        assert_eq!(unused_offers(workspace, &dependencies(MANIFEST)), [expected]);
    }
}
