//! Bytes and streams: what is sent arrives, once, in order, whatever the network does.

use bytes::Bytes;
use escapement_frontend::quic::{
    CloseReason, QuicConfig, QuicEvent, QuicServer, ReadOutcome, StreamEnd, StreamKey, WriteError,
};

use crate::net::{App, Echo, Net};

fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ salt).collect()
}

/// Echoes `len` bytes on each of `streams` streams of one client.
fn echoes(net: &mut Net, streams: usize, len: usize) -> Echo {
    let mut app = Echo::default();
    let client = net.connected(&mut app);
    let mut ids = Vec::new();
    for salt in 0..streams {
        let id = net.clients[client].open().expect("a stream");
        net.clients[client].send(id, pattern(len, salt as u8), true);
        ids.push(id);
    }
    let done = |net: &Net| net.clients[client].streams.values().all(|s| s.received_all);
    assert!(net.run_until(&mut app, 60_000, done), "not everything came back");
    for (salt, id) in ids.iter().enumerate() {
        assert_eq!(net.clients[client].streams[id].received, pattern(len, salt as u8));
    }
    net.run_for(&mut app, 1_000);
    app
}

#[test]
fn sixteen_streams_echo_and_each_ends_exactly_once() {
    let mut net = Net::new(QuicConfig::default());
    let app = echoes(&mut net, 16, 100_000);
    let mut opened = app.opened();
    let mut ended: Vec<StreamKey> = app.ended().iter().map(|(key, _)| *key).collect();
    assert!(app.ended().iter().all(|(_, end)| *end == StreamEnd::Finished));
    opened.sort_unstable();
    ended.sort_unstable();
    assert_eq!((opened.len(), &opened), (16, &ended));
}

#[test]
fn loss_and_reordering_change_nothing_but_the_time() {
    for (seed_delay, loss_permille) in [(1_000_000, 30), (5_000_000, 100)] {
        let mut net = Net::new(QuicConfig::default());
        net.delay_ns = seed_delay;
        net.jitter_ns = 4_000_000;
        net.loss_permille = loss_permille;
        let app = echoes(&mut net, 8, 200_000);
        assert_eq!(app.opened().len(), 8);
        let conn = app.opened()[0].conn;
        assert!(net.server.path(conn).expect("still open").lost_packets > 0, "the network lost nothing");
    }
}

#[test]
fn a_seventeenth_stream_waits_until_others_are_over() {
    let mut net = Net::new(QuicConfig::default());
    let mut app = Echo::default();
    let client = net.connected(&mut app);
    let ids: Vec<_> = (0..16).map(|_| net.clients[client].open().expect("a stream")).collect();
    for id in &ids {
        net.clients[client].send(*id, &b"x"[..], false);
    }
    net.run_for(&mut app, 100);
    assert_eq!(net.clients[client].open(), None);
    assert_eq!(app.opened().len(), 16);
    // quinn-proto gives new credit for more than an eighth of the streams at a time.
    for id in &ids[..3] {
        net.clients[client].send(*id, &b"y"[..], true);
    }
    net.run_for(&mut app, 1_000);
    assert_eq!(app.ended().len(), 3);
    let more = std::iter::from_fn(|| net.clients[client].open()).count();
    assert_eq!(more, 3);
}

#[test]
fn a_stream_for_every_request_never_runs_out_of_credit() {
    let mut net = Net::new(QuicConfig { bidi_streams_max: 2, ..QuicConfig::default() });
    let mut app = Echo::default();
    let client = net.connected(&mut app);
    for round in 0..100 {
        let id = net.clients[client].open().unwrap_or_else(|| panic!("no credit in round {round}"));
        net.clients[client].send(id, &b"request"[..], true);
        assert!(net.run_until(&mut app, 1_000, |net| net.clients[client].streams[&id].received_all));
        net.run_for(&mut app, 100);
    }
    assert_eq!(app.ended().len(), 100);
}

#[test]
fn the_mtu_grows_to_its_bound_and_not_beyond() {
    for bound in [1_200, 1_452, 8_952] {
        let mut net = Net::new(QuicConfig { mtu_upper_bound: bound, ..QuicConfig::default() });
        let mut app = Echo::default();
        let mut options = crate::net::ClientOptions::new(net.trusted.clone());
        options.mtu = bound;
        let client = net.connect_with(options);
        assert!(net.run_until(&mut app, 5_000, |net| net.clients[client].connected));
        net.run_for(&mut app, 2_000);
        let id = net.clients[client].open().expect("a stream");
        net.clients[client].send(id, pattern(200_000, 0), true);
        net.run_for(&mut app, 5_000);
        assert!(net.clients[client].streams[&id].received_all);
        let mtu = net.server.path(app.opened()[0].conn).expect("still open").mtu;
        // Discovery stops searching within 20 bytes of the bound.
        assert!(mtu <= bound && bound - mtu <= 20, "mtu {mtu}, bound {bound}");
        assert!(net.largest_datagram <= usize::from(bound), "{} over {bound}", net.largest_datagram);
    }
}

#[test]
fn a_clients_reset_and_its_stop_each_end_the_stream_with_their_code() {
    let mut net = Net::new(QuicConfig::default());
    let mut app = Echo::default();
    let client = net.connected(&mut app);
    let reset = net.clients[client].open().expect("a stream");
    let stopped = net.clients[client].open().expect("a stream");
    for id in [reset, stopped] {
        net.clients[client].send(id, &b"hello"[..], false);
    }
    net.run_for(&mut app, 100);
    let keys = app.opened();
    net.clients[client].quic.send_stream(reset).reset(7_u32.into()).expect("open");
    net.clients[client].quic.recv_stream(stopped).stop(9_u32.into()).expect("open");
    net.run_for(&mut app, 100);
    let mut ended = app.ended();
    ended.sort_unstable_by_key(|(key, _)| *key);
    assert_eq!(ended, [(keys[0], StreamEnd::Reset(7)), (keys[1], StreamEnd::Stopped(9))]);
    for key in keys {
        assert_eq!(net.server.write(key, Bytes::from_static(b"late")), Err(WriteError::Closed));
        assert_eq!(net.server.read(key, 100, |_| panic!("nothing to read")), ReadOutcome::Gone);
    }
    net.clients[client].read_all();
    assert_eq!(net.clients[client].streams[&reset].reset, Some(7));
    assert_eq!(net.clients[client].streams[&reset].stopped, None);
    assert_eq!(net.clients[client].streams[&stopped].stopped, Some(9));
    assert_eq!(net.clients[client].quic.streams().remote_open_streams(quinn_proto::Dir::Bi), 0);
}

#[test]
fn a_reset_by_the_server_reaches_the_client_and_raises_no_event() {
    let mut net = Net::new(QuicConfig::default());
    let mut app = Echo::default();
    let client = net.connected(&mut app);
    let id = net.clients[client].open().expect("a stream");
    net.clients[client].send(id, &b"hello"[..], false);
    net.run_for(&mut app, 100);
    net.server.reset(app.opened()[0], 5);
    net.run_for(&mut app, 100);
    let stream = &net.clients[client].streams[&id];
    assert_eq!((stream.reset, stream.stopped), (Some(5), Some(5)));
    assert_eq!(app.ended(), []);
}

/// Writes numbered frames to the first stream until refused, and on when there is room.
#[derive(Default)]
struct Pusher {
    stream: Option<StreamKey>,
    written: Vec<u8>,
    refusals: usize,
    resumed: usize,
    total: usize,
}

impl Pusher {
    fn push(&mut self, server: &mut QuicServer) {
        let Some(key) = self.stream else { return };
        while self.written.len() < self.total {
            let frame = pattern(10_000, self.written.len() as u8);
            match server.write(key, Bytes::from(frame.clone())) {
                Ok(()) => self.written.extend_from_slice(&frame),
                Err(WriteError::QueueFull { queued_bytes }) => {
                    assert_eq!(queued_bytes, server.queued_bytes(key));
                    self.refusals += 1;
                    return;
                }
                Err(WriteError::Closed) => panic!("closed"),
            }
        }
    }
}

impl App for Pusher {
    fn event(&mut self, server: &mut QuicServer, event: QuicEvent) {
        match event {
            QuicEvent::StreamOpened(key) => {
                self.stream = Some(key);
                self.push(server);
            }
            QuicEvent::Writable(key) => {
                assert_eq!(Some(key), self.stream);
                self.resumed += 1;
                self.push(server);
            }
            _ => {}
        }
    }
}

#[test]
fn a_client_that_does_not_read_fills_the_queue_to_its_bound_and_not_beyond() {
    let bound = 100_000;
    let mut net = Net::new(QuicConfig { queued_write_bytes_max: bound, ..QuicConfig::default() });
    let mut app = Pusher { total: 3_000_000, ..Pusher::default() };
    let client = net.connected(&mut app);
    net.clients[client].stalled = true;
    let id = net.clients[client].open().expect("a stream");
    net.clients[client].send(id, &b"go"[..], false);
    net.run_for(&mut app, 10_000);
    let key = app.stream.expect("opened");
    assert!(app.refusals > 0 && app.written.len() < app.total);
    let queued = net.server.queued_bytes(key);
    // Woken at half of the bound, so it stays above that once QUIC takes no more.
    assert!(queued <= bound as usize && queued > bound as usize / 2, "{queued} queued");
    assert_eq!(net.server.stats().writes_refused as usize, app.refusals);

    net.clients[client].stalled = false;
    net.clients[client].read_all();
    let total = app.total;
    assert!(net.run_until(&mut app, 60_000, |net| net.clients[client].streams[&id].received.len() == total));
    assert!(net.clients[client].streams[&id].received == app.written, "bytes differ");
    assert!(app.resumed > 0);
    assert_eq!(net.server.queued_bytes(key), 0);
}

/// Writes everything to the first stream, finishes it at once, and tries to write more.
struct Hasty {
    words: Vec<u8>,
}

impl App for Hasty {
    fn event(&mut self, server: &mut QuicServer, event: QuicEvent) {
        if let QuicEvent::StreamOpened(key) = event {
            server.write(key, Bytes::from(self.words.clone())).expect("room");
            server.finish(key);
            assert_eq!(server.write(key, Bytes::from_static(b"more")), Err(WriteError::Closed));
        }
    }
}

#[test]
fn a_stream_finished_with_bytes_still_queued_delivers_them_all_first() {
    let mut net = Net::new(QuicConfig::default());
    let mut app = Hasty { words: pattern(3_000_000, 3) };
    let client = net.connected(&mut app);
    let id = net.clients[client].open().expect("a stream");
    net.clients[client].send(id, &b"go"[..], true);
    assert!(net.run_until(&mut app, 60_000, |net| net.clients[client].streams[&id].received_all));
    assert!(net.clients[client].streams[&id].received == app.words, "bytes differ");
}

/// Reads nothing until told to.
#[derive(Default)]
struct Reluctant {
    readable: Vec<StreamKey>,
}

impl App for Reluctant {
    fn event(&mut self, _: &mut QuicServer, event: QuicEvent) {
        if let QuicEvent::Readable(key) = event {
            self.readable.push(key);
        }
    }
}

#[test]
fn unread_streams_hold_at_most_their_window_and_say_readable_once() {
    let window = 50_000;
    let mut net = Net::new(QuicConfig { stream_receive_window_bytes: window, ..QuicConfig::default() });
    let mut app = Reluctant::default();
    let client = net.connected(&mut app);
    let id = net.clients[client].open().expect("a stream");
    net.clients[client].send(id, pattern(200_000, 1), true);
    net.run_for(&mut app, 1_000);
    assert_eq!(app.readable.len(), 1, "told more than once");
    let key = app.readable[0];

    let mut received = Vec::new();
    assert_eq!(net.server.read(key, 1_000, |b| received.extend_from_slice(b)), ReadOutcome::More);
    assert_eq!(received.len(), 1_000);
    let outcome = net.server.read(key, usize::MAX, |b| received.extend_from_slice(b));
    assert_eq!((outcome, received.len()), (ReadOutcome::Blocked, window as usize));
    let mut last = outcome;
    while last != ReadOutcome::Finished {
        net.run_for(&mut app, 100);
        last = net.server.read(key, usize::MAX, |b| received.extend_from_slice(b));
        assert_ne!(last, ReadOutcome::Gone);
    }
    assert!(received == pattern(200_000, 1), "bytes differ");
}

/// Reads only once the connection is closed.
#[derive(Default)]
struct Posthumous {
    readable: Vec<StreamKey>,
    reason: Option<CloseReason>,
    received: Vec<u8>,
}

impl App for Posthumous {
    fn event(&mut self, server: &mut QuicServer, event: QuicEvent) {
        match event {
            QuicEvent::Readable(key) => self.readable.push(key),
            QuicEvent::Closed { reason, .. } => {
                self.reason = Some(reason);
                for key in &self.readable {
                    let outcome = server.read(*key, usize::MAX, |b| self.received.extend_from_slice(b));
                    assert_eq!(outcome, ReadOutcome::Finished);
                    assert_eq!(server.write(*key, "too late".into()), Err(WriteError::Closed));
                }
            }
            _ => {}
        }
    }
}

#[test]
fn what_a_client_sent_before_it_closed_can_still_be_read() {
    let mut net = Net::new(QuicConfig::default());
    let mut app = Posthumous::default();
    let client = net.connected(&mut app);
    let id = net.clients[client].open().expect("a stream");
    net.clients[client].send(id, &b"last words"[..], true);
    net.turn(&mut app);
    let at = net.instant();
    net.clients[client].quic.close(at, 3_u32.into(), Bytes::from_static(b"bye"));
    net.run_for(&mut app, 10_000);
    assert_eq!(app.received, b"last words");
    let reason = CloseReason::Application { code: 3, reason: Bytes::from_static(b"bye") };
    assert_eq!(app.reason, Some(reason));
    assert_eq!(net.server.stats().connections, 0);
}
