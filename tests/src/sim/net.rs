//! Streams below QUIC: bytes in order within a stream, cut anywhere, late; connections that break.

use std::collections::BTreeMap;

use escapement_protocol::FrameDecoder;
use escapement_protocol::frame::ResultItem;
use escapement_protocol::{EventId, Tag};

use super::quic::{ClientQuic, Outgoing};
use super::world::Who;

/// Streams of a connection: its number is above them.
pub(super) const STREAMS_PER_CONNECTION: u64 = 4;

/// What the judge must know once the bytes before it have been read by the node.
#[derive(Clone, Debug)]
pub(super) enum Mark {
    /// A session's first frame.
    Attach { subscriber: usize, running: Vec<Tag> },
    /// Results, each with the epoch of its attempt.
    Results { subscriber: usize, results: Vec<(u32, ResultItem)> },
    /// Cancellations.
    Cancel(Vec<EventId>),
}

/// One end-to-end stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Arrival of the last bytes sent so far, each way.
    pub(super) to_node_ns: u64,
    pub(super) to_client_ns: u64,
    /// Bytes on their way to the client.
    pub(super) to_client_bytes: usize,
    pub(super) opened: bool,
    pub(super) decoder: FrameDecoder,
    /// Since when pushes wait for room.
    pub(super) blocked_since_ns: Option<u64>,
    /// Above QUIC: what the client has queued, and how much of all the node has read.
    pub(super) outgoing: Outgoing,
    pub(super) read_bytes: u64,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) who: Who,
    pub(super) core: u16,
    /// Which start of the node it was made to.
    pub(super) incarnation: u32,
    /// Whether the client still believes in it.
    pub(super) client_open: bool,
    /// Whether the node still does.
    pub(super) node_open: bool,
    pub(super) streams: BTreeMap<u64, Stream>,
    /// The client's end, where it is one of QUIC.
    pub(super) quic: Option<Box<ClientQuic>>,
    /// No datagram comes through until then.
    pub(super) cut_off_until_ns: u64,
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Net {
    pub(super) connections: BTreeMap<u64, Connection>,
    next: u64,
}

impl Net {
    pub(super) fn connect(&mut self, who: Who, core: u16, incarnation: u32) -> u64 {
        self.next += 1;
        let connection = Connection {
            who,
            core,
            incarnation,
            client_open: true,
            node_open: true,
            streams: BTreeMap::new(),
            quic: None,
            cut_off_until_ns: 0,
        };
        self.connections.insert(self.next, connection);
        self.next
    }

    pub(super) fn stream_mut(&mut self, stream: u64) -> Option<&mut Stream> {
        let connection = self.connections.get_mut(&connection_of(stream))?;
        Some(connection.streams.entry(stream).or_default())
    }

    /// Forgets connections that neither side knows any more.
    pub(super) fn forget_dead(&mut self, connection: u64) {
        if self.connections.get(&connection).is_some_and(|c| !c.client_open && !c.node_open) {
            self.connections.remove(&connection);
        }
    }
}

pub(super) fn connection_of(stream: u64) -> u64 {
    stream / STREAMS_PER_CONNECTION
}

/// The stream's number on its connection.
pub(super) fn index_of(stream: u64) -> u64 {
    stream % STREAMS_PER_CONNECTION
}

pub(super) fn stream_of(connection: u64, index: u64) -> u64 {
    connection * STREAMS_PER_CONNECTION + index
}
