//! Figures for `docs/decisions/0001-host.md`, not claims: run them alone, in release, with nothing else going on.
//!
//! `ESCAPEMENT_MEASURE=1 cargo test --release -p escapement-node --test hosts -- --nocapture --test-threads 1 measure`
#![allow(clippy::print_stdout)]

use super::*;

/// Measuring takes a minute and claims nothing, so that it waits to be asked.
fn is_asked_for() -> bool {
    std::env::var_os("ESCAPEMENT_MEASURE").is_some()
}

/// CPU time of a clock of the process or the thread, in ns.
fn cpu_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is live and writable for the length of the call.
    assert_eq!(unsafe { libc::clock_gettime(clock, &raw mut time) }, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn hosts() -> Vec<HostKind> {
    let mut hosts = vec![HostKind::Poll];
    if io::detect().0 == HostKind::Uring {
        hosts.insert(0, HostKind::Uring);
        #[cfg(feature = "glommio")]
        hosts.push(HostKind::Glommio);
    }
    hosts
}

/// p50, p99 and p99.9, in µs.
fn percentiles(mut ns: Vec<u64>) -> String {
    ns.sort_unstable();
    let at = |part: f64| ns[((ns.len() - 1) as f64 * part) as usize] / 1_000;
    format!("p50 {} p99 {} p99.9 {} µs", at(0.5), at(0.99), at(0.999))
}

#[test]
fn measure_commit_latency() {
    if !is_asked_for() {
        return;
    }
    const SEGMENT: u64 = 64 << 20;
    for size in [4096, 65_536, 262_144] {
        for kind in hosts() {
            let mut rig = Rig::new(kind, "127.0.0.1:0");
            rig.io.disk_submit(
                SHARD,
                DiskOp::Create { id: OpId(0), file: FileId::Slot(0), size_bytes: SEGMENT },
            );
            rig.complete(1).remove(0).result.unwrap();
            let mut buf = pattern(size, 1);
            let mut taken = Vec::new();
            let cpu = cpu_ns(libc::CLOCK_PROCESS_CPUTIME_ID);
            for id in 1..=1_500 {
                let before = rig.io.now().mono;
                rig.io.disk_submit(SHARD, write(id, id * size as u64 % SEGMENT, buf));
                let completion = rig.complete(1).remove(0);
                taken.push(rig.io.now().mono.since(before));
                completion.result.unwrap();
                buf = completion.buf.unwrap();
            }
            let cpu = (cpu_ns(libc::CLOCK_PROCESS_CPUTIME_ID) - cpu) / 1_500 / 1_000;
            println!("commit {} KiB, {kind}: {}, {cpu} µs of CPU", size / 1024, percentiles(taken));
        }
    }
}

#[test]
fn measure_datagrams() {
    if !is_asked_for() {
        return;
    }
    for (segments, batches) in [(40, 20_000), (1, 200_000)] {
        for kind in hosts() {
            let (tell, learn) = mpsc::channel();
            let received = Arc::new(AtomicU64::new(0));
            let total = segments * batches;
            let receiver = std::thread::spawn({
                let received = Arc::clone(&received);
                move || {
                    let mut rig = Rig::new(kind, "127.0.0.1:0");
                    tell.send(rig.address).unwrap();
                    let start = cpu_ns(libc::CLOCK_THREAD_CPUTIME_ID);
                    let mut count = 0;
                    while count < total {
                        rig.io.park(Wait::Forever, 0);
                        count += rig.io.recv(&mut |datagram| drop(datagram)).count as u64;
                        received.store(count, Ordering::Relaxed);
                    }
                    ((cpu_ns(libc::CLOCK_THREAD_CPUTIME_ID) - start) / total, rig.io.stats())
                }
            });
            let mut rig = Rig::new(kind, "127.0.0.1:0");
            let size = segments as usize * 1200;
            let transmit =
                Transmit { segment_size: (segments > 1).then_some(1200), ..to(learn.recv().unwrap(), size) };
            let mut payload = Vec::with_capacity(size);
            let start = cpu_ns(libc::CLOCK_THREAD_CPUTIME_ID);
            let mut sent = 0;
            while sent < total {
                // As far ahead as the receive buffer holds, so that nothing is lost.
                while sent < total && sent < received.load(Ordering::Relaxed) + 1_600 {
                    payload.resize(size, 0);
                    if !rig.io.send(&transmit, &mut payload) {
                        break;
                    }
                    sent += segments;
                }
                rig.io.park(Wait::Now, 0);
                std::thread::yield_now();
            }
            let send_ns = (cpu_ns(libc::CLOCK_THREAD_CPUTIME_ID) - start) / total;
            let (recv_ns, stats) = receiver.join().unwrap();
            println!(
                "{segments} segments, {kind}: send {send_ns} ns, receive {recv_ns} ns a datagram, \
                 {} datagrams a message, {} enters of the receiver",
                stats.recv_datagrams / stats.recv_messages,
                stats.enters
            );
        }
    }
}

#[test]
fn measure_waiting() {
    if !is_asked_for() {
        return;
    }
    for kind in hosts() {
        let mut rig = Rig::new(kind, "127.0.0.1:0");
        let mut late = Vec::new();
        for _ in 0..1_000 {
            let until = rig.io.now().mono.plus_ms(1);
            rig.io.park(Wait::Until(until), 0);
            late.push(rig.io.now().mono.since(until));
        }
        println!("a wait of 1 ms is late by, {kind}: {}", percentiles(late));
        let (tell, learn) = mpsc::channel::<MonoNs>();
        let waker = rig.io.waker();
        let (at, arrived) = mpsc::channel();
        let clock = NodeClock::start(None, false).unwrap();
        let caller = std::thread::spawn(move || {
            for _ in 0..1_000 {
                std::thread::sleep(Duration::from_micros(300));
                at.send(clock.now().mono).unwrap();
                waker.wake();
                learn.recv().unwrap();
            }
        });
        let mut taken = Vec::new();
        while taken.len() < 1_000 {
            rig.io.park(Wait::Forever, 0);
            let now = rig.io.now().mono;
            if let Ok(called) = arrived.try_recv() {
                taken.push(now.since(called));
                tell.send(now).unwrap();
            }
        }
        caller.join().unwrap();
        println!("a wake takes, {kind}: {}", percentiles(taken));
    }
}
