//! The QUIC server of one core, sans-IO, on quinn-proto.
//!
//! [`QuicServer`] takes datagrams and the time, and gives stream events, stream bytes and datagrams. A turn
//! of the core drives it in this order:
//!
//! 1. [`QuicServer::handle_timeouts`], then [`QuicServer::datagram`] for everything that the socket holds;
//! 2. [`QuicServer::poll_event`] until it is empty, with [`QuicServer::read`] for streams that are readable;
//! 3. [`QuicServer::write`], [`QuicServer::finish`], [`QuicServer::reset`] as the turn's work asks for;
//! 4. [`QuicServer::poll_transmit`] until it is empty;
//! 5. park no later than [`QuicServer::next_timeout`].
//!
//! Invariants:
//! * only connections that something happened to are looked at: no step scans all of them;
//! * every connection id that is issued steers to this core ([`escapement_protocol::steering`]);
//! * one stream announced by [`QuicEvent::StreamOpened`] ends by exactly one of: [`QuicEvent::StreamClosed`],
//!   [`QuicServer::reset`], or the [`QuicEvent::Closed`] of its connection;
//! * what a peer can make the server hold is bounded: streams, receive windows, half-open handshakes,
//!   connections, and bytes that wait to be written.
//!
//! Left out on purpose: server-opened streams, unidirectional streams, QUIC datagrams, 0-RTT.

mod config;
mod connection;
mod event;
mod keys;
mod queue;
mod server;
mod steering;
mod timers;

pub use config::{QuicConfig, QuicConfigError};
pub use event::{
    CloseReason, ConnKey, PathStats, QuicEvent, QuicStats, ReadOutcome, StreamEnd, StreamKey, WriteError,
};
pub use keys::{QuicClock, QuicKeys, SECRET_SIZE_BYTES};
pub use quinn_proto::{EcnCodepoint, Transmit};
pub use server::{GSO_SIZE_BYTES_MAX, QuicServer};
