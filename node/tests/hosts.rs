//! One conformance test over all hosts: each claim is run on every host that this machine allows.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use escapement_node::io::{
    self, CoreIo, CoreSetup, Datagram, HostKind, NodeClock, PARK_NS_MAX, SEND_SIZE_BYTES_MAX, Wait,
    bind_cores,
};
use escapement_protocol::{MonoNs, ShardId};
use escapement_wal::{AlignedBuf, DiskCompletion, DiskOp, FileId, OpId};
use quinn_proto::{EcnCodepoint, Transmit};
use tempfile::TempDir;

use runs::{
    a_removed_run_is_not_kept_open, a_run_is_made_extended_read_and_removed,
    a_run_that_cannot_be_opened_ends_its_operation_with_the_error,
    of_many_runs_all_are_read_and_few_stay_open,
};

#[path = "hosts/measure.rs"]
mod measure;
#[path = "hosts/runs.rs"]
mod runs;

/// How long anything may take before a test calls it lost.
const PATIENCE: Duration = Duration::from_secs(20);
const SHARD: ShardId = ShardId(7);

/// Runs every claim on the hosts that this machine allows.
macro_rules! on_every_host {
    ($($claim:ident),+ $(,)?) => {
        mod uring {
            $(#[test]
            fn $claim() {
                // Where io_uring is forbidden there is nothing to claim of it.
                if super::io::detect().0 == super::HostKind::Uring {
                    super::$claim(super::HostKind::Uring);
                }
            })+
        }
        mod poll {
            $(#[test]
            fn $claim() {
                super::$claim(super::HostKind::Poll);
            })+
        }
        #[cfg(feature = "glommio")]
        mod glommio {
            $(#[test]
            fn $claim() {
                // It stands on io_uring too, without a kernel that has one there is nothing to claim of it.
                if super::io::detect().0 == super::HostKind::Uring {
                    super::$claim(super::HostKind::Glommio);
                }
            })+
        }
    };
}

on_every_host!(
    datagrams_carry_their_sender_and_the_address_they_were_sent_to,
    an_answer_leaves_from_the_address_that_was_asked,
    ipv4_reaches_a_socket_of_both_families,
    forty_segments_arrive_as_forty_datagrams_in_order,
    congestion_marks_survive_both_ways,
    the_largest_send_arrives_whole,
    more_messages_than_buffers_all_arrive,
    ten_thousand_datagrams_in_bursts_all_arrive_in_order,
    a_flood_stops_neither_the_disk_nor_the_clock,
    a_refused_send_is_taken_after_a_park,
    a_send_that_the_kernel_refuses_is_lost_and_nothing_else,
    writes_are_in_the_file_and_bring_their_buffers_back,
    reads_bring_what_the_file_holds,
    a_short_read_is_an_error,
    a_write_error_surfaces_with_its_buffer,
    a_created_file_is_zeros_and_an_existing_one_is_left_alone,
    a_create_in_a_missing_directory_is_an_error,
    a_run_is_made_extended_read_and_removed,
    a_removed_run_is_not_kept_open,
    of_many_runs_all_are_read_and_few_stay_open,
    a_run_that_cannot_be_opened_ends_its_operation_with_the_error,
    a_wake_ends_a_park_and_carries_what_was_written,
    a_wake_before_a_park_prevents_it,
    no_wake_is_lost_between_two_cores,
    a_park_is_never_over_early_and_soon_over,
    a_collecting_park_still_returns_what_arrives,
    a_host_dropped_with_work_in_flight_leaves_its_address_free,
);

struct Rig {
    io: Box<dyn CoreIo>,
    address: SocketAddr,
    dir: TempDir,
}

impl Rig {
    fn new(kind: HostKind, local: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("wal")).unwrap();
        let [socket] = bind_cores(local.parse().unwrap(), 1).unwrap().try_into().unwrap();
        let address = socket.local_addr();
        let setup = CoreSetup {
            socket,
            shard_dirs: vec![(SHARD, dir.path().to_owned())],
            clock: Arc::new(NodeClock::start(None, false).unwrap()),
        };
        Rig { io: io::open(kind, setup).unwrap(), address, dir }
    }

    fn slot_path(&self, slot: u32) -> PathBuf {
        self.dir.path().join(FileId::Slot(slot).path())
    }

    /// One turn that waits up to 20 ms.
    fn turn(&mut self, arrived: &mut Vec<Datagram>) {
        let until = self.io.now().mono.plus_ms(20);
        self.io.park(Wait::Until(until), 0);
        while self.io.recv(&mut |datagram| arrived.push(datagram)).more {
            self.io.park(Wait::Now, 0);
        }
    }

    fn receive(&mut self, count: usize) -> Vec<Datagram> {
        let (mut arrived, start) = (Vec::new(), Instant::now());
        while arrived.len() < count {
            assert!(start.elapsed() < PATIENCE, "{} of {count} datagrams", arrived.len());
            self.turn(&mut arrived);
        }
        arrived
    }

    fn send(&mut self, transmit: &Transmit, payload: &[u8]) {
        let mut payload = payload.to_vec();
        while !self.io.send(transmit, &mut payload) {
            self.io.park(Wait::Now, 0);
        }
        self.io.park(Wait::Now, 0);
    }

    fn complete(&mut self, count: usize) -> Vec<DiskCompletion> {
        let (mut completions, start) = (Vec::new(), Instant::now());
        while completions.len() < count {
            assert!(start.elapsed() < PATIENCE, "{} of {count} completions", completions.len());
            self.io.park(Wait::Until(MonoNs(u64::MAX)), 0);
            self.io.disk_completions(&mut |shard, completion| {
                assert_eq!(shard, SHARD);
                completions.push(completion);
            });
        }
        completions
    }
}

fn to(destination: SocketAddr, size: usize) -> Transmit {
    Transmit { destination, ecn: None, size, segment_size: None, src_ip: None }
}

/// A page-aligned buffer whose every byte depends on `seed` and its place.
fn pattern(len: usize, seed: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    for (at, byte) in buf.iter_mut().enumerate() {
        *byte = (at / 7) as u8 ^ (at >> 12) as u8 ^ seed;
    }
    buf
}

fn datagrams_carry_their_sender_and_the_address_they_were_sent_to(kind: HostKind) {
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let mut rig = Rig::new(kind, local);
        let peer = UdpSocket::bind(local).unwrap();
        peer.send_to(b"tick", rig.address).unwrap();
        let arrived = rig.receive(1);
        assert_eq!(arrived[0].remote, peer.local_addr().unwrap());
        assert_eq!(arrived[0].local_ip, Some(rig.address.ip()));
        assert_eq!(&arrived[0].data[..], b"tick");
        rig.send(&to(arrived[0].remote, 4), b"tock and what follows the transmit");
        let mut answer = [0; 64];
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(peer.recv_from(&mut answer).unwrap(), (4, rig.address));
        assert_eq!(&answer[..4], b"tock");
    }
}

fn an_answer_leaves_from_the_address_that_was_asked(kind: HostKind) {
    let mut rig = Rig::new(kind, "0.0.0.0:0");
    let asked: IpAddr = "127.0.0.2".parse().unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.send_to(b"?", (asked, rig.address.port())).unwrap();
    let question = rig.receive(1).remove(0);
    assert_eq!(question.local_ip, Some(asked));
    rig.send(&Transmit { src_ip: question.local_ip, ..to(question.remote, 1) }, b"!");
    assert_eq!(peer.recv_from(&mut [0; 8]).unwrap().1, SocketAddr::new(asked, rig.address.port()));
}

fn ipv4_reaches_a_socket_of_both_families(kind: HostKind) {
    let mut rig = Rig::new(kind, "[::]:0");
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.send_to(b"?", ("127.0.0.1", rig.address.port())).unwrap();
    let question = rig.receive(1).remove(0);
    assert_eq!(question.remote.ip().to_canonical(), peer.local_addr().unwrap().ip());
    assert_eq!(question.local_ip.unwrap().to_canonical(), "127.0.0.1".parse::<IpAddr>().unwrap());
    let answer =
        Transmit { src_ip: question.local_ip, ecn: Some(EcnCodepoint::Ect0), ..to(question.remote, 1) };
    rig.send(&answer, b"!");
    assert_eq!(peer.recv(&mut [0; 8]).unwrap(), 1);
}

fn forty_segments_arrive_as_forty_datagrams_in_order(kind: HostKind) {
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let (mut from, mut into) = (Rig::new(kind, local), Rig::new(kind, local));
        assert!(from.io.segmentation(), "this kernel segments sends");
        let size = 39 * 1200 + 500;
        let payload: Vec<u8> = (0..size).map(|at| (at / 1200) as u8).collect();
        from.send(&Transmit { segment_size: Some(1200), ..to(into.address, size) }, &payload);
        let arrived = into.receive(40);
        assert_eq!(arrived.len(), 40);
        for (index, datagram) in arrived.iter().enumerate() {
            assert_eq!(datagram.data.len(), if index < 39 { 1200 } else { 500 });
            assert!(datagram.data.iter().all(|&byte| usize::from(byte) == index), "datagram {index}");
        }
        assert_eq!(into.io.stats().recv_messages, 1, "merged on the way");
        assert_eq!(into.io.stats().recv_datagrams, 40);
    }
}

fn congestion_marks_survive_both_ways(kind: HostKind) {
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let (mut from, mut into) = (Rig::new(kind, local), Rig::new(kind, local));
        for ecn in [Some(EcnCodepoint::Ect0), Some(EcnCodepoint::Ect1), Some(EcnCodepoint::Ce), None] {
            from.send(&Transmit { ecn, ..to(into.address, 3) }, b"ecn");
            assert_eq!(into.receive(1)[0].ecn, ecn, "{local}");
        }
    }
}

fn the_largest_send_arrives_whole(kind: HostKind) {
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let (mut from, mut into) = (Rig::new(kind, local), Rig::new(kind, local));
        let payload: Vec<u8> = (0..SEND_SIZE_BYTES_MAX).map(|at| (at % 251) as u8).collect();
        from.send(&to(into.address, payload.len()), &payload);
        assert!(into.receive(1)[0].data[..] == payload[..]);
    }
}

fn more_messages_than_buffers_all_arrive(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for round in 0..3 {
        // The last byte changes the length, so that no two neighbours are merged.
        for index in 0..200_usize {
            peer.send_to(&vec![round; 100 + index % 2], rig.address).unwrap();
        }
        let arrived = rig.receive(200);
        assert_eq!(arrived.len(), 200);
        assert!(arrived.iter().all(|datagram| datagram.data[0] == round));
    }
    assert_eq!(rig.io.stats().recv_datagrams, 600);
}

fn ten_thousand_datagrams_in_bursts_all_arrive_in_order(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut next = 0_u32;
    for _ in 0..100 {
        for index in 0..100 {
            let mut payload = vec![0; 64 + index % 9];
            payload[..4].copy_from_slice(&(next + index as u32).to_le_bytes());
            peer.send_to(&payload, rig.address).unwrap();
        }
        for datagram in rig.receive(100) {
            assert_eq!(datagram.data[..4], next.to_le_bytes());
            next += 1;
        }
    }
    assert_eq!(next, 10_000);
}

fn a_flood_stops_neither_the_disk_nor_the_clock(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    fs::write(rig.slot_path(0), vec![0; 1 << 20]).unwrap();
    let (address, stop) = (rig.address, AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
            for sent in 0_usize.. {
                // A full receive buffer loses datagrams silently; nothing here counts on their arrival.
                peer.send_to(&[0; 1200][..600 + sent % 600], address).unwrap();
                if sent >= 10_000 && stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let (mut arrived, mut written, mut parks) = (0, 0, 0_u64);
        let start = Instant::now();
        rig.io.disk_submit(SHARD, write(0, 0, pattern(65_536, 0)));
        while arrived < 10_000 || written < 20 {
            assert!(start.elapsed() < PATIENCE, "{arrived} datagrams, {written} writes, {parks} parks");
            let until = rig.io.now().mono.plus_ms(5);
            rig.io.park(Wait::Until(until), 0);
            assert!(rig.io.now().mono.since(until) < 5_000_000_000);
            parks += 1;
            arrived += rig.io.recv(&mut |_| {}).count;
            let mut finished = None;
            rig.io.disk_completions(&mut |_, completion| finished = Some(completion));
            if let Some(completion) = finished {
                completion.result.unwrap();
                written += 1;
                rig.io.disk_submit(SHARD, write(written, 0, completion.buf.unwrap()));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let stats = rig.io.stats();
    assert!(stats.recv_datagrams >= 10_000 && stats.recv_dropped == 0, "{stats:?}");
}

fn a_refused_send_is_taken_after_a_park(kind: HostKind) {
    let (mut from, mut into) = (Rig::new(kind, "127.0.0.1:0"), Rig::new(kind, "127.0.0.1:0"));
    let mut payload = Vec::new();
    for index in 0..300_u32 {
        payload.clear();
        payload.extend_from_slice(&[0; 50]);
        payload.extend_from_slice(&[1; 50][..index as usize % 2]);
        payload[..4].copy_from_slice(&index.to_le_bytes());
        let transmit = to(into.address, payload.len());
        let content = payload.clone();
        while !from.io.send(&transmit, &mut payload) {
            assert_eq!(payload, content, "what was not taken was not touched");
            from.io.park(Wait::Now, 0);
        }
        assert!(payload.capacity() >= content.len());
    }
    from.io.park(Wait::Now, 0);
    let order: Vec<_> = into
        .receive(300)
        .iter()
        .map(|datagram| u32::from_le_bytes(datagram.data[..4].try_into().unwrap()))
        .collect();
    assert_eq!(order, (0..300).collect::<Vec<_>>());
    assert_eq!(from.io.stats().sends, 300);
}

fn a_send_that_the_kernel_refuses_is_lost_and_nothing_else(kind: HostKind) {
    let (mut from, mut into) = (Rig::new(kind, "127.0.0.1:0"), Rig::new(kind, "127.0.0.1:0"));
    let mut nowhere = into.address;
    nowhere.set_port(0);
    from.send(&to(nowhere, 4), b"lost");
    from.send(&to(into.address, 4), b"kept");
    assert_eq!(&into.receive(1)[0].data[..], b"kept");
    from.io.park(Wait::Now, 0);
    assert_eq!((from.io.stats().sends, from.io.stats().send_errors), (1, 1));
}

fn write(id: u64, offset: u64, buf: AlignedBuf) -> DiskOp {
    DiskOp::Write { id: OpId(id), file: FileId::Slot(0), offset, buf }
}

fn writes_are_in_the_file_and_bring_their_buffers_back(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    fs::write(rig.slot_path(0), vec![0; 1 << 20]).unwrap();
    let sizes = [4096, 65_536, 512 * 1024];
    let mut offset = 0;
    for (id, &size) in sizes.iter().enumerate() {
        rig.io.disk_submit(SHARD, write(id as u64, offset, pattern(size, id as u8)));
        offset += size as u64;
    }
    let mut completions = rig.complete(3);
    completions.sort_by_key(|completion| completion.id);
    let file = fs::read(rig.slot_path(0)).unwrap();
    let mut offset = 0;
    for (id, completion) in completions.into_iter().enumerate() {
        completion.result.unwrap();
        assert_eq!(completion.id, OpId(id as u64));
        let buf = completion.buf.unwrap();
        assert!(buf[..] == pattern(sizes[id], id as u8)[..]);
        assert!(file[offset..offset + buf.len()] == buf[..], "write {id}");
        offset += buf.len();
    }
    assert!(file[offset..].iter().all(|&byte| byte == 0), "what was not written is as it was");
}

fn reads_bring_what_the_file_holds(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    let content = pattern(256 * 1024, 3);
    fs::write(rig.slot_path(4), &content[..]).unwrap();
    let mut stale = AlignedBuf::zeroed(8192);
    stale.fill(0xaa);
    rig.io.disk_submit(SHARD, DiskOp::Read { id: OpId(1), file: FileId::Slot(4), offset: 4096, buf: stale });
    let completion = rig.complete(1).remove(0);
    completion.result.unwrap();
    assert!(completion.buf.unwrap()[..] == content[4096..12_288]);
}

fn a_short_read_is_an_error(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    fs::write(rig.slot_path(0), [1; 4096]).unwrap();
    let buf = AlignedBuf::zeroed(8192);
    rig.io.disk_submit(SHARD, DiskOp::Read { id: OpId(1), file: FileId::Slot(0), offset: 0, buf });
    let completion = rig.complete(1).remove(0);
    assert_eq!(completion.result.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(completion.buf.unwrap().len(), 8192);
}

fn a_write_error_surfaces_with_its_buffer(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    std::os::unix::fs::symlink("/dev/full", rig.slot_path(0)).unwrap();
    rig.io.disk_submit(SHARD, write(1, 0, pattern(4096, 1)));
    let full = rig.complete(1).remove(0);
    assert_eq!(full.result.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    assert!(full.buf.unwrap()[..] == pattern(4096, 1)[..]);
    let missing = DiskOp::Write { id: OpId(2), file: FileId::Slot(9), offset: 0, buf: pattern(4096, 2) };
    rig.io.disk_submit(SHARD, missing);
    let missing = rig.complete(1).remove(0);
    assert_eq!((missing.id, missing.result.unwrap_err().kind()), (OpId(2), std::io::ErrorKind::NotFound));
    assert!(missing.buf.unwrap()[..] == pattern(4096, 2)[..]);
    assert!(!rig.slot_path(9).exists(), "a write makes no file");
}

fn a_created_file_is_zeros_and_an_existing_one_is_left_alone(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    let size_bytes = 3 * 1024 * 1024 + 4096;
    let create = |id| DiskOp::Create { id: OpId(id), file: FileId::Slot(5), size_bytes };
    rig.io.disk_submit(SHARD, create(1));
    let completion = rig.complete(1).remove(0);
    completion.result.unwrap();
    assert!(completion.id == OpId(1) && completion.buf.is_none());
    let file = fs::read(rig.slot_path(5)).unwrap();
    assert!(file.len() as u64 == size_bytes && file.iter().all(|&byte| byte == 0));
    // What a created file is for: it takes a write, and a second create does not take that away.
    rig.io.disk_submit(
        SHARD,
        DiskOp::Write { id: OpId(2), file: FileId::Slot(5), offset: 4096, buf: pattern(4096, 5) },
    );
    rig.complete(1).remove(0).result.unwrap();
    rig.io.disk_submit(SHARD, create(3));
    let refused = rig.complete(1).remove(0);
    assert_eq!(refused.result.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    assert!(fs::read(rig.slot_path(5)).unwrap()[4096..8192] == pattern(4096, 5)[..]);
}

fn a_create_in_a_missing_directory_is_an_error(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    fs::remove_dir(rig.dir.path().join("wal")).unwrap();
    rig.io.disk_submit(SHARD, DiskOp::Create { id: OpId(1), file: FileId::Slot(6), size_bytes: 4096 });
    assert_eq!(rig.complete(1).remove(0).result.unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

fn a_wake_ends_a_park_and_carries_what_was_written(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    let waker = rig.io.waker();
    let (start, began) = mpsc::channel();
    let written = Arc::new(AtomicU64::new(0));
    let writer = std::thread::spawn({
        let written = Arc::clone(&written);
        move || {
            for round in began {
                written.store(round, Ordering::Relaxed);
                waker.wake();
            }
        }
    });
    for round in 1..=200_u64 {
        let before = rig.io.now().mono;
        start.send(round).unwrap();
        while written.load(Ordering::Relaxed) != round {
            rig.io.park(Wait::Forever, 0);
        }
        assert!(rig.io.now().mono.since(before) < PARK_NS_MAX * 9 / 10, "round {round} was not woken");
    }
    drop(start);
    writer.join().unwrap();
}

fn a_wake_before_a_park_prevents_it(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    for _ in 0..100 {
        rig.io.waker().wake();
        rig.io.waker().wake();
        let before = rig.io.now().mono;
        rig.io.park(Wait::Forever, 0);
        assert!(rig.io.now().mono.since(before) < PARK_NS_MAX / 2);
    }
}

fn no_wake_is_lost_between_two_cores(kind: HostKind) {
    const ROUNDS: u64 = 3_000;
    // Each side waits for the token to have its parity, then passes it on: a lost wake is a wait of a second.
    let token = Arc::new(AtomicU64::new(0));
    let (tell, learn) = [mpsc::channel(), mpsc::channel()].into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
    let threads: Vec<_> = learn
        .into_iter()
        .enumerate()
        .map(|(side, peer)| {
            let (token, tell) = (Arc::clone(&token), tell[1 - side].clone());
            std::thread::spawn(move || {
                let mut rig = Rig::new(kind, "127.0.0.1:0");
                tell.send(rig.io.waker()).unwrap();
                let peer: io::Waker = peer.recv().unwrap();
                for round in 0..ROUNDS {
                    let before = rig.io.now().mono;
                    while token.load(Ordering::Relaxed) != round * 2 + side as u64 {
                        rig.io.park(Wait::Forever, 0);
                    }
                    assert!(rig.io.now().mono.since(before) < PARK_NS_MAX * 9 / 10, "round {round}");
                    token.fetch_add(1, Ordering::Relaxed);
                    peer.wake();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(token.load(Ordering::Relaxed), 2 * ROUNDS);
}

fn a_park_is_never_over_early_and_soon_over(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    for wait_us in [50, 300, 1_000, 20_000] {
        let until = MonoNs(rig.io.now().mono.0 + wait_us * 1_000);
        rig.io.park(Wait::Until(until), 0);
        let now = rig.io.now().mono;
        assert!(now >= until, "{wait_us} µs: early by {} ns", until.since(now));
        assert!(now.since(until) < 500_000_000, "{wait_us} µs: late by {} ns", now.since(until));
    }
    let before = rig.io.now().mono;
    for wait in [Wait::Now, Wait::Until(before), Wait::Until(MonoNs(0))] {
        rig.io.park(wait, 300);
    }
    assert!(rig.io.now().mono.since(before) < 500_000_000);
    rig.io.park(Wait::Forever, 0);
    let waited = rig.io.now().mono.since(before);
    assert!((PARK_NS_MAX..2 * PARK_NS_MAX).contains(&waited), "{waited} ns");
}

fn a_collecting_park_still_returns_what_arrives(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..20 {
        let before = rig.io.now().mono;
        for _ in 0..5 {
            peer.send_to(b"x", rig.address).unwrap();
        }
        let mut arrived: Vec<BytesMut> = Vec::new();
        while arrived.len() < 5 {
            rig.io.park(Wait::Forever, 300);
            rig.io.recv(&mut |datagram| arrived.push(datagram.data));
        }
        assert!(rig.io.now().mono.since(before) < PARK_NS_MAX / 2);
    }
}

fn a_host_dropped_with_work_in_flight_leaves_its_address_free(kind: HostKind) {
    let mut rig = Rig::new(kind, "127.0.0.1:0");
    fs::write(rig.slot_path(0), vec![0; 1 << 20]).unwrap();
    rig.io.park(Wait::Now, 0);
    for id in 0..4 {
        rig.io.disk_submit(SHARD, write(id, id * 65_536, pattern(65_536, 9)));
    }
    rig.io.disk_submit(SHARD, DiskOp::Create { id: OpId(4), file: FileId::Slot(1), size_bytes: 1 << 20 });
    let mut payload = vec![1; 100];
    assert!(rig.io.send(&to(rig.address, 100), &mut payload));
    let Rig { io, address, dir } = rig;
    drop(io);
    bind_cores(address, 1).unwrap();
    let file = fs::read(dir.path().join(FileId::Slot(0).path())).unwrap();
    for chunk in file[..4 * 65_536].chunks(65_536) {
        assert!(chunk == &pattern(65_536, 9)[..], "a submitted write is carried out");
    }
}
