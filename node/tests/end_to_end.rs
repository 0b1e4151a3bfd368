//! A whole node on real files and sockets, driven by the client SDK.

use std::collections::HashSet;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use escapement_client::{Client, ConnectOptions, PublisherOptions, SubscriberOptions, Trust};
use escapement_node::config::NodeConfig;
use escapement_node::data_dir::DataDir;
use escapement_node::io::HostKind;
use escapement_node::serve::{Control, Ready, ServeEnd, ServeError, serve};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{CancelVerdict, EventName};
use escapement_protocol::ids::shard_of;
use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{AttemptResult, EventSpec, ShardId};

/// A node in this process, drained when it goes out of scope.
struct Node {
    ready: Ready,
    control: Arc<Control>,
    thread: Option<JoinHandle<Result<ServeEnd, ServeError>>>,
}

impl Node {
    fn start(dir: &std::path::Path, shards: u16, cores: u16, host: HostKind) -> Node {
        let config = NodeConfig {
            data: dir.to_owned(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            shards: Some(shards),
            cores: Some(cores),
            host: Some(host),
            segment_size_bytes: 1024 * 1024,
            segment_spares: 1,
            pin: false,
            allow_tmpfs: true,
            ..NodeConfig::default()
        };
        let control = Arc::new(Control::default());
        let (sender, receiver) = mpsc::channel();
        let handle = Arc::clone(&control);
        let thread = std::thread::spawn(move || {
            let data = DataDir::open_or_format(&config).expect("a data directory");
            serve(&config, &data, &handle, |ready| sender.send(ready.clone()).expect("awaited"), |_| {})
        });
        let Ok(ready) = receiver.recv() else { panic!("the node did not start: {:?}", thread.join()) };
        Node { ready, control, thread: Some(thread) }
    }

    fn options(&self) -> ConnectOptions {
        let mut pin = [0; 32];
        for (at, byte) in pin.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&self.ready.cert_sha256[2 * at..2 * at + 2], 16).expect("hexadecimal");
        }
        ConnectOptions::new(self.ready.addr, Trust::Pin(pin))
    }

    fn stop(mut self) -> ServeEnd {
        self.control.drain();
        let thread = self.thread.take().expect("stopped once");
        thread.join().expect("no panic").expect("it had started")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.control.drain();
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

async fn create(client: &Client, subscription: SubscriptionSettings) -> escapement_protocol::TopicId {
    let topic = TopicSettings { name: subscription.topic.clone(), ..TopicSettings::default() };
    let topic = client.create_topic(topic).await.expect("created");
    client.create_subscription(subscription).await.expect("created");
    topic.topic
}

fn settings(name: &str, topic: &str) -> SubscriptionSettings {
    SubscriptionSettings { name: name.into(), topic: topic.into(), ..SubscriptionSettings::default() }
}

/// Publishes `count` events due within 300 ms, and returns the ids that arrive, none of them early.
async fn round_trip(node: &Node, count: u32) -> HashSet<String> {
    let client = Client::connect(node.options()).await.expect("connected");
    let topic = create(&client, settings("s", "t")).await;
    let subscriber = client.another().await.expect("connected").subscriber("s", SubscriberOptions::default());
    let stopper = subscriber.stopper();
    let (sender, receiver) = mpsc::channel();
    let running = tokio::spawn(async move {
        let mut seen = HashSet::new();
        let result = subscriber
            .run(|attempt| {
                let id = String::from_utf8(attempt.event.id().to_vec()).expect("text");
                assert!(wall_ms() >= attempt.schedule_time.0, "{id} is early");
                assert_eq!(attempt.event.data(), id.as_bytes());
                if seen.insert(id.clone()) {
                    sender.send(id).expect("awaited");
                }
                if seen.len() == count as usize {
                    stopper.stop();
                }
                AttemptResult::Success
            })
            .await;
        result.expect("subscribed to the end");
    });
    let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
    let ids: Vec<String> = (0..count).map(|n| format!("event-{n}")).collect();
    for id in &ids {
        let due = Due::After(u64::from(count) % 300);
        publisher.publish(topic, &EventSpec::new(due, id, id.as_bytes())).await.expect("accepted");
    }
    tokio::time::timeout(Duration::from_secs(30), running)
        .await
        .expect("all arrived in time")
        .expect("no panic");
    receiver.try_iter().collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn delivers_everything(shards: u16, cores: u16, host: HostKind) {
    let dir = tempfile::tempdir().expect("a directory");
    let node = Node::start(dir.path(), shards, cores, host);
    let seen = runtime().block_on(round_trip(&node, 50));
    assert_eq!(seen.len(), 50);
    let end = node.stop();
    assert_eq!(end, ServeEnd::default());
}

#[test]
fn one_shard_on_a_ring_delivers_everything() {
    delivers_everything(1, 1, HostKind::Uring);
}

#[test]
fn one_shard_without_io_uring_delivers_everything() {
    delivers_everything(1, 1, HostKind::Poll);
}

#[test]
fn three_shards_on_two_cores_deliver_everything() {
    delivers_everything(3, 2, HostKind::Uring);
}

#[test]
fn what_was_pending_at_a_stop_is_delivered_after_the_next_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = Node::start(dir.path(), 1, 1, HostKind::Uring);
    let runtime = runtime();
    runtime.block_on(async {
        let client = Client::connect(node.options()).await.expect("connected");
        let topic = create(&client, settings("s", "t")).await;
        let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
        for id in ["a", "b", "c"] {
            let event = EventSpec::new(Due::After(200), id, id.as_bytes());
            publisher.publish(topic, &event).await.expect("accepted");
        }
    });
    node.stop();
    let node = Node::start(dir.path(), 1, 1, HostKind::Uring);
    let seen = runtime.block_on(async {
        let client = Client::connect(node.options()).await.expect("connected");
        let subscriber = client.subscriber("s", SubscriberOptions::default());
        let stopper = subscriber.stopper();
        let mut seen = Vec::new();
        let run = subscriber.run(|attempt| {
            seen.push(String::from_utf8(attempt.event.id().to_vec()).expect("text"));
            if seen.len() == 3 {
                stopper.stop();
            }
            AttemptResult::Success
        });
        tokio::time::timeout(Duration::from_secs(30), run).await.expect("in time").expect("subscribed");
        seen
    });
    assert_eq!(seen, ["a", "b", "c"]);
    node.stop();
}

#[test]
fn what_is_published_twice_is_one_event_with_one_receipt_over_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = runtime();
    let mut first = None;
    for start in 0..2 {
        let node = Node::start(dir.path(), 3, 2, HostKind::Poll);
        runtime.block_on(async {
            let client = Client::connect(node.options()).await.expect("connected");
            let settings = TopicSettings {
                name: "t".into(),
                default_source: "/default".into(),
                dedup_window_ms: 60_000,
                ..TopicSettings::default()
            };
            let topic = client.create_topic(settings).await.expect("created").topic;
            let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
            for n in 0..8 {
                // An event that states its topic's source has the name of one that states none.
                let source = if n % 2 == 0 { "" } else { "/default" };
                let event = EventSpec { source, ..EventSpec::new(Due::After(30_000 + n), "a", b"") };
                let receipt = publisher.publish(topic, &event).await.expect("accepted");
                assert_eq!(receipt.duplicate, first.is_some());
                let of = (receipt.event_id, receipt.accepted);
                assert_eq!(*first.get_or_insert(of), of);
            }
            let event = EventSpec::new(Due::After(30_000), "b", b"");
            publisher.publish(topic, &event).await.expect("accepted");
            let names = ["b", "x"].map(|id| EventName { id, ..EventName::default() });
            let verdicts = client.cancel_by_name(topic, &names).await.expect("answered");
            // The second time it is the cancelled one again.
            let of_b = if start == 0 { CancelVerdict::Cancelled } else { CancelVerdict::NotFound };
            assert_eq!(verdicts, [of_b, CancelVerdict::NotFound]);
            let duplicates = publisher.stats().duplicates;
            assert_eq!(duplicates, if start == 0 { 7 } else { 9 });
        });
        node.stop();
    }
}

/// Whatever core a client comes to, it works with the shards that serve: half of these connections come to the core of
/// the one that does not, and that one had half of the subscriptions.
#[test]
fn a_refused_shard_leaves_every_core_serving_the_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = Node::start(dir.path(), 2, 2, HostKind::Poll);
    let runtime = runtime();
    runtime.block_on(async {
        let client = Client::connect(node.options()).await.expect("connected");
        create(&client, settings("before", "before")).await;
    });
    node.stop();
    std::fs::write(dir.path().join("shard-0001/SUPER"), "gone").expect("written");
    let node = Node::start(dir.path(), 2, 2, HostKind::Poll);
    runtime.block_on(async {
        for number in 0..16 {
            let client = Client::connect(node.options()).await.expect("connected");
            client.topic("before").await.expect("known from before");
            let name = format!("topic-{number}");
            let topic = create(&client, settings(&name, &name)).await;
            let other = Client::connect(node.options()).await.expect("connected");
            other.subscription(&name).await.expect("known at every core");
            // Of both shards: where it is the one that is out, the other takes it.
            let id = (0..)
                .map(|n: u32| n.to_string())
                .find(|id| shard_of(topic, b"", b"", id.as_bytes(), 2) == ShardId(number % 2));
            let id = id.expect("some id belongs to that shard");
            let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
            let event = EventSpec::new(Due::After(0), &id, b"");
            let receipt = publisher.publish(topic, &event).await.expect("accepted");
            assert_eq!(receipt.event_id.shard, ShardId(0));
            let subscriber = other.subscriber(&name, SubscriberOptions::default());
            let stopper = subscriber.stopper();
            let run = subscriber.run(|_| {
                stopper.stop();
                AttemptResult::Success
            });
            tokio::time::timeout(Duration::from_secs(30), run).await.expect("in time").expect("subscribed");
        }
    });
    node.stop();
}
