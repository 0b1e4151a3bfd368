//! A node in a few lines: it speaks the frames, keeps everything in memory, and misbehaves on request.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use escapement_client::{Client, ConnectOptions, Trust};
use escapement_protocol::event::{EventView, padded_len};
use escapement_protocol::frame::{
    AckException, AckRun, AdminAnswer, AdminRequest, Durability, ErrorFrame, GoAway, Items, PublishAck,
    PushBatchWriter, PushItem, ShardCore, Subscribed, SubscriptionInfo, TopicInfo, Welcome,
};
use escapement_protocol::{
    ALPN, AttemptResult, Epoch, ErrorCode, Frame, FrameDecoder, FrameWriter, Sequence, ShardId,
    SubscriptionId, SubscriptionSettings, Tag, TopicId, TopicSettings, WallMs,
};
use quinn::crypto::rustls::QuicServerConfig;
use rustls_pki_types::PrivatePkcs8KeyDer;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

/// What the node is told to do, and what it saw.
#[derive(Default)]
pub(crate) struct Script {
    /// Closes the connection after this many batches, once, before it acknowledges the last of them.
    pub(crate) cut_after_batches: AtomicU64,
    /// Every n-th item is refused; 0: none.
    pub(crate) refuse_every: AtomicU64,
    /// Items of each acknowledgement are split into runs of at most this many; 0: one run.
    pub(crate) runs_of: AtomicU64,
    /// Greets as a node does that is about to stop.
    pub(crate) draining: AtomicBool,
    /// First bytes of the connection ids that clients chose.
    pub(crate) connections: AtomicU64,
    /// Ids of the events that came, in order.
    pub(crate) ids: Mutex<Vec<String>>,
    /// Results by tag, in order.
    pub(crate) results: Mutex<Vec<(u64, AttemptResult)>>,
    /// Tags that sessions said they still work on.
    pub(crate) running: Mutex<Vec<Vec<u64>>>,
    pub(crate) result_came: Notify,
    sequence: AtomicU64,
    /// Events of stored batches, waiting for a session.
    stored: Mutex<Vec<(u64, Vec<u8>)>>,
    stored_more: Notify,
}

pub(crate) struct FakeNode {
    pub(crate) addr: SocketAddr,
    pub(crate) cert_sha256: [u8; 32],
    pub(crate) script: Arc<Script>,
    pub(crate) endpoint: quinn::Endpoint,
}

pub(crate) fn wall() -> WallMs {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970");
    WallMs(since.as_millis() as u64)
}

impl FakeNode {
    pub(crate) fn start() -> Self {
        let issued = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
        let cert = issued.cert.der().clone();
        let cert_sha256 = Sha256::digest(&cert).into();
        let key = PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![cert], key.into())
            .expect("a key that fits");
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicServerConfig::try_from(tls).expect("QUIC's cipher suite");
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let endpoint =
            quinn::Endpoint::server(config, ([127, 0, 0, 1], 0).into()).expect("a socket on the loopback");
        let addr = endpoint.local_addr().expect("bound");
        let script = Arc::new(Script::default());
        tokio::spawn(accept(endpoint.clone(), script.clone()));
        FakeNode { addr, cert_sha256, script, endpoint }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.options()).await.expect("the node answers")
    }

    pub(crate) fn options(&self) -> ConnectOptions {
        ConnectOptions {
            give_up_after: Duration::from_secs(5),
            ..ConnectOptions::new(self.addr, Trust::Pin(self.cert_sha256))
        }
    }
}

async fn accept(endpoint: quinn::Endpoint, script: Arc<Script>) {
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else { continue };
        script.connections.fetch_add(1, Ordering::Relaxed);
        let script = script.clone();
        tokio::spawn(async move {
            while let Ok((send, recv)) = connection.accept_bi().await {
                let stream = Stream {
                    connection: connection.clone(),
                    send: Arc::new(tokio::sync::Mutex::new(send)),
                    script: script.clone(),
                    next_item: 0,
                };
                tokio::spawn(stream.run(recv));
            }
        });
    }
}

struct Stream {
    connection: quinn::Connection,
    send: Arc<tokio::sync::Mutex<quinn::SendStream>>,
    script: Arc<Script>,
    next_item: u64,
}

fn encode(frame: &Frame<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    FrameWriter::new().write(frame, &mut out).expect("a frame of legal length");
    out
}

impl Stream {
    async fn run(mut self, mut recv: quinn::RecvStream) {
        let mut decoder = FrameDecoder::new();
        while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
            let mut out = Vec::new();
            let mut cut = false;
            let mut subscribed = false;
            decoder
                .feed(&chunk.bytes, |frame| {
                    cut = cut || self.take(frame, &mut out, &mut subscribed);
                    Ok(())
                })
                .expect("clients send well-formed frames");
            if cut {
                self.connection.close(9u32.into(), b"as the script says");
                return;
            }
            if self.send.lock().await.write_all(&out).await.is_err() {
                return;
            }
            if subscribed {
                let (connection, send, script) =
                    (self.connection.clone(), self.send.clone(), self.script.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        _ = connection.closed() => {}
                        () = push(send, script) => {}
                    }
                });
            }
        }
    }

    fn take(&mut self, frame: Frame<'_>, out: &mut Vec<u8>, subscribed: &mut bool) -> bool {
        match frame {
            Frame::Hello(_) => {
                out.extend(encode(&welcome()));
                if self.script.draining.load(Ordering::Relaxed) {
                    out.extend(encode(&Frame::GoAway(GoAway { message: "draining" })));
                }
            }
            Frame::Admin { request, body } => out.extend(admin(request, body)),
            Frame::PublishBatch(batch) => return self.publish(&batch, out),
            Frame::Subscribe(subscribe) => {
                self.script
                    .running
                    .lock()
                    .expect("sane")
                    .push(subscribe.running.iter().map(|tag| tag.0).collect());
                if subscribe.subscription == "none" {
                    let (code, message) =
                        (ErrorCode::UnknownSubscription as u16, "there is no subscription none");
                    let error = ErrorFrame { request: 0, code, retry_after_ms: 0, message };
                    out.extend(encode(&Frame::Error(error)));
                    return false;
                }
                let (subscription, epoch) = (SubscriptionId(1), Epoch(1));
                out.extend(encode(&Frame::Subscribed(Subscribed { subscription, session_id: 1, epoch })));
                *subscribed = true;
            }
            Frame::ResultBatch(batch) => {
                let mut results = self.script.results.lock().expect("sane");
                results.extend(batch.results.iter().map(|item| (item.tag.0, item.result)));
                self.script.result_came.notify_waiters();
            }
            Frame::Detach => out.extend(encode(&Frame::Detached)),
            other => panic!("the fake node takes no {:?}", other.kind()),
        }
        false
    }

    fn publish(&mut self, batch: &escapement_protocol::frame::PublishBatch<'_>, out: &mut Vec<u8>) -> bool {
        assert_eq!(batch.first_item, self.next_item, "items are numbered without a gap on each stream");
        let first = self.next_item;
        self.next_item += u64::from(batch.events.count());
        let (every, runs_of) =
            (self.script.refuse_every.load(Ordering::Relaxed), self.script.runs_of.load(Ordering::Relaxed));
        let (mut runs, mut exceptions) = (Vec::<AckRun>::new(), Vec::new());
        let mut stored = Vec::new();
        for (item, bytes) in (first..).zip(batch.events.iter()) {
            let (event, _) = EventView::parse(bytes).expect("clients send well-formed events");
            self.script.ids.lock().expect("sane").push(String::from_utf8_lossy(event.id()).into_owned());
            if every > 0 && item % every == every - 1 {
                let code = ErrorCode::ResourceExhausted as u16;
                exceptions.push(AckException { item, code, retry_after_ms: 7 });
                continue;
            }
            let sequence = self.script.sequence.fetch_add(1, Ordering::Relaxed) + 1;
            match runs.last_mut() {
                Some(run) if runs_of == 0 || u64::from(run.count) < runs_of => run.count += 1,
                _ => runs.push(AckRun {
                    first_sequence: Sequence(sequence),
                    accepted: wall(),
                    count: 1,
                    shard: ShardId(0),
                }),
            }
            stored.push((sequence, bytes.to_vec()));
        }
        let left = &self.script.cut_after_batches;
        if left.load(Ordering::Relaxed) > 0 && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            return true;
        }
        self.script.stored.lock().expect("sane").extend(stored);
        self.script.stored_more.notify_one();
        out.extend(encode(&Frame::PublishAck(PublishAck {
            through_item: self.next_item,
            durability: Durability::LOCAL_DISK,
            runs: Items::from(&runs[..]),
            exceptions: Items::from(&exceptions[..]),
            exhausted: "",
            duplicates: Items::default(),
        })));
        false
    }
}

/// Pushes what is stored, at once, until the stream is gone. The tag is the sequence.
async fn push(send: Arc<tokio::sync::Mutex<quinn::SendStream>>, script: Arc<Script>) {
    loop {
        let stored = std::mem::take(&mut *script.stored.lock().expect("sane"));
        if stored.is_empty() {
            script.stored_more.notified().await;
            continue;
        }
        let mut writer = PushBatchWriter::new();
        let mut out = Vec::new();
        writer.begin(SubscriptionId(1), Epoch(1));
        for (sequence, bytes) in &stored {
            let (event, _) = EventView::parse(bytes).expect("parsed before");
            if !writer.fits(padded_len(bytes.len())) {
                writer.finish(&mut out);
            }
            let item = PushItem {
                tag: Tag(*sequence),
                sequence: Sequence(*sequence),
                schedule_time: event.schedule_time(wall()).expect("not too far"),
                deadline_ms: 30_000,
                topic: TopicId(1),
                shard: ShardId(0),
                attempt: 1,
            };
            writer.push(item, bytes);
        }
        writer.finish(&mut out);
        if send.lock().await.write_all(&out).await.is_err() {
            return;
        }
    }
}

fn welcome() -> Frame<'static> {
    static SHARDS: [ShardCore; 1] = [ShardCore { shard: ShardId(0), core: 0 }];
    Frame::Welcome(Welcome {
        version: escapement_protocol::PROTOCOL_VERSION,
        node_id: 1,
        epoch: Epoch(1),
        shard_count: 1,
        core_count: 1,
        shards: Items::from(&SHARDS[..]),
        event_size_bytes_max: escapement_protocol::EVENT_SIZE_BYTES_MAX as u32,
        frame_size_bytes_max: escapement_protocol::FRAME_SIZE_BYTES_MAX as u32,
        wall: wall(),
    })
}

fn admin(request: u64, body: AdminRequest) -> Vec<u8> {
    let topic =
        |settings: TopicSettings| AdminAnswer::Topic(TopicInfo { topic: TopicId(1), version: 1, settings });
    let subscription = |settings: SubscriptionSettings| {
        let (subscription, topic) = (SubscriptionId(1), TopicId(1));
        AdminAnswer::Subscription(SubscriptionInfo { subscription, topic, version: 1, settings })
    };
    let body = match body {
        AdminRequest::CreateTopic(settings) => topic(settings),
        AdminRequest::CreateSubscription(settings) => subscription(settings),
        AdminRequest::GetTopic { name } if name == "orders" => {
            topic(TopicSettings { name, ..TopicSettings::default() })
        }
        _ => {
            let (code, message) = (ErrorCode::UnknownTopic as u16, "there is no such topic");
            return encode(&Frame::Error(ErrorFrame { request, code, retry_after_ms: 0, message }));
        }
    };
    encode(&Frame::AdminReply { request, body })
}
