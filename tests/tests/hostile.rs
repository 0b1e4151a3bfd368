//! Peers that break the protocol, beside one that keeps to it and must not notice.

#[path = "hostile/raw.rs"]
mod raw;

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use escapement_client::{
    Client, ClientError, ConnectOptions, PublisherOptions, Stopper, SubscriberOptions, Trust,
};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{
    AdminRequest, Credit, FrameKind, Hello, Items, PublishBatchWriter, ResultItem, Sender, Subscribe,
    encode_results,
};
use escapement_protocol::{
    ALPN, AttemptResult, ErrorCode, EventSpec, Frame, SubscriptionSettings, Tag, TopicId, TopicSettings,
    WallMs,
};
use escapement_tests::harness::{Ledger, NodeProcess, NodeSpec, wall_ms};
use quinn::{Connection, ConnectionError, Endpoint};
use raw::{Said, Stream, closed, endpoint, frame, hello, within};
use tokio::task::JoinHandle;

const NODE: &str = env!("CARGO_BIN_EXE_node_under_test");

/// Events that the well-behaved publisher hands over at once.
const BATCH: u64 = 10;

/// A node, somebody who uses it properly, and the means to misuse it.
struct Site {
    node: NodeProcess,
    certificate: PathBuf,
    client: Client,
    endpoint: Endpoint,
    /// Where hostile events go: topic `other`, subscription `others`.
    other: TopicId,
}

impl Site {
    async fn dial(&self) -> Connection {
        let connecting =
            self.endpoint.connect(self.node.addr(), "localhost").expect("a usable configuration");
        within("a connection", connecting).await.expect("a connection")
    }

    /// Sends `bytes` on a new connection, for which the node closes it with `code`, says why in words that
    /// contain `says`, and tells the stream the same.
    async fn is_refused(&self, what: &str, bytes: &[u8], code: ErrorCode, says: &str) {
        let connection = self.dial().await;
        let mut stream = Stream::open(&connection).await;
        stream.write(bytes).await;
        let mut last = None;
        while let Some(said) = stream.next().await {
            last = Some(said);
        }
        let (number, reason) = closed(&connection).await;
        assert_eq!(ErrorCode::from_number(number as u16), Some(code), "{what}: {number} {reason}");
        assert!(reason.contains(says), "{what}: {reason:?} should contain {says:?}");
        let told = Said::Error { request: 0, code: Some(code), message: reason };
        assert_eq!(last, Some(told), "{what}");
    }
}

/// Publishes and subscribes as one should, for as long as the hostile part lasts.
struct Bystander {
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    publishing: JoinHandle<()>,
    stopper: Stopper,
    receiving: JoinHandle<()>,
}

impl Bystander {
    async fn start(client: &Client) -> Self {
        let topic = create(client, "good").await;
        let ledger = Arc::new(Ledger::new("good"));
        let stop = Arc::new(AtomicBool::new(false));
        let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
        let publishing = {
            let (ledger, stop) = (ledger.clone(), stop.clone());
            tokio::spawn(async move {
                for first in (0..).step_by(BATCH as usize) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    publish(&ledger, &publisher, topic, first).await;
                }
                let stats = publisher.stats();
                assert_eq!((stats.streams, stats.resent, stats.refused), (1, 0, 0), "{stats:?}");
            })
        };
        let subscriber = client.subscriber("goods", SubscriberOptions::default());
        let stopper = subscriber.stopper();
        let receiving = {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let run = subscriber.run(|attempt| {
                    ledger.delivered(attempt.event.id(), attempt.schedule_time.0, attempt.event.data());
                    AttemptResult::Success
                });
                run.await.expect("the session lasts");
            })
        };
        Bystander { ledger, stop, publishing, stopper, receiving }
    }

    /// Ends, and holds the node to everything.
    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        within("the last receipts", self.publishing).await.expect("every event was accepted at once");
        let ledger = self.ledger.clone();
        let all = tokio::task::spawn_blocking(move || {
            ledger.wait_until("all is delivered", |counts| counts.outstanding == 0)
        });
        let counts = all.await.expect("all is delivered");
        self.stopper.stop();
        within("the end of the session", self.receiving).await.expect("the session lasted");
        self.ledger.assert_clean();
        assert!(counts.published > 0);
        assert_eq!((counts.delivered, counts.duplicates), (counts.published, 0), "{counts:?}");
    }
}

async fn publish(ledger: &Ledger, publisher: &escapement_client::Publisher, topic: TopicId, first: u64) {
    let events: Vec<(u64, String, Vec<u8>, u64)> = (first..first + BATCH)
        .map(|n| (n, ledger.id(n), ledger.data(n), wall_ms() + 10 * (n % BATCH)))
        .collect();
    let specs: Vec<EventSpec<'_>> =
        events.iter().map(|(_, id, data, due)| EventSpec::new(Due::At(WallMs(*due)), id, data)).collect();
    for (n, _, _, due) in &events {
        ledger.published(*n, *due);
    }
    let answers = publisher.publish_batch(topic, &specs).await.expect("the events are valid");
    for ((n, ..), answer) in events.iter().zip(answers) {
        answer.expect("nothing is refused");
        ledger.acknowledged(*n);
    }
}

/// Makes the topic `name` and its subscription, whose name has an `s` more.
async fn create(client: &Client, name: &str) -> TopicId {
    let topic = TopicSettings { name: name.into(), ..TopicSettings::default() };
    let topic = client.create_topic(topic).await.expect("created").topic;
    let subscription = SubscriptionSettings {
        name: format!("{name}s"),
        topic: name.into(),
        min_backoff_ms: 1,
        ..SubscriptionSettings::default()
    };
    client.create_subscription(subscription).await.expect("created");
    topic
}

/// Runs `attack` on a node that serves a bystander, and holds that neither of them suffers.
fn beside_a_bystander(attack: impl AsyncFnOnce(&mut Site)) {
    let dir = tempfile::tempdir().expect("a directory");
    let node = NodeSpec::small(NODE, &dir.path().join("data")).certified(dir.path()).start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let client = Client::connect(node.options()).await.expect("connected");
        let other = create(&client, "other").await;
        let bystander = Bystander::start(&client.another().await.expect("connected")).await;
        let certificate = dir.path().join("cert.pem");
        let endpoint = endpoint(&certificate, ALPN);
        let mut site = Site { node, certificate, client, endpoint, other };
        attack(&mut site).await;
        assert!(site.node.is_alive(), "{}", site.node.notices());
        bystander.end().await;
        assert!(site.node.is_alive(), "{}", site.node.notices());
        site.client.topics().await.expect("the node still answers");
    });
}

fn golden() -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/golden");
    let mut all: Vec<(String, Vec<u8>)> = std::fs::read_dir(dir)
        .expect("the golden frames")
        .map(|entry| entry.expect("readable").path())
        .map(|path| (path.display().to_string(), std::fs::read(&path).expect("readable")))
        .collect();
    all.sort();
    assert!(all.len() >= FrameKind::ALL.len());
    all
}

fn sender(frame: &[u8]) -> Sender {
    FrameKind::from_number(frame[4]).expect("a golden frame has a known kind").sender()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[test]
fn strangers_do_not_get_past_the_handshake() {
    beside_a_bystander(async |site| {
        let stranger = endpoint(&site.certificate, b"h3");
        let connecting = stranger.connect(site.node.addr(), "localhost").expect("a usable configuration");
        match within("an answer", connecting).await {
            // TLS's alert `no_application_protocol`, as QUIC carries it.
            Err(ConnectionError::ConnectionClosed(close)) => assert_eq!(u64::from(close.error_code), 0x178),
            other => panic!("{other:?}"),
        }
        let pinned = ConnectOptions::new(site.node.addr(), Trust::Pin([7; 32]));
        match Client::connect(pinned).await {
            Err(error @ ClientError::Connect { retryable: false, .. }) => {
                assert!(error.to_string().contains("what it is trusted by"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn noise_at_the_port_is_dropped() {
    beside_a_bystander(async |site| {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let mut random = Random(5);
        for n in 0..3_000 {
            let len = (random.next() % 1_400) as usize;
            let mut noise: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            if let Some((first, rest)) = noise.split_first_mut() {
                // Some look like the first packet of a connection in QUIC version 1, some like one of an open connection.
                match n % 3 {
                    0 => {
                        *first = 0xc0 | *first & 0x0f;
                        rest.iter_mut().zip([0, 0, 0, 1, 8]).for_each(|(byte, set)| *byte = set);
                    }
                    1 => *first = 0x40 | *first & 0x3f,
                    _ => {}
                }
            }
            // The system may refuse to send more right now, which is as good as a lost datagram.
            let _ = socket.send_to(&noise, site.node.addr());
        }
    });
}

#[test]
fn frames_that_cannot_be_read_end_their_connection_with_the_reason() {
    beside_a_bystander(async |site| {
        let good = hello();
        let patched = |at: usize, with: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            bytes
        };
        let hello = |version| frame(&Frame::Hello(Hello { version, client: "hostile" }));
        let too_long = (1024 * 1024 + 1u32).to_le_bytes();
        for (what, bytes, code, says) in [
            ("too long", patched(0, &too_long), ErrorCode::FrameLength, "1048576"),
            ("as long as can be said", patched(0, &[255; 4]), ErrorCode::FrameLength, "4294967295"),
            ("too short", patched(0, &[11, 0, 0, 0]), ErrorCode::FrameLength, "11 bytes"),
            ("empty", patched(0, &[0; 4]), ErrorCode::FrameLength, "0 bytes"),
            ("kind 0", patched(4, &[0]), ErrorCode::UnknownFrame, "kind 0"),
            ("kind 200", patched(4, &[200]), ErrorCode::UnknownFrame, "kind 200"),
            ("version of frames", patched(5, &[2]), ErrorCode::UnsupportedVersion, "version 2"),
            ("flags", patched(6, &[1]), ErrorCode::MalformedFrame, "flags"),
            ("version of Hello", hello(9), ErrorCode::UnsupportedVersion, "not 9"),
            ("no FlatBuffer", patched(8, &[255; 12]), ErrorCode::MalformedFrame, "Hello"),
            ("a second Hello", [hello(1), hello(1)].concat(), ErrorCode::MalformedFrame, "second Hello"),
        ] {
            site.is_refused(what, &bytes, code, says).await;
        }
        for (name, bytes) in golden().iter().filter(|(_, bytes)| sender(bytes) == Sender::Node) {
            site.is_refused(name, bytes, ErrorCode::MalformedFrame, "nodes send").await;
        }
    });
}

#[test]
fn half_a_frame_harms_nobody_and_its_end_is_refused() {
    beside_a_bystander(async |site| {
        let connection = site.dial().await;
        let mut stream = Stream::open(&connection).await;
        stream.write(&hello()[..20]).await;
        let mut asking = Stream::open(&connection).await;
        asking.write(&frame(&Frame::Admin { request: 1, body: AdminRequest::ShardMap })).await;
        assert_eq!(asking.next().await, Some(Said::Other(FrameKind::AdminReply)), "the connection is open");
        stream.send.finish().expect("open");
        let (number, reason) = closed(&connection).await;
        assert_eq!(number, ErrorCode::FrameLength as u64, "{reason}");
        assert!(reason.contains("20 bytes into a frame"), "{reason}");
    });
}

#[test]
fn streams_may_be_reset_at_any_point() {
    beside_a_bystander(async |site| {
        let connection = site.dial().await;
        let good = hello();
        for n in 0..200 {
            let mut stream = Stream::open(&connection).await;
            stream.write(&good[..n % good.len()]).await;
            // A stream that the node ends too has nothing left to reset.
            let _ = stream.send.reset(7u32.into());
            if n % 2 == 0 {
                let _ = stream.recv.stop(9u32.into());
            }
        }
        let mut asking = Stream::open(&connection).await;
        asking.write(&frame(&Frame::Admin { request: 1, body: AdminRequest::ShardMap })).await;
        assert_eq!(asking.next().await, Some(Said::Other(FrameKind::AdminReply)), "the connection is open");
    });
}

#[test]
fn golden_frames_with_flipped_bytes_are_read_or_refused_and_nothing_else() {
    beside_a_bystander(async |site| {
        let mut random = Random(11);
        let mut refused = 0;
        for (name, bytes) in golden() {
            for _ in 0..6 {
                let mut bad = bytes.clone();
                for _ in 0..1 + random.next() % 3 {
                    let at = 8 + random.next() as usize % (bad.len() - 8);
                    bad[at] ^= 1 << (random.next() % 8);
                }
                refused += u64::from(survives(site, &name, &bad).await);
            }
            refused += u64::from(survives(site, &name, &bytes[..bytes.len() - 4]).await);
        }
        assert!(refused > 50, "only {refused} frames were refused: the mutations do not bite");
    });
}

/// Sends bytes that may or may not be a sound frame, then finishes the stream, and waits for the node to be
/// done with them. Says whether the connection was closed for them, which must have a code about frames.
async fn survives(site: &Site, name: &str, bytes: &[u8]) -> bool {
    let connection = site.dial().await;
    let mut stream = Stream::open(&connection).await;
    stream.write(bytes).await;
    // The node may be quicker with its refusal.
    let _ = stream.send.finish();
    while stream.next().await.is_some() {}
    let mut asking = match connection.open_bi().await {
        Ok((send, recv)) => (send, recv),
        Err(_) => return refused_about_frames(&connection, name).await,
    };
    let ask = frame(&Frame::Admin { request: 1, body: AdminRequest::ShardMap });
    let asked = asking.0.write_all(&ask).await.is_ok();
    if asked && let Ok(Some(_)) = within("an answer", asking.1.read_chunk(usize::MAX, true)).await {
        return false;
    }
    refused_about_frames(&connection, name).await
}

async fn refused_about_frames(connection: &Connection, name: &str) -> bool {
    let (number, reason) = closed(connection).await;
    assert!((1..=4).contains(&number), "{name}: {number} {reason}");
    true
}

#[test]
fn requests_out_of_place_end_their_connection_with_the_reason() {
    beside_a_bystander(async |site| {
        let mut results = Vec::new();
        let forged = [ResultItem { tag: Tag(1), result: AttemptResult::Success, retry_after_ms: 0 }];
        encode_results(Items::from(&forged[..]), &mut results).expect("small");
        let credit = frame(&Frame::Credit(Credit { tasks: 1, bytes: 1 }));
        let subscribe = subscribe("others", 0);
        let publish = |first_item| publish_batch(site.other, first_item, &[event("a")]);
        let admin = |request| frame(&Frame::Admin { request, body: AdminRequest::ShardMap });
        for (what, bytes, says) in [
            ("results without a session", results, "without a session"),
            ("credit without a session", credit, "without a session"),
            ("detach without a session", frame(&Frame::Detach), "without a session"),
            ("two sessions on a stream", [subscribe.clone(), subscribe].concat(), "another stream"),
            ("a stream that begins with item 5", publish(5), "item 0 is next"),
            ("an item again", [publish(0), publish(0)].concat(), "item 1 is next"),
            ("a gap", [publish(0), publish(2)].concat(), "without a gap"),
            ("request 0", admin(0), "from 1"),
        ] {
            site.is_refused(what, &bytes, ErrorCode::MalformedFrame, says).await;
        }
    });
}

fn subscribe(subscription: &str, credit: u32) -> Vec<u8> {
    let credit = Credit { tasks: credit, bytes: credit };
    frame(&Frame::Subscribe(Subscribe { subscription, credit, host: 1, running: Items::from(&[][..]) }))
}

fn event(id: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    EventSpec::new(Due::After(0), id, b"of no importance").encode(&mut bytes).expect("a valid event");
    bytes
}

fn publish_batch(topic: TopicId, first_item: u64, events: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = PublishBatchWriter::new();
    writer.begin(topic, first_item);
    for event in events {
        writer.push(event);
    }
    writer.finish_owned()
}

#[test]
fn events_that_lie_about_their_length_are_refused() {
    beside_a_bystander(async |site| {
        let event = event("liar");
        let honest = publish_batch(site.other, 0, std::slice::from_ref(&event));
        let at = honest.windows(event.len()).position(|window| window == event).expect("it is in there");
        let stated = u32::from_le_bytes(event[..4].try_into().expect("4 bytes"));
        for lie in [0, 3, 15, stated - 8, stated + 8, stated + 1_000, 262_145, u32::MAX - 7, u32::MAX] {
            let mut bytes = honest.clone();
            bytes[at..at + 4].copy_from_slice(&lie.to_le_bytes());
            site.is_refused(&format!("length {lie}"), &bytes, ErrorCode::MalformedFrame, "PublishBatch")
                .await;
        }
        // What lies inside an event touches neither its neighbours nor the connection.
        let mut torn = event.clone();
        torn[16] = 99;
        let connection = site.dial().await;
        let mut stream = Stream::open(&connection).await;
        stream.write(&publish_batch(site.other, 0, &[event.clone(), torn, event])).await;
        let refused = vec![(1, ErrorCode::MalformedEvent as u16)];
        assert_eq!(stream.next().await, Some(Said::Ack { through_item: 3, refused }));
    });
}

#[test]
fn a_seventeenth_stream_waits_for_others_to_end() {
    beside_a_bystander(async |site| {
        let connection = site.dial().await;
        let mut streams = Vec::new();
        for _ in 0..16 {
            streams.push(answered_stream(&connection).await);
        }
        let more = tokio::time::timeout(Duration::from_millis(200), connection.open_bi()).await;
        assert!(more.is_err(), "a seventeenth stream was granted");
        // The node tells of freed streams a few at a time, not of each.
        for mut ending in streams.drain(..8) {
            ending.send.finish().expect("open");
            while ending.next().await.is_some() {}
        }
        for _ in 0..4 {
            streams.push(answered_stream(&connection).await);
        }
    });
}

async fn answered_stream(connection: &Connection) -> Stream {
    let mut stream = Stream::open(connection).await;
    stream.write(&frame(&Frame::Admin { request: 1, body: AdminRequest::ShardMap })).await;
    assert_eq!(stream.next().await, Some(Said::Other(FrameKind::AdminReply)));
    stream
}

#[test]
fn forged_and_stale_results_change_nothing() {
    beside_a_bystander(async |site| {
        let connection = site.dial().await;
        let mut victim = Stream::open(&connection).await;
        victim.write(&subscribe("others", 1)).await;
        victim.until(|said| *said == Said::Other(FrameKind::Subscribed)).await;
        let mut publisher = Stream::open(&connection).await;
        publisher.write(&publish_batch(site.other, 0, &[event("guarded")])).await;
        let (tag, attempt) = pushed(&mut victim, "guarded").await;
        assert_eq!(attempt, 1);

        // Another session claims that it is done, under this tag and thousands of guessed ones.
        let stranger = site.dial().await;
        let mut forger = Stream::open(&stranger).await;
        forger.write(&frame_of_other_host("others")).await;
        forger.until(|said| *said == Said::Other(FrameKind::Subscribed)).await;
        for around in [0, 1_000, tag.0.saturating_sub(500), u64::MAX - 1_000] {
            let tags = (around..around + 1_000).map(Tag);
            let results: Vec<ResultItem> = tags
                .map(|tag| ResultItem { tag, result: AttemptResult::Success, retry_after_ms: 0 })
                .collect();
            let mut bytes = Vec::new();
            encode_results(Items::from(&results[..]), &mut bytes).expect("within limits");
            forger.write(&bytes).await;
        }
        forger.write(&frame(&Frame::Detach)).await;
        forger.until(|said| *said == Said::Other(FrameKind::Detached)).await;

        // So it is still the victim's, comes again when it fails, and its old tag is worth nothing then.
        victim.write(&result(tag, AttemptResult::RetryableFailure)).await;
        let (again, attempt) = pushed(&mut victim, "guarded").await;
        assert_eq!(attempt, 2);
        victim.write(&result(tag, AttemptResult::Success)).await;
        victim.write(&result(again, AttemptResult::RetryableFailure)).await;
        let (last, attempt) = pushed(&mut victim, "guarded").await;
        assert_eq!(attempt, 3);
        victim.write(&result(last, AttemptResult::Success)).await;
    });
}

fn frame_of_other_host(subscription: &str) -> Vec<u8> {
    let credit = Credit { tasks: 0, bytes: 0 };
    frame(&Frame::Subscribe(Subscribe { subscription, credit, host: 2, running: Items::from(&[][..]) }))
}

fn result(tag: Tag, result: AttemptResult) -> Vec<u8> {
    let mut bytes = Vec::new();
    let item = ResultItem { tag, result, retry_after_ms: 0 };
    encode_results(Items::from(&[item][..]), &mut bytes).expect("small");
    bytes
}

/// Waits for one push with that event alone.
async fn pushed(stream: &mut Stream, id: &str) -> (Tag, u16) {
    let said = stream.until(|said| matches!(said, Said::Push(_))).await;
    let Said::Push(pushes) = said else { unreachable!("just looked at") };
    let [(tag, attempt, pushed)] = &pushes[..] else { panic!("{pushes:?}") };
    assert_eq!(pushed, id);
    (*tag, *attempt)
}

#[test]
fn credit_beyond_all_measure_is_taken_for_much() {
    beside_a_bystander(async |site| {
        let connection = site.dial().await;
        let mut session = Stream::open(&connection).await;
        session.write(&subscribe("others", u32::MAX)).await;
        session.write(&frame(&Frame::Credit(Credit { tasks: u32::MAX, bytes: u32::MAX }))).await;
        session.until(|said| *said == Said::Other(FrameKind::Subscribed)).await;
        let mut publisher = Stream::open(&connection).await;
        let events: Vec<Vec<u8>> = (0..2_000).map(|n| event(&n.to_string())).collect();
        publisher.write(&publish_batch(site.other, 0, &events)).await;
        let mut arrived = 0;
        while arrived < events.len() {
            let said = session.next().await.expect("the session lasts");
            arrived += if let Said::Push(pushes) = said { pushes.len() } else { 0 };
        }
        assert_eq!(arrived, events.len());
    });
}

#[test]
fn settings_and_names_are_refused_by_the_node_too() {
    beside_a_bystander(async |site| {
        let connection = site.dial().await;
        let mut stream = Stream::open(&connection).await;
        let topic = TopicSettings { name: "no spaces".into(), ..TopicSettings::default() };
        let subscription = SubscriptionSettings {
            name: "s".into(),
            topic: "other".into(),
            max_attempts: 0,
            ..SubscriptionSettings::default()
        };
        for (request, body, wanted, says) in [
            (7, AdminRequest::CreateTopic(topic), ErrorCode::InvalidName, "A-Z a-z 0-9"),
            (
                8,
                AdminRequest::CreateSubscription(subscription),
                ErrorCode::InvalidSettings,
                "max_attempts is 0",
            ),
        ] {
            stream.write(&frame(&Frame::Admin { request, body })).await;
            match stream.next().await {
                Some(Said::Error { request: of, code, message }) => {
                    assert_eq!((of, code), (request, Some(wanted)), "{message}");
                    assert!(message.contains(says), "{message}");
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn connections_by_the_hundred_come_and_go() {
    beside_a_bystander(async |site| {
        for round in 0..12u32 {
            let mut dialling = tokio::task::JoinSet::new();
            for n in 0..25u32 {
                let (endpoint, addr) = (site.endpoint.clone(), site.node.addr());
                dialling.spawn(async move {
                    let connecting = endpoint.connect(addr, "localhost").expect("a usable configuration");
                    if n % 5 == 4 {
                        // Given up in the middle of the handshake.
                        return;
                    }
                    let connection = within("a connection", connecting).await.expect("a connection");
                    let mut stream = Stream::open(&connection).await;
                    stream.write(&hello()).await;
                    assert_eq!(stream.next().await, Some(Said::Other(FrameKind::Welcome)));
                    if n % 2 == 0 {
                        connection.close(round.into(), b"enough");
                    }
                });
            }
            while let Some(ended) = dialling.join_next().await {
                ended.expect("served");
            }
        }
    });
}
