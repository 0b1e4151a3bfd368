//! What QUIC costs per event: processor time of the server, without sockets, system calls or storage.
//!
//! Frames of 64 events of 160 bytes flow one way between the server and a client of the tests' harness, first published
//! (client to server), then pushed (server to client). Run with `--release`.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use escapement_frontend::quic::{QuicConfig, QuicEvent, QuicServer, ReadOutcome, StreamKey};

use net::{App, ClientOptions, Net};

#[allow(dead_code)]
#[path = "../tests/quic/net.rs"]
mod net;

const EVENT_SIZE_BYTES: usize = 160;
const FRAME_SIZE_BYTES: usize = 64 * EVENT_SIZE_BYTES;
const WARM_UP_BYTES: usize = 20_000 * EVENT_SIZE_BYTES;
const MEASURED_BYTES: usize = 1_000_000 * EVENT_SIZE_BYTES;
/// Bytes kept ready to be pushed: more than a turn takes.
const AHEAD_BYTES: usize = 1 << 20;

/// Counts what it reads, and answers each turn's bytes with sixteen of its own; pushes where told to.
struct Sink {
    frame: Bytes,
    stream: Option<StreamKey>,
    read_bytes: usize,
    pushes: bool,
}

impl App for Sink {
    fn event(&mut self, server: &mut QuicServer, event: QuicEvent) {
        match event {
            QuicEvent::StreamOpened(key) => self.stream = Some(key),
            QuicEvent::Readable(key) => {
                let before = self.read_bytes;
                while server.read(key, 1 << 20, |chunk| self.read_bytes += chunk.len()) == ReadOutcome::More {
                }
                if self.read_bytes > before && !self.pushes {
                    server.write(key, Bytes::from_static(&[0; 16])).expect("room");
                }
            }
            _ => {}
        }
    }
}

impl Sink {
    fn push(&self, server: &mut QuicServer) {
        let Some(key) = self.stream.filter(|_| self.pushes) else { return };
        while server.queued_bytes(key) < AHEAD_BYTES {
            server.write(key, self.frame.clone()).expect("room");
        }
    }
}

struct Measured {
    server: Duration,
    all: Duration,
    datagrams: u64,
    mtu: u16,
}

fn measure(mtu: u16, ack_threshold: u8, pushes: bool) -> Measured {
    let config = QuicConfig { mtu_upper_bound: mtu, ack_threshold, ..QuicConfig::default() };
    let mut net = Net::new(config);
    net.delay_ns = 50_000;
    let frame = Bytes::from(vec![7; FRAME_SIZE_BYTES]);
    let mut sink = Sink { frame: frame.clone(), stream: None, read_bytes: 0, pushes };
    let client = net.connect_with(ClientOptions { mtu, ..ClientOptions::new(net.trusted.clone()) });
    assert!(net.run_until(&mut sink, 1_000, |net| net.clients[client].connected), "no handshake");
    let id = net.clients[client].open().expect("a stream");
    net.clients[client].send(id, &b"go"[..], false);

    let (mut received, mut moved) = (0, 0);
    let mut start: Option<(Instant, Duration, u64)> = None;
    let datagrams = |net: &Net| {
        let stats = net.server.stats();
        if pushes { stats.datagrams_sent } else { stats.datagrams_received }
    };
    while moved < WARM_UP_BYTES + MEASURED_BYTES {
        if start.is_none() && moved >= WARM_UP_BYTES {
            start = Some((Instant::now(), net.server_time, datagrams(&net)));
        }
        if pushes {
            let started = Instant::now();
            sink.push(&mut net.server);
            net.server_time += started.elapsed();
        } else {
            let stream = &mut net.clients[client].quic;
            while stream.send_stream(id).write_chunks(&mut [frame.clone()]).is_ok() {}
        }
        net.turn(&mut sink);
        net.now.0 += 50_000;
        let stream = net.clients[client].streams.get_mut(&id).expect("open");
        received += stream.received.len();
        stream.received.clear();
        moved = if pushes { received } else { sink.read_bytes };
    }
    let (began, server, sent) = start.expect("warmed up");
    Measured {
        server: net.server_time - server,
        all: began.elapsed(),
        datagrams: datagrams(&net) - sent,
        mtu: net.server.path(sink.stream.expect("opened").conn).expect("open").mtu,
    }
}

fn main() {
    println!(
        "direction  bound  mtu   ack  server ns/event  both sides and harness ns/event  events/datagram  server ns/datagram"
    );
    for (pushes, name) in [(false, "publish"), (true, "push")] {
        for mtu in [1_452, 8_952] {
            for ack_threshold in [0, 8, 32] {
                let m = measure(mtu, ack_threshold, pushes);
                let events = (MEASURED_BYTES / EVENT_SIZE_BYTES) as f64;
                println!(
                    "{name:<9}  {mtu:<5}  {:<4}  {ack_threshold:<3}  {:>15.0}  {:>31.0}  {:>15.1}  {:>18.0}",
                    m.mtu,
                    m.server.as_nanos() as f64 / events,
                    m.all.as_nanos() as f64 / events,
                    events / m.datagrams as f64,
                    m.server.as_nanos() as f64 / m.datagrams as f64,
                );
            }
        }
    }
}
