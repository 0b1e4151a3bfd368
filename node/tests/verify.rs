//! `escapement verify` and `inspect` on directories that real nodes left, and on damaged ones.

#[allow(dead_code, reason = "each test file uses another part")]
#[path = "cli/harness.rs"]
mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use harness::{Ended, Node, contents, run};
use serde_json::Value;

/// Events published for hours ahead.
const FAR_COUNT: u64 = 24;
/// Of these, cancelled once they are in a run.
const CANCELLED_COUNT: u64 = 3;

/// A directory whose far events are in runs, of a node that was killed.
fn data_with_runs(dir: &Path) -> PathBuf {
    let data = dir.join("data");
    let node = Node::start_with(&data, &["--horizon=1s".into()]).with_mail();
    let body = "x".repeat(8_000);
    let mut ids = Vec::new();
    for minutes in 0..FAR_COUNT {
        let delay = format!("{}m", 120 + minutes);
        let receipt = node.ask_json(&["publish", "--topic", "mail", "--delay", &delay, "--data", &body]);
        ids.push(receipt["event_id"].as_str().unwrap().to_owned());
    }
    let data_text = data.to_str().unwrap();
    // What is beyond the horizon is flushed within a part of it.
    let has_moved = (0..2_000).any(|_| {
        let runs = runs_of(&run(&["-o", "json", "inspect", data_text]));
        sum(&runs, "pending") == FAR_COUNT
    });
    assert!(has_moved, "{:?}", run(&["inspect", data_text]));
    for id in &ids[..CANCELLED_COUNT as usize] {
        assert_eq!(node.ask_json(&["cancel", id])["verdict"], "CANCELLED");
    }
    node.process.kill();
    data
}

/// The rows of runs.
fn runs_of(inspected: &Ended) -> Vec<Value> {
    let lines = inspected.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line.get("run").is_some()).collect()
}

fn sum(rows: &[Value], key: &str) -> u64 {
    rows.iter().map(|row| row[key].as_u64().unwrap_or(0)).sum()
}

fn restore(all: &BTreeMap<PathBuf, Vec<u8>>) {
    for (path, bytes) in all {
        fs::write(path, bytes).unwrap();
    }
}

/// What a verification said: its exit status, its rows, and its findings.
struct Verified {
    code: Option<i32>,
    rows: Vec<Value>,
    findings: Vec<Value>,
}

impl Verified {
    fn of(data: &Path) -> Verified {
        let ended = run(&["-o", "json", "verify", data.to_str().unwrap()]);
        assert_eq!(ended.stderr, "", "{ended:?}");
        let lines: Vec<Value> =
            ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let (findings, rows) = lines.into_iter().partition(|line| line.get("finding").is_some());
        Verified { code: ended.code, rows, findings }
    }

    /// The only damage, in a shard.
    fn damage(&self, shard: u16) -> &Value {
        let damage: Vec<&Value> =
            self.findings.iter().filter(|finding| finding["finding"] == "damaged").collect();
        assert!(damage.len() == 1 && damage[0]["shard"] == shard, "{:?}", self.findings);
        assert_eq!(self.code, Some(1));
        damage[0]
    }
}

fn says(finding: &Value, words: &[&str]) {
    let what = finding["what"].as_str().unwrap();
    assert!(words.iter().all(|word| what.contains(word)), "{words:?} in {finding}");
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_directory_that_a_killed_node_left_is_whole_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_with_runs(dir.path());
    let before = contents(&data);
    let verified = Verified::of(&data);
    assert_eq!(verified.code, Some(0), "{:?}", verified.findings);
    assert!(verified.findings.iter().all(|finding| finding["finding"] == "noted"), "{:?}", verified.findings);
    assert_eq!(sum(&verified.rows, "pending"), FAR_COUNT - CANCELLED_COUNT);
    assert!(sum(&verified.rows, "blocks") > 0 && sum(&verified.rows, "records") > 0);

    let runs = runs_of(&run(&["-o", "json", "inspect", data.to_str().unwrap()]));
    assert_eq!(sum(&verified.rows, "runs"), runs.len() as u64);
    assert_eq!(sum(&verified.rows, "far"), sum(&runs, "pending"));
    // A run of which most was cancelled is loaded, to be written again: where that stood when the node was killed, its
    // events are in the log, or in another run.
    assert!(sum(&runs, "pending") > 0 && sum(&runs, "cancelled") <= CANCELLED_COUNT, "{runs:?}");
    for run in &runs {
        assert_eq!(run["moved"], run["blocks"], "{run}");
        let size = fs::metadata(data.join(format!(
            "shard-{:04}/{}",
            run["shard"].as_u64().unwrap(),
            run["file"].as_str().unwrap()
        )));
        assert_eq!(run["bytes"], size.unwrap().len());
        assert!(
            run["first_due"].as_str() <= run["last_due"].as_str() && run["last_due"].is_string(),
            "{run}"
        );
    }
    let table = run(&["verify", data.to_str().unwrap()]);
    assert!(table.code == Some(0) && table.stdout.starts_with("shard"), "{table:?}");
    assert!(run(&["inspect", data.to_str().unwrap()]).stdout.contains("first_due"));
    assert_eq!(contents(&data), before);
}

#[test]
fn damage_is_told_with_its_place_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_with_runs(dir.path());
    let before = contents(&data);
    let runs = runs_of(&run(&["-o", "json", "inspect", data.to_str().unwrap()]));
    let held = runs.iter().max_by_key(|run| run["blocks"].as_u64()).unwrap();
    let shard = held["shard"].as_u64().unwrap() as u16;
    let (name, blocks) = (held["file"].as_str().unwrap(), held["blocks"].as_u64().unwrap());
    let shard_dir = data.join(format!("shard-{shard:04}"));
    let (path, size) = (shard_dir.join(name), held["bytes"].as_u64().unwrap() as usize);

    // A block that is not the first, where there is one.
    let at = if blocks > 1 { 65_536 + 5_000 } else { 5_000 };
    flip(&path, at);
    let verified = Verified::of(&data);
    let damage = verified.damage(shard);
    assert_eq!(
        (damage["file"].as_str(), damage["block"].as_u64()),
        (Some(name), Some(u64::from(blocks > 1)))
    );
    assert!(damage["offset"].as_u64().unwrap() <= at as u64);
    says(damage, &["pending events are in it and nowhere else", "restore"]);
    restore(&before);

    flip(&path, size - 30);
    let verified = Verified::of(&data);
    assert_eq!(verified.damage(shard)["file"], name);
    says(verified.damage(shard), &["its footer is damaged", "will not serve", "restore"]);
    restore(&before);

    let cut = fs::read(&path).unwrap();
    fs::write(&path, &cut[..size - 4096]).unwrap();
    let verified = Verified::of(&data);
    assert_eq!(verified.damage(shard)["file"], name);
    says(
        verified.damage(shard),
        &[&format!("it has {} bytes, and the log says {size}", size - 4096), "restore"],
    );
    fs::write(&path, &cut[..777]).unwrap();
    says(Verified::of(&data).damage(shard), &["it has 777 bytes"]);
    restore(&before);

    fs::remove_file(&path).unwrap();
    let verified = Verified::of(&data);
    assert_eq!(verified.damage(shard)["file"], name);
    says(verified.damage(shard), &["it is missing", &format!("in {blocks} of its blocks"), "restore"]);
    let missing = runs_of(&run(&["-o", "json", "inspect", data.to_str().unwrap()]));
    assert!(missing.iter().any(|run| run["state"] == "missing" && run["file"] == name), "{missing:?}");
    restore(&before);

    fs::write(shard_dir.join("far/00000077.run"), vec![0; 4096]).unwrap();
    let verified = Verified::of(&data);
    assert_eq!(verified.code, Some(0), "{:?}", verified.findings);
    let stray = verified.findings.iter().find(|finding| finding["file"] == "far/00000077.run");
    says(stray.expect("it is told"), &["left over", "4096 bytes"]);
    let stray = runs_of(&run(&["-o", "json", "inspect", data.to_str().unwrap()]));
    assert!(stray.iter().any(|run| run["run"] == 77 && run["state"] == "left over"), "{stray:?}");
    fs::remove_file(shard_dir.join("far/00000077.run")).unwrap();

    for (at, copy) in [(100, 1), (4096 + 40, 2), (3 * 4096 + 4000, 4)] {
        flip(&shard_dir.join("SUPER"), at);
        let verified = Verified::of(&data);
        let damage = verified.damage(shard);
        assert_eq!((&damage["file"], &damage["offset"]), (&"SUPER".into(), &((copy - 1) * 4096).into()));
        says(damage, &[&format!("copy {copy} of 4 is damaged"), "the next start writes it again"]);
        restore(&before);
    }
    for at in [100, 4196, 8292] {
        flip(&shard_dir.join("SUPER"), at);
    }
    says(Verified::of(&data).damage(shard), &["no two copies in SUPER agree (1 of 4 are intact)"]);
    restore(&before);

    for file in ["IDENTITY", "KEYS"] {
        flip(&data.join(file), 60);
        let verified = Verified::of(&data);
        assert_eq!((verified.code, &verified.findings[0]["file"]), (Some(1), &file.into()));
        restore(&before);
    }
    assert_eq!(contents(&data), before);
}

#[test]
fn a_damaged_block_of_the_log_is_told_with_what_lies_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_with_runs(dir.path());
    // The second block, behind the one that opened the epoch: what came after it was acknowledged.
    flip(&data.join("shard-0000/wal/0000.seg"), 8192 + 200);
    let verified = Verified::of(&data);
    let damage = verified.damage(0);
    assert_eq!(
        (&damage["file"], &damage["block"], &damage["offset"]),
        (&"wal/0000.seg".into(), &2.into(), &8192.into())
    );
    says(damage, &["BodyDamaged", "are intact behind it", "--accept-loss"]);
    assert!(
        verified.rows[0]["pending"].is_null() && verified.rows[1]["pending"].is_u64(),
        "{:?}",
        verified.rows
    );
    flip(&data.join("shard-0000/wal/0000.seg"), 8192 + 200);

    flip(&data.join("shard-0000/wal/0000.seg"), 30);
    let verified = Verified::of(&data);
    assert_eq!(verified.damage(0)["file"], "wal/0000.seg");
    says(verified.damage(0), &["its header is damaged", "its blocks are intact"]);
}

#[test]
fn a_run_that_was_loaded_is_needed_while_the_log_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = Node::start_with(&data, &["--horizon=1s".into()]).with_mail();
    node.ask(&["publish", "--topic", "mail", "--delay", "4s"]);
    let loaded = (0..2_000).find_map(|_| {
        let runs = runs_of(&run(&["-o", "json", "inspect", data.to_str().unwrap()]));
        runs.into_iter().find(|run| run["loaded"] == 1)
    });
    let loaded = loaded.expect("it is loaded before it is due");
    node.process.kill();
    let shard = loaded["shard"].as_u64().unwrap() as u16;
    let path = data.join(format!("shard-{shard:04}/{}", loaded["file"].as_str().unwrap()));
    assert_eq!((&loaded["events"], &loaded["pending"]), (&1.into(), &0.into()));
    let verified = Verified::of(&data);
    assert_eq!((verified.code, sum(&verified.rows, "pending"), sum(&verified.rows, "far")), (Some(0), 1, 0));

    flip(&path, 60);
    let verified = Verified::of(&data);
    assert_eq!(verified.damage(shard)["block"], 0);
    says(verified.damage(shard), &["a start reads it for the log", "will not serve"]);
    flip(&path, 60);
    flip(&path, 3_000);
    says(Verified::of(&data).damage(shard), &["are not zero", "no event is changed"]);
    flip(&path, 3_000);
    flip(&path, 4_096 + 2_000);
    says(Verified::of(&data).damage(shard), &["between index and trailer", "no event is changed"]);
}

#[test]
fn what_is_no_whole_directory_or_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = Node::start(&data);
    let data_text = data.to_str().unwrap();
    let served = run(&["verify", data_text]);
    assert_eq!((served.code, served.stdout.as_str()), (Some(5), ""));
    let process = format!("is served by a node, process {}", node.process.pid());
    assert!(served.stderr.contains(&process) && served.stderr.contains("snapshot"), "{served:?}");
    node.process.kill();
    assert_eq!(run(&["verify", data_text]).code, Some(0));
    assert_eq!(run(&["verify", data_text, "--shard=2"]).code, Some(2));
    assert_eq!(run(&["verify"]).code, Some(2));
    let nothing = run(&["verify", dir.path().to_str().unwrap()]);
    assert_eq!((nothing.code, nothing.stderr.contains("no IDENTITY")), (Some(5), true), "{nothing:?}");
    fs::remove_dir_all(data.join("shard-0001")).unwrap();
    says(Verified::of(&data).damage(1), &["directory is missing"]);
}
