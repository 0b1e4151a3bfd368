//! A server, its clients and the network between them, in one thread and virtual time.
//!
//! Clients are quinn-proto's own, one endpoint each. The network delays every datagram, and may lose or reorder
//! some, all by a seed.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use escapement_frontend::quic::{
    QuicClock, QuicConfig, QuicEvent, QuicKeys, QuicServer, ReadOutcome, StreamEnd, StreamKey, Transmit,
};
use escapement_frontend::tls::{self, ServerTls};
use escapement_protocol::{ALPN, MonoNs, WallMs};
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, Endpoint,
    EndpointConfig, Event, IdleTimeout, MtuDiscoveryConfig, ReadError, StreamEvent, StreamId,
    TransportConfig, VarInt,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// How a client behaves.
pub(crate) struct ClientOptions {
    pub(crate) alpn: Vec<Vec<u8>>,
    pub(crate) trusted: CertificateDer<'static>,
    pub(crate) identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    pub(crate) mtu: u16,
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) stream_receive_window_bytes: u32,
}

impl ClientOptions {
    pub(crate) fn new(trusted: CertificateDer<'static>) -> Self {
        ClientOptions {
            alpn: vec![ALPN.to_vec()],
            trusted,
            identity: None,
            mtu: 1_452,
            keep_alive: None,
            stream_receive_window_bytes: 1 << 20,
        }
    }

    fn transport(&self) -> TransportConfig {
        let mut transport = TransportConfig::default();
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.mtu);
        transport
            .mtu_discovery_config(Some(discovery))
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(30_000))))
            .keep_alive_interval(self.keep_alive)
            .stream_receive_window(VarInt::from_u32(self.stream_receive_window_bytes))
            .initial_rtt(Duration::from_millis(100));
        transport
    }

    fn config(self) -> ClientConfig {
        let transport = Arc::new(self.transport());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.trusted).expect("a certificate");
        let builder = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots);
        let mut tls = match self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                builder.with_client_auth_cert(vec![certificate], key).expect("an identity")
            }
        };
        tls.alpn_protocols = self.alpn;
        let crypto = QuicClientConfig::try_from(tls).expect("a QUIC suite");
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport);
        config
    }
}

/// What a client has of one stream.
#[derive(Default)]
pub(crate) struct ClientStream {
    pub(crate) received: Vec<u8>,
    pub(crate) received_all: bool,
    pub(crate) reset: Option<u64>,
    pub(crate) stopped: Option<u64>,
    unsent: Bytes,
    finish: bool,
}

/// One client: an endpoint with one connection.
pub(crate) struct Client {
    endpoint: Endpoint,
    handle: ConnectionHandle,
    pub(crate) quic: Connection,
    pub(crate) addr: SocketAddr,
    pub(crate) connected: bool,
    pub(crate) lost: Option<ConnectionError>,
    /// Leaves what arrives unread while set.
    pub(crate) stalled: bool,
    pub(crate) streams: BTreeMap<StreamId, ClientStream>,
}

impl Client {
    pub(crate) fn open(&mut self) -> Option<StreamId> {
        let id = self.quic.streams().open(Dir::Bi)?;
        self.streams.insert(id, ClientStream::default());
        Some(id)
    }

    pub(crate) fn send(&mut self, id: StreamId, data: impl Into<Bytes>, finish: bool) {
        let stream = self.streams.get_mut(&id).expect("an open stream");
        assert!(stream.unsent.is_empty(), "one send at a time");
        stream.unsent = data.into();
        stream.finish = finish;
        self.flush(id);
    }

    fn flush(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        while !stream.unsent.is_empty() {
            if self.quic.send_stream(id).write_chunks(std::slice::from_mut(&mut stream.unsent)).is_err() {
                return;
            }
        }
        if std::mem::take(&mut stream.finish) {
            let _ = self.quic.send_stream(id).finish();
        }
    }

    pub(crate) fn read_all(&mut self) {
        let ids: Vec<StreamId> = self.streams.keys().copied().collect();
        for id in ids {
            self.read(id);
        }
    }

    fn read(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let mut recv = self.quic.recv_stream(id);
        let Ok(mut chunks) = recv.read(true) else { return };
        loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => stream.received.extend_from_slice(&chunk.bytes),
                Ok(None) => break stream.received_all = true,
                Err(ReadError::Blocked) => break,
                Err(ReadError::Reset(code)) => break stream.reset = Some(code.into_inner()),
            }
        }
    }

    fn pump(&mut self) {
        loop {
            while let Some(event) = self.quic.poll() {
                match event {
                    Event::Connected => self.connected = true,
                    Event::ConnectionLost { reason } => self.lost = Some(reason),
                    Event::Stream(StreamEvent::Readable { id }) if !self.stalled => self.read(id),
                    Event::Stream(StreamEvent::Writable { id }) => self.flush(id),
                    Event::Stream(StreamEvent::Stopped { id, error_code }) => {
                        self.streams.entry(id).or_default().stopped = Some(error_code.into_inner());
                    }
                    _ => {}
                }
            }
            let mut answered = false;
            while let Some(event) = self.quic.poll_endpoint_events() {
                if let Some(answer) = self.endpoint.handle_event(self.handle, event) {
                    self.quic.handle_event(answer);
                    answered = true;
                }
            }
            if !answered {
                return;
            }
        }
    }
}

/// What the server side does with its events.
pub(crate) trait App {
    fn event(&mut self, server: &mut QuicServer, event: QuicEvent);
}

/// Sends back what it reads, and finishes where the client did. Keeps every other event.
#[derive(Default)]
pub(crate) struct Echo {
    pub(crate) events: Vec<QuicEvent>,
}

impl App for Echo {
    fn event(&mut self, server: &mut QuicServer, event: QuicEvent) {
        let QuicEvent::Readable(key) = event else {
            self.events.push(event);
            return;
        };
        loop {
            let mut bytes = Vec::new();
            let outcome = server.read(key, 64 * 1024, |chunk| bytes.extend_from_slice(chunk));
            if !bytes.is_empty() {
                server.write(key, Bytes::from(bytes)).expect("room for an echo");
            }
            match outcome {
                ReadOutcome::More => {}
                ReadOutcome::Finished => break server.finish(key),
                ReadOutcome::Blocked | ReadOutcome::Reset(_) | ReadOutcome::Gone => break,
            }
        }
    }
}

impl Echo {
    pub(crate) fn opened(&self) -> Vec<StreamKey> {
        let opened = |event: &QuicEvent| match event {
            QuicEvent::StreamOpened(key) => Some(*key),
            _ => None,
        };
        self.events.iter().filter_map(opened).collect()
    }

    pub(crate) fn ended(&self) -> Vec<(StreamKey, StreamEnd)> {
        let ended = |event: &QuicEvent| match event {
            QuicEvent::StreamClosed { key, end } => Some((*key, *end)),
            _ => None,
        };
        self.events.iter().filter_map(ended).collect()
    }
}

struct Packet {
    to_server: bool,
    client: SocketAddr,
    bytes: Vec<u8>,
}

/// A server, its clients and the network.
pub(crate) struct Net {
    pub(crate) server: QuicServer,
    pub(crate) clients: Vec<Client>,
    pub(crate) now: MonoNs,
    pub(crate) trusted: CertificateDer<'static>,
    pub(crate) delay_ns: u64,
    /// Extra delay, uniformly random: reorders.
    pub(crate) jitter_ns: u64,
    pub(crate) loss_permille: u64,
    /// Destination connection ids of short packets sent by clients.
    pub(crate) ids_used: HashSet<Vec<u8>>,
    /// First bytes of the source connection ids in the server's long packets.
    pub(crate) ids_issued: HashSet<u8>,
    pub(crate) largest_datagram: usize,
    /// Time spent in the server, its application included.
    pub(crate) server_time: Duration,
    clock: QuicClock,
    wire: BTreeMap<(MonoNs, u64), Packet>,
    sent: u64,
    random: u64,
    buf: Vec<u8>,
}

pub(crate) const SERVER: &str = "127.0.0.1:4433";

impl Net {
    pub(crate) fn new(config: QuicConfig) -> Self {
        Self::with_tls(config, &ServerTls::development().expect("a certificate"))
    }

    pub(crate) fn with_tls(config: QuicConfig, tls: &ServerTls) -> Self {
        let clock = QuicClock { base: Instant::now(), wall_at_base: WallMs(1_800_000_000_000) };
        let keys = QuicKeys::from_secrets(&[1; 32], &[2; 32]);
        let server = QuicServer::new(config, tls.crypto(), &keys, [3; 32], clock).expect("valid settings");
        Net {
            server,
            clients: Vec::new(),
            now: MonoNs(1_000_000),
            trusted: tls.certificate().clone(),
            delay_ns: 1_000_000,
            jitter_ns: 0,
            loss_permille: 0,
            ids_used: HashSet::new(),
            ids_issued: HashSet::new(),
            largest_datagram: 0,
            server_time: Duration::ZERO,
            clock,
            wire: BTreeMap::new(),
            sent: 0,
            random: 42,
            buf: Vec::new(),
        }
    }

    pub(crate) fn instant(&self) -> Instant {
        self.clock.base + Duration::from_nanos(self.now.0)
    }

    pub(crate) fn connect(&mut self) -> usize {
        self.connect_with(ClientOptions::new(self.trusted.clone()))
    }

    pub(crate) fn connect_with(&mut self, options: ClientOptions) -> usize {
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(options.mtu.max(1_472)).expect("in range");
        let mut endpoint = Endpoint::new(Arc::new(config), None, true, None);
        let remote = SERVER.parse().expect("an address");
        let (handle, quic) =
            endpoint.connect(self.instant(), options.config(), remote, "localhost").expect("a connection");
        let addr = SocketAddr::from(([127, 0, 0, 1], 20_000 + self.clients.len() as u16));
        self.clients.push(Client {
            endpoint,
            handle,
            quic,
            addr,
            connected: false,
            lost: None,
            stalled: false,
            streams: BTreeMap::new(),
        });
        self.clients.len() - 1
    }

    /// A client that completed its handshake.
    pub(crate) fn connected(&mut self, app: &mut impl App) -> usize {
        let client = self.connect();
        assert!(self.run_until(app, 5_000, |net| net.clients[client].connected), "no handshake");
        client
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    fn send(&mut self, to_server: bool, client: SocketAddr, transmit: &Transmit) {
        let segment = transmit.segment_size.unwrap_or(transmit.size);
        let buf = std::mem::take(&mut self.buf);
        for bytes in buf[..transmit.size].chunks(segment) {
            self.observe(to_server, bytes);
            if self.random(1_000) < self.loss_permille {
                continue;
            }
            let jitter = if self.jitter_ns == 0 { 0 } else { self.random(self.jitter_ns) };
            let at = MonoNs(self.now.0 + self.delay_ns + jitter);
            self.sent += 1;
            self.wire.insert((at, self.sent), Packet { to_server, client, bytes: bytes.to_vec() });
        }
        self.buf = buf;
    }

    fn observe(&mut self, to_server: bool, bytes: &[u8]) {
        self.largest_datagram = self.largest_datagram.max(bytes.len());
        let long = bytes[0] & 0x80 != 0;
        if to_server && !long {
            self.ids_used.insert(bytes[1..9].to_vec());
        }
        if !to_server && long {
            let destination = usize::from(bytes[5]);
            assert_eq!(bytes[6 + destination], 8, "ids are 8 bytes long");
            self.ids_issued.insert(bytes[7 + destination]);
        }
    }

    fn deliver(&mut self) {
        let at = self.instant();
        while let Some(entry) = self.wire.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let Packet { to_server, client, bytes } = entry.remove();
            let data = BytesMut::from(bytes.as_slice());
            if to_server {
                let started = Instant::now();
                self.server.datagram(self.now, client, None, None, data);
                self.server_time += started.elapsed();
                continue;
            }
            let Some(client) = self.clients.iter_mut().find(|c| c.addr == client) else { continue };
            let remote = SERVER.parse().expect("an address");
            let event = client.endpoint.handle(at, remote, None, None, data, &mut Vec::new());
            if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
                client.quic.handle_event(event);
            }
        }
    }

    /// One turn of everybody: deliver, time out, answer, send.
    pub(crate) fn turn(&mut self, app: &mut impl App) {
        self.deliver();
        let started = Instant::now();
        self.server.handle_timeouts(self.now);
        while let Some(event) = self.server.poll_event() {
            app.event(&mut self.server, event);
        }
        self.server_time += started.elapsed();
        loop {
            let mut buf = std::mem::take(&mut self.buf);
            let started = Instant::now();
            let transmit = self.server.poll_transmit(self.now, 64, &mut buf);
            self.server_time += started.elapsed();
            self.buf = buf;
            let Some(transmit) = transmit else { break };
            self.send(false, transmit.destination, &transmit);
        }
        let at = self.instant();
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            if client.quic.poll_timeout().is_some_and(|due| due <= at) {
                client.quic.handle_timeout(at);
            }
            client.pump();
            loop {
                self.buf.clear();
                let client = &mut self.clients[index];
                let addr = client.addr;
                let Some(transmit) = client.quic.poll_transmit(at, 10, &mut self.buf) else { break };
                self.send(true, addr, &transmit);
            }
            self.clients[index].pump();
        }
    }

    fn next_moment(&mut self) -> Option<MonoNs> {
        let base = self.clock.base;
        let deadlines = self.clients.iter_mut().filter_map(|client| client.quic.poll_timeout());
        let clients = deadlines.map(|at| MonoNs((at - base).as_nanos() as u64)).min();
        let wire = self.wire.keys().next().map(|(at, _)| *at);
        [clients, wire, self.server.next_timeout()].into_iter().flatten().min()
    }

    /// Runs until `done`, for at most `limit_ms` of virtual time; returns whether it was.
    pub(crate) fn run_until(
        &mut self,
        app: &mut impl App,
        limit_ms: u64,
        done: impl Fn(&Net) -> bool,
    ) -> bool {
        let limit = self.now.plus_ms(limit_ms);
        loop {
            self.turn(app);
            if done(self) {
                return true;
            }
            match self.next_moment() {
                Some(at) if at <= limit => self.now = at.max(self.now),
                _ => {
                    self.now = limit;
                    return false;
                }
            }
        }
    }

    /// Runs for `ms` of virtual time.
    pub(crate) fn run_for(&mut self, app: &mut impl App, ms: u64) {
        self.run_until(app, ms, |_| false);
    }
}
