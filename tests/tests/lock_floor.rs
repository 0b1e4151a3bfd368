//! What the lock file may not fall below: versions that mend known faults, and one TLS provider.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Lowest versions, and what the ones before them do.
const FLOORS: &[(&str, Version, &str)] = &[
    ("quinn-proto", Version(0, 11, 14), "malformed transport parameters of a peer panic the endpoint"),
    ("rustls", Version(0, 23, 18), "a fragmented ClientHello panics the acceptor"),
];

/// TLS providers and libraries beside the one in use.
const OTHER_PROVIDERS: &[&str] =
    &["ring", "openssl", "openssl-sys", "native-tls", "boring", "boring-sys", "mbedtls"];
const PROVIDER: &str = "aws-lc-rs";

/// Numbers of a release; a pre-release counts as what it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u64, u64, u64);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let release = text.split(['-', '+']).next()?;
        let mut parts = release.split('.').map(str::parse);
        let (major, minor, patch) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
        parts.next().is_none().then_some(Version(major, minor, patch))
    }
}

/// Name and version of every package in the text of a `Cargo.lock`.
fn locked(lock: &str) -> Vec<(String, Version)> {
    let lock: toml::Table = lock.parse().expect("a lock file is TOML");
    let packages = lock["package"].as_array().expect("a list of packages");
    packages
        .iter()
        .map(|package| {
            let name = package["name"].as_str().expect("a name").to_owned();
            let version = package["version"].as_str().and_then(Version::parse).expect("a version");
            (name, version)
        })
        .collect()
}

/// Packages under their floor, and floors for packages that are no longer there.
fn below_floor(lock: &str) -> Vec<String> {
    let packages = locked(lock);
    let mut findings = Vec::new();
    for (name, floor, why) in FLOORS {
        let versions: Vec<_> =
            packages.iter().filter(|(n, _)| n == name).map(|(_, version)| *version).collect();
        if versions.is_empty() {
            findings.push(format!("{name} is not locked: does its floor still belong here?"));
        }
        let low = versions.iter().filter(|version| *version < floor);
        findings
            .extend(low.map(|version| format!("{name} {version:?} is below {floor:?}, before which {why}")));
    }
    findings
}

/// TLS libraries beside the provider, and providers more than one, in the lines `name vX.Y.Z` of `cargo tree`.
fn surplus_providers(tree: &str) -> Vec<String> {
    let mut packages: Vec<_> =
        tree.lines().filter_map(|line| line.split(" (").next()).map(str::trim).collect();
    packages.sort_unstable();
    packages.dedup();
    let name_of = |package: &str| package.split(' ').next().unwrap_or_default().to_owned();
    let mut findings: Vec<_> = packages
        .iter()
        .filter(|p| OTHER_PROVIDERS.contains(&name_of(p).as_str()))
        .map(|p| (*p).to_owned())
        .collect();
    let count = packages.iter().filter(|p| name_of(p) == PROVIDER).count();
    if count != 1 {
        findings.push(format!("{count} versions of {PROVIDER}"));
    }
    findings
}

#[test]
fn no_locked_version_is_below_its_floor() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root");
    let lock = fs::read_to_string(root.join("Cargo.lock")).expect("the lock file");
    assert_eq!(below_floor(&lock), Vec::<String>::new());
}

/// The lock file names `ring` all the same: quinn-proto asks for it on browsers, which are no target of ours.
/// So this looks at what is built.
#[test]
fn exactly_one_tls_provider_is_built() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--offline", "--locked", "--prefix", "none", "--format", "{p}"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    assert_eq!(surplus_providers(&tree), Vec::<String>::new());
}

fn planted(packages: &[(&str, &str)]) -> String {
    packages
        .iter()
        .map(|(name, version)| format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n"))
        .collect()
}

#[test]
fn a_planted_old_version_is_found_beside_a_new_one() {
    let lock = planted(&[("quinn-proto", "0.11.13"), ("quinn-proto", "0.11.14"), ("rustls", "0.23.18")]);
    let findings = below_floor(&lock);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].contains("Version(0, 11, 13)"), "{findings:?}");
}

#[test]
fn versions_compare_as_numbers_not_as_text() {
    assert!(Version::parse("0.11.9") < Version::parse("0.11.14"));
    assert_eq!(Version::parse("1.2.3-rc.1+x"), Some(Version(1, 2, 3)));
    assert_eq!(Version::parse("1.2"), None);
    assert_eq!(
        below_floor(&planted(&[("quinn-proto", "0.12.0"), ("rustls", "1.0.0")])),
        Vec::<String>::new()
    );
}

#[test]
fn a_floor_without_its_package_is_found() {
    assert_eq!(below_floor(&planted(&[("rustls", "0.23.18")])).len(), 1);
}

#[test]
fn a_planted_second_provider_is_found() {
    assert_eq!(
        surplus_providers("rustls v0.23.20\naws-lc-rs v1.9.0\naws-lc-rs v1.9.0 (*)\n"),
        Vec::<String>::new()
    );
    assert_eq!(surplus_providers("ring v0.17.8\naws-lc-rs v1.9.0\n"), ["ring v0.17.8"]);
    assert_eq!(surplus_providers("aws-lc-rs v1.9.0\naws-lc-rs v1.10.0\n"), ["2 versions of aws-lc-rs"]);
    assert_eq!(surplus_providers("slab v0.4.9\n"), ["0 versions of aws-lc-rs"]);
}
