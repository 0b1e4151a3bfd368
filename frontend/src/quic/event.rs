//! What the server says and answers.

use std::net::SocketAddr;

use bytes::Bytes;

/// A connection, for as long as it lives. A later connection in the same slot has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnKey {
    /// Slot of the connection, dense from 0.
    pub index: u32,
    /// How often the slot was used before.
    pub generation: u32,
}

/// A bidirectional stream opened by a client, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey {
    /// Its connection.
    pub conn: ConnKey,
    /// Its number within the connection, never reused.
    pub stream: u64,
}

/// What happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuicEvent {
    /// The handshake is complete: certificates and application protocol are agreed on.
    Connected {
        /// The connection.
        conn: ConnKey,
        /// Address of the client, which may change later.
        remote: SocketAddr,
    },
    /// A client opened a stream.
    StreamOpened(StreamKey),
    /// Bytes, an end or a reset wait on a stream. Not repeated until the stream was read.
    Readable(StreamKey),
    /// A write was refused before and there is room again: at most half of the bound is queued.
    Writable(StreamKey),
    /// A stream is over and its key forgotten. What was queued on it is dropped, unless it ended by `Finished`.
    StreamClosed {
        /// The stream.
        key: StreamKey,
        /// How it ended.
        end: StreamEnd,
    },
    /// A connection is over, and with it its streams, of which no more is heard.
    ///
    /// Until the slot is used again, bytes that arrived before the end may still be read.
    Closed {
        /// The connection.
        conn: ConnKey,
        /// Why.
        reason: CloseReason,
    },
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// Both directions were finished, and the client has every byte.
    Finished,
    /// The client gave up sending, with its code. The other direction is given up too.
    Reset(u64),
    /// The client does not want more bytes, with its code. The other direction is given up too.
    Stopped(u64),
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// This side closed it.
    Local,
    /// The client's application closed it.
    Application {
        /// The client's code.
        code: u64,
        /// The client's words, not to be trusted to be text.
        reason: Bytes,
    },
    /// No sign of life for the idle timeout.
    TimedOut,
    /// The client lost its state and said so.
    Reset,
    /// A violation of the protocol, found by either side.
    Protocol(String),
}

/// What [`super::QuicServer::read`] ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Everything that is here was read; a [`QuicEvent::Readable`] tells of more.
    Blocked,
    /// The budget is used up. Read again: no event tells of what is already here.
    More,
    /// The client finished sending, and all of it was read.
    Finished,
    /// The client reset the stream. The key is forgotten.
    Reset(u64),
    /// No such stream, any more.
    Gone,
}

/// Why [`super::QuicServer::write`] took nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// More bytes would wait on the stream than allowed; a [`QuicEvent::Writable`] tells of room.
    #[error("{queued_bytes} bytes wait on the stream already")]
    QueueFull {
        /// Bytes that wait.
        queued_bytes: usize,
    },
    /// No such stream, any more; or it was finished.
    #[error("the stream is closed")]
    Closed,
}

/// Counters since the server was made, and gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuicStats {
    /// Gauge: connections held, handshakes and closing ones included.
    pub connections: u32,
    /// Gauge: handshakes under way.
    pub handshakes: u32,
    /// Handshakes begun.
    pub handshakes_begun: u64,
    /// Handshakes completed.
    pub handshakes_completed: u64,
    /// Handshakes that failed or timed out.
    pub handshakes_failed: u64,
    /// Clients asked to prove their address first.
    pub retries: u64,
    /// Clients refused because of `connections_max` or because the server closes.
    pub refused: u64,
    /// First packets dropped because of `handshakes_max`.
    pub ignored: u64,
    /// Datagrams taken in.
    pub datagrams_received: u64,
    /// Their bytes of UDP payload.
    pub bytes_received: u64,
    /// Datagrams given out.
    pub datagrams_sent: u64,
    /// Their bytes of UDP payload.
    pub bytes_sent: u64,
    /// Sends given out: each carries one datagram or, with GSO, many.
    pub transmits: u64,
    /// Answers without a connection (resets, retries, refusals) dropped because too many waited.
    pub responses_dropped: u64,
    /// Writes refused because a stream's queue was full.
    pub writes_refused: u64,
}

/// The path of one connection, now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathStats {
    /// Address of the client.
    pub remote: SocketAddr,
    /// Round trip, smoothed, in microseconds.
    pub rtt_us: u64,
    /// Datagram size in use, in bytes of UDP payload.
    pub mtu: u16,
    /// Congestion window in bytes.
    pub window_bytes: u64,
    /// Packets declared lost.
    pub lost_packets: u64,
}
