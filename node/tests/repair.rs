//! `escapement repair` of directories that real nodes left, and that were damaged.

#[allow(dead_code, reason = "each test file uses another part")]
#[path = "cli/harness.rs"]
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use harness::{Ended, Node, contents, run};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

fn rows(ended: &Ended) -> Vec<Value> {
    ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// All files but the one that says who looked last.
fn files(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    contents(data).into_iter().filter(|(path, _)| !path.ends_with("LOCK")).collect()
}

#[test]
fn a_loss_is_told_before_it_is_accepted_and_what_it_erases_is_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let node = Node::start(&data).with_mail();
    let mut ids = BTreeMap::new();
    for n in 0..12 {
        let id = format!("event-{n}");
        let receipt = node.ask_json(&["publish", "--topic", "mail", "--delay", "1h", "--id", &id]);
        ids.insert(receipt["event_id"].as_str().expect("an id").to_owned(), id);
    }
    node.process.kill();
    // The first block behind the one that opened the epoch: what came after it was acknowledged.
    let segment = data.join("shard-0000/wal/0000.seg");
    let mut bytes = fs::read(&segment).expect("it is there");
    bytes[8192 + 200] ^= 1;
    fs::write(&segment, &bytes).expect("it is there");

    let before = files(&data);
    let told = run(&["-o", "json", "repair", text(&data)]);
    assert_eq!(told.code, Some(5), "{told:?}");
    let [summary, events @ ..] = &rows(&told)[..] else { panic!("{told:?}") };
    assert_eq!((&summary["finding"], &summary["shard"]), (&"loss".into(), &0.into()), "{summary}");
    assert_eq!(summary["unreadable_blocks"], 1, "{summary}");
    assert_eq!(summary["events_given_up"].as_u64(), Some(events.len() as u64));
    let token = summary["token"].as_str().expect("a token");
    let wrong = run(&["repair", text(&data), "--accept-loss", "00000000deadbeef"]);
    assert_eq!(wrong.code, Some(5), "{wrong:?}");
    assert!(wrong.stderr.contains("fits no damage, and nothing was given up"), "{wrong:?}");
    assert_eq!(files(&data), before, "nothing was changed");

    let report = dir.path().join("report");
    let args = ["-o", "json", "repair", text(&data), "--accept-loss", token, "--report", text(&report)];
    let repaired = run(&args);
    assert_eq!(repaired.code, Some(0), "{repaired:?}");
    assert_eq!(rows(&repaired)[0]["finding"], "given_up");
    assert_eq!(rows(&repaired)[1..], *events);
    assert_eq!(fs::read_to_string(&report).expect("it was written"), repaired.stdout);
    let kept = data.join("shard-0000/quarantine").join(token);
    assert_eq!(fs::read(kept.join("wal/0000.seg")).expect("it was kept"), bytes);
    assert_eq!(fs::read_to_string(kept.join("report")).expect("it was kept"), repaired.stdout);
    assert_eq!(run(&["verify", text(&data)]).code, Some(0));
    assert_eq!(run(&["repair", text(&data)]).code, Some(0), "nothing is left to be given up");

    // What is gone is what was told, with the names that it was published under.
    let given_up: BTreeSet<&str> = events.iter().filter_map(|event| event["event_id"].as_str()).collect();
    let node = Node::start(&data);
    for (event, id) in &ids {
        let verdict = node.ask_json(&["cancel", event])["verdict"].clone();
        let expected = if given_up.contains(event.as_str()) { "NOT_FOUND" } else { "CANCELLED" };
        assert_eq!(verdict, expected, "{id}");
    }
    for event in events {
        assert_eq!(
            event["id"].as_str(),
            ids.get(event["event_id"].as_str().expect("an id")).map(String::as_str)
        );
        // The damaged block is the one that named the topic.
        assert_eq!(event["topic"], "number 1");
    }
    assert!(!given_up.is_empty() && given_up.len() < ids.len(), "both shards had events");
}

#[test]
fn a_rescheduling_that_is_given_up_is_told_and_the_event_is_due_as_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let node = Node::start_with(&data, &["--shards=1".into()]).with_mail();
    let receipt = node.ask_json(&["publish", "--topic", "mail", "--delay", "3h", "--id", "put-off"]);
    let event = receipt["event_id"].as_str().expect("an id").to_owned();
    let before = node.ask_json(&["event", "get", &event])["due"].clone();
    node.ask(&["publish", "--topic", "mail", "--delay", "1h", "--data", "damaged-in-a-moment"]);
    let verdict = node.ask_json(&["reschedule", &event, "--delay", "2h"]);
    assert_eq!(verdict["verdict"], "RESCHEDULED");
    node.process.kill();
    let segment = data.join("shard-0000/wal/0000.seg");
    let mut bytes = fs::read(&segment).expect("it is there");
    let damaged = b"damaged-in-a-moment";
    let place = bytes.windows(damaged.len()).position(|window| window == damaged).expect("it was published");
    bytes[place] ^= 1;
    fs::write(&segment, &bytes).expect("it is there");

    let told = run(&["-o", "json", "repair", text(&data)]);
    let [summary, events @ ..] = &rows(&told)[..] else { panic!("{told:?}") };
    assert_eq!((&summary["finding"], &summary["events_due_as_before"]), (&"loss".into(), &1.into()));
    let of_event: Vec<&Value> = events.iter().filter(|row| row["event_id"] == event.as_str()).collect();
    assert!(matches!(&of_event[..], [row] if row["event"] == "due_as_before"), "{told:?}");
    let token = summary["token"].as_str().expect("a token");
    assert_eq!(run(&["repair", text(&data), "--accept-loss", token]).code, Some(0));
    let node = Node::start_with(&data, &["--shards=1".into()]);
    let held = node.ask_json(&["event", "get", &event]);
    assert!(before.is_string() && held["due"] == before, "{held}");
}

#[test]
fn a_groups_cancellation_that_is_given_up_is_told_and_its_events_are_pending_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let node = Node::start_with(&data, &["--shards=1".into()]).with_mail();
    let args = ["publish", "--topic", "mail", "--delay", "3h", "--group", "account-7"];
    let event = node.ask_json(&args)["event_id"].as_str().expect("an id").to_owned();
    node.ask(&["publish", "--topic", "mail", "--delay", "1h", "--data", "damaged-in-a-moment"]);
    let cancelled = node.ask_json(&["group", "cancel", "--topic", "mail", "--group", "account-7"]);
    assert_eq!(cancelled["count"], 1);
    node.process.kill();
    let segment = data.join("shard-0000/wal/0000.seg");
    let mut bytes = fs::read(&segment).expect("it is there");
    let damaged = b"damaged-in-a-moment";
    let place = bytes.windows(damaged.len()).position(|window| window == damaged).expect("it was published");
    bytes[place] ^= 1;
    fs::write(&segment, &bytes).expect("it is there");

    let told = run(&["-o", "json", "repair", text(&data)]);
    let [summary, ..] = &rows(&told)[..] else { panic!("{told:?}") };
    assert_eq!(summary["groups_as_before"], serde_json::json!(["account-7 of topic mail"]));
    let token = summary["token"].as_str().expect("a token");
    assert_eq!(run(&["repair", text(&data), "--accept-loss", token]).code, Some(0));
    let node = Node::start_with(&data, &["--shards=1".into()]);
    assert_eq!(node.ask_json(&["event", "get", &event])["state"], "SCHEDULED");
    let group = node.ask_json(&["group", "get", "--topic", "mail", "--group", "account-7"]);
    assert_eq!((&group["pending"], &group["cancelled"]), (&1.into(), &0.into()));
}

#[test]
fn a_run_that_is_missing_cannot_be_given_up_and_its_cost_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let node = Node::start_with(&data, &["--horizon=1s".into(), "--shards=1".into()]).with_mail();
    for _ in 0..6 {
        node.ask(&["publish", "--topic", "mail", "--delay", "2h", "--data", &"x".repeat(4_000)]);
    }
    let inspect = || rows(&run(&["-o", "json", "inspect", text(&data)]));
    let moved = |row: &Value| row.get("run").and(row["pending"].as_u64()).unwrap_or(0);
    assert!((0..2_000).any(|_| inspect().iter().map(moved).sum::<u64>() == 6), "no run was written");
    node.process.kill();
    assert_eq!(run(&["repair", text(&data)]).code, Some(0));
    for entry in fs::read_dir(data.join("shard-0000/far")).expect("there are runs") {
        fs::remove_file(entry.expect("listed").path()).expect("it is there");
    }
    let before = files(&data);
    let told = run(&["repair", text(&data)]);
    assert_eq!(told.code, Some(5), "{told:?}");
    assert!(
        told.stdout.contains("shard 0 would not serve") && told.stdout.contains("is missing, with up to"),
        "{told:?}"
    );
    assert!(told.stdout.contains("restore it from a snapshot"), "{told:?}");
    assert_eq!(files(&data), before);
}
