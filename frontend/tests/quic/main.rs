//! The QUIC server against quinn-proto's client, by hand, in virtual time, without a socket.

mod access;
mod bounds;
mod net;
mod streams;
