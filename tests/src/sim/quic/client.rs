//! A client's end of a connection: one endpoint each, as one process has.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use escapement_node::io::first_byte_for;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, ConnectionId, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event, IdleTimeout, StreamEvent, StreamId, TransportConfig, VarInt,
};

use super::super::net::{Mark, connection_of, stream_of};
use super::super::world::{Happening, World};
use super::{FIRST_PORT, IDLE_MS, NODE, Way, address, tls};

/// See the module's documentation.
pub(in super::super) struct ClientQuic {
    endpoint: Endpoint,
    handle: ConnectionHandle,
    quic: Connection,
    port: u16,
    connected: bool,
    /// By index.
    streams: Vec<StreamId>,
    timer_ns: Option<u64>,
}

impl fmt::Debug for ClientQuic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientQuic").field("connected", &self.connected).finish_non_exhaustive()
    }
}

/// Bytes of a stream on their way into QUIC.
#[derive(Debug, Default)]
pub(in super::super) struct Outgoing {
    unsent: VecDeque<Bytes>,
    /// All that was ever queued.
    queued_bytes: u64,
    /// What the judge must know once the node has read so many bytes.
    pub(super) marks: VecDeque<(u64, Mark)>,
}

/// What a connection has to say after something happened to it.
#[derive(Default)]
struct Said {
    datagrams: Vec<(Option<usize>, Vec<u8>)>,
    read: Vec<(u64, Vec<u8>)>,
    lost: bool,
}

impl ClientQuic {
    fn events(&mut self, said: &mut Said) {
        loop {
            while let Some(event) = self.quic.poll() {
                match event {
                    Event::Connected => self.connected = true,
                    Event::ConnectionLost { .. } => said.lost = true,
                    Event::Stream(StreamEvent::Readable { id }) => self.read(id, said),
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

    fn read(&mut self, id: StreamId, said: &mut Said) {
        let mut stream = self.quic.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else { return };
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            said.read.push((id.index(), chunk.bytes.to_vec()));
        }
        let _ = chunks.finalize();
    }

    fn write(&mut self, index: u64, outgoing: &mut Outgoing) {
        while self.streams.len() as u64 <= index {
            let Some(id) = self.quic.streams().open(Dir::Bi) else { return };
            self.streams.push(id);
        }
        let mut stream = self.quic.send_stream(self.streams[index as usize]);
        while let Some(bytes) = outgoing.unsent.front_mut() {
            match stream.write(bytes) {
                Ok(count) => bytes.advance(count),
                Err(_) => return,
            }
            if bytes.is_empty() {
                outgoing.unsent.pop_front();
            }
        }
    }
}

impl World {
    /// Begins a connection, to the core that its first id names.
    pub(in super::super) fn dial(&mut self, connection: u64, core: u16) {
        let Some(quic) = &self.quic else { return };
        let at = quic.instant(self.now_ns);
        let mut seed = [0; 32];
        for word in seed.chunks_exact_mut(8) {
            word.copy_from_slice(&self.rng.next_u64().to_le_bytes());
        }
        let mut first_id = seed[..16].to_vec();
        first_id[0] = first_byte_for(usize::from(core), usize::from(self.plan.cores), seed[16]);
        let mut transport = TransportConfig::default();
        transport
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
            .keep_alive_interval(Some(Duration::from_millis(u64::from(IDLE_MS) / 3)))
            .stream_receive_window(VarInt::from_u32(self.plan.room_bytes.max(4_096) as u32))
            .initial_rtt(Duration::from_millis(100));
        let mut config = ClientConfig::new(Arc::clone(&tls().client) as Arc<_>);
        config.transport_config(Arc::new(transport));
        config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&first_id)));
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, Some(seed));
        let (handle, quic) = endpoint.connect(at, config, NODE, "node").expect("a valid configuration");
        let client = ClientQuic {
            endpoint,
            handle,
            quic,
            port: FIRST_PORT,
            connected: false,
            streams: Vec::new(),
            timer_ns: None,
        };
        if let Some(known) = self.net.connections.get_mut(&connection) {
            known.quic = Some(Box::new(client));
        }
        self.queue.push(self.now_ns, Happening::ClientTimer { connection });
    }

    /// Queues bytes on a stream. They leave when the connection has its turn, at this moment.
    pub(in super::super) fn queue_bytes(&mut self, stream: u64, bytes: &[u8], marks: Vec<Mark>) {
        let Some(known) = self.net.stream_mut(stream) else { return };
        let outgoing = &mut known.outgoing;
        outgoing.queued_bytes += bytes.len() as u64;
        outgoing.unsent.push_back(Bytes::copy_from_slice(bytes));
        outgoing.marks.extend(marks.into_iter().map(|mark| (outgoing.queued_bytes, mark)));
        self.queue.push(self.now_ns, Happening::ClientTimer { connection: connection_of(stream) });
    }

    pub(super) fn client_datagram(&mut self, connection: u64, port: u16, bytes: &[u8]) {
        let Some(at) = self.quic.as_ref().map(|quic| quic.instant(self.now_ns)) else { return };
        let Some(known) = self.net.connections.get_mut(&connection) else { return };
        let Some(client) = known.quic.as_mut().filter(|client| client.port == port) else { return };
        let data = BytesMut::from(bytes);
        let event = client.endpoint.handle(at, NODE, None, None, data, &mut Vec::new());
        if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
            client.quic.handle_event(event);
        }
        self.pump(connection);
    }

    pub(in super::super) fn client_timer(&mut self, connection: u64) {
        if let Some(client) = self.net.connections.get_mut(&connection).and_then(|known| known.quic.as_mut())
            && client.timer_ns.is_some_and(|at_ns| at_ns <= self.now_ns)
        {
            client.timer_ns = None;
        }
        self.pump(connection);
    }

    /// Lets a client's connection act: timeouts, events, bytes, datagrams.
    fn pump(&mut self, connection: u64) {
        let Some(quic) = &self.quic else { return };
        let (base, at) = (quic.base, quic.instant(self.now_ns));
        let Some(known) = self.net.connections.get_mut(&connection) else { return };
        let Some(client) = &mut known.quic else { return };
        let mut said = Said::default();
        if client.quic.poll_timeout().is_some_and(|due| due <= at) {
            client.quic.handle_timeout(at);
        }
        client.events(&mut said);
        if client.connected && !said.lost {
            for (stream, state) in &mut known.streams {
                client.write(stream - stream_of(connection, 0), &mut state.outgoing);
            }
        }
        let mut bytes = Vec::new();
        while let Some(transmit) = client.quic.poll_transmit(at, 10, &mut bytes) {
            said.datagrams.push((transmit.segment_size, std::mem::take(&mut bytes)));
        }
        client.events(&mut said);
        let timer_ns = client.quic.poll_timeout().map(|due| {
            let due_ns = due.saturating_duration_since(base).as_nanos() as u64;
            due_ns.max(self.now_ns + 1)
        });
        if let Some(at_ns) = timer_ns
            && client.timer_ns.is_none_or(|known_ns| known_ns > at_ns)
        {
            client.timer_ns = Some(at_ns);
            self.queue.push(at_ns, Happening::ClientTimer { connection });
        }
        let from = address(connection, client.port);
        if said.lost {
            known.quic = None;
        }
        for (segment_size, bytes) in said.datagrams {
            self.launch(Way::ToNode, from, segment_size, &bytes);
        }
        for (index, bytes) in said.read {
            self.client_bytes(stream_of(connection, index), &bytes);
        }
        if said.lost {
            self.note(format_args!("the client of connection {connection} has lost it"));
            self.client_cut(connection);
        }
    }

    /// The client gives a connection up: it says so, or its process is gone.
    pub(in super::super) fn hang_up(&mut self, connection: u64) {
        let Some(at) = self.quic.as_ref().map(|quic| quic.instant(self.now_ns)) else { return };
        let silent = self.rng.one_in(3);
        let Some(known) = self.net.connections.get_mut(&connection) else { return };
        let Some(mut client) = known.quic.take().filter(|_| !silent) else { return };
        client.quic.close(at, VarInt::from_u32(0), Bytes::new());
        let from = address(connection, client.port);
        let mut bytes = Vec::new();
        while let Some(transmit) = client.quic.poll_transmit(at, 10, &mut bytes) {
            self.launch(Way::ToNode, from, transmit.segment_size, &bytes);
            bytes.clear();
        }
    }

    /// The client's address changes, as behind a translator that forgets.
    pub(super) fn change_path(&mut self, connection: u64) {
        self.note(format_args!("the path of connection {connection} changes"));
        let client = self.net.connections.get_mut(&connection).and_then(|known| known.quic.as_mut());
        if let Some(client) = client {
            client.port += 1;
        }
    }
}
