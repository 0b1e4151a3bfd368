//! The program from end to end: real processes, a real disk, real signals.

#[path = "cli/harness.rs"]
mod harness;

use std::fs;
use std::net::SocketAddr;

use escapement_client::{Client, ConnectOptions, SubscriberOptions, Trust};
use harness::{Ended, Node, Running, command, contents, run, serve_args};
use serde_json::{Value, json};

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn an_event_arrives_once_it_is_due_and_never_before() {
    let dir = scratch();
    let node = Node::start(&dir.path().join("data")).with_mail();
    let args = ["-o", "json", "subscribe", "--subscription", "mailer", "--count", "1"];
    let subscriber = Running::start(&mut node.command(&args));
    let receipt =
        node.ask_json(&["publish", "--topic", "mail", "--delay", "400ms", "--data", "hello", "--id", "a"]);
    let arrived: Value = serde_json::from_str(&subscriber.line()).unwrap();
    assert_eq!((&arrived["id"], &arrived["data"]), (&json!("a"), &json!("hello")));
    assert_eq!(arrived["schedule_time"], receipt["schedule_time"]);
    assert_eq!((&arrived["epoch"], &arrived["attempt"]), (&json!(1), &json!(1)));
    assert_eq!((&receipt["event_id"], &receipt["id"]), (&arrived["event_id"], &arrived["id"]));
    assert_eq!((&receipt["source"], &arrived["source"]), (&Value::Null, &Value::Null));
    assert!(arrived["late_ms"].as_i64().unwrap() >= 0, "{arrived}");
    assert_eq!(subscriber.end().code, Some(0));
}

#[test]
fn both_ends_show_both_ids_and_the_source() {
    let dir = scratch();
    let node = Node::start(&dir.path().join("data"));
    node.ask(&["topic", "create", "mail", "--source", "/mail"]);
    node.ask(&["subscription", "create", "mailer", "--topic", "mail"]);
    let default = node.ask(&["publish", "--topic", "mail", "--id=a", "--data=x"]);
    let (event_id, _) = default.split_once(' ').unwrap();
    assert!(default.ends_with("on disk  id a  source /mail\n"), "{default}");
    let arrived = node.ask(&["subscribe", "--subscription", "mailer", "--count", "1"]);
    assert!(arrived.starts_with(event_id) && arrived.ends_with("id a  source /mail  x\n"), "{arrived}");
    let own = node.ask_json(&["publish", "--topic", "mail", "--source", "/own"]);
    assert_eq!(own["source"], "/own");
    let arrived = node.ask_json(&["subscribe", "--subscription", "mailer", "--count", "1"]);
    assert_eq!(arrived["source"], "/own");
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let dir = scratch();
    let data = dir.path().join("data");
    let node = Node::start(&data).with_mail();
    for id in ["a", "b", "c"] {
        node.ask(&["publish", "--topic", "mail", "--id", id, "--data", "kept"]);
    }
    node.process.kill();
    let node = Node::start(&data);
    let arrived = node.ask(&["-o", "json", "subscribe", "--subscription", "mailer", "--count", "3"]);
    let mut ids: Vec<String> = arrived
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    assert_eq!(ids, ["a", "b", "c"]);
}

#[test]
fn a_service_manager_hears_that_the_node_is_ready() {
    let dir = scratch();
    let socket = dir.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let data = dir.path().join("data");
    let node = Running::start(command(&serve_args(&data)).env("NOTIFY_SOCKET", &socket));
    let mut buf = [0; 500];
    let ready = loop {
        let len = manager.recv(&mut buf).expect("a start that gets on says so");
        let text = String::from_utf8_lossy(&buf[..len]).into_owned();
        if text.starts_with("READY=1\n") {
            break text;
        }
        assert!(text.contains("EXTEND_TIMEOUT_USEC="), "{text}");
    };
    assert!(ready.contains("STATUS=listening on 127.0.0.1:"), "{ready}");
    assert!(node.line().starts_with("listening on "));
    node.notice(|line| line.starts_with("ready after "));
}

#[test]
fn a_cancelled_event_is_gone() {
    let dir = scratch();
    let node = Node::start(&dir.path().join("data")).with_mail();
    let receipt = node.ask_json(&["publish", "--topic", "mail", "--delay", "1h"]);
    let event = receipt["event_id"].as_str().unwrap();
    assert_eq!(node.ask_json(&["cancel", event])["verdict"], "CANCELLED");
    assert_eq!(node.ask_json(&["cancel", event])["verdict"], "NOT_FOUND");
}

#[test]
fn a_rescheduled_event_keeps_its_number_and_comes_when_it_is_due_now() {
    let dir = scratch();
    let node = Node::start(&dir.path().join("data")).with_mail();
    let receipt = node.ask_json(&["publish", "--topic", "mail", "--delay", "1h"]);
    let event = receipt["event_id"].as_str().unwrap();
    let later = node.ask_json(&["reschedule", event, "--at", "2031-05-17T08:30:00+02:00"]);
    assert_eq!((&later["verdict"], &later["version"]), (&json!("RESCHEDULED"), &json!(1)));
    assert_eq!(later["due"], "2031-05-17T06:30:00.000Z");
    assert_eq!(node.ask_json(&["event", "get", event])["version"], 1);
    let stale = node.ask_json(&["reschedule", event, "--delay", "1s", "--if-version", "0"]);
    assert_eq!((&stale["verdict"], &stale["version"]), (&json!("VERSION_MISMATCH"), &json!(1)));
    let table = node.ask(&["run-now", event, "--if-version", "1"]);
    assert!(table.contains("RESCHEDULED") && table.contains(event), "{table}");
    let arrived = node.ask_json(&["subscribe", "--subscription", "mailer", "--count", "1"]);
    assert_eq!(arrived["event_id"], event);
    assert_eq!(arrived["schedule_time"], receipt["schedule_time"], "its number carries it");
    assert!(arrived["due"].as_str().unwrap() < receipt["schedule_time"].as_str().unwrap());
    assert!(arrived["late_ms"].as_i64().unwrap() >= 0, "late by the time that counts: {arrived}");
    assert_eq!(node.ask_json(&["run-now", event])["verdict"], "NOT_FOUND");
}

#[test]
fn a_group_is_cancelled_over_all_shards_and_what_is_taken_back_comes() {
    let dir = scratch();
    let node = Node::start(&dir.path().join("data")).with_mail();
    let mut of_group = Vec::new();
    for (group, delay) in [("g", "1h"), ("g", "1h"), ("h", "1h"), ("g", "1h"), ("g", "2h")] {
        let args = ["publish", "--topic", "mail", "--delay", delay, "--group", group];
        of_group.push(node.ask_json(&args)["event_id"].as_str().unwrap().to_owned());
    }
    let group = |args: &[&str]| {
        node.ask_json(&[&["group", args[0], "--topic", "mail", "--group", "g"], &args[1..]].concat())
    };
    let cancelled = group(&["cancel"]);
    assert_eq!((&cancelled["verdict"], &cancelled["count"]), (&json!("CANCELLED"), &json!(4)));
    assert_eq!((&cancelled["pending"], &cancelled["cancelled"]), (&json!(0), &json!(4)));
    let epoch = cancelled["epoch"].to_string();
    assert_eq!(group(&["cancel", "--epoch", &epoch])["count"], json!(4), "carried out once");
    assert_eq!(node.ask_json(&["count", "--topic", "mail"])["pending"], json!(1));
    assert_eq!(node.ask_json(&["event", "get", &of_group[0]])["state"], "NOT_FOUND");
    node.ask(&["cancel", &of_group[4]]);
    let undone = group(&["undo", "--epoch", &epoch]);
    assert_eq!((&undone["verdict"], &undone["count"]), (&json!("UNDONE"), &json!(3)));
    assert_eq!(group(&["undo", "--epoch", "5"])["verdict"], "NOT_FOUND");
    let held = group(&["get"]);
    assert_eq!((&held["pending"], &held["cancelled"]), (&json!(3), &json!(0)));
    let operation = json!({
        "epoch": cancelled["epoch"], "act": "CANCEL", "by_ms": 0, "taken": 4, "left": 0, "undone": true
    });
    assert_eq!(held["operations"], json!([operation]));
    node.ask(&["run-now", &of_group[1]]);
    let arrived = node.ask_json(&["subscribe", "--subscription", "mailer", "--count", "1"]);
    assert_eq!(arrived["event_id"], json!(of_group[1]));
}

#[test]
fn a_paused_group_waits_until_it_is_resumed_and_a_postponed_one_is_due_later_until_that_is_undone() {
    let dir = scratch();
    let node = Node::start(&dir.path().join("data")).with_mail();
    let publish = |group: &str| {
        let args = ["publish", "--topic", "mail", "--delay", "1h", "--group", group];
        node.ask_json(&args)["event_id"].as_str().unwrap().to_owned()
    };
    let (paused, postponed) = (publish("g"), publish("h"));
    let group = |args: &[&str], name: &str| {
        node.ask_json(&[&["group", args[0], "--topic", "mail", "--group", name], &args[1..]].concat())
    };
    let answer = group(&["pause"], "g");
    assert_eq!(
        (&answer["verdict"], &answer["count"], &answer["paused"]),
        (&json!("PAUSED"), &json!(1), &json!(1))
    );
    let own = node.ask_json(&["event", "get", &postponed])["due"].clone();
    let answer = group(&["postpone", "--by", "10m"], "h");
    assert_eq!((&answer["verdict"], &answer["count"]), (&json!("POSTPONED"), &json!(1)));
    assert_ne!(node.ask_json(&["event", "get", &postponed])["due"], own);
    let refused = node.run(&["run-now", &postponed]);
    assert_ne!(refused.code, Some(0));
    assert!((refused.stdout.clone() + &refused.stderr).contains("POSTPONED_WITH_GROUP"), "{refused:?}");
    assert_eq!(group(&["undo", "--epoch", &answer["epoch"].to_string()], "h")["verdict"], "UNDONE");
    assert_eq!(node.ask_json(&["event", "get", &postponed])["due"], own);
    // Due, and paused: the other one passes.
    for event in [&paused, &postponed] {
        assert_eq!(node.ask_json(&["run-now", event])["verdict"], "RESCHEDULED");
    }
    let arrive =
        || node.ask_json(&["subscribe", "--subscription", "mailer", "--count", "1"])["event_id"].clone();
    assert_eq!(arrive(), json!(postponed));
    assert_eq!(group(&["get"], "g")["paused"], json!(1));
    assert_eq!(group(&["resume"], "g")["count"], json!(1));
    assert_eq!(arrive(), json!(paused));
}

#[test]
fn a_pending_event_can_be_looked_at() {
    let dir = scratch();
    let node = Node::start(&dir.path().join("data")).with_mail();
    let receipt =
        node.ask_json(&["publish", "--topic", "mail", "--delay", "1h", "--data", "hello", "--id=a"]);
    let event = receipt["event_id"].as_str().unwrap();
    let found = node.ask_json(&["event", "get", event]);
    assert_eq!((&found["event_id"], &found["state"]), (&receipt["event_id"], &json!("SCHEDULED")));
    assert_eq!((&found["topic"], &found["place"]), (&json!("mail"), &json!("memory")));
    assert_eq!((&found["due"], &found["tasks"]), (&receipt["schedule_time"], &json!([])));
    assert_eq!(found.get("data"), None);
    let found = node.ask_json(&["event", "get", event, "--data"]);
    assert_eq!((&found["id"], &found["data"], &found["key"]), (&json!("a"), &json!("hello"), &Value::Null));
    node.ask(&["cancel", event]);
    assert_eq!(node.ask_json(&["event", "get", event, "--data"])["state"], "NOT_FOUND");
    let table = node.ask(&["event", "get", event]);
    assert!(table.starts_with("event_id") && table.contains("NOT_FOUND"), "{table}");
}

#[test]
fn what_comes_due_soon_is_counted_by_when() {
    let dir = scratch();
    let node = Node::start(&dir.path().join("data")).with_mail();
    node.ask(&["topic", "create", "other"]);
    for delay in ["30s", "5m", "5m", "30m", "3h", "3d"] {
        node.ask_json(&["publish", "--topic", "mail", "--delay", delay]);
    }
    node.ask_json(&["publish", "--topic", "other", "--delay", "30m"]);
    let check = |more: &[&str], expected: [u64; 7]| {
        let lines = node.ask(&[&["count", "--due", "-o", "json"], more].concat());
        let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let withins: Vec<&str> = rows.iter().map(|row| row["within"].as_str().unwrap()).collect();
        assert_eq!(withins, ["due", "1s", "10s", "1m", "10m", "1h", "1d"]);
        for (at, (row, expected)) in rows.iter().zip(expected).enumerate() {
            // What is due later may be in one block of a run.
            let is_exact = row["exact"].as_bool().unwrap();
            assert!(is_exact || at > 4, "{lines}");
            assert!(!is_exact || row["events"] == expected, "{lines}");
        }
    };
    check(&["--topic", "mail"], [0, 0, 0, 1, 3, 4, 5]);
    check(&[], [0, 0, 0, 1, 3, 5, 6]);
    assert_eq!(node.run(&["count", "--due", "--subscription", "mailer"]).code, Some(2));
}

#[test]
fn pending_events_are_listed_page_by_page() {
    let dir = scratch();
    let node = Node::start(&dir.path().join("data")).with_mail();
    node.ask(&["topic", "create", "other"]);
    let mut events = Vec::new();
    for (n, delay) in ["1h", "2h", "3h", "4h"].into_iter().enumerate() {
        let (id, key) = (format!("--id=e{n}"), format!("--key={}", n % 2));
        let receipt = node.ask_json(&["publish", "--topic", "mail", "--delay", delay, &id, &key]);
        node.ask_json(&["publish", "--topic", "other", "--delay", delay]);
        events.push((receipt["event_id"].clone(), receipt["schedule_time"].as_str().unwrap().to_owned()));
    }
    let list = |more: &[&str]| {
        let args = [&["event", "list", "--topic", "mail", "-o", "json"], more].concat();
        let lines = node.ask(&args);
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let ids = |rows: &[Value]| {
        let mut ids: Vec<String> = rows.iter().map(|row| row["event_id"].to_string()).collect();
        ids.sort_unstable();
        ids
    };
    let expected = |at: &[usize]| {
        let mut ids: Vec<String> = at.iter().map(|at| events[*at].0.to_string()).collect();
        ids.sort_unstable();
        ids
    };
    let all = list(&["--all"]);
    assert_eq!(ids(&all), expected(&[0, 1, 2, 3]));
    let first = all.iter().find(|row| row["event_id"] == events[0].0).unwrap();
    assert_eq!(
        (&first["id"], &first["key"], &first["state"]),
        (&json!("e0"), &json!("0"), &json!("SCHEDULED"))
    );
    let mut rows = list(&["--limit", "3"]);
    let token = rows.pop().unwrap()["page_token"].as_str().unwrap().to_owned();
    assert_eq!(rows.len(), 3);
    rows.extend(list(&["--limit", "3", "--page-token", &token]));
    assert_eq!(ids(&rows), expected(&[0, 1, 2, 3]));
    assert_eq!(ids(&list(&["--key", "1"])), expected(&[1, 3]));
    assert_eq!(ids(&list(&["--from", &events[1].1, "--until", &events[3].1])), expected(&[1, 2]));
    assert_eq!(list(&["--state", "ready"]).len(), 0);
    let refused = node.run(&["event", "list", "--topic", "mail", "--key", "1", "--page-token", &token]);
    let said = refused.stderr;
    assert!(said.contains("INVALID_PAGE_TOKEN") && said.contains("first page"), "{said}");
    let table = node.ask(&["event", "list", "--topic", "mail", "--limit", "1"]);
    assert!(table.starts_with("event_id") && table.lines().count() == 2, "{table}");
}

#[test]
fn what_is_pending_is_counted_over_all_shards() {
    let dir = scratch();
    let node = Node::start(&dir.path().join("data")).with_mail();
    node.ask(&["topic", "create", "other"]);
    let publish = |topic: &str, delay: &str| node.ask_json(&["publish", "--topic", topic, "--delay", delay]);
    let first = publish("mail", "1h");
    for _ in 0..7 {
        publish("mail", "1h");
    }
    publish("other", "1h");
    publish("mail", "0s");
    let of = |args: &[&str]| {
        let counts = node.ask_json(&[&["count"], args].concat());
        ["pending", "scheduled", "ready"].map(|name| counts[name].as_u64().unwrap())
    };
    assert_eq!(of(&["--topic", "mail"]), [9, 8, 1]);
    assert_eq!(of(&["--topic", "other"]), [1, 1, 0]);
    assert_eq!(of(&[]), [10, 9, 1]);
    node.ask(&["subscribe", "--subscription", "mailer", "--count", "1"]);
    node.ask(&["cancel", first["event_id"].as_str().unwrap()]);
    let counts = node.ask_json(&["count", "--subscription", "mailer"]);
    assert_eq!((&counts["pending"], &counts["tasks_queued"]), (&json!(8), &json!(0)));
    assert_eq!(counts["tasks_ended"], json!({"SUCCEEDED": 1}));
    assert_eq!(node.ask_json(&["count"])["ended_without_task"], json!({"CANCELLED": 1}));
}

#[test]
fn what_was_created_is_listed() {
    let dir = scratch();
    let node = Node::start(&dir.path().join("data")).with_mail();
    let topics = node.ask_json(&["topic", "list"]);
    assert_eq!((&topics["name"], &topics["source"]), (&json!("mail"), &Value::Null));
    let subscription = node.ask_json(&["subscription", "list"]);
    assert_eq!((&subscription["name"], &subscription["topic"]), (&json!("mailer"), &json!("mail")));
    let table = node.ask(&["subscription", "list"]);
    assert!(table.starts_with("name") && table.lines().count() == 2, "{table}");
}

#[test]
fn a_retryable_answer_brings_the_event_again() {
    let dir = scratch();
    let node = Node::start(&dir.path().join("data"));
    node.ask(&["topic", "create", "mail"]);
    node.ask(&["subscription", "create", "mailer", "--topic", "mail", "--min-backoff", "10ms"]);
    node.ask(&["publish", "--topic", "mail", "--key", "k"]);
    let args = ["-o", "json", "subscribe", "--subscription", "mailer", "--count", "2", "--answer", "retry"];
    let arrived = node.ask(&args);
    let attempts: Vec<Value> =
        arrived.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["attempt"].clone()).collect();
    assert_eq!(attempts, [1, 2]);
}

#[test]
fn a_subscriber_says_once_that_the_node_is_away_and_once_that_it_is_back() {
    let dir = scratch();
    let data = dir.path().join("data");
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let issued = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    fs::write(&certificate, issued.cert.pem()).unwrap();
    fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
    let flags =
        [format!("--tls-certificate={}", certificate.display()), format!("--tls-key={}", key.display())];
    let node = Node::start_with(&data, &flags).with_mail();
    let args = ["subscribe", "--subscription", "mailer", "--count", "2"];
    let subscriber = Running::start(&mut node.command(&args));
    node.ask(&["publish", "--topic", "mail", "--data", "before"]);
    assert!(subscriber.line().ends_with("before"));
    let addr = node.addr.clone();
    node.process.signal("TERM");
    node.process.end();
    let line = subscriber.notice(|_| true);
    assert!(line.starts_with("not receiving, and trying again: "), "{line}");
    let node = Node::start_with(&data, &[&flags[..], &[format!("--listen={addr}")]].concat());
    assert_eq!(subscriber.notice(|_| true), "receiving again");
    node.ask(&["publish", "--topic", "mail", "--data", "after"]);
    assert!(subscriber.line().ends_with("after"));
    assert_eq!(subscriber.end().stderr, "");
}

#[test]
fn a_second_engine_is_refused_and_the_first_goes_on() {
    let dir = scratch();
    let data = dir.path().join("data");
    let node = Node::start(&data);
    let second = Running::start(&mut command(&serve_args(&data))).end();
    assert_eq!((second.code, second.stdout.as_str()), (Some(5), ""));
    assert!(second.stderr.contains(&format!("process {}", node.process.pid())), "{}", second.stderr);
    node.ask(&["topic", "create", "still-here"]);
}

#[test]
fn directories_that_must_not_be_used_are_refused() {
    let dir = scratch();
    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.odt"), "years of work").unwrap();
    let refused = Running::start(&mut command(&serve_args(&foreign))).end();
    assert_eq!(refused.code, Some(5));
    assert!(refused.stderr.contains("thesis.odt"), "{}", refused.stderr);

    let file = foreign.join("thesis.odt");
    let refused = Running::start(&mut command(&serve_args(&file))).end();
    assert_eq!(refused.code, Some(5));
    assert!(refused.stderr.contains("is no directory: give another path"), "{}", refused.stderr);

    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let refused = run(&["serve", "--listen=127.0.0.1:0", "--data", memory.path().to_str().unwrap()]);
    assert_eq!(refused.code, Some(5));
    assert!(refused.stderr.contains("--allow-tmpfs"), "{}", refused.stderr);

    let data = dir.path().join("data");
    Node::start(&data).process.kill();
    let refused = run(&["serve", "--listen=127.0.0.1:0", "--shards=3", "--data", data.to_str().unwrap()]);
    assert_eq!(refused.code, Some(5));
    assert!(refused.stderr.contains("--shards 2"), "{}", refused.stderr);
}

#[test]
fn a_node_that_cannot_serve_formats_nothing() {
    let dir = scratch();
    let data = dir.path().join("data");
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = format!("--listen={}", taken.local_addr().unwrap());
    let data_flag = format!("--data={}", data.display());
    let no_certificate = ["--tls-certificate=nowhere.pem", "--tls-key=nowhere.pem"];
    let args = ["serve", "--allow-tmpfs", &data_flag, &listen];
    let refused = run(&args);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("is taken by another socket"), "{refused:?}");
    assert!(!data.exists());
    let refused = run(&[&args[..3], &["--listen=127.0.0.1:0"], &no_certificate].concat());
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("nowhere.pem") && !data.exists(), "{refused:?}");
}

#[test]
fn too_few_open_files_are_named() {
    let dir = scratch();
    let args = serve_args(&dir.path().join("data"))
        .iter()
        .map(|arg| arg.to_str().unwrap())
        .collect::<Vec<_>>()
        .join(" ");
    let line = format!("ulimit -n 12; exec {} {args}", env!("CARGO_BIN_EXE_escapement"));
    let refused = Running::start(std::process::Command::new("sh").args(["-c", &line])).end();
    assert_eq!(refused.code, Some(5), "{refused:?}");
    assert!(refused.stderr.contains("raise the limit of open files"), "{}", refused.stderr);
}

#[test]
fn wrong_arguments_say_what_would_be_right() {
    let dir = scratch();
    let file = dir.path().join("node.toml");
    fs::write(&file, "data = 'd'\nlisen = '127.0.0.1:0'\n").unwrap();
    let file = file.to_str().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    for (args, says) in [
        (vec!["serve"], "--data DIR"),
        (vec!["serve", "--config", file], "did you mean \"listen\"?"),
        (vec!["serve", "--config", "nowhere.toml"], "nowhere.toml"),
        (vec!["serve", "--data", "d", "--segment-size", "64M"], "64MiB"),
        (vec!["serve", "--data", "d", "--host", "epoll"], "uring or poll"),
        (vec!["serve", "--data", "d", "--shards", "2", "--cores", "4"], "lower cores"),
        (
            vec!["serve", "--data", data, "--allow-tmpfs", "--shards", "64", "--log-size-max", "1GiB"],
            "set log_size_max to 8GiB",
        ),
        (
            vec!["serve", "--data", data, "--allow-tmpfs", "--shards", "16", "--memory", "16MiB"],
            "set memory to 256MiB",
        ),
        (vec!["publish", "--topic", "t", "--delay", "soon"], "1m30s"),
        (vec!["publish", "--topic", "t", "--delay", "-2s"], "cannot be"),
        (vec!["publish", "--topic", "t", "--at", "tomorrow"], "2031-05-17T08:30:00Z"),
        (vec!["publish", "--topic", "t", "--at", "0", "--delay", "1s"], "cannot be used with"),
        (vec!["publish", "--topic", "t", "--cert-sha256", "12"], "64 hexadecimal digits"),
        (vec!["publish", "--topic", "t", "--addr", "127.0.0.1"], "--addr"),
        (vec!["cancel", "xyz"], "28 hexadecimal digits"),
        (vec!["reschedule", "000000000000000101a1eac6f07b"], "--delay"),
        (vec!["reschedule", "xyz", "--delay", "1s"], "28 hexadecimal digits"),
        (vec!["group", "undo", "--topic", "t", "--group", "g"], "--epoch"),
        (vec!["group", "postpone", "--topic", "t", "--group", "g"], "--by"),
        (vec!["pubish"], "'publish'"),
        (vec![], "Usage"),
    ] {
        let ended = run(&args);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(says), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{args:?}");
    }
}

#[test]
fn refusals_and_unreachable_nodes_have_their_own_status() {
    let dir = scratch();
    let node = Node::start(&dir.path().join("data")).with_mail();
    for (args, says) in [
        (vec!["publish", "--topic", "nope"], "UNKNOWN_TOPIC"),
        (vec!["group", "get", "--topic", "nope", "--group", "g"], "UNKNOWN_TOPIC"),
        (vec!["subscribe", "--subscription", "nope"], "UNKNOWN_SUBSCRIPTION"),
        (vec!["topic", "create", "mail", "--source", "/other"], "ALREADY_EXISTS"),
        (
            vec!["topic", "create", "mail", "--source", "/other"],
            "default_source is \"\" there and \"/other\" here",
        ),
        (
            vec!["subscription", "create", "mailer", "--topic", "mail", "--max-attempts", "3"],
            "max_attempts is 16 there and 3 here",
        ),
        (vec!["publish", "--topic", "mail", "--delay", "4000d"], "DELAY_TOO_LONG"),
    ] {
        let ended = node.run(&args);
        assert_eq!(ended.code, Some(3), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(says), "{args:?}: {}", ended.stderr);
    }
    let stranger = "00".repeat(32);
    let ended = run(&["topic", "list", "--addr", &node.addr, "--cert-sha256", &stranger]);
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.stderr.contains("has another fingerprint than the one given"), "{}", ended.stderr);
    let ended = node.run(&["publish", "--topic", "mail", "--key", &"k".repeat(256)]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("the ordering key is longer than 255 bytes"), "{}", ended.stderr);
}

#[test]
fn a_refusal_for_a_limit_names_the_limit() {
    let dir = scratch();
    let node = Node::start_with(&dir.path().join("data"), &["--admission=1/s".to_owned()]).with_mail();
    // A second passes at most once or twice meanwhile, and two shards have one token each.
    let refused = (0..20).map(|_| node.run(&["publish", "--topic", "mail"])).find(|e| e.code == Some(3));
    let stderr = refused.expect("twenty events are more than the rate allows").stderr;
    assert!(stderr.contains("RESOURCE_EXHAUSTED: the node's admission rate is reached"), "{stderr}");
}

#[test]
fn a_segment_file_that_cannot_be_created_is_told_once_and_so_is_the_end_of_it() {
    let dir = scratch();
    let data = dir.path().join("data");
    let node = Node::start(&data).with_mail();
    // Where the next segment's file belongs lies something else, as if the disk took no more files.
    let taken = ["shard-0000", "shard-0001"].map(|shard| data.join(shard).join("wal/0002.seg"));
    taken.iter().for_each(|path| fs::create_dir(path).unwrap());
    let large = dir.path().join("large");
    fs::write(&large, vec![b'x'; 200 * 1024]).unwrap();
    let args =
        ["publish", "--topic", "mail", "--delay=1h", "--key=k", "--data-file", large.to_str().unwrap()];
    // The spare is half full after eight, and the next file is made then.
    for _ in 0..12 {
        node.run(&args);
    }
    let told = node.process.notice(|line| line.contains("cannot create wal/0002.seg"));
    assert!(told.contains("free space"), "{told}");
    taken.iter().for_each(|path| fs::remove_dir(path).unwrap());
    // An idle core does not try: each request gives it a turn.
    let next = (0..1_000).find_map(|_| {
        node.run(&["topic", "list"]);
        node.process.said()
    });
    let next = next.expect("it is tried again every second");
    assert!(next.ends_with("can create segment files again"), "{next}");
}

#[test]
fn a_signal_drains_the_node() {
    let dir = scratch();
    for signal in ["TERM", "INT"] {
        let node = Node::start(&dir.path().join("data"));
        node.process.signal(signal);
        let ended = node.process.end();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.stdout, "", "one line and no more");
    }
}

#[test]
fn a_second_signal_ends_a_node_that_waits_for_an_attempt() {
    let dir = scratch();
    let data = dir.path().join("data");
    let node = Node::start(&data).with_mail();
    node.ask(&["publish", "--topic", "mail", "--id", "held"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async {
        let addr: SocketAddr = node.addr.parse().unwrap();
        let mut sha256 = [0; 32];
        for (at, byte) in sha256.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&node.cert_sha256[2 * at..2 * at + 2], 16).unwrap();
        }
        let client = Client::connect(ConnectOptions::new(addr, Trust::Pin(sha256))).await.unwrap();
        let mut tasks = client.subscriber("mailer", SubscriberOptions::default()).into_tasks();
        let held = tasks.next().await.unwrap().unwrap();
        node.process.signal("TERM");
        node.process.notice(|line| line.contains("SIGTERM: draining"));
        node.process.signal("TERM");
        let ended = tokio::task::spawn_blocking(move || node.process.end()).await.unwrap();
        drop(held);
        ended
    });
    assert_eq!(ended.code, Some(143), "{ended:?}");
    assert!(ended.stderr.contains("SIGTERM again"), "{}", ended.stderr);
    let node = Node::start(&data);
    let again = node.ask_json(&["subscribe", "--subscription", "mailer", "--count", "1"]);
    assert_eq!(again["id"], "held");
}

#[test]
fn dev_says_what_to_type_and_shows_what_arrives() {
    let dir = scratch();
    let mut dev = command(&["dev", "--listen", "127.0.0.1:0"]);
    // Where this lies in memory, the directory is made elsewhere.
    let dev = Running::start(dev.env("TMPDIR", dir.path()));
    let first = dev.notice(|line| line.contains("publish --addr"));
    let second = dev.notice(|line| line.contains("--topic"));
    let typed = format!("{} {second}", first.trim_end_matches('\\'));
    let mut shell = std::process::Command::new("sh");
    let published = Running::start(shell.args(["-c", &typed])).end();
    assert_eq!(published.code, Some(0), "{typed}: {published:?}");
    let arrived = dev.line();
    assert!(arrived.contains("late") && arrived.ends_with("hello from two seconds ago"), "{arrived}");
    dev.signal("INT");
    let ended = dev.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn inspect_shows_what_a_killed_node_left_and_changes_nothing() {
    let dir = scratch();
    let data = dir.path().join("data");
    let node = Node::start(&data).with_mail();
    for id in ["a", "b", "c"] {
        node.ask(&["publish", "--topic", "mail", "--delay", "1h", "--id", id]);
    }
    let last = node.ask_json(&["publish", "--topic", "mail", "--delay", "1h"]);
    node.ask(&["cancel", last["event_id"].as_str().unwrap()]);
    node.process.kill();
    let data_text = data.to_str().unwrap();
    let before = contents(&data);

    let segments = json_lines(&run(&["-o", "json", "inspect", data_text]));
    assert_eq!(segments.len(), 4, "two shards, a segment and a spare each: {segments:?}");
    let sum = |key: &str| segments.iter().map(|segment| segment[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("published"), sum("cancelled"), sum("completed")), (4, 1, 0));
    assert_eq!(segments.iter().filter(|segment| segment["state"] == "live").count(), 2);

    let records = json_lines(&run(&["-o", "json", "inspect", data_text, "--records"]));
    let published = records.iter().filter(|record| record["kind"] == "published");
    assert_eq!(published.map(|record| record["count"].as_u64().unwrap()).sum::<u64>(), 4);
    let shard_0 = json_lines(&run(&["-o", "json", "inspect", data_text, "--records", "--shard=0"]));
    assert!(shard_0.iter().any(|record| record["kind"] == "subscription" && record["name"] == "mailer"));
    assert!(run(&["inspect", data_text]).stdout.contains("shard_count"));
    assert_eq!(contents(&data), before);

    fs::write(data.join("shard-0001/SUPER"), "gone").unwrap();
    let ended = run(&["inspect", data_text]);
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(ended.stderr.contains("shard 1") && ended.stdout.contains("live"), "{ended:?}");
    let ended = run(&["inspect", dir.path().to_str().unwrap()]);
    assert_eq!((ended.code, ended.stderr.contains("no IDENTITY")), (Some(5), true), "{ended:?}");
    assert_eq!(run(&["inspect", data_text, "--shard=2"]).code, Some(2));
}

#[test]
fn a_loss_that_is_accepted_is_named_and_a_token_that_fits_nothing_too() {
    let dir = scratch();
    let data = dir.path().join("data");
    let node = Node::start(&data).with_mail();
    for id in 0..8 {
        node.ask(&["publish", "--topic", "mail", "--delay", "1h", "--id", &format!("event-{id}")]);
    }
    node.process.kill();
    // The first block behind the one that opened the epoch: what came after it was acknowledged.
    let segment = data.join("shard-0000/wal/0000.seg");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[8192 + 200] ^= 1;
    fs::write(&segment, bytes).unwrap();

    let serve = |token: &str| {
        let node = Node::start_with(&data, &[format!("--accept-loss={token}")]);
        node.process.signal("TERM");
        node.process.end().stderr
    };
    let said = serve("00000000deadbeef");
    assert!(said.contains("--accept-loss 00000000deadbeef fits no damage"), "{said}");
    assert!(said.contains("shard 0 is not serving"), "{said}");
    let (_, token) = said.split_once("with --accept-loss ").unwrap();
    let token = &token[..16];
    let (_, range) = said.split_once("acknowledged blocks ").unwrap();
    let (range, _) = range.split_once(" are damaged").unwrap();
    let said = serve(token);
    assert!(said.contains(&format!("shard 0 gave up blocks {range}, ")), "{range}: {said}");
    let said = serve(token);
    assert!(said.contains("remove the setting") && !said.contains("gave up"), "{said}");
}

fn json_lines(ended: &Ended) -> Vec<Value> {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn help_version_and_completions_need_no_node() {
    for args in [&["--help"][..], &["serve", "--help"], &["help", "publish"], &["completions", "bash"]] {
        let ended = run(args);
        assert_eq!(ended.code, Some(0), "{args:?}");
        assert!(ended.stdout.contains("escapement"), "{args:?}: {}", ended.stdout);
    }
    let version: Value = serde_json::from_str(&run(&["-o", "json", "version"]).stdout).unwrap();
    assert_eq!((&version["protocol"], &version["data_directory_format"]), (&json!(1), &json!(1)));
}
