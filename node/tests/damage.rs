//! Real nodes of two shards, one of which is damaged: the other serves, and nothing of the damaged one is changed.

#[allow(dead_code, reason = "each test file uses another part")]
#[path = "cli/harness.rs"]
mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Ended, Node, Running, contents, run, serve_args};
use serde_json::{Value, json};

/// Events of each shard.
const EVENT_COUNT: usize = 4;

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// The shard that an event's id names.
fn shard_of(event: &str) -> usize {
    usize::from_str_radix(&event[..4], 16).expect("an event's id begins with its shard")
}

/// What both shards were given, and an ordering key of each.
struct Given {
    events: [Vec<String>; 2],
    keys: [String; 2],
}

/// Publishes to both shards, far ahead.
fn give(node: &Node) -> Given {
    let mut events = [Vec::new(), Vec::new()];
    let mut keys = [String::new(), String::new()];
    for n in 0.. {
        let key = format!("key-{n}");
        let receipt = node.ask_json(&["publish", "--topic", "mail", "--delay", "1h", "--key", &key]);
        let event = receipt["event_id"].as_str().expect("an id").to_owned();
        let shard = shard_of(&event);
        events[shard].push(event);
        keys[shard] = key;
        if events.iter().all(|of| of.len() >= EVENT_COUNT) {
            break;
        }
    }
    Given { events, keys }
}

fn ask(node: &Node, args: &[&str]) -> (Ended, Value) {
    let ended = node.run(&["-o", "json"].iter().chain(args).copied().collect::<Vec<_>>());
    let value = serde_json::from_str(&ended.stdout).unwrap_or(Value::Null);
    (ended, value)
}

/// Of shard 1, which is out, nothing can be had, and it says so; shard 0 serves.
fn serves_without_shard_1(node: &Node, given: &Given) {
    let refused = |args: &[&str]| {
        let ended = node.run(args);
        assert_eq!(ended.code, Some(3), "{args:?}: {ended:?}");
        let said = &ended.stderr;
        let names_all = ["UNAVAILABLE", "shard 1 is out of service", "escapement repair"];
        assert!(names_all.iter().all(|name| said.contains(name)), "{args:?}: {ended:?}");
    };
    refused(&["publish", "--topic", "mail", "--delay", "1h", "--key", &given.keys[1]]);
    refused(&["cancel", &given.events[1][0]]);
    refused(&["event", "get", &given.events[1][0]]);
    refused(&["reschedule", &given.events[1][0], "--delay", "2h"]);
    node.ask(&["event", "get", &given.events[0][0]]);
    node.ask(&["reschedule", &given.events[0][0], "--delay", "2h"]);
    // Without a key, and in a topic that keeps no names, whose shard is out goes to another.
    for n in 0..8 {
        let id = format!("anywhere-{n}");
        let receipt = node.ask_json(&["publish", "--topic", "mail", "--delay", "1h", "--id", &id]);
        let event = receipt["event_id"].as_str().expect("an id");
        assert_eq!(shard_of(event), 0);
        assert_eq!(node.ask_json(&["cancel", event])["verdict"], "CANCELLED");
    }
    // Names are where they were, and none is accepted twice.
    let named = |n: usize| {
        ["publish", "--topic", "named", "--delay", "1h", "--id"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("n-{n}")])
    };
    let codes: Vec<Option<i32>> = (0..16)
        .map(|n| {
            let args: Vec<String> = named(n).collect();
            node.run(&args.iter().map(String::as_str).collect::<Vec<_>>()).code
        })
        .collect();
    assert!(codes.contains(&Some(0)) && codes.contains(&Some(3)), "{codes:?}");
    let (counted, counts) = ask(node, &["count", "--topic", "mail"]);
    assert_eq!((counted.code, &counts["shards_missing"]), (Some(3), &json!([1])), "{counted:?}");
    assert_eq!(counts["pending"], given.events[0].len(), "{counted:?}");
    // Counts by due time and listings, too, say what they are without.
    let (due, _) = ask(node, &["count", "--topic", "mail", "--due"]);
    let rows = rows(&due);
    let is_of_all = |row: &Value| row["within"] == "1d" && row["events"] == given.events[0].len();
    assert!(rows.iter().any(is_of_all), "{due:?}");
    assert_eq!((due.code, rows.last()), (Some(3), Some(&json!({ "shards_missing": [1] }))), "{due:?}");
    for page in ["--all", "--limit=1000"] {
        let (listed, _) = ask(node, &["event", "list", "--topic", "mail", page]);
        assert_eq!(listed.code, Some(3), "{listed:?}");
        assert!(listed.stderr.contains("without shard 1, which is out of service"), "{listed:?}");
        assert!(listed.stdout.lines().any(|line| line == r#"{"shards_missing":[1]}"#), "{listed:?}");
        assert_eq!(ids(&listed), sorted(&given.events[0]), "{listed:?}");
    }
    refused(&["event", "list", "--topic", "mail", "--key", &given.keys[1]]);
    node.ask(&["event", "list", "--topic", "mail", "--key", &given.keys[0]]);
}

fn rows(ended: &Ended) -> Vec<Value> {
    ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Events that were listed.
fn ids(listed: &Ended) -> Vec<String> {
    let ids: Vec<String> =
        rows(listed).iter().filter_map(|row| Some(row["event_id"].as_str()?.to_owned())).collect();
    sorted(&ids)
}

fn sorted(ids: &[String]) -> Vec<String> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

/// A directory of two shards that were both in use, by a node that was killed.
fn used(data: &Path) -> Given {
    let node = Node::start(data).with_mail();
    node.ask(&["topic", "create", "named", "--dedup-window", "1h"]);
    let given = give(&node);
    node.process.kill();
    given
}

fn files_of(shard: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    contents(shard)
}

/// Damages shard 1, and holds the node to serving without it; answers the refusal.
fn damaged_at_rest(data: &Path, given: &Given, damage: impl FnOnce(&Path)) -> String {
    let shard = data.join("shard-0001");
    damage(&shard);
    let before = files_of(&shard);
    let node = Node::start(data);
    let refusal = node.process.notice(|line| line.contains("shard 1 is not serving"));
    node.process.notice(|line| line.contains("shard 1 of 2 is out of service, and the others go on"));
    node.process
        .notice(|line| line.contains("ready after") && line.contains("shard 1 of 2 is out of service"));
    serves_without_shard_1(&node, given);
    node.process.signal("TERM");
    let ended = node.process.end();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("shard 1 did not serve"), "{ended:?}");
    assert_eq!(files_of(&shard), before, "the files of a shard that is out are evidence");
    refusal
}

/// Everything that is acknowledged and not given up is there.
fn serves_all(data: &Path, given: &Given, lost: &[String]) {
    let node = Node::start(data);
    for event in given.events.iter().flatten().filter(|event| !lost.contains(event)) {
        node.ask(&["event", "get", event]);
    }
    assert_eq!(
        node.ask_json(&["count", "--topic", "mail"])["pending"],
        given.events.iter().map(Vec::len).sum::<usize>() - lost.len()
    );
    node.process.signal("TERM");
    assert_eq!(node.process.end().code, Some(0));
}

#[test]
fn a_damaged_log_takes_out_its_shard_alone_until_it_is_repaired() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let given = used(&data);
    let refusal = damaged_at_rest(&data, &given, |shard| {
        let segment = shard.join("wal/0000.seg");
        let mut bytes = fs::read(&segment).expect("it is there");
        bytes[8192 + 200] ^= 1;
        fs::write(&segment, bytes).expect("it is there");
    });
    let (_, token) = refusal.split_once("--accept-loss ").expect("the refusal offers a token");
    let token = &token[..16];
    let report = dir.path().join("report");
    let args = ["-o", "json", "repair", text(&data), "--accept-loss", token, "--report", text(&report)];
    let repaired = run(&args);
    assert_eq!(repaired.code, Some(0), "{repaired:?}");
    let rows = repaired.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let lost: Vec<String> = rows.filter_map(|row| Some(row["event_id"].as_str()?.to_owned())).collect();
    assert!(!lost.is_empty() && lost.iter().all(|event| given.events[1].contains(event)), "{lost:?}");
    serves_all(&data, &given, &lost);
}

#[test]
fn a_super_file_that_is_gone_takes_out_its_shard_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let given = used(&data);
    let path = data.join("shard-0001/SUPER");
    let whole = fs::read(&path).expect("it is there");
    let refusal =
        damaged_at_rest(&data, &given, |_| fs::write(&path, vec![7; whole.len()]).expect("it is there"));
    assert!(refusal.contains("SUPER"), "{refusal}");
    fs::write(&path, whole).expect("it is there");
    serves_all(&data, &given, &[]);
}

#[test]
fn a_run_that_is_missing_takes_out_its_shard_alone_and_its_log_is_not_written_to() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let node = Node::start_with(&data, &["--horizon=1s".into()]).with_mail();
    node.ask(&["topic", "create", "named", "--dedup-window", "1h"]);
    let given = give(&node);
    let far = data.join("shard-0001/far");
    let in_runs = || node.ask_json(&["count"])["in_runs"].as_u64();
    let all: usize = given.events.iter().map(Vec::len).sum();
    assert!((0..2_000).any(|_| in_runs() == Some(all as u64)), "no run was written");
    node.process.kill();
    let kept = contents(&far);
    let refusal = damaged_at_rest(&data, &given, |_| {
        kept.keys().for_each(|path| fs::remove_file(path).expect("it is there"));
    });
    assert!(refusal.contains("is missing: restore far/"), "{refusal}");
    kept.iter().for_each(|(path, bytes)| fs::write(path, bytes).expect("it is there"));
    serves_all(&data, &given, &[]);
}

#[test]
fn a_damaged_block_of_a_run_is_told_of_and_its_shard_serves_all_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let node = Node::start_with(&data, &["--horizon=1s".into()]).with_mail();
    let given = give(&node);
    let in_runs = || node.ask_json(&["count"])["in_runs"].as_u64();
    let all: Vec<String> = given.events.iter().flatten().cloned().collect();
    assert!((0..2_000).any(|_| in_runs() == Some(all.len() as u64)), "no run was written");
    node.process.kill();
    let kept = contents(&data.join("shard-0001/far"));
    let (path, whole) = kept.iter().next().expect("a run");
    assert!(whole.starts_with(b"ERB1"), "its first block");
    let mut bytes = whole.clone();
    bytes[100] ^= 1;
    fs::write(path, &bytes).expect("it is there");

    let node = Node::start(&data);
    let (listed, _) = ask(&node, &["event", "list", "--topic", "mail", "--all"]);
    let held = node.process.notice(|line| line.contains("shard 1 holds"));
    assert!(held.contains("is damaged, at block 0: restore it from a copy"), "{held}");
    let (last, seen) = (rows(&listed).pop().expect("a line"), ids(&listed));
    let unread = last["events_unread"].as_u64().expect("a count") as usize;
    assert_eq!((listed.code, seen.len() + unread), (Some(3), all.len()), "{listed:?}");
    assert!(given.events[0].iter().all(|event| seen.contains(event)), "{listed:?}");
    assert!(held.contains(&format!("shard 1 holds {unread} events")), "{held}");
    let counted = node.ask_json(&["count", "--topic", "mail"]);
    assert_eq!(counted["pending"], all.len(), "{counted}");
    let unreadable = given.events[1].iter().find(|event| !seen.contains(event)).expect("one is held");
    let refused = node.run(&["cancel", unreadable]);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.stderr.contains("UNAVAILABLE"), "{refused:?}");
    node.ask(&["publish", "--topic", "mail", "--delay", "1h", "--key", &given.keys[1]]);
    node.process.signal("TERM");
    assert_eq!(node.process.end().code, Some(0), "no shard was out");
    assert_eq!(fs::read(path).expect("it is kept"), bytes);

    fs::write(path, whole).expect("it is there");
    let node = Node::start(&data);
    let (listed, _) = ask(&node, &["event", "list", "--topic", "mail", "--all"]);
    assert_eq!((listed.code, ids(&listed).len()), (Some(0), all.len() + 1), "{listed:?}");
}

#[test]
fn a_node_of_which_every_shard_is_refused_does_not_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    used(&data);
    for shard in ["shard-0000/SUPER", "shard-0001/SUPER"] {
        fs::write(data.join(shard), "gone").expect("it is there");
    }
    let ended = Running::start(&mut harness::command(&serve_args(&data))).end();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(5), ""), "{ended:?}");
    assert!(
        ended.stderr.contains("no shard can serve: shard 0: ") && ended.stderr.contains("; shard 1: "),
        "{ended:?}"
    );
}

/// A limit of the size of files makes the log of the shard that is written to most fail, where the other goes on.
#[test]
fn a_shard_whose_log_can_not_be_written_stops_alone_and_a_restart_recovers_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let given = used(&data);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 1024; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_escapement")]);
    let node = Node::from(Running::start(shell.args(serve_args(&data))));
    let body = dir.path().join("body");
    fs::write(&body, "x".repeat(120_000)).expect("written");
    let publish =
        ["publish", "--topic", "mail", "--delay", "1h", "--key", &given.keys[1], "--data-file", text(&body)];
    let mut stored = given.events[1].len();
    loop {
        let ended = node.run(&publish);
        if ended.code != Some(0) {
            assert_eq!(ended.code, Some(3), "{ended:?}");
            assert!(ended.stderr.contains("shard 1 is out of service"), "{ended:?}");
            break;
        }
        stored += 1;
        assert!(stored < 100, "the log should have met its limit");
    }
    node.process.notice(|line| line.contains("shard 1 has stopped"));
    node.process.notice(|line| line.contains("the other shards go on"));
    serves_without_shard_1(&node, &given);
    node.process.signal("TERM");
    let ended = node.process.end();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("shard 1 stopped"), "{ended:?}");

    let node = Node::start(&data);
    for event in given.events.iter().flatten() {
        node.ask(&["event", "get", event]);
    }
    let pending = node.ask_json(&["count", "--topic", "mail"])["pending"].as_u64().expect("a count");
    // What failed may be stored or not.
    let least = (stored + given.events[0].len()) as u64;
    assert!((least..=least + 1).contains(&pending), "{pending} of {least}");
}
