//! One connection: its greeting, and the stream on which requests are answered.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use escapement_protocol::event::Due;
use escapement_protocol::frame::{
    AdminAnswer, AdminRequest, Cancel, CancelByName, CancelVerdict, EventName, Hello, Items, Query,
    QueryAnswer, Reschedule, RescheduleVerdict, ShardCore, Welcome,
};
use escapement_protocol::{
    Epoch, EventId, Frame, FrameDecoder, FrameError, FrameWriter, PROTOCOL_VERSION, TopicId, WallMs,
};
use hashbrown::HashMap;
use quinn::{RecvStream, SendStream};
use tokio::sync::oneshot;

use crate::{ClientError, ConnectOptions};

/// What the node said of itself when the connection was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// The node's identity: stays over restarts.
    pub node_id: u64,
    /// Rises at every start of the node.
    pub epoch: Epoch,
    /// Number of shards.
    pub shard_count: u16,
    /// Number of cores.
    pub core_count: u16,
    /// Which core owns which shard.
    pub shards: Vec<ShardCore>,
    /// Largest event accepted, in bytes.
    pub event_size_bytes_max: u32,
    /// Largest frame accepted, in bytes.
    pub frame_size_bytes_max: u32,
    /// The node's wall clock then.
    pub wall: WallMs,
}

impl From<&Welcome<'_>> for NodeInfo {
    fn from(welcome: &Welcome<'_>) -> Self {
        NodeInfo {
            node_id: welcome.node_id,
            epoch: welcome.epoch,
            shard_count: welcome.shard_count.max(1),
            core_count: welcome.core_count.max(1),
            shards: welcome.shards.iter().collect(),
            event_size_bytes_max: welcome.event_size_bytes_max,
            frame_size_bytes_max: welcome.frame_size_bytes_max,
            wall: welcome.wall,
        }
    }
}

/// An answer to a request on the control stream.
#[derive(Debug)]
enum Answer {
    Admin(AdminAnswer),
    Cancel(Vec<CancelVerdict>),
    Query(QueryAnswer),
    Reschedule(Vec<RescheduleVerdict>),
}

type Waiting = HashMap<u64, oneshot::Sender<Result<Answer, ClientError>>>;

/// A connection that was greeted.
#[derive(Debug)]
pub(crate) struct Link {
    connection: quinn::Connection,
    info: NodeInfo,
    requests: tokio::sync::Mutex<SendStream>,
    shared: Arc<Shared>,
    next_request: AtomicU64,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    draining: AtomicBool,
}

impl Link {
    /// Greets the node on a new connection.
    pub(crate) async fn open(
        connection: quinn::Connection,
        options: &ConnectOptions,
    ) -> Result<Self, ClientError> {
        let shared = Arc::new(Shared::default());
        let greeting = Self::greet(&connection, options, &shared);
        let (send, recv, decoder, info) = tokio::time::timeout(options.connect_timeout, greeting)
            .await
            .map_err(|_| ClientError::lost("the node did not answer the greeting"))??;
        tokio::spawn(read_answers(recv, decoder, shared.clone()));
        let requests = tokio::sync::Mutex::new(send);
        Ok(Link { connection, info, requests, shared, next_request: AtomicU64::new(1) })
    }

    async fn greet(
        connection: &quinn::Connection,
        options: &ConnectOptions,
        shared: &Shared,
    ) -> Result<(SendStream, RecvStream, FrameDecoder, NodeInfo), ClientError> {
        let (mut send, mut recv) = connection.open_bi().await?;
        let hello = Frame::Hello(Hello { version: PROTOCOL_VERSION, client: &options.client_name });
        send.write_all(&encoded(&hello)?).await?;
        let mut decoder = FrameDecoder::new();
        let mut info = None;
        while info.is_none() {
            let chunk = recv.read_chunk(usize::MAX, true).await?;
            let chunk = chunk.ok_or_else(|| ClientError::lost("the node ended the greeting"))?;
            let mut refused = None;
            decoder.feed(&chunk.bytes, |frame| match frame {
                Frame::Welcome(welcome) if info.is_none() => {
                    info = Some(NodeInfo::from(&welcome));
                    Ok(())
                }
                // In the same packet, such as that the node is draining.
                frame if info.is_some() => take_answer(frame, shared, &mut refused),
                Frame::Error(error) => {
                    refused = Some(refusal(&error));
                    Ok(())
                }
                other => Err(FrameError::misplaced(other.kind(), "a greeting is answered by Welcome")),
            })?;
            if let Some(refused) = refused {
                return Err(refused);
            }
        }
        let info = info.ok_or_else(|| ClientError::lost("the node ended the greeting"))?;
        Ok((send, recv, decoder, info))
    }

    pub(crate) fn info(&self) -> &NodeInfo {
        &self.info
    }

    pub(crate) fn connection(&self) -> &quinn::Connection {
        &self.connection
    }

    /// Whether new streams can be expected to work.
    pub(crate) fn is_usable(&self) -> bool {
        self.connection.close_reason().is_none() && !self.shared.draining.load(Ordering::Relaxed)
    }

    pub(crate) async fn admin(&self, body: AdminRequest) -> Result<AdminAnswer, ClientError> {
        match self.request(|request| encoded(&Frame::Admin { request, body })).await? {
            Answer::Admin(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    pub(crate) async fn query(&self, query: Query) -> Result<QueryAnswer, ClientError> {
        match self.request(|request| encoded(&Frame::Query { request, query })).await? {
            Answer::Query(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    pub(crate) async fn cancel(&self, events: &[EventId]) -> Result<Vec<CancelVerdict>, ClientError> {
        let cancel = |request| encoded(&Frame::Cancel(Cancel { request, events: Items::from(events) }));
        match self.request(cancel).await? {
            Answer::Cancel(verdicts) if verdicts.len() == events.len() => Ok(verdicts),
            _ => Err(unexpected()),
        }
    }

    pub(crate) async fn cancel_by_name(
        &self,
        topic: TopicId,
        names: &[EventName<'_>],
    ) -> Result<Vec<CancelVerdict>, ClientError> {
        let cancel =
            |request| encoded(&Frame::CancelByName(CancelByName { request, topic, names: names.to_vec() }));
        match self.request(cancel).await? {
            Answer::Cancel(verdicts) if verdicts.len() == names.len() => Ok(verdicts),
            _ => Err(unexpected()),
        }
    }

    pub(crate) async fn reschedule(
        &self,
        events: &[EventId],
        due: Due,
        versions: &[u64],
    ) -> Result<Vec<RescheduleVerdict>, ClientError> {
        let reschedule = |request| {
            let (events, versions) = (Items::from(events), Items::from(versions));
            encoded(&Frame::Reschedule(Reschedule { request, events, due, versions }))
        };
        match self.request(reschedule).await? {
            Answer::Reschedule(verdicts) if verdicts.len() == events.len() => Ok(verdicts),
            _ => Err(unexpected()),
        }
    }

    async fn request(
        &self,
        frame: impl FnOnce(u64) -> Result<Vec<u8>, ClientError>,
    ) -> Result<Answer, ClientError> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let bytes = frame(request)?;
        let (answer, answered) = oneshot::channel();
        self.shared.waiting.lock().expect(UNPOISONED).insert(request, answer);
        let written = self.requests.lock().await.write_all(&bytes).await;
        if let Err(error) = written {
            self.shared.waiting.lock().expect(UNPOISONED).remove(&request);
            return Err(error.into());
        }
        answered.await.map_err(|_| ClientError::lost("the connection ended before the answer"))?
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.connection.close(0u32.into(), b"done");
    }
}

/// Nothing in this crate panics while it holds a lock.
pub(crate) const UNPOISONED: &str = "no holder of this lock panics";

pub(crate) fn encoded(frame: &Frame<'_>) -> Result<Vec<u8>, ClientError> {
    let mut bytes = Vec::new();
    FrameWriter::new().write(frame, &mut bytes)?;
    Ok(bytes)
}

pub(crate) fn refusal(error: &escapement_protocol::frame::ErrorFrame<'_>) -> ClientError {
    ClientError::Refused {
        number: error.code,
        retry_after_ms: error.retry_after_ms,
        message: error.message.to_owned(),
    }
}

pub(crate) fn unexpected() -> ClientError {
    ClientError::lost("the node answered something else than was asked")
}

/// Reads the control stream until it ends, and hands each answer to its request.
async fn read_answers(mut recv: RecvStream, mut decoder: FrameDecoder, shared: Arc<Shared>) {
    let outcome = async {
        while let Some(chunk) = recv.read_chunk(usize::MAX, true).await? {
            let mut refused = None;
            decoder.feed(&chunk.bytes, |frame| take_answer(frame, &shared, &mut refused))?;
            if let Some(refused) = refused {
                return Err(refused);
            }
        }
        Err(ClientError::lost("the node ended the connection's first stream"))
    };
    let error = match outcome.await {
        Ok(()) => ClientError::Closed,
        Err(error) => error,
    };
    for (_, waiting) in shared.waiting.lock().expect(UNPOISONED).drain() {
        let _ = waiting.send(Err(error.clone()));
    }
}

fn take_answer(
    frame: Frame<'_>,
    shared: &Shared,
    refused: &mut Option<ClientError>,
) -> Result<(), FrameError> {
    let (request, answer) = match frame {
        Frame::AdminReply { request, body } => (request, Ok(Answer::Admin(body))),
        Frame::RescheduleReply(reply) => {
            (reply.request, Ok(Answer::Reschedule(reply.verdicts.iter().collect())))
        }
        Frame::CancelReply(reply) => (reply.request, Ok(Answer::Cancel(reply.verdicts.iter().collect()))),
        Frame::QueryReply { request, answer } => (request, Ok(Answer::Query(answer))),
        Frame::Error(error) if error.request == 0 => {
            *refused = Some(refusal(&error));
            return Ok(());
        }
        Frame::Error(error) => (error.request, Err(refusal(&error))),
        Frame::GoAway(_) => {
            shared.draining.store(true, Ordering::Relaxed);
            return Ok(());
        }
        other => return Err(FrameError::misplaced(other.kind(), "the first stream carries answers")),
    };
    if let Some(waiting) = shared.waiting.lock().expect(UNPOISONED).remove(&request) {
        // Whoever asked may have stopped waiting.
        let _ = waiting.send(answer);
    }
    Ok(())
}
