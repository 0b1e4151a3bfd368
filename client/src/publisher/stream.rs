//! The task of a lane: writes what is due, reads what is answered, and begins again on another stream.

use std::future::pending;
use std::sync::Arc;

use bytes::Bytes;
use escapement_protocol::{Frame, FrameDecoder, FrameError};
use quinn::{RecvStream, SendStream};
use tokio::time::{Instant, sleep_until};

use super::Lane;
use crate::client::Redial;
use crate::link::refusal;
use crate::{Client, ClientError};

/// Runs a lane until its publisher is gone and everything is answered, or nothing helps any more.
pub(super) async fn run(lane: Arc<Lane>, client: Client) {
    let mut redial = Redial::new(client.options());
    loop {
        let error = match session(&lane, &client, &mut redial).await {
            Ok(()) => ClientError::Closed,
            Err(error) => match redial.wait(error).await {
                Ok(()) => continue,
                Err(error) => error,
            },
        };
        lane.lock().fail(&error);
        lane.answered.notify_waiters();
        return;
    }
}

/// One stream, from its opening to its end: `Ok` where nothing is left to do.
async fn session(lane: &Lane, client: &Client, redial: &mut Redial) -> Result<(), ClientError> {
    if is_done(lane) {
        return Ok(());
    }
    let link = client.core(lane.core).await?;
    let (mut send, mut recv) = link.connection().open_bi().await?;
    *redial = redial.again();
    lane.lock().restart()?;
    let mut decoder = FrameDecoder::new();
    let mut out = Vec::new();
    loop {
        let again = lane.lock().take_due(Instant::now(), &mut out);
        if out.is_empty() && is_done(lane) {
            send.finish().map_err(ClientError::lost)?;
            // Nothing is unanswered, so nothing depends on how the node takes the end.
            let _ = send.stopped().await;
            return Ok(());
        }
        tokio::select! {
            biased;
            answered = read_answers(lane, &mut recv, &mut decoder) => answered?,
            written = write(&mut send, &mut out), if !out.is_empty() => written?,
            () = lane.work.notified(), if out.is_empty() => {}
            () = reached(again), if out.is_empty() => {}
        }
    }
}

fn is_done(lane: &Lane) -> bool {
    let state = lane.lock();
    state.is_closing() && state.is_idle()
}

async fn read_answers(
    lane: &Lane,
    recv: &mut RecvStream,
    decoder: &mut FrameDecoder,
) -> Result<(), ClientError> {
    let chunk = recv.read_chunk(usize::MAX, true).await?;
    let chunk = chunk.ok_or_else(|| ClientError::lost("the node ended the stream"))?;
    let mut refused = None;
    decoder.feed(&chunk.bytes, |frame| match frame {
        Frame::PublishAck(ack) => lane.lock().acknowledge(&ack),
        Frame::Error(error) => {
            refused = Some(refusal(&error));
            Ok(())
        }
        // The connection's first stream says the same, and new streams heed it.
        Frame::GoAway(_) => Ok(()),
        other => Err(FrameError::misplaced(other.kind(), "a publishing stream is answered by PublishAck")),
    })?;
    lane.answered.notify_waiters();
    refused.map_or(Ok(()), Err)
}

async fn write(send: &mut SendStream, out: &mut Vec<Bytes>) -> Result<(), ClientError> {
    let written = send.write_chunks(out).await?;
    out.drain(..written.chunks);
    Ok(())
}

async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
