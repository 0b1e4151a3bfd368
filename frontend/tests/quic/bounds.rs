//! Many connections, floods, time and movement.

use escapement_frontend::quic::{
    CloseReason, GSO_SIZE_BYTES_MAX, QuicConfig, QuicEvent, ReadOutcome, WriteError,
};

use crate::net::{ClientOptions, Echo, Net};

fn closings(app: &Echo) -> Vec<CloseReason> {
    let closing = |event: &QuicEvent| match event {
        QuicEvent::Closed { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    app.events.iter().filter_map(closing).collect()
}

fn say(net: &mut Net, app: &mut Echo, client: usize, words: &'static [u8]) {
    let id = net.clients[client].open().expect("a stream");
    net.clients[client].send(id, words, true);
    let heard = |net: &Net| net.clients[client].streams[&id].received_all;
    assert!(net.run_until(app, 10_000, heard), "no echo");
    assert_eq!(net.clients[client].streams[&id].received, words);
}

#[test]
fn three_hundred_connections_echo_at_once() {
    let mut net = Net::new(QuicConfig::default());
    let mut app = Echo::default();
    for _ in 0..300 {
        net.connect();
    }
    assert!(net.run_until(&mut app, 30_000, |net| net.clients.iter().all(|c| c.connected)));
    for client in &mut net.clients {
        let id = client.open().expect("a stream");
        client.send(id, vec![id.index() as u8; 5_000], true);
    }
    let done = |net: &Net| net.clients.iter().all(|c| c.streams.values().all(|s| s.received_all));
    assert!(net.run_until(&mut app, 30_000, done));
    assert!(net.clients.iter().all(|c| c.streams.values().all(|s| s.received.len() == 5_000)));
    let stats = net.server.stats();
    assert_eq!((stats.connections, stats.handshakes, stats.handshakes_completed), (300, 0, 300));
    // 300 first packets in one turn: more than the threshold, so some had to prove their address first.
    assert!(stats.retries > 0 && stats.ignored == 0);
}

#[test]
fn under_pressure_clients_prove_their_address_first_and_still_get_in() {
    let config = QuicConfig { handshakes_before_retry: 2, handshakes_max: 5, ..QuicConfig::default() };
    let mut net = Net::new(config);
    let mut app = Echo::default();
    for _ in 0..20 {
        net.connect();
    }
    net.run_until(&mut app, 2, |net| net.server.stats().retries > 0);
    assert_eq!(net.server.stats().handshakes, 2);
    assert_eq!(net.server.stats().retries, 18);
    assert!(net.run_until(&mut app, 30_000, |net| net.server.stats().handshakes_completed == 20));
    let stats = net.server.stats();
    assert!(stats.ignored > 0, "the bound on handshakes was never reached");
    assert_eq!((stats.handshakes, stats.connections), (0, 20));
}

#[test]
fn connections_beyond_the_limit_are_refused_at_once() {
    let mut net = Net::new(QuicConfig { connections_max: 3, ..QuicConfig::default() });
    let mut app = Echo::default();
    for _ in 0..5 {
        net.connect();
    }
    net.run_for(&mut app, 100);
    assert_eq!(net.clients.iter().filter(|c| c.connected).count(), 3);
    let refused = net.clients.iter().filter(|c| c.lost.is_some()).count();
    assert_eq!((refused, net.server.stats().refused), (2, 2));
}

#[test]
fn handshakes_that_stall_are_given_up() {
    let mut net = Net::new(QuicConfig { handshake_timeout_ms: 2_000, ..QuicConfig::default() });
    let mut app = Echo::default();
    net.connect();
    net.turn(&mut app);
    net.now = net.now.plus_ms(1);
    net.turn(&mut app);
    assert_eq!(net.server.stats().handshakes, 1);
    net.clients.clear();
    net.run_for(&mut app, 1_900);
    assert_eq!(net.server.stats().handshakes, 1);
    net.run_for(&mut app, 200);
    assert_eq!(net.server.stats().handshakes, 0);
    net.run_for(&mut app, 10_000);
    let stats = net.server.stats();
    assert_eq!((stats.connections, stats.handshakes_failed), (0, 1));
    assert_eq!((closings(&app), net.server.next_timeout()), (vec![], None));
}

#[test]
fn an_idle_connection_times_out_and_its_keys_die_with_it() {
    let mut net = Net::new(QuicConfig { idle_timeout_ms: 5_000, ..QuicConfig::default() });
    let mut app = Echo::default();
    let client = net.connected(&mut app);
    let id = net.clients[client].open().expect("a stream");
    net.clients[client].send(id, &b"hello"[..], false);
    net.run_for(&mut app, 4_900);
    assert_eq!(closings(&app), []);
    net.run_for(&mut app, 200);
    assert_eq!(closings(&app), [CloseReason::TimedOut]);
    assert_eq!((net.server.stats().connections, net.server.next_timeout()), (0, None));

    let old = app.opened()[0];
    let client = net.connected(&mut app);
    let id = net.clients[client].open().expect("a stream");
    net.clients[client].send(id, &b"hello"[..], false);
    net.run_for(&mut app, 100);
    let new = app.opened()[1];
    assert_eq!((new.conn.index, new.stream), (old.conn.index, old.stream));
    assert_eq!(new.conn.generation, old.conn.generation + 1);
    assert_eq!(net.server.write(old, "to the dead".into()), Err(WriteError::Closed));
    assert_eq!(net.server.read(old, 1, |_| ()), ReadOutcome::Gone);
    net.server.reset(old, 1);
    net.server.finish(old);
    net.server.close(old.conn, 1, b"");
    assert_eq!((net.server.path(old.conn), net.server.queued_bytes(old)), (None, 0));
    say(&mut net, &mut app, client, b"alive");
}

#[test]
fn a_client_that_keeps_alive_is_kept() {
    let mut net = Net::new(QuicConfig { idle_timeout_ms: 5_000, ..QuicConfig::default() });
    let mut app = Echo::default();
    let mut options = ClientOptions::new(net.trusted.clone());
    options.keep_alive = Some(std::time::Duration::from_secs(2));
    let client = net.connect_with(options);
    net.run_for(&mut app, 60_000);
    assert_eq!(closings(&app), []);
    say(&mut net, &mut app, client, b"still here");
}

#[test]
fn a_connection_follows_its_client_to_another_address_and_stays_on_its_core() {
    let config = QuicConfig { core_index: 2, core_count: 3, ..QuicConfig::default() };
    let mut net = Net::new(config);
    let mut app = Echo::default();
    let client = net.connected(&mut app);
    say(&mut net, &mut app, client, b"from home");
    for port in [30_001, 30_002, 30_003] {
        net.clients[client].addr.set_port(port);
        net.clients[client].quic.local_address_changed();
        say(&mut net, &mut app, client, b"from elsewhere");
        net.run_for(&mut app, 500);
        let remote = net.server.path(app.opened()[0].conn).expect("still open").remote;
        assert_eq!(remote.port(), port);
    }
    assert_eq!(net.server.stats().handshakes_begun, 1);
    assert!(net.ids_used.len() >= 4, "the client did not change ids: {}", net.ids_used.len());
    assert!(net.ids_used.iter().all(|id| id[0] % 3 == 2), "an id steers elsewhere: {:?}", net.ids_used);
}

#[test]
fn every_id_in_a_handshake_or_a_retry_steers_to_the_core() {
    for core_index in 0..4 {
        let config =
            QuicConfig { core_index, core_count: 4, handshakes_before_retry: 10, ..QuicConfig::default() };
        let mut net = Net::new(config);
        let mut app = Echo::default();
        for _ in 0..40 {
            net.connect();
        }
        assert!(net.run_until(&mut app, 30_000, |net| net.clients.iter().all(|c| c.connected)));
        net.run_for(&mut app, 100);
        assert!(net.server.stats().retries > 0);
        assert!(net.ids_issued.len() > 10 && net.ids_used.len() >= 40);
        assert!(net.ids_issued.iter().all(|byte| byte % 4 == core_index));
        assert!(net.ids_used.iter().all(|id| id[0] % 4 == core_index));
    }
}

#[test]
fn closing_all_tells_every_client_and_refuses_newcomers() {
    let mut net = Net::new(QuicConfig::default());
    let mut app = Echo::default();
    for _ in 0..10 {
        net.connect();
    }
    assert!(net.run_until(&mut app, 5_000, |net| net.server.stats().handshakes_completed == 10));
    net.server.close_all(31, b"draining");
    assert_eq!(net.server.next_timeout(), Some(net.now), "datagrams wait to be taken");
    let late = net.connect();
    net.run_for(&mut app, 5_000);
    assert_eq!(closings(&app), vec![CloseReason::Local; 10]);
    for client in &net.clients[..late] {
        let lost = client.lost.as_ref().expect("told").to_string();
        assert!(lost.contains("31") || lost.contains("draining"), "{lost}");
    }
    assert!(net.clients[late].lost.is_some() && !net.clients[late].connected);
    assert_eq!((net.server.stats().connections, net.server.next_timeout()), (0, None));
}

#[test]
fn a_restarted_server_resets_the_connections_of_its_former_life() {
    let tls = escapement_frontend::tls::ServerTls::development().expect("a certificate");
    let mut net = Net::with_tls(QuicConfig::default(), &tls);
    let mut app = Echo::default();
    let client = net.connected(&mut app);
    net.run_for(&mut app, 100);
    net.server = Net::with_tls(QuicConfig::default(), &tls).server;
    let id = net.clients[client].open().expect("a stream");
    net.clients[client].send(id, vec![1; 500], false);
    net.run_for(&mut app, 1_000);
    assert_eq!(net.clients[client].lost, Some(quinn_proto::ConnectionError::Reset));
}

#[test]
fn connections_take_turns_and_a_send_stays_within_what_the_kernel_takes() {
    let mut net = Net::new(QuicConfig { mtu_upper_bound: 8_952, ..QuicConfig::default() });
    let mut app = Echo::default();
    for _ in 0..3 {
        let options = ClientOptions { mtu: 8_952, ..ClientOptions::new(net.trusted.clone()) };
        let client = net.connect_with(options);
        assert!(net.run_until(&mut app, 5_000, |net| net.clients[client].connected));
        // Enough to find the path's size and to open the congestion window.
        let id = net.clients[client].open().expect("a stream");
        net.clients[client].send(id, vec![1; 2_000_000], false);
        let heard = |net: &Net| net.clients[client].streams[&id].received.len() == 2_000_000;
        assert!(net.run_until(&mut app, 60_000, heard));
    }
    net.run_for(&mut app, 1_000);
    for key in app.opened() {
        net.server.write(key, vec![2; 1_000_000].into()).expect("room");
    }
    let mut buf = Vec::new();
    let mut ports = Vec::new();
    let mut largest = 0;
    while let Some(transmit) = net.server.poll_transmit(net.now, 64, &mut buf) {
        assert_eq!(transmit.size, buf.len());
        assert!(transmit.segment_size.is_none_or(|size| size <= 8_952));
        largest = largest.max(transmit.size);
        ports.push(transmit.destination.port());
    }
    assert!((40_000..=GSO_SIZE_BYTES_MAX).contains(&largest), "{largest}");
    assert!(ports.len() >= 6, "{ports:?}");
    assert!(ports.windows(3).take(4).all(|w| w[0] != w[1] && w[1] != w[2] && w[0] != w[2]), "{ports:?}");
}

#[test]
fn garbage_is_dropped_without_a_trace() {
    let mut net = Net::new(QuicConfig::default());
    let mut app = Echo::default();
    let client = net.connected(&mut app);
    let before = net.server.stats();
    let remote = "127.0.0.1:9".parse().expect("an address");
    for len in [0_usize, 1, 5, 7, 20, 1_200, 1_500] {
        for first in [0x00, 0x40, 0x80, 0xc0, 0xff] {
            let mut bytes = vec![0x5a; len];
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            net.server.datagram(net.now, remote, None, None, bytes.as_slice().into());
        }
    }
    say(&mut net, &mut app, client, b"unharmed");
    let after = net.server.stats();
    assert_eq!((after.connections, after.handshakes_begun), (before.connections, before.handshakes_begun));
}
