//! Settings of the QUIC server and their translation for quinn-proto.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::congestion::CubicConfig;
use quinn_proto::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

/// Every connection starts with datagrams of at most this many bytes unless configured otherwise: the
/// smallest that QUIC allows, so that any path carries them.
const MTU_MIN: u16 = 1_200;

/// Largest first MTU. Cubic starts with a window of 14,720 bytes and sends nothing that does not fit in it.
const INITIAL_MTU_MAX: u16 = 14_000;

/// Largest UDP payload there is.
const MTU_MAX: u16 = 65_527;

/// Payload that fits Ethernet's 1,500 bytes over IPv4: what is accepted from peers even where less is sent.
const ETHERNET_PAYLOAD_BYTES: u16 = 1_472;

/// Settings of one core's QUIC server. All of them may change at a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicConfig {
    /// This core, `0..core_count`: the residue of the first byte of every connection id issued here.
    pub core_index: u8,
    /// Cores that share the port, at least 1.
    pub core_count: u8,
    /// Connections held at once, handshakes and closing ones included; more are refused. 16,384.
    ///
    /// Budget about 27 KiB each, plus what the windows below allow.
    pub connections_max: u32,
    /// Half-open handshakes from which on a new client must first prove its address by a stateless retry:
    /// one more round trip for it, no memory here. 256.
    pub handshakes_before_retry: u32,
    /// Half-open handshakes held at once; beyond it first packets are dropped, and clients send them again. 1,024.
    pub handshakes_max: u32,
    /// A handshake that takes longer than this is given up, in ms. 10,000.
    pub handshake_timeout_ms: u32,
    /// A connection without a sign of life for this long is dropped, in ms. 30,000.
    ///
    /// The client keeps a connection alive, never the server: it knows whether it still wants it.
    pub idle_timeout_ms: u32,
    /// Unread bytes a peer may have under way on one stream. 1 MiB and 64 KiB: a largest frame never stalls.
    pub stream_receive_window_bytes: u32,
    /// Unread bytes a peer may have under way on all streams of a connection. 8 MiB.
    pub receive_window_bytes: u32,
    /// Bytes of a connection that were handed to QUIC and are not acknowledged yet. 4 MiB.
    ///
    /// Bounds the throughput of one connection to this per round trip.
    pub send_window_bytes: u32,
    /// Streams a peer may have open at once, 1 to 16. 16.
    ///
    /// quinn-proto keeps a map entry per permitted stream, so a large number costs even where none is open.
    pub bidi_streams_max: u8,
    /// Bytes that wait on one stream because QUIC does not take them yet; a write beyond is refused. 4 MiB.
    pub queued_write_bytes_max: u32,
    /// First datagram size of a connection, in bytes of UDP payload, 1,200 to 14,000. 1,200.
    pub initial_mtu: u16,
    /// Largest datagram size that path discovery probes for, in bytes of UDP payload. 1,452.
    ///
    /// 8,952 suits networks with 9,000-byte frames and loopback. The socket must forbid fragmentation, and its
    /// receive buffers must hold [`QuicConfig::datagram_size_bytes_max`] bytes for each datagram.
    pub mtu_upper_bound: u16,
    /// Round trip assumed until the first is measured, in ms. 100.
    ///
    /// The standard's 333 ms makes a lost first flight cost a second; 100 ms costs a far client a spare resend.
    pub initial_rtt_ms: u16,
    /// Packets of ours that a client may leave unacknowledged, 0 for its own choice, usually 2. 0.
    ///
    /// Only clients with the acknowledgement frequency extension follow it; quinn does. Clients that take many datagrams
    /// at once acknowledge them at once, so asking for fewer gains no processor time that could be measured
    /// (`examples/quic_throughput.rs`), and delays the news of what arrived.
    pub ack_threshold: u8,
}

impl Default for QuicConfig {
    fn default() -> Self {
        QuicConfig {
            core_index: 0,
            core_count: 1,
            connections_max: 16_384,
            handshakes_before_retry: 256,
            handshakes_max: 1_024,
            handshake_timeout_ms: 10_000,
            idle_timeout_ms: 30_000,
            stream_receive_window_bytes: 1_088 * 1024,
            receive_window_bytes: 8 * 1024 * 1024,
            send_window_bytes: 4 * 1024 * 1024,
            bidi_streams_max: 16,
            queued_write_bytes_max: 4 * 1024 * 1024,
            initial_mtu: MTU_MIN,
            mtu_upper_bound: 1_452,
            initial_rtt_ms: 100,
            ack_threshold: 0,
        }
    }
}

/// A setting out of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuicConfigError {
    /// `core_index` is not below `core_count`.
    #[error("core {index} of {count}: the index must be below the count")]
    Core {
        /// The index given.
        index: u8,
        /// The count given.
        count: u8,
    },
    /// `bidi_streams_max` out of range.
    #[error("bidi_streams_max is {0}: set 1 to 16")]
    Streams(u8),
    /// An MTU out of range, or the first one above the bound.
    #[error(
        "initial_mtu is {initial} and mtu_upper_bound {upper_bound}: \
         set 1200 <= initial_mtu <= 14000 and initial_mtu <= mtu_upper_bound <= 65527"
    )]
    Mtu {
        /// The first MTU given.
        initial: u16,
        /// The bound given.
        upper_bound: u16,
    },
    /// A limit or a timeout that must not be zero.
    #[error("{0} is 0: set at least 1")]
    Zero(&'static str),
}

impl QuicConfig {
    /// Largest datagram that a peer may send, in bytes of UDP payload: what a receive buffer must hold.
    #[must_use]
    pub fn datagram_size_bytes_max(&self) -> u16 {
        self.mtu_upper_bound.max(ETHERNET_PAYLOAD_BYTES)
    }

    /// Verifies the ranges.
    ///
    /// # Errors
    /// The first setting out of its range.
    pub fn check(&self) -> Result<(), QuicConfigError> {
        if self.core_index >= self.core_count {
            return Err(QuicConfigError::Core { index: self.core_index, count: self.core_count });
        }
        if !(1..=16).contains(&self.bidi_streams_max) {
            return Err(QuicConfigError::Streams(self.bidi_streams_max));
        }
        if !(MTU_MIN..=INITIAL_MTU_MAX).contains(&self.initial_mtu)
            || !(self.initial_mtu..=MTU_MAX).contains(&self.mtu_upper_bound)
        {
            let (initial, upper_bound) = (self.initial_mtu, self.mtu_upper_bound);
            return Err(QuicConfigError::Mtu { initial, upper_bound });
        }
        let positive = [
            ("connections_max", self.connections_max),
            ("handshakes_max", self.handshakes_max),
            ("handshake_timeout_ms", self.handshake_timeout_ms),
            ("idle_timeout_ms", self.idle_timeout_ms),
            ("stream_receive_window_bytes", self.stream_receive_window_bytes),
            ("receive_window_bytes", self.receive_window_bytes),
            ("send_window_bytes", self.send_window_bytes),
            ("queued_write_bytes_max", self.queued_write_bytes_max),
            ("initial_rtt_ms", u32::from(self.initial_rtt_ms)),
        ];
        match positive.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(QuicConfigError::Zero(name)),
            None => Ok(()),
        }
    }

    /// The transport's settings, shared by all connections of the core.
    ///
    /// Congestion control is cubic: it is what quinn tests most and what shares a path fairly with TCP. Streams of a
    /// connection take turns (`send_fairness`), so that a large answer does not hold up small acknowledgements.
    pub(super) fn transport(&self) -> TransportConfig {
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(u32::from(self.bidi_streams_max)))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(self.idle_timeout_ms))))
            .keep_alive_interval(None)
            .stream_receive_window(VarInt::from_u32(self.stream_receive_window_bytes))
            .receive_window(VarInt::from_u32(self.receive_window_bytes))
            .send_window(u64::from(self.send_window_bytes))
            .send_fairness(true)
            .datagram_receive_buffer_size(None)
            .datagram_send_buffer_size(0)
            .initial_rtt(Duration::from_millis(u64::from(self.initial_rtt_ms)))
            .initial_mtu(self.initial_mtu)
            .mtu_discovery_config(self.mtu_discovery())
            .congestion_controller_factory(Arc::new(CubicConfig::default()));
        if self.ack_threshold > 0 {
            let mut frequency = AckFrequencyConfig::default();
            frequency.ack_eliciting_threshold(VarInt::from_u32(u32::from(self.ack_threshold)));
            transport.ack_frequency_config(Some(frequency));
        }
        transport
    }

    fn mtu_discovery(&self) -> Option<MtuDiscoveryConfig> {
        (self.mtu_upper_bound > self.initial_mtu).then(|| {
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(self.mtu_upper_bound);
            discovery
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_in_range_and_hold_the_largest_frame() {
        let config = QuicConfig::default();
        assert_eq!(config.check(), Ok(()));
        let frame = escapement_protocol::FRAME_SIZE_BYTES_MAX as u32;
        assert!(config.stream_receive_window_bytes > frame && config.queued_write_bytes_max > frame);
        assert_eq!(config.datagram_size_bytes_max(), 1_472);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let base = QuicConfig::default;
        let core = QuicConfig { core_index: 2, core_count: 2, ..base() };
        assert_eq!(core.check(), Err(QuicConfigError::Core { index: 2, count: 2 }));
        let streams = QuicConfig { bidi_streams_max: 17, ..base() };
        assert_eq!(streams.check(), Err(QuicConfigError::Streams(17)));
        for (initial_mtu, mtu_upper_bound) in
            [(1_199, 1_452), (14_001, 20_000), (1_300, 1_299), (1_200, 65_528)]
        {
            let mtu = QuicConfig { initial_mtu, mtu_upper_bound, ..base() };
            assert!(
                matches!(mtu.check(), Err(QuicConfigError::Mtu { .. })),
                "{initial_mtu} {mtu_upper_bound}"
            );
        }
        let zero = QuicConfig { send_window_bytes: 0, ..base() };
        assert_eq!(zero.check(), Err(QuicConfigError::Zero("send_window_bytes")));
    }
}
