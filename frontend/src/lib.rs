//! Everything that turns outside bytes into commands.
//!
//! * [`quic`]: datagrams to stream bytes and back, sans-IO, on quinn-proto;
//! * [`door`]: stream bytes to verified frames, frames to commands, answers to frames;
//! * [`tls`]: certificates and the handshake's rules.
//!
//! Nothing here opens a socket, reads a clock or starts a thread. The core's loop hands datagrams and the
//! time in and takes datagrams out; the simulator does the same.
#![forbid(unsafe_code)]

pub mod door;
pub mod quic;
pub mod tls;
