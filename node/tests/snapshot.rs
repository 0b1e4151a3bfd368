//! `escapement snapshot` of real nodes that publish, deliver and write runs meanwhile.

#[allow(dead_code, reason = "each test file uses another part")]
#[path = "cli/harness.rs"]
mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;

use harness::{Node, Running, contents, run};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

fn publish(node: &Node, delay: &str, id: &str, data: &str) {
    let args = ["publish", "--topic", "mail", "--delay", delay, "--id", id, "--data", data];
    assert_eq!(node.run(&args).code, Some(0), "{id}");
}

fn arrived(node: &Node, count: usize) -> BTreeSet<String> {
    let args = ["-o", "json", "subscribe", "--subscription", "mailer", "--count", &count.to_string()];
    let lines = node.ask(&args);
    let ids = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    ids.map(|event| event["id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn a_node_starts_on_a_snapshot_with_all_that_was_acknowledged_before_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, copy) = (dir.path().join("data"), dir.path().join("backups/copy"));
    let node = Node::start_with(&data, &["--horizon=1s".into(), "--cores=2".into()]).with_mail();
    let far = "x".repeat(8_000);
    for n in 0..24 {
        publish(&node, "2h", &format!("far-{n}"), &far);
    }
    let has_runs = (0..2_000).any(|_| {
        let inspected = run(&["-o", "json", "inspect", text(&data)]).stdout;
        let rows = inspected.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        rows.filter_map(|row| row.get("run").and(row["pending"].as_u64())).sum::<u64>() == 24
    });
    assert!(has_runs, "not all far events come to runs: {}", run(&["inspect", text(&data)]).stdout);
    // Published together, a near and a far one may share a block, and both come back with it.
    for n in 0..10 {
        publish(&node, "5s", &format!("near-{n}"), "kept");
    }

    // Somebody publishes on meanwhile.
    let args = ["-o", "json", "snapshot", "--data", text(&data), "--to", text(&copy)];
    let process = Running::start(&mut node.command(&args));
    let mut meanwhile = 0;
    while !copy.exists() && meanwhile < 1_000 {
        publish(&node, "1h", &format!("meanwhile-{meanwhile}"), "x");
        meanwhile += 1;
    }
    let ended = process.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let taken: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!((taken["shards"].as_u64(), taken["runs_copied"].as_u64()), (Some(2), Some(0)), "{taken}");
    assert!(taken["runs_linked"].as_u64() > Some(0) && taken["log_bytes"].as_u64() > Some(0), "{taken}");
    assert!(!dir.path().join("backups/copy.partial").exists());

    let verified = run(&["verify", text(&copy)]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
    let identity = |dir: &Path| fs::read_to_string(dir.join("IDENTITY")).expect("it is there");
    let line = |text: &str, at: usize| text.lines().nth(at).map(str::to_owned);
    let (original, copied) = (identity(&data), identity(&copy));
    assert_ne!(line(&original, 1), line(&copied, 1), "the copy is a node of its own");
    assert_eq!(line(&original, 2), line(&copied, 2), "its logs are of the same cluster");

    let before = contents(&data.join("shard-0000/far"));
    let second = Node::start_with(&copy, &["--horizon=1s".into()]);
    let near: BTreeSet<String> = (0..10).map(|n| format!("near-{n}")).collect();
    assert_eq!(arrived(&second, 10), near, "on the copy");
    assert_eq!(arrived(&node, 10), near, "the original goes on");
    // The original goes on, and may have written more.
    let after = contents(&data.join("shard-0000/far"));
    for (file, bytes) in &before {
        assert!(after.get(file) == Some(bytes), "{file:?} is a file of both, and neither has changed it");
    }

    // Both are whole still.
    for (node, dir) in [(second, &copy), (node, &data)] {
        node.process.kill();
        let verified = run(&["verify", text(dir)]);
        assert_eq!(verified.code, Some(0), "{verified:?}");
    }
}

#[test]
fn a_snapshot_that_is_killed_leaves_no_copy_and_the_next_begins_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, copy) = (dir.path().join("data"), dir.path().join("copy"));
    let node = Node::start(&data).with_mail();
    publish(&node, "1h", "a", "kept");
    let partial = dir.path().join("copy.partial");
    let mut kills = 0;
    for stage in ["LOCK", "shard-0000/wal", "shard-0000/SUPER", "shard-0001/wal", "KEYS"] {
        let args = ["snapshot", "--data", text(&data), "--to", text(&copy)];
        let process = Running::start(&mut node.command(&args));
        process.notice(|line| line.starts_with("copying"));
        while !copy.exists() && !partial.join(stage).exists() {
            thread::yield_now();
        }
        process.kill();
        if copy.exists() {
            assert_eq!(run(&["verify", text(&copy)]).code, Some(0), "a directory of this name is whole");
            break;
        }
        kills += 1;
        if !partial.join("IDENTITY").exists() {
            assert_eq!(run(&["verify", text(&partial)]).code, Some(5), "{stage}: it is no data directory");
        }
    }
    assert!(kills > 0, "no kill came in time");
    if !copy.exists() {
        node.ask(&["snapshot", "--data", text(&data), "--to", text(&copy)]);
    }
    assert!(!partial.exists());
    assert_eq!(run(&["verify", text(&copy)]).code, Some(0));
    publish(&node, "1h", "b", "the source is unharmed");
    node.process.kill();
    assert_eq!(run(&["verify", text(&data)]).code, Some(0));
}

#[test]
fn a_node_that_dies_meanwhile_leaves_no_copy() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, copy) = (dir.path().join("data"), dir.path().join("copy"));
    let node = Node::start(&data).with_mail();
    node.process.signal("STOP");
    let args = ["snapshot", "--data", text(&data), "--to", text(&copy)];
    let process = Running::start(&mut node.command(&args));
    node.process.kill();
    let ended = process.end();
    assert!(matches!(ended.code, Some(1 | 4)), "{ended:?}");
    assert!(!copy.exists() && !dir.path().join("copy.partial").exists());
}

#[test]
fn what_cannot_be_copied_is_refused_and_nothing_is_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, other, copy) = (dir.path().join("data"), dir.path().join("other"), dir.path().join("copy"));
    let node = Node::start(&data);
    let second = Node::start(&other);
    let wrong = second.run(&["snapshot", "--data", text(&data), "--to", text(&copy)]);
    assert_eq!(wrong.code, Some(5), "{wrong:?}");
    assert!(wrong.stderr.contains("give the directory that it serves"), "{wrong:?}");
    let late = node.run(&["snapshot", "--data", text(&data), "--to", text(&copy), "--timeout", "0s"]);
    assert_eq!(late.code, Some(3), "{late:?}");
    assert!(late.stderr.contains("its time was over"), "{late:?}");
    let taken = node.run(&["snapshot", "--data", text(&data), "--to", text(&other)]);
    assert_eq!(taken.code, Some(2), "{taken:?}");
    fs::create_dir(dir.path().join("copy.partial")).expect("it is free");
    fs::write(dir.path().join("copy.partial/mine"), "x").expect("it is free");
    let foreign = node.run(&["snapshot", "--data", text(&data), "--to", text(&copy)]);
    assert_eq!(foreign.code, Some(5), "{foreign:?}");
    assert!(dir.path().join("copy.partial/mine").exists() && !copy.exists());
}
