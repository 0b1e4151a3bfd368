//! The node's end: a `QuicServer` for each core, driven in the order of `escapement_node`'s own loop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use escapement_frontend::quic::{
    ConnKey, QuicConfig, QuicEvent, QuicServer, ReadOutcome, StreamKey, WriteError,
};
use escapement_protocol::{ErrorCode, Now};

use super::super::net::{connection_of, stream_of};
use super::super::node::{Crash, Inbound, SimCore};
use super::super::world::World;
use super::{IDLE_MS, QuicWorld, Way, connection_at, tls};

/// From one bidirectional stream of a client's to the next, RFC 9000, section 2.1.
const STREAM_ID_STEP: u64 = 4;

/// Bytes read from one stream before the next has its turn.
const READ_SIZE_BYTES: usize = 2_048;

/// See the module's documentation.
#[derive(Debug)]
pub(in super::super) struct NodeQuic {
    pub(super) server: QuicServer,
    /// What the socket holds.
    pub(super) datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    /// The simulator's names of the connections that are established.
    names: BTreeMap<ConnKey, u64>,
    keys: BTreeMap<u64, ConnKey>,
    /// Streams with bytes that were not read yet.
    readable: VecDeque<StreamKey>,
    in_readable: BTreeSet<StreamKey>,
    room_bytes: usize,
}

impl NodeQuic {
    /// When it wants to be looked at again, in ns.
    pub(in super::super) fn next_ns(&self) -> Option<u64> {
        self.server.next_timeout().map(|at| at.0)
    }

    fn key(&self, stream: u64) -> Option<StreamKey> {
        let connection = connection_of(stream);
        let conn = *self.keys.get(&connection)?;
        Some(StreamKey { conn, stream: (stream - stream_of(connection, 0)) * STREAM_ID_STEP })
    }

    /// Whether a stream takes so many bytes now.
    pub(in super::super) fn has_room(&self, stream: u64, bytes: usize) -> bool {
        self.key(stream).is_none_or(|key| {
            let queued = self.server.queued_bytes(key);
            queued == 0 || queued + bytes <= self.room_bytes
        })
    }

    fn note_readable(&mut self, stream: StreamKey) {
        if self.in_readable.insert(stream) {
            self.readable.push_back(stream);
        }
    }
}

impl World {
    pub(in super::super) fn server(&mut self, core: u16) -> Option<Box<NodeQuic>> {
        let quic = self.quic.as_ref()?;
        let mut seed = [0; 32];
        for word in seed.chunks_exact_mut(8) {
            word.copy_from_slice(&self.rng.next_u64().to_le_bytes());
        }
        let config = QuicConfig {
            core_index: core as u8,
            core_count: self.plan.cores as u8,
            idle_timeout_ms: IDLE_MS,
            ..QuicConfig::default()
        };
        let crypto = Arc::clone(&tls().server) as Arc<_>;
        let server = QuicServer::new(config, crypto, &QuicWorld::keys(), seed, quic.clock());
        Some(Box::new(NodeQuic {
            server: server.expect("valid settings"),
            datagrams: VecDeque::new(),
            names: BTreeMap::new(),
            keys: BTreeMap::new(),
            readable: VecDeque::new(),
            in_readable: BTreeSet::new(),
            room_bytes: self.plan.room_bytes,
        }))
    }

    /// Takes in the socket's datagrams.
    pub(in super::super) fn take_datagrams(&mut self, state: &mut SimCore, now: Now) -> Result<(), Crash> {
        let Some(quic) = &mut state.quic else { return Ok(()) };
        while let Some((from, bytes)) = quic.datagrams.pop_front() {
            self.point()?;
            quic.server.datagram(now.mono, from, None, None, BytesMut::from(bytes.as_slice()));
        }
        quic.server.handle_timeouts(now.mono);
        Ok(())
    }

    /// Turns what the transport has to say into what the core's streams bring.
    pub(in super::super) fn take_stream_bytes(&mut self, state: &mut SimCore) {
        let SimCore { core, quic: Some(quic), inbound, .. } = state else { return };
        while let Some(event) = quic.server.poll_event() {
            match event {
                QuicEvent::Connected { conn, remote } => {
                    self.counts.connections += 1;
                    let connection = connection_at(remote);
                    quic.names.insert(conn, connection);
                    quic.keys.insert(connection, conn);
                    if let Some(known) = self.net.connections.get_mut(&connection) {
                        known.incarnation = self.incarnation;
                        known.node_open = true;
                    }
                }
                QuicEvent::StreamOpened(stream) | QuicEvent::Readable(stream) => quic.note_readable(stream),
                QuicEvent::Closed { conn, .. } => {
                    if let Some(connection) = quic.names.remove(&conn) {
                        quic.keys.remove(&connection);
                        inbound.push_back(Inbound::Cut { connection });
                    }
                    quic.readable.retain(|stream| stream.conn != conn);
                    quic.in_readable.retain(|stream| stream.conn != conn);
                }
                QuicEvent::StreamClosed { .. } => {
                    self.judge.breach("a stream ended that nobody has ended".into());
                }
                QuicEvent::Writable(_) => {}
            }
        }
        for _ in 0..quic.readable.len() {
            let Some(key) = quic.readable.pop_front() else { break };
            let Some(connection) = quic.names.get(&key.conn) else { continue };
            let stream = stream_of(*connection, key.stream / STREAM_ID_STEP);
            if !core.may_read(stream) {
                quic.readable.push_back(key);
                continue;
            }
            let Some(known) = self.net.stream_mut(stream) else { continue };
            let outcome = quic.server.read(key, READ_SIZE_BYTES, |bytes| {
                known.read_bytes += bytes.len() as u64;
                let due = known.outgoing.marks.iter().take_while(|(at, _)| *at <= known.read_bytes).count();
                let marks = known.outgoing.marks.drain(..due).map(|(_, mark)| mark).collect();
                inbound.push_back(Inbound::Bytes { stream, bytes: bytes.to_vec(), marks });
            });
            match outcome {
                ReadOutcome::More => quic.readable.push_back(key),
                _ => {
                    quic.in_readable.remove(&key);
                }
            }
        }
    }

    /// Whether streams wait that may be read: the next turn comes at once.
    pub(in super::super) fn has_unread(state: &SimCore) -> bool {
        state.quic.as_ref().is_some_and(|quic| {
            quic.readable.iter().any(|key| {
                let name = quic.names.get(&key.conn);
                name.is_some_and(|connection| {
                    state.core.may_read(stream_of(*connection, key.stream / STREAM_ID_STEP))
                })
            })
        })
    }

    /// Hands a frame to the transport.
    pub(in super::super) fn write_quic(quic: &mut NodeQuic, stream: u64, bytes: Bytes) {
        let Some(key) = quic.key(stream) else { return };
        if let Err(WriteError::QueueFull { .. }) = quic.server.write(key, bytes) {
            quic.server.close(key.conn, u32::from(ErrorCode::TooManyRequests as u16), b"not being read");
        }
    }

    /// Sends what the transport wants sent.
    pub(in super::super) fn transmit(&mut self, state: &mut SimCore, now: Now) {
        let Some(quic) = &mut state.quic else { return };
        let mut bytes = Vec::new();
        while let Some(transmit) = quic.server.poll_transmit(now.mono, 10, &mut bytes) {
            self.launch(Way::ToClient, transmit.destination, transmit.segment_size, &bytes);
        }
    }

    /// The last words of a node that ends in order.
    pub(in super::super) fn close_all(&mut self, state: &mut SimCore, now: Now) {
        if let Some(quic) = &mut state.quic {
            quic.server.close_all(u32::from(ErrorCode::Unavailable as u16), b"the node has stopped");
        }
        self.transmit(state, now);
    }
}
