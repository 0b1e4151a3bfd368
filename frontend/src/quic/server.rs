//! The server: connections by slot, what is dirty, and when to look again.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use escapement_protocol::MonoNs;
use quinn_proto::{
    ConnectionHandle, DatagramEvent, EcnCodepoint, Endpoint, EndpointConfig, Incoming, ServerConfig,
    Transmit, crypto,
};

use super::config::{QuicConfig, QuicConfigError};
use super::connection::Live;
use super::event::{ConnKey, PathStats, QuicEvent, QuicStats, ReadOutcome, StreamKey, WriteError};
use super::keys::{QuicClock, QuicKeys, TokenClock};
use super::steering::SteeredIds;
use super::timers::Timers;

/// Most bytes that one [`QuicServer::poll_transmit`] gives: what the kernel takes in one GSO send.
pub const GSO_SIZE_BYTES_MAX: usize = 65_000;

/// Answers without a connection that may wait to be sent. A flood that draws more loses the rest.
const RESPONSES_MAX: usize = 256;

/// Shortest time between two stateless resets. After a restart it decides how soon clients learn that their connection
/// is gone; under a flood of forged packets, how many small answers they draw.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// First packets are decided on at once, so hardly any wait.
const INCOMING_MAX: usize = 64;

#[derive(Default)]
struct Slot {
    generation: u32,
    // Boxed, because a connection is kilobytes and the slots grow.
    live: Option<Box<Live>>,
}

/// The QUIC server of one core. See the [module](super) for the order of calls.
///
/// Every method that takes a time expects it not to decrease. Keys of what is gone are safe to use anywhere:
/// reads answer [`ReadOutcome::Gone`], writes [`WriteError::Closed`], everything else does nothing.
pub struct QuicServer {
    config: QuicConfig,
    clock: QuicClock,
    now: MonoNs,
    endpoint: Endpoint,
    token_clock: Arc<TokenClock>,
    /// By quinn-proto's connection handle.
    slots: Vec<Slot>,
    events: VecDeque<QuicEvent>,
    unpolled: VecDeque<u32>,
    dirty: VecDeque<u32>,
    timers: Timers,
    responses: VecDeque<(Transmit, Vec<u8>)>,
    scratch: Vec<u8>,
    stats: QuicStats,
    closing: bool,
}

impl fmt::Debug for QuicServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicServer")
            .field("config", &self.config)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl QuicServer {
    /// A server without connections.
    ///
    /// `crypto` is [`crate::tls::ServerTls::crypto`], or a deterministic one in simulation. `rng_seed` must be fresh and
    /// secret at every start of a real node: connection ids follow from it. The cores of a node may share it.
    ///
    /// # Errors
    /// A setting out of its range.
    pub fn new(
        config: QuicConfig,
        crypto: Arc<dyn crypto::ServerConfig>,
        keys: &QuicKeys,
        rng_seed: [u8; 32],
        clock: QuicClock,
    ) -> Result<Self, QuicConfigError> {
        config.check()?;
        let token_clock = Arc::new(TokenClock::new(clock));
        let mut server = ServerConfig::new(crypto, Arc::clone(&keys.token));
        server
            .transport_config(Arc::new(config.transport()))
            .migration(true)
            .max_incoming(INCOMING_MAX)
            .time_source(Arc::clone(&token_clock) as Arc<dyn quinn_proto::TimeSource>);
        let mut endpoint = EndpointConfig::new(Arc::clone(&keys.reset));
        let (core_index, core_count) = (config.core_index, config.core_count);
        endpoint
            .min_reset_interval(RESET_INTERVAL)
            .cid_generator(move || Box::new(SteeredIds::new(core_index, core_count, &rng_seed)))
            .max_udp_payload_size(config.datagram_size_bytes_max())
            .expect("the range was checked");
        let mut endpoint_seed = rng_seed;
        endpoint_seed[0] ^= core_index;
        Ok(QuicServer {
            endpoint: Endpoint::new(Arc::new(endpoint), Some(Arc::new(server)), true, Some(endpoint_seed)),
            config,
            clock,
            now: MonoNs::default(),
            token_clock,
            slots: Vec::new(),
            events: VecDeque::new(),
            unpolled: VecDeque::new(),
            dirty: VecDeque::new(),
            timers: Timers::default(),
            responses: VecDeque::new(),
            scratch: Vec::new(),
            stats: QuicStats::default(),
            closing: false,
        })
    }

    /// The settings it runs with.
    #[must_use]
    pub fn config(&self) -> &QuicConfig {
        &self.config
    }

    /// Takes in one datagram. `data` is decrypted in place and kept, in slices, until it is read.
    pub fn datagram(
        &mut self,
        now: MonoNs,
        remote: SocketAddr,
        local_ip: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
        data: BytesMut,
    ) {
        self.advance(now);
        self.stats.datagrams_received += 1;
        self.stats.bytes_received += data.len() as u64;
        self.scratch.clear();
        let at = self.clock.instant(self.now);
        match self.endpoint.handle(at, remote, local_ip, ecn, data, &mut self.scratch) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let index = handle.0 as u32;
                if let Some(live) = self.slots.get_mut(handle.0).and_then(|slot| slot.live.as_mut()) {
                    live.quic.handle_event(event);
                    self.touch(index);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.admit(incoming),
            Some(DatagramEvent::Response(transmit)) => self.respond(transmit),
            None => {}
        }
    }

    /// Accepts, puts off, refuses or drops a client's first packet, by what is held already.
    fn admit(&mut self, incoming: Incoming) {
        if self.closing || self.stats.connections >= self.config.connections_max {
            self.stats.refused += 1;
            let transmit = self.endpoint.refuse(incoming, &mut self.scratch);
            self.respond(transmit);
        } else if self.stats.handshakes >= self.config.handshakes_before_retry
            && !incoming.remote_address_validated()
        {
            self.stats.retries += 1;
            // An address that is not validated may always be asked to retry, so this cannot fail.
            if let Ok(transmit) = self.endpoint.retry(incoming, &mut self.scratch) {
                self.respond(transmit);
            }
        } else if self.stats.handshakes >= self.config.handshakes_max {
            self.stats.ignored += 1;
            self.endpoint.ignore(incoming);
        } else {
            self.accept(incoming);
        }
    }

    fn accept(&mut self, incoming: Incoming) {
        self.stats.handshakes_begun += 1;
        let at = self.clock.instant(self.now);
        match self.endpoint.accept(incoming, at, &mut self.scratch, None) {
            Ok((ConnectionHandle(index), quic)) => {
                if self.slots.len() <= index {
                    self.slots.resize_with(index + 1, Slot::default);
                }
                let slot = &mut self.slots[index];
                let key = ConnKey { index: index as u32, generation: slot.generation };
                let deadline = self.now.plus_ms(u64::from(self.config.handshake_timeout_ms));
                slot.live = Some(Box::new(Live::new(key, quic, deadline)));
                self.stats.connections += 1;
                self.stats.handshakes += 1;
                self.touch(key.index);
            }
            Err(error) => {
                self.stats.handshakes_failed += 1;
                if let Some(transmit) = error.response {
                    self.respond(transmit);
                }
            }
        }
    }

    fn respond(&mut self, transmit: Transmit) {
        if self.responses.len() < RESPONSES_MAX {
            self.responses.push_back((transmit, std::mem::take(&mut self.scratch)));
        } else {
            self.stats.responses_dropped += 1;
        }
    }

    fn advance(&mut self, now: MonoNs) {
        if now > self.now {
            self.now = now;
            self.token_clock.set(now);
        }
    }

    /// Lists a connection for [`QuicServer::poll_event`] and [`QuicServer::poll_transmit`].
    fn touch(&mut self, index: u32) {
        if let Some(live) = &mut self.slots[index as usize].live {
            if !std::mem::replace(&mut live.unpolled, true) {
                self.unpolled.push_back(index);
            }
            if !std::mem::replace(&mut live.dirty, true) {
                self.dirty.push_back(index);
            }
        }
    }

    fn mark_dirty(&mut self, index: u32) {
        if let Some(live) = &mut self.slots[index as usize].live
            && !std::mem::replace(&mut live.dirty, true)
        {
            self.dirty.push_back(index);
        }
    }

    fn live(&self, conn: ConnKey) -> Option<&Live> {
        self.slots.get(conn.index as usize)?.live.as_deref().filter(|live| live.key == conn)
    }

    /// Lets connections whose time has come act.
    pub fn handle_timeouts(&mut self, now: MonoNs) {
        self.advance(now);
        let at = self.clock.instant(self.now);
        while let Some(index) = self.timers.expire(self.now) {
            let Some(live) = &mut self.slots[index as usize].live else { continue };
            if live.handshake_deadline().is_some_and(|deadline| deadline <= self.now) {
                live.close(at, 0, b"handshake timed out", &mut self.events, &mut self.stats);
            } else {
                live.quic.handle_timeout(at);
            }
            self.touch(index);
        }
    }

    /// When to call again even if nothing arrives: at once where events or datagrams wait to be taken.
    #[must_use]
    pub fn next_timeout(&self) -> Option<MonoNs> {
        let waits = !(self.events.is_empty()
            && self.unpolled.is_empty()
            && self.dirty.is_empty()
            && self.responses.is_empty());
        if waits { Some(self.now) } else { self.timers.next() }
    }

    /// The next event. Looks only at connections that something happened to.
    pub fn poll_event(&mut self) -> Option<QuicEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let index = self.unpolled.pop_front()?;
            self.pump(index);
        }
    }

    /// Exchanges a connection's events; removes it where it is gone, and returns false.
    fn pump(&mut self, index: u32) -> bool {
        let slot = &mut self.slots[index as usize];
        let Some(live) = &mut slot.live else { return false };
        live.unpolled = false;
        if !live.pump(&mut self.endpoint, &mut self.events, &mut self.stats) {
            return true;
        }
        slot.live = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.stats.connections -= 1;
        self.timers.set(index, None);
        false
    }

    /// Reads a stream's bytes in order, at most `budget_bytes`, as slices of the datagrams that brought them.
    ///
    /// Bytes read are flow control credit for the client; leave them unread to slow it down.
    pub fn read(&mut self, key: StreamKey, budget_bytes: usize, f: impl FnMut(&[u8])) -> ReadOutcome {
        let Some(live) = live_mut(&mut self.slots, key.conn) else { return ReadOutcome::Gone };
        let (outcome, transmit) = live.read(key.stream, budget_bytes, f, &mut self.events);
        if transmit {
            self.mark_dirty(key.conn.index);
        }
        outcome
    }

    /// Queues bytes on a stream: all of them or none. They leave with the next [`QuicServer::poll_transmit`], in as
    /// few chunks as possible: small ones are merged, large ones are handed on without a copy.
    ///
    /// # Errors
    /// [`WriteError::QueueFull`] where more than `queued_write_bytes_max` would wait; [`WriteError::Closed`].
    pub fn write(&mut self, key: StreamKey, data: Bytes) -> Result<(), WriteError> {
        let bound = self.config.queued_write_bytes_max as usize;
        let live = live_mut(&mut self.slots, key.conn).ok_or(WriteError::Closed)?;
        let result = live.write(key.stream, data, bound);
        match result {
            Ok(()) => self.mark_dirty(key.conn.index),
            Err(WriteError::QueueFull { .. }) => self.stats.writes_refused += 1,
            Err(WriteError::Closed) => {}
        }
        result
    }

    /// Bytes of a stream that QUIC has not taken yet.
    #[must_use]
    pub fn queued_bytes(&self, key: StreamKey) -> usize {
        self.live(key.conn).map_or(0, |live| live.queued_bytes(key.stream))
    }

    /// Ends the sending direction of a stream after what is queued.
    pub fn finish(&mut self, key: StreamKey) {
        if let Some(live) = live_mut(&mut self.slots, key.conn) {
            live.finish(key.stream);
            self.mark_dirty(key.conn.index);
        }
    }

    /// Gives up both directions of a stream at once. Its key is forgotten, and no event follows.
    pub fn reset(&mut self, key: StreamKey, code: u32) {
        if let Some(live) = live_mut(&mut self.slots, key.conn) {
            live.reset(key.stream, code);
            self.mark_dirty(key.conn.index);
        }
    }

    /// Closes a connection. [`QuicEvent::Closed`] follows at once; the slot is free after a few round trips.
    ///
    /// What was written and not acknowledged is lost: finish streams first where it matters.
    pub fn close(&mut self, conn: ConnKey, code: u32, reason: &[u8]) {
        let at = self.clock.instant(self.now);
        if let Some(live) = live_mut(&mut self.slots, conn) {
            live.close(at, code, reason, &mut self.events, &mut self.stats);
            self.touch(conn.index);
        }
    }

    /// Closes every connection, and refuses new ones from now on.
    pub fn close_all(&mut self, code: u32, reason: &[u8]) {
        self.closing = true;
        let keys: Vec<ConnKey> =
            self.slots.iter().filter_map(|slot| slot.live.as_ref().map(|live| live.key)).collect();
        for conn in keys {
            self.close(conn, code, reason);
        }
    }

    /// The next thing to send: `size` bytes in `buf`, whose earlier content is dropped.
    ///
    /// Where `segment_size` is set, `buf` holds up to `max_datagrams` datagrams of that size, the last one maybe shorter,
    /// and at most [`GSO_SIZE_BYTES_MAX`] bytes: one GSO send. Connections take turns, one send each. Whoever has taken
    /// a transmit must send it or drop it: it is not given again.
    pub fn poll_transmit(
        &mut self,
        now: MonoNs,
        max_datagrams: usize,
        buf: &mut Vec<u8>,
    ) -> Option<Transmit> {
        self.advance(now);
        buf.clear();
        let transmit = self.next_response(buf).or_else(|| self.next_transmit(max_datagrams, buf))?;
        let datagrams = transmit.segment_size.map_or(1, |size| transmit.size.div_ceil(size.max(1)));
        self.stats.transmits += 1;
        self.stats.datagrams_sent += datagrams as u64;
        self.stats.bytes_sent += transmit.size as u64;
        Some(transmit)
    }

    fn next_response(&mut self, buf: &mut Vec<u8>) -> Option<Transmit> {
        let (transmit, bytes) = self.responses.pop_front()?;
        buf.extend_from_slice(&bytes);
        Some(transmit)
    }

    fn next_transmit(&mut self, max_datagrams: usize, buf: &mut Vec<u8>) -> Option<Transmit> {
        let at = self.clock.instant(self.now);
        let bound = self.config.queued_write_bytes_max as usize;
        while let Some(index) = self.dirty.pop_front() {
            let unpolled = self.slots[index as usize].live.as_ref().is_some_and(|live| live.unpolled);
            if unpolled && !self.pump(index) {
                continue;
            }
            let Some(live) = &mut self.slots[index as usize].live else { continue };
            live.flush(bound, &mut self.events);
            let fitting = GSO_SIZE_BYTES_MAX / usize::from(live.quic.current_mtu());
            let transmit = live.quic.poll_transmit(at, max_datagrams.min(fitting).max(1), buf);
            if transmit.is_some() {
                self.dirty.push_back(index);
                return transmit;
            }
            live.dirty = false;
            if self.pump(index) {
                self.rearm(index);
            }
        }
        None
    }

    fn rearm(&mut self, index: u32) {
        if let Some(live) = &mut self.slots[index as usize].live {
            let deadline = live.quic.poll_timeout().map(|at| self.clock.mono(at));
            let deadline = [deadline, live.handshake_deadline()].into_iter().flatten().min();
            self.timers.set(index, deadline);
        }
    }

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> QuicStats {
        self.stats
    }

    /// The path of a connection.
    #[must_use]
    pub fn path(&self, conn: ConnKey) -> Option<PathStats> {
        let quic = &self.live(conn)?.quic;
        let path = quic.stats().path;
        Some(PathStats {
            remote: quic.remote_address(),
            rtt_us: u64::try_from(path.rtt.as_micros()).unwrap_or(u64::MAX),
            mtu: path.current_mtu,
            window_bytes: path.cwnd,
            lost_packets: path.lost_packets,
        })
    }
}

fn live_mut(slots: &mut [Slot], conn: ConnKey) -> Option<&mut Live> {
    slots.get_mut(conn.index as usize)?.live.as_deref_mut().filter(|live| live.key == conn)
}
