use std::io::ErrorKind;
use std::sync::mpsc::channel;

use super::*;

/// Far longer than a node takes to start and end, and far shorter than the drain that these tests allow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves a new directory on two cores with `body` on their threads, for as long as the node lives.
fn serve_two(
    body: impl Fn(Seat, Plan, &Started) -> CoreEnd + Clone + Send + 'static,
) -> Result<ServeEnd, ServeError> {
    let (sender, ended) = channel();
    thread::spawn(move || {
        let dir = tempfile::tempdir().unwrap();
        let config = NodeConfig {
            data: dir.path().to_owned(),
            cores: Some(2),
            allow_tmpfs: true,
            drain_timeout_ms: 600_000,
            ..NodeConfig::tiny()
        };
        let data = DataDir::open_or_format(&config).unwrap();
        sender.send(serve_with(&config, &data, &Arc::default(), |_| {}, |_| {}, body)).unwrap();
    });
    ended.recv_timeout(PATIENCE).expect("the node ends by itself")
}

#[test]
fn a_panic_on_one_core_ends_the_node() {
    let end = serve_two(|seat, plan, started| {
        if seat.index == 0 {
            return core_thread(seat, plan, started);
        }
        started.send(Ok(())).unwrap();
        panic!("a bug on core 1, for this test");
    });
    assert!(matches!(end, Err(ServeError::Died)), "{end:?}");
}

#[test]
fn a_panic_while_a_core_starts_ends_the_node() {
    let end = serve_two(|seat, plan, started| {
        assert_eq!(seat.index, 0, "a bug on core 1, for this test");
        core_thread(seat, plan, started)
    });
    assert!(matches!(end, Err(ServeError::Died)), "{end:?}");
}

#[test]
fn a_core_that_cannot_start_ends_the_others_at_once() {
    let end = serve_two(|seat, plan, started| {
        if seat.index == 0 {
            return core_thread(seat, plan, started);
        }
        let source = ErrorKind::OutOfMemory.into();
        let refused = HostError { kind: HostKind::Poll, step: "make a ring", source };
        started.send(Err(refused.into())).unwrap();
        CoreEnd::default()
    });
    assert!(matches!(end, Err(ServeError::Host(_))), "{end:?}");
}

#[test]
fn every_core_count_that_is_accepted_fits_a_connection_id() {
    let of =
        |cores| NodeConfig { data: "d".into(), cores: Some(cores), shards: Some(256), ..NodeConfig::tiny() };
    for cores in [1, 2, CORES_MAX] {
        of(cores).validate().unwrap();
        assert_eq!(core_count(&of(cores), 256).unwrap(), cores as u8);
    }
    assert!(of(256).validate().is_err());
    assert!(matches!(core_count(&of(256), 256), Err(ServeError::Cores { .. })));
}

/// Which shards serve changes from start to start, and with them who decides for a subscription.
#[test]
fn fences_rise_from_start_to_start_whichever_shards_serve() {
    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        data: dir.path().to_owned(),
        cores: Some(1),
        shards: Some(2),
        allow_tmpfs: true,
        ..NodeConfig::tiny()
    };
    let mut last = Epoch(0);
    let mut start = |serving: [bool; 2]| {
        let data = DataDir::open_or_format(&config).unwrap();
        let (recovered, refused) = recover(&config, &data, &|_| {}).unwrap();
        assert_eq!(recovered.iter().map(Option::is_some).collect::<Vec<_>>(), serving);
        assert_eq!(refused.len(), serving.iter().filter(|serves| !**serves).count());
        let epoch = fence_epoch(&recovered);
        assert!(epoch > last, "{epoch:?} after {last:?}");
        last = epoch;
    };
    start([true, true]);
    let path = dir.path().join("shard-0001/SUPER");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, "gone").unwrap();
    start([true, false]);
    start([true, false]);
    // Back, its own log is two epochs behind.
    std::fs::write(&path, whole).unwrap();
    start([true, true]);
    // Alone, it is still behind what the other one knows.
    let (log, elsewhere) = (dir.path().join("shard-0000/wal"), dir.path().join("shard-0000/elsewhere"));
    std::fs::rename(&log, &elsewhere).unwrap();
    start([false, true]);
    std::fs::rename(&elsewhere, &log).unwrap();
    start([true, true]);
}
