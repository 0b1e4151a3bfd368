//! QUIC: quinn-proto's own clients and the node's `QuicServer`s, over datagrams that are lost, doubled, late, out of
//! order, or cut off for a while.
//!
//! Time is simulated, keys and connection ids follow from the seed or have one size only, so that a seed decides
//! everything here, too.

mod client;
mod server;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use escapement_frontend::quic::{QuicClock, QuicKeys};
use escapement_frontend::tls;
use escapement_node::io::core_of_datagram;
use escapement_protocol::{ALPN, WallMs};
use escapement_wal::memory::Rng;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls_pki_types::PrivatePkcs8KeyDer;

use super::bug::Bug;
use super::plan::START_WALL_MS;
use super::world::{Happening, NS_PER_MS, World};
pub(super) use client::{ClientQuic, Outgoing};
pub(super) use server::NodeQuic;

/// Where clients send to. Which core gets a datagram is the steering's business.
const NODE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4433);

/// Port of a client's first path; each change of it counts one up.
const FIRST_PORT: u16 = 1_000;

/// Datagrams that a core's socket holds; more are lost.
const SOCKET_COUNT_MAX: usize = 256;

/// Either side gives a silent connection up after this long.
const IDLE_MS: u32 = 3_000;

/// Ed25519 in PKCS #8, RFC 8410, around any 32 bytes.
const KEY_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// What both sides show one another. The same in every process.
struct Tls {
    server: Arc<QuicServerConfig>,
    client: Arc<QuicClientConfig>,
}

/// Ed25519, whose signatures have one size, and no resumption: what one connection does follows from no other.
fn tls() -> &'static Tls {
    static TLS: OnceLock<Tls> = OnceLock::new();
    TLS.get_or_init(|| {
        let key = PrivatePkcs8KeyDer::from([&KEY_PREFIX[..], &[7; 32]].concat());
        let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ED25519)
            .expect("any 32 bytes are a key");
        let made = rcgen::CertificateParams::new(["node".to_owned()])
            .and_then(|params| params.self_signed(&pair))
            .expect("a certificate");
        let versions = [&rustls::version::TLS13];
        let mut server = rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&versions)
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![made.der().clone()], key.into())
            .expect("the certificate's key");
        server.alpn_protocols = vec![ALPN.to_vec()];
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.der().clone()).expect("a certificate");
        let mut client = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&versions)
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        Tls {
            server: Arc::new(QuicServerConfig::try_from(server).expect("a QUIC suite")),
            client: Arc::new(QuicClientConfig::try_from(client).expect("a QUIC suite")),
        }
    })
}

/// Of one run: quinn-proto's time, and how bad the network is.
pub(super) struct QuicWorld {
    base: Instant,
    /// One in so many datagrams is lost.
    lost_one_in: u64,
    /// One in so many comes twice.
    doubled_one_in: u64,
}

impl QuicWorld {
    pub(super) fn new(rng: &mut Rng) -> QuicWorld {
        let mut pick = |of: [u64; 3]| of[rng.below(3) as usize];
        QuicWorld {
            base: Instant::now(),
            lost_one_in: pick([u64::MAX, 50, 8]),
            doubled_one_in: pick([u64::MAX, 30, 8]),
        }
    }

    fn instant(&self, now_ns: u64) -> Instant {
        self.base + Duration::from_nanos(now_ns)
    }

    fn clock(&self) -> QuicClock {
        QuicClock { base: self.base, wall_at_base: WallMs(START_WALL_MS) }
    }

    fn keys() -> QuicKeys {
        QuicKeys::from_secrets(&[1; 32], &[2; 32])
    }
}

/// A datagram's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ToNode,
    ToClient,
}

fn address(connection: u64, port: u16) -> SocketAddr {
    let [.., a, b, c] = connection.to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, a, b, c)), port)
}

fn connection_at(address: SocketAddr) -> u64 {
    let IpAddr::V4(ip) = address.ip() else { return 0 };
    let [_, a, b, c] = ip.octets();
    u64::from_be_bytes([0, 0, 0, 0, 0, a, b, c])
}

impl World {
    /// Sends what a transmit holds, datagram by datagram, by a network that may do anything with each.
    fn launch(&mut self, way: Way, client: SocketAddr, segment_size: Option<usize>, bytes: &[u8]) {
        let (connection, port) = (connection_at(client), client.port());
        for datagram in bytes.chunks(segment_size.unwrap_or(bytes.len()).max(1)) {
            self.counts.datagrams += 1;
            self.trace.number(self.now_ns);
            self.trace.number(connection << 32 | datagram.len() as u64);
            let Some(quic) = &self.quic else { return };
            let (lost_one_in, doubled_one_in) = (quic.lost_one_in, quic.doubled_one_in);
            let calm = self.is_calm();
            let cut_off = self
                .net
                .connections
                .get(&connection)
                .is_none_or(|connection| connection.cut_off_until_ns > self.now_ns);
            if !calm && (cut_off || self.rng.one_in(lost_one_in)) {
                continue;
            }
            let copies = if !calm && self.rng.one_in(doubled_one_in) { 2 } else { 1 };
            for _ in 0..copies {
                let at_ns = self.now_ns + self.net_delay_ns();
                let bytes = datagram.to_vec();
                self.queue.push(at_ns, Happening::Datagram { way, connection, port, bytes });
            }
        }
    }

    pub(super) fn datagram(&mut self, way: Way, connection: u64, port: u16, bytes: &[u8]) {
        match way {
            Way::ToClient => self.client_datagram(connection, port, bytes),
            Way::ToNode => {
                let Some(node) = &mut self.node else { return };
                let mut core = core_of_datagram(bytes, node.cores.len());
                if self.options.bug == Some(Bug::SteeredAstray) {
                    core = (core + 1) % node.cores.len();
                }
                let Some(quic) = &mut node.cores[core].quic else { return };
                if quic.datagrams.len() < SOCKET_COUNT_MAX {
                    quic.datagrams.push_back((address(connection, port), bytes.to_vec()));
                    self.wake_core(core as u16, 0);
                }
            }
        }
    }

    /// A path fails for a while, or changes.
    pub(super) fn trouble_path(&mut self) {
        let mut open: Vec<u64> = Vec::new();
        open.extend(self.net.connections.iter().filter(|(_, c)| c.client_open).map(|(id, _)| *id));
        if open.is_empty() {
            return;
        }
        let connection = open[self.rng.below(open.len() as u64) as usize];
        if self.rng.one_in(3) {
            return self.change_path(connection);
        }
        let most_ms = [20, 500, 10_000][self.rng.below(3) as usize];
        let until_ns = self.now_ns + self.rng.below(most_ms * NS_PER_MS);
        self.note(format_args!("connection {connection} is cut off until {} ms", until_ns / NS_PER_MS));
        if let Some(connection) = self.net.connections.get_mut(&connection) {
            connection.cut_off_until_ns = until_ns;
        }
    }
}
