//! One connection: quinn-proto's state machine, its streams, and what the server owes it.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use escapement_protocol::MonoNs;
use quinn_proto::{
    Connection, ConnectionError, ConnectionHandle, Dir, Endpoint, Event, ReadError, StreamEvent, StreamId,
    VarInt,
};

use super::event::{
    CloseReason, ConnKey, QuicEvent, QuicStats, ReadOutcome, StreamEnd, StreamKey, WriteError,
};
use super::queue::WriteQueue;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Given up unless complete by the deadline.
    Handshake { deadline: MonoNs },
    /// Announced by `Connected`.
    Open,
    /// Announced by `Closed`, or never complete: lingers for late packets.
    Ended,
}

#[derive(Debug)]
struct Stream {
    id: StreamId,
    /// `Readable` was announced and the stream not read since.
    readable: bool,
    /// The client's end was read.
    received_all: bool,
    /// The client has all of ours.
    sent_all: bool,
    /// QUIC takes no more for now; it will say when it does.
    blocked: bool,
    /// To be finished once the queue is empty.
    finishing: bool,
    /// A write was refused, and `Writable` is owed for it.
    refused: bool,
    queue: WriteQueue,
}

pub(super) struct Live {
    pub(super) key: ConnKey,
    pub(super) quic: Connection,
    phase: Phase,
    streams: Vec<Stream>,
    /// Some stream has bytes or an end that were not offered to QUIC yet.
    unwritten: bool,
    /// Listed for `pump`.
    pub(super) unpolled: bool,
    /// Listed for `poll_transmit`.
    pub(super) dirty: bool,
}

impl Live {
    pub(super) fn new(key: ConnKey, quic: Connection, handshake_deadline: MonoNs) -> Self {
        let phase = Phase::Handshake { deadline: handshake_deadline };
        Live { key, quic, phase, streams: Vec::new(), unwritten: false, unpolled: false, dirty: false }
    }

    /// When the handshake is given up, where it is still under way.
    pub(super) fn handshake_deadline(&self) -> Option<MonoNs> {
        match self.phase {
            Phase::Handshake { deadline } => Some(deadline),
            Phase::Open | Phase::Ended => None,
        }
    }

    fn stream_key(&self, id: StreamId) -> StreamKey {
        StreamKey { conn: self.key, stream: number(id) }
    }

    fn find(&self, stream: u64) -> Option<usize> {
        self.streams.iter().position(|s| number(s.id) == stream)
    }

    /// Exchanges events between QUIC, the endpoint and the application. Returns whether the connection is gone.
    pub(super) fn pump(
        &mut self,
        endpoint: &mut Endpoint,
        events: &mut VecDeque<QuicEvent>,
        stats: &mut QuicStats,
    ) -> bool {
        let handle = ConnectionHandle(self.key.index as usize);
        let mut drained = false;
        loop {
            while let Some(event) = self.quic.poll() {
                self.on_event(event, events, stats);
            }
            let mut answered = false;
            while let Some(event) = self.quic.poll_endpoint_events() {
                drained |= event.is_drained();
                if let Some(answer) = endpoint.handle_event(handle, event) {
                    self.quic.handle_event(answer);
                    answered = true;
                }
            }
            if !answered {
                break;
            }
        }
        if drained {
            self.end(CloseReason::Local, events, stats);
        }
        drained
    }

    fn on_event(&mut self, event: Event, events: &mut VecDeque<QuicEvent>, stats: &mut QuicStats) {
        match event {
            Event::Connected => {
                if matches!(self.phase, Phase::Handshake { .. }) {
                    self.phase = Phase::Open;
                    stats.handshakes -= 1;
                    stats.handshakes_completed += 1;
                    events.push_back(QuicEvent::Connected {
                        conn: self.key,
                        remote: self.quic.remote_address(),
                    });
                }
            }
            Event::ConnectionLost { reason } => self.end(close_reason(reason), events, stats),
            Event::Stream(event) if self.phase == Phase::Open => self.on_stream_event(&event, events),
            Event::Stream(_)
            | Event::HandshakeDataReady
            | Event::DatagramReceived
            | Event::DatagramsUnblocked => {}
        }
    }

    fn on_stream_event(&mut self, event: &StreamEvent, events: &mut VecDeque<QuicEvent>) {
        match *event {
            StreamEvent::Opened { dir } => {
                while let Some(id) = self.quic.streams().accept(dir) {
                    debug_assert_eq!(dir, Dir::Bi, "unidirectional streams are not permitted");
                    self.streams.push(Stream {
                        id,
                        readable: true,
                        received_all: false,
                        sent_all: false,
                        blocked: false,
                        finishing: false,
                        refused: false,
                        queue: WriteQueue::default(),
                    });
                    events.push_back(QuicEvent::StreamOpened(self.stream_key(id)));
                    events.push_back(QuicEvent::Readable(self.stream_key(id)));
                }
            }
            StreamEvent::Readable { id } => {
                let Some(at) = self.find(number(id)) else { return };
                if let Ok(Some(code)) = self.quic.recv_stream(id).received_reset() {
                    self.abandon(at, code);
                    let end = StreamEnd::Reset(code.into_inner());
                    events.push_back(QuicEvent::StreamClosed { key: self.stream_key(id), end });
                } else if !std::mem::replace(&mut self.streams[at].readable, true) {
                    events.push_back(QuicEvent::Readable(self.stream_key(id)));
                }
            }
            StreamEvent::Writable { id } => {
                if let Some(at) = self.find(number(id)) {
                    self.streams[at].blocked = false;
                    self.unwritten = true;
                }
            }
            StreamEvent::Finished { id } => {
                if let Some(at) = self.find(number(id)) {
                    self.streams[at].sent_all = true;
                    self.forget_if_finished(at, events);
                }
            }
            StreamEvent::Stopped { id, error_code } => {
                if let Some(at) = self.find(number(id)) {
                    self.abandon(at, error_code);
                    let end = StreamEnd::Stopped(error_code.into_inner());
                    events.push_back(QuicEvent::StreamClosed { key: self.stream_key(id), end });
                }
            }
            StreamEvent::Available { .. } => {}
        }
    }

    fn forget_if_finished(&mut self, at: usize, events: &mut VecDeque<QuicEvent>) {
        let stream = &self.streams[at];
        if stream.received_all && stream.sent_all {
            let key = self.stream_key(stream.id);
            self.streams.swap_remove(at);
            events.push_back(QuicEvent::StreamClosed { key, end: StreamEnd::Finished });
        }
    }

    /// Gives up both directions of a stream and forgets it.
    fn abandon(&mut self, at: usize, code: VarInt) {
        let stream = self.streams.swap_remove(at);
        // Either half may be over already, which is what is wanted.
        let _ = self.quic.recv_stream(stream.id).stop(code);
        let _ = self.quic.send_stream(stream.id).reset(code);
    }

    /// Marks the connection as over, once.
    fn end(&mut self, reason: CloseReason, events: &mut VecDeque<QuicEvent>, stats: &mut QuicStats) {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Handshake { .. } => {
                stats.handshakes -= 1;
                stats.handshakes_failed += 1;
            }
            Phase::Open => events.push_back(QuicEvent::Closed { conn: self.key, reason }),
            Phase::Ended => return,
        }
        for stream in &mut self.streams {
            stream.queue = WriteQueue::default();
        }
    }

    pub(super) fn close(
        &mut self,
        now: Instant,
        code: u32,
        reason: &[u8],
        events: &mut VecDeque<QuicEvent>,
        stats: &mut QuicStats,
    ) {
        self.quic.close(now, VarInt::from_u32(code), Bytes::copy_from_slice(reason));
        self.streams.clear();
        self.end(CloseReason::Local, events, stats);
    }

    /// Reads in order. The second value says whether a packet is to be sent for it.
    pub(super) fn read(
        &mut self,
        stream: u64,
        budget_bytes: usize,
        mut f: impl FnMut(&[u8]),
        events: &mut VecDeque<QuicEvent>,
    ) -> (ReadOutcome, bool) {
        let Some(at) = self.find(stream) else { return (ReadOutcome::Gone, false) };
        let state = &mut self.streams[at];
        state.readable = false;
        if state.received_all {
            return (ReadOutcome::Finished, false);
        }
        let mut recv = self.quic.recv_stream(state.id);
        let Ok(mut chunks) = recv.read(true) else { return (ReadOutcome::Gone, false) };
        let mut left = budget_bytes;
        let outcome = loop {
            if left == 0 {
                break ReadOutcome::More;
            }
            match chunks.next(left) {
                Ok(Some(chunk)) => {
                    left -= chunk.bytes.len();
                    f(&chunk.bytes);
                }
                Ok(None) => break ReadOutcome::Finished,
                Err(ReadError::Blocked) => break ReadOutcome::Blocked,
                Err(ReadError::Reset(code)) => break ReadOutcome::Reset(code.into_inner()),
            }
        };
        let mut transmit = chunks.finalize().should_transmit();
        match outcome {
            ReadOutcome::Finished => {
                state.received_all = true;
                self.forget_if_finished(at, events);
            }
            ReadOutcome::Reset(code) => {
                self.abandon(at, VarInt::from_u64(code).unwrap_or_default());
                transmit = true;
            }
            ReadOutcome::Blocked | ReadOutcome::More | ReadOutcome::Gone => {}
        }
        (outcome, transmit)
    }

    pub(super) fn write(&mut self, stream: u64, data: Bytes, bound: usize) -> Result<(), WriteError> {
        let at = self.find(stream).filter(|_| self.phase == Phase::Open).ok_or(WriteError::Closed)?;
        let stream = &mut self.streams[at];
        if stream.finishing {
            return Err(WriteError::Closed);
        }
        if data.len() > bound.saturating_sub(stream.queue.len()) {
            stream.refused = true;
            return Err(WriteError::QueueFull { queued_bytes: stream.queue.len() });
        }
        stream.queue.push(data);
        self.unwritten = true;
        Ok(())
    }

    pub(super) fn queued_bytes(&self, stream: u64) -> usize {
        self.find(stream).map_or(0, |at| self.streams[at].queue.len())
    }

    pub(super) fn finish(&mut self, stream: u64) {
        if let Some(at) = self.find(stream) {
            self.streams[at].finishing = true;
            self.unwritten = true;
        }
    }

    pub(super) fn reset(&mut self, stream: u64, code: u32) {
        if let Some(at) = self.find(stream) {
            self.abandon(at, VarInt::from_u32(code));
        }
    }

    /// Offers to QUIC what waits on the streams.
    pub(super) fn flush(&mut self, bound: usize, events: &mut VecDeque<QuicEvent>) {
        if !std::mem::replace(&mut self.unwritten, false) || self.phase != Phase::Open {
            return;
        }
        for stream in &mut self.streams {
            while stream.queue.len() > 0 && !stream.blocked {
                match self.quic.send_stream(stream.id).write_chunks(stream.queue.chunks()) {
                    Ok(written) => stream.queue.taken(written.bytes, written.chunks),
                    Err(quinn_proto::WriteError::Blocked) => stream.blocked = true,
                    // The client stopped the stream: its event is on the way.
                    Err(_) => stream.queue = WriteQueue::default(),
                }
            }
            if stream.refused && stream.queue.len() <= bound / 2 {
                stream.refused = false;
                let key = StreamKey { conn: self.key, stream: number(stream.id) };
                events.push_back(QuicEvent::Writable(key));
            }
            if stream.finishing && stream.queue.len() == 0 {
                // Fails where it was finished before or stopped by the client: nothing is left to do either way.
                let _ = self.quic.send_stream(stream.id).finish();
            }
        }
    }
}

fn number(id: StreamId) -> u64 {
    VarInt::from(id).into_inner()
}

fn close_reason(error: ConnectionError) -> CloseReason {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            CloseReason::Application { code: close.error_code.into_inner(), reason: close.reason }
        }
        ConnectionError::TimedOut => CloseReason::TimedOut,
        ConnectionError::Reset => CloseReason::Reset,
        ConnectionError::LocallyClosed => CloseReason::Local,
        other => CloseReason::Protocol(other.to_string()),
    }
}
