//! The socket, QUIC's settings, and which core of the node answers a dial.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use escapement_protocol::steering::{CORE_COUNT_MAX, first_byte_for};
use quinn::congestion::CubicConfig;
use quinn::{
    AckFrequencyConfig, ClientConfig, ConnectionError, ConnectionId, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{ClientError, ConnectOptions, TransportOptions, tls};

/// Length of the initial destination connection id: the longest, since it is also what keeps
/// strangers from guessing it.
const INITIAL_ID_SIZE_BYTES: usize = 20;

/// Largest datagram that may be sent where segmentation is offloaded. quinn hands over up to 10 at once, and
/// together they must fit a UDP payload: Linux refuses more, quinn takes that for a lost probe, and a path that
/// loses every full batch falls back to the smallest datagrams.
const OFFLOADED_MTU_MAX: u16 = 65_487 / 10;

/// A socket and the settings to dial one node from it.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    endpoint: quinn::Endpoint,
    config: ClientConfig,
}

impl Dialer {
    pub(crate) fn new(options: &ConnectOptions) -> Result<Self, ClientError> {
        let mut config = ClientConfig::new(Arc::new(tls::config(options)?));
        config.transport_config(Arc::new(transport(&options.transport)?));
        Ok(Dialer { endpoint: endpoint(options)?, config })
    }

    /// Dials the node; the core, where one is named, by the first byte of the connection id.
    pub(crate) async fn dial(
        &self,
        options: &ConnectOptions,
        core: Option<Core>,
    ) -> Result<quinn::Connection, ClientError> {
        let failed =
            |reason: String, retryable| ClientError::Connect { addr: options.addr, reason, retryable };
        let mut config = self.config.clone();
        if let Some(core) = core {
            config.initial_dst_cid_provider(Arc::new(move || core.connection_id()));
        }
        let connecting = self
            .endpoint
            .connect_with(config, options.addr, &options.server_name)
            .map_err(|error| failed(error.to_string(), false))?;
        match tokio::time::timeout(options.connect_timeout, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            // A refused certificate or protocol will be refused again; a node that is not there may come back.
            Ok(Err(error @ (ConnectionError::TransportError(_) | ConnectionError::VersionMismatch))) => {
                Err(failed(in_words(&error), false))
            }
            Ok(Err(error)) => Err(failed(error.to_string(), true)),
            Err(_) => Err(failed(format!("no answer within {:?}", options.connect_timeout), true)),
        }
    }
}

/// The end of a connection, beginning with a sentence where certificates were the reason.
pub(crate) fn in_words(error: &ConnectionError) -> String {
    let (code, by_node) = match error {
        ConnectionError::TransportError(error) => (u64::from(error.code), false),
        ConnectionError::ConnectionClosed(close) => (u64::from(close.error_code), true),
        _ => return error.to_string(),
    };
    // The alerts of TLS (RFC 8446, section 6.2), which QUIC carries behind an offset (RFC 9001, section 4.8).
    let words = match (code.checked_sub(0x100), by_node) {
        (Some(116), true) => "the node asks for a client certificate, and none was shown",
        (Some(42..=46 | 48 | 49 | 51), true) => {
            "the node does not accept the client certificate that was shown"
        }
        (Some(42), false) => "the node's certificate is not for the name that was dialled",
        (Some(45), false) => "the node's certificate has expired, or is not valid yet",
        (Some(48), false) => {
            "the node's certificate is of no authority that is trusted here; one that the node made itself is trusted by \
             its fingerprint only"
        }
        (Some(49), false) => {
            "the node's certificate has another fingerprint than the one given; without certificate files a node makes \
             a new certificate at each start"
        }
        (Some(43 | 44 | 46 | 51), false) => "the node's certificate cannot be used",
        (Some(120), _) => "the node speaks another protocol",
        _ => return error.to_string(),
    };
    format!("{words} ({error})")
}

/// A core of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Core {
    pub(crate) index: u16,
    pub(crate) count: u16,
}

impl Core {
    /// A random connection id whose first byte, modulo the number of cores, is this core.
    fn connection_id(self) -> ConnectionId {
        let mut bytes = [0; INITIAL_ID_SIZE_BYTES];
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&random().to_le_bytes()[..word.len()]);
        }
        // The node says both numbers, and what it says is no reason to panic.
        let count = usize::from(self.count).clamp(1, CORE_COUNT_MAX);
        bytes[0] = first_byte_for(usize::from(self.index) % count, count, bytes[0]);
        ConnectionId::new(&bytes)
    }
}

/// A number that nobody foresees: each `RandomState` has keys that go back to the operating system's randomness.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

fn endpoint(options: &ConnectOptions) -> Result<quinn::Endpoint, ClientError> {
    let failed = |error| ClientError::Socket(Arc::new(error));
    let any: SocketAddr = match options.addr {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = Socket::new(Domain::for_address(any), Type::DGRAM, Some(Protocol::UDP)).map_err(failed)?;
    // The system's limit may be lower, and then it gives what it has: smaller buffers work, only worse.
    let _ = socket.set_recv_buffer_size(options.transport.socket_buffer_bytes);
    let _ = socket.set_send_buffer_size(options.transport.socket_buffer_bytes);
    socket.bind(&any.into()).map_err(failed)?;
    let mut config = EndpointConfig::default();
    let largest = options.transport.mtu_upper_bound.max(1_472);
    config.max_udp_payload_size(largest).map_err(|error| ClientError::tls("mtu_upper_bound", error))?;
    quinn::Endpoint::new(config, None, socket.into(), Arc::new(quinn::TokioRuntime)).map_err(failed)
}

fn transport(options: &TransportOptions) -> Result<TransportConfig, ClientError> {
    let idle = IdleTimeout::try_from(options.idle_timeout)
        .map_err(|error| ClientError::tls("idle_timeout", error))?;
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(match options.segmentation_offload {
        true => options.mtu_upper_bound.min(OFFLOADED_MTU_MAX),
        false => options.mtu_upper_bound,
    });
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(options.keep_alive))
        .stream_receive_window(VarInt::from_u32(options.stream_receive_window_bytes))
        .receive_window(VarInt::from_u32(options.receive_window_bytes))
        .send_window(options.send_window_bytes)
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery))
        .enable_segmentation_offload(options.segmentation_offload)
        .congestion_controller_factory(Arc::new(CubicConfig::default()));
    if options.ack_threshold > 0 {
        let mut frequency = AckFrequencyConfig::default();
        frequency.ack_eliciting_threshold(VarInt::from_u32(u32::from(options.ack_threshold)));
        transport.ack_frequency_config(Some(frequency));
    }
    Ok(transport)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_id_names_its_core_and_no_numbers_of_a_node_make_it_panic() {
        for (index, count) in [(0, 1), (2, 3), (255, 256)] {
            let id = Core { index, count }.connection_id();
            assert_eq!(u16::from(id[0]) % count, index);
        }
        for (index, count) in [(0, 0), (9, 3), (u16::MAX, u16::MAX)] {
            assert_eq!(Core { index, count }.connection_id().len(), INITIAL_ID_SIZE_BYTES);
        }
    }

    #[test]
    fn connection_ids_differ() {
        let core = Core { index: 1, count: 2 };
        assert_ne!(core.connection_id(), core.connection_id());
    }
}
