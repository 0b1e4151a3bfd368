//! A subscriber's session on one stream, and the next one after a lost connection.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use escapement_protocol::frame::{Items, ResultItem, Subscribe, Subscribed, encode_results};
use escapement_protocol::{Epoch, Frame, FrameDecoder, FrameError, Tag};
use quinn::SendStream;

use super::{Outbox, PushHandler, ResultSink, Stop, Subscriber, Watch};
use crate::ClientError;
use crate::client::Redial;
use crate::link::{encoded, refusal};

/// Chunks read at once: a chunk is about what one datagram carries.
const CHUNKS_MAX: usize = 64;

/// Results in one frame: 16 bytes each, well below the largest frame.
const RESULTS_MAX: usize = 32 * 1024;

/// Room for what comes before a frame's results.
const FRAME_HEAD_SIZE_BYTES: usize = 64;

/// How long a subscriber that was stopped waits for the node to have its last results.
const FAREWELL: Duration = Duration::from_secs(2);

/// Runs sessions until one ends because the subscriber was stopped.
pub(super) async fn run(
    mut subscriber: Subscriber,
    outbox: &Arc<Outbox>,
    handler: &mut impl PushHandler,
) -> Result<(), ClientError> {
    let mut redial = Redial::new(subscriber.client.options());
    let mut epoch = None;
    let mut watch = std::mem::take(&mut subscriber.watch);
    loop {
        let mut session = Session {
            outbox,
            handler: &mut *handler,
            epoch: &mut epoch,
            redial: &mut redial,
            watch: &mut watch,
        };
        match session.run(&subscriber).await {
            Ok(()) => return Ok(()),
            Err(_) if subscriber.stop.asked.load(Ordering::Relaxed) => return Ok(()),
            Err(error) => {
                if error.is_retryable() {
                    watch.lost(&error);
                }
                redial.wait(error).await?;
            }
        }
    }
}

struct Session<'a, H> {
    outbox: &'a Arc<Outbox>,
    handler: &'a mut H,
    /// Generation that the running attempts' tags belong to.
    epoch: &'a mut Option<Epoch>,
    redial: &'a mut Redial,
    watch: &'a mut Watch,
}

/// What a session reads and writes by.
#[derive(Default)]
struct Wire {
    decoder: FrameDecoder,
    results: ResultSink,
    out: Vec<Bytes>,
    attached: bool,
    detached: bool,
    refused: Option<ClientError>,
}

impl<H: PushHandler> Session<'_, H> {
    async fn run(&mut self, subscriber: &Subscriber) -> Result<(), ClientError> {
        let link = subscriber.client.home().await?;
        let (mut send, mut recv) = link.connection().open_bi().await?;
        let mut wire = Wire::default();
        let running: Vec<Tag> = self.outbox.running();
        let subscribe = Subscribe {
            subscription: &subscriber.subscription,
            credit: subscriber.credit(),
            host: subscriber.host,
            running: Items::from(&running[..]),
        };
        wire.out.push(encoded(&Frame::Subscribe(subscribe))?.into());
        let mut chunks = vec![Bytes::new(); CHUNKS_MAX];
        let mut detaching = false;
        loop {
            if wire.detached && self.outbox.is_empty() && wire.out.is_empty() {
                return farewell(send).await;
            }
            tokio::select! {
                biased;
                // Results first: they make room for more.
                written = send.write_chunks(&mut wire.out), if !wire.out.is_empty() => {
                    wire.out.drain(..written?.chunks);
                }
                read = recv.read_chunks(&mut chunks) => {
                    let read = read?.ok_or_else(|| ClientError::lost("the node ended the stream"))?;
                    for chunk in &mut chunks[..read] {
                        self.take(&std::mem::take(chunk), &mut wire)?;
                    }
                }
                () = self.outbox.results(), if wire.attached => {}
                () = stopped(&subscriber.stop), if wire.attached && !detaching => {
                    detaching = true;
                    wire.out.push(encoded(&Frame::Detach)?.into());
                }
            }
            if let Some(refused) = wire.refused.take() {
                return Err(refused);
            }
            self.collect_results(&mut wire)?;
        }
    }

    fn take(&mut self, bytes: &[u8], wire: &mut Wire) -> Result<(), FrameError> {
        let Wire { decoder, results, attached, detached, refused, .. } = wire;
        decoder.feed(bytes, |frame| {
            match frame {
                Frame::PushBatch(batch) if *attached => self.handler.pushed(&batch, results),
                Frame::Subscribed(subscribed) if !*attached => {
                    *attached = true;
                    self.attach(&subscribed);
                }
                Frame::Detached => *detached = true,
                Frame::Error(error) => *refused = Some(refusal(&error)),
                // The connection's first stream says the same, and the next session heeds it.
                Frame::GoAway(_) => {}
                other => {
                    return Err(FrameError::misplaced(other.kind(), "a subscriber's stream carries pushes"));
                }
            }
            Ok(())
        })
    }

    fn attach(&mut self, subscribed: &Subscribed) {
        if self.epoch.replace(subscribed.epoch).is_some_and(|before| before != subscribed.epoch) {
            self.outbox.forget();
        }
        *self.redial = self.redial.again();
        self.watch.attached();
        self.handler.attached(subscribed);
    }

    /// Writes all results that there are: those of one pass over the socket travel together.
    fn collect_results(&mut self, wire: &mut Wire) -> Result<(), FrameError> {
        if wire.attached {
            self.outbox.take(&mut wire.results.0);
        }
        let results: &mut Vec<ResultItem> = &mut wire.results.0;
        if results.is_empty() {
            return Ok(());
        }
        self.handler.leaving(results);
        for part in results.chunks(RESULTS_MAX) {
            let mut frame = Vec::with_capacity(FRAME_HEAD_SIZE_BYTES + size_of_val(part));
            encode_results(Items::from(part), &mut frame)?;
            wire.out.push(frame.into());
        }
        results.clear();
        Ok(())
    }
}

async fn stopped(stop: &Stop) {
    while !stop.asked.load(Ordering::Relaxed) {
        stop.wake.notified().await;
    }
}

/// Ends the stream, and waits until the node has what was written.
async fn farewell(mut send: SendStream) -> Result<(), ClientError> {
    send.finish().map_err(ClientError::lost)?;
    // A node that does not answer has the results or sends their tasks again: both are allowed.
    let _ = tokio::time::timeout(FAREWELL, send.stopped()).await;
    Ok(())
}
