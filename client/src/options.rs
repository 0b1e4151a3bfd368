//! How to reach a node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where a node is and how to trust it.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Address of the node.
    pub addr: SocketAddr,
    /// Name that the node's certificate is checked for; unused where the certificate is pinned.
    pub server_name: String,
    /// What makes the node's certificate trusted.
    pub trust: Trust,
    /// What this side presents, where the node asks for it.
    pub identity: Option<Identity>,
    /// What this side calls itself, for people. Nodes do not look at it.
    pub client_name: String,
    /// Transport settings.
    pub transport: TransportOptions,
    /// Longest wait for a handshake.
    pub connect_timeout: Duration,
    /// How long a lost connection is dialled again before what waits for it fails.
    pub give_up_after: Duration,
}

impl ConnectOptions {
    /// A node at `addr` whose certificate is trusted by `trust`, with every other setting at its default.
    #[must_use]
    pub fn new(addr: SocketAddr, trust: Trust) -> Self {
        ConnectOptions {
            addr,
            server_name: "localhost".to_owned(),
            trust,
            identity: None,
            client_name: concat!("escapement-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            transport: TransportOptions::default(),
            connect_timeout: Duration::from_secs(10),
            give_up_after: Duration::from_secs(60),
        }
    }
}

/// What makes a node's certificate trusted.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Its SHA-256 over the DER form is this one. Neither name nor dates are looked at.
    Pin([u8; 32]),
    /// A chain to a certificate in this PEM file, and the right name.
    CaFile(PathBuf),
    /// A chain to a certificate that the operating system's bundle holds, and the right name.
    System,
}

/// Certificate chain and private key of this side, in PEM files.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The chain, own certificate first.
    pub chain: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// QUIC settings, each with the reason for its default.
#[derive(Clone, Debug)]
pub struct TransportOptions {
    /// Largest datagram that path discovery probes for, in bytes of UDP payload, 1,200 to 65,527.
    ///
    /// 1,452 passes every usual network; 8,952 and more suit jumbo frames and loopback. The node has
    /// its own bound, and the smaller one holds for each direction. With `segmentation_offload` this side
    /// sends no datagram above 6,548 bytes, and still receives larger ones.
    pub mtu_upper_bound: u16,
    /// Bytes that the node may have under way on one stream: a window of a whole frame and more.
    pub stream_receive_window_bytes: u32,
    /// Bytes that the node may have under way on the connection. Explicit, since quinn's default has no bound.
    pub receive_window_bytes: u32,
    /// Bytes that this side keeps unacknowledged by QUIC before writes wait.
    pub send_window_bytes: u64,
    /// Size asked of the operating system for the socket's buffers, in bytes.
    pub socket_buffer_bytes: usize,
    /// A sign of life is sent this often when there is nothing else.
    pub keep_alive: Duration,
    /// Silence after which a connection is over.
    pub idle_timeout: Duration,
    /// Packets that the node may leave unacknowledged, 0 for its own choice. More means less work on
    /// both sides and a slower reaction to loss.
    pub ack_threshold: u8,
    /// Whether several datagrams are handed to the operating system in one call. Without it a send
    /// costs about five times as much.
    pub segmentation_offload: bool,
}

impl Default for TransportOptions {
    fn default() -> Self {
        TransportOptions {
            mtu_upper_bound: 1_452,
            stream_receive_window_bytes: 2 * 1024 * 1024,
            receive_window_bytes: 8 * 1024 * 1024,
            send_window_bytes: 8 * 1024 * 1024,
            socket_buffer_bytes: 8 * 1024 * 1024,
            keep_alive: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            ack_threshold: 8,
            segmentation_offload: true,
        }
    }
}
