//! Names on the disk, of a real node: known again after a restart and in a snapshot, checked, and given up where damaged.

#[allow(dead_code, reason = "each test file uses another part")]
#[path = "cli/harness.rs"]
mod harness;

use std::fs;
use std::path::{Path, PathBuf};

use escapement_client::{Client, ConnectOptions, PublisherOptions, Trust};
use escapement_protocol::event::Due;
use escapement_protocol::settings::TopicSettings;
use escapement_protocol::{EventId, EventSpec};
use harness::{Ended, Node, run};
use serde_json::Value;

/// More names than a shard with the least memory keeps there.
const NAME_COUNT: u32 = 30_000;
/// Those that are looked for again: the oldest ones.
const AGAIN_COUNT: u32 = 200;
const BATCH_COUNT: u32 = 500;

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

fn rows(ended: &Ended) -> Vec<Value> {
    ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn start(data: &Path) -> Node {
    Node::start_with(data, &["--shards=1".into(), "--memory=16MiB".into()])
}

/// Publishes the events of that many ids from 0 on. Answers the ids, and how many were known.
fn publish(node: &Node, count: u32) -> (Vec<EventId>, usize) {
    let mut pin = [0; 32];
    for (at, byte) in pin.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&node.cert_sha256[2 * at..2 * at + 2], 16).expect("hexadecimal");
    }
    let options = ConnectOptions::new(node.addr.parse().expect("an address"), Trust::Pin(pin));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = Client::connect(options).await.expect("connected");
        let settings =
            TopicSettings { name: "t".into(), dedup_window_ms: 86_400_000, ..TopicSettings::default() };
        let topic = client.create_topic(settings).await.expect("created").topic;
        let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
        let (mut ids, mut known) = (Vec::new(), 0);
        for first in (0..count).step_by(BATCH_COUNT as usize) {
            let names: Vec<String> = (first..count.min(first + BATCH_COUNT)).map(|n| n.to_string()).collect();
            let events: Vec<EventSpec<'_>> =
                names.iter().map(|id| EventSpec::new(Due::After(0), id, b"")).collect();
            for receipt in publisher.publish_batch(topic, &events).await.expect("answered") {
                let receipt = receipt.expect("accepted");
                ids.push(receipt.event_id);
                known += usize::from(receipt.duplicate);
            }
        }
        (ids, known)
    })
}

/// The files of runs of names that `inspect` shows in this state.
fn runs_of_names(data: &Path, state: &str) -> Vec<PathBuf> {
    let all = rows(&run(&["-o", "json", "inspect", text(data)]));
    let of_names = all.iter().filter(|row| row["state"] == state && row.get("names").is_some());
    let path_of = |row: &Value| {
        let shard = format!("shard-{:04}", row["shard"].as_u64().expect("a number"));
        data.join(shard).join(row["file"].as_str().expect("a file"))
    };
    of_names.map(path_of).collect()
}

#[test]
fn names_that_went_to_the_disk_are_known_after_a_restart_in_a_snapshot_and_until_they_are_given_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, copy) = (dir.path().join("data"), dir.path().join("copy"));
    let node = start(&data);
    let (ids, known) = publish(&node, NAME_COUNT);
    assert_eq!((ids.len(), known), (NAME_COUNT as usize, 0));
    let is_written = (0..2_000).any(|_| !runs_of_names(&data, "names").is_empty());
    assert!(is_written, "{:?}", run(&["inspect", text(&data)]));
    node.ask(&["snapshot", "--data", text(&data), "--to", text(&copy)]);
    node.process.kill();

    let mine = |(found, known): (Vec<EventId>, usize)| {
        assert_eq!(found, ids[..AGAIN_COUNT as usize], "the first one's receipts");
        assert_eq!(known, AGAIN_COUNT as usize);
    };
    for place in [&data, &copy] {
        let verified = run(&["verify", text(place)]);
        assert_eq!(verified.code, Some(0), "{verified:?}");
        let node = start(place);
        mine(publish(&node, AGAIN_COUNT));
        node.process.kill();
    }

    // A byte of the first block is another.
    let path = runs_of_names(&data, "names").first().expect("a run of names").clone();
    let mut bytes = fs::read(&path).expect("it is there");
    bytes[200] ^= 1;
    fs::write(&path, &bytes).expect("it is there");
    let verified = run(&["-o", "json", "verify", text(&data)]);
    assert_eq!(verified.code, Some(1), "{verified:?}");
    let findings = rows(&verified);
    let damaged = findings.iter().find(|row| row["finding"] == "damaged").expect("it is told");
    assert!(damaged["block"] == 0 && damaged["what"].as_str().is_some_and(|what| what.contains("repair")));

    let told = run(&["-o", "json", "repair", text(&data)]);
    assert_eq!(told.code, Some(5), "{told:?}");
    let [loss] = &rows(&told)[..] else { panic!("{told:?}") };
    assert_eq!(loss["finding"], "names_loss", "{loss}");
    assert!(loss["names"].as_u64() > Some(1_000), "{loss}");
    assert_eq!(fs::read(&path).expect("it is there"), bytes, "nothing was changed");
    let token = loss["token"].as_str().expect("a token");
    let repaired = run(&["repair", text(&data), "--accept-loss", token]);
    assert_eq!(repaired.code, Some(0), "{repaired:?}");
    assert!(repaired.stdout.contains("no event is lost"), "{repaired:?}");
    let name = path.file_name().expect("it has one");
    let kept = data.join("shard-0000/quarantine").join(token).join("far").join(name);
    assert_eq!(fs::read(kept).expect("it was kept"), bytes);
    assert_eq!(run(&["verify", text(&data)]).code, Some(0));
    assert_eq!(run(&["repair", text(&data)]).code, Some(0), "nothing is left to be given up");
    assert_eq!(runs_of_names(&data, "given up"), [path]);
    let node = start(&data);
    // As far as the log still has the names, they are known all the same.
    let (found, _) = publish(&node, AGAIN_COUNT);
    assert_eq!(found.len(), AGAIN_COUNT as usize, "the node serves");
}

#[test]
fn a_shard_whose_run_of_names_is_missing_does_not_serve_until_it_is_given_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let node = start(&data);
    publish(&node, NAME_COUNT);
    assert!((0..2_000).any(|_| !runs_of_names(&data, "names").is_empty()));
    node.process.kill();
    let path = runs_of_names(&data, "names").first().expect("a run of names").clone();
    fs::remove_file(&path).expect("it is there");
    let verified = run(&["verify", text(&data)]);
    assert_eq!(verified.code, Some(1), "{verified:?}");
    assert!(
        verified.stdout.contains("it is missing") && verified.stdout.contains("will not serve"),
        "{verified:?}"
    );
    assert_eq!(runs_of_names(&data, "missing"), [path]);
    let told = run(&["-o", "json", "repair", text(&data)]);
    let [loss] = &rows(&told)[..] else { panic!("{told:?}") };
    assert_eq!((&loss["finding"], &loss["names"]), (&"names_loss".into(), &Value::Null), "{loss}");
    let token = loss["token"].as_str().expect("a token");
    assert_eq!(run(&["repair", text(&data), "--accept-loss", token]).code, Some(0));
    let node = start(&data);
    let (found, _) = publish(&node, AGAIN_COUNT);
    assert_eq!(found.len(), AGAIN_COUNT as usize, "the node serves");
}

#[test]
fn a_damaged_block_of_a_run_of_names_stops_its_shard_alone_once_a_name_there_is_looked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let start = || Node::start_with(&data, &["--shards=2".into(), "--memory=32MiB".into()]);
    let node = start();
    publish(&node, 2 * NAME_COUNT);
    let of_shard_1 = || {
        let all = runs_of_names(&data, "names");
        all.into_iter().filter(|path| path.starts_with(data.join("shard-0001"))).collect::<Vec<_>>()
    };
    assert!((0..2_000).any(|_| !of_shard_1().is_empty()));
    node.process.kill();
    for path in of_shard_1() {
        let mut bytes = fs::read(&path).expect("it is there");
        let blocks = (0..bytes.len()).step_by(4096).filter(|at| bytes[*at..].starts_with(b"ENB1"));
        for at in blocks.collect::<Vec<_>>() {
            bytes[at + 200] ^= 1;
        }
        fs::write(&path, bytes).expect("it is there");
    }

    let node = start();
    let again = |node: &Node| -> Vec<Ended> {
        let ids = (0..16).map(|n| n.to_string());
        ids.map(|id| node.run(&["publish", "--topic", "t", "--id", &id])).collect()
    };
    let answers = again(&node);
    let refused: Vec<&Ended> = answers.iter().filter(|ended| ended.code != Some(0)).collect();
    assert!((1..16).contains(&refused.len()), "the other shard's are known: {answers:?}");
    for ended in refused {
        assert_eq!(ended.code, Some(3), "{ended:?}");
        assert!(ended.stderr.contains("shard 1 is out of service"), "{ended:?}");
    }
    let told = node.process.notice(|line| line.contains("shard 1 has stopped"));
    assert!(told.contains(".run is damaged, at block"), "{told}");
    node.process.notice(|line| line.contains("the other shards go on"));
    node.process.signal("TERM");
    assert_eq!(node.process.end().code, Some(1));

    let losses = rows(&run(&["-o", "json", "repair", text(&data)]));
    assert!(!losses.is_empty());
    for loss in losses {
        assert_eq!((&loss["finding"], &loss["shard"]), (&"names_loss".into(), &1.into()), "{loss}");
        let token = loss["token"].as_str().expect("a token");
        assert_eq!(run(&["repair", text(&data), "--accept-loss", token]).code, Some(0));
    }
    assert!(again(&start()).iter().all(|ended| ended.code == Some(0)), "all serve");
}
