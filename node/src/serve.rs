//! The composition root: a data directory, a configuration and a machine become a running node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use escapement_engine::{Shard, ShardConfig, newest_control};
use escapement_frontend::quic::{QuicClock, QuicConfig, QuicConfigError, QuicKeys, QuicServer};
use escapement_frontend::tls::{ServerTls, TlsError, TlsFiles};
use escapement_protocol::{Epoch, Now, ShardId, WallMs};
use escapement_router::Credit;
use escapement_wal::{FsDirectory, LocalWal, LogIdentity, Loss, RecoveredBlock, WalConfig};

use crate::clock_notice::ClockNotice;
use crate::config::{CORES_MAX, NodeConfig};
use crate::core::{CommitPolicy, Core, CoreConfig, core_of};
use crate::cores::{Cores, Seat, Shared, Started};
use crate::data_dir::DataDir;
use crate::io::{self, BindError, CoreSetup, CoreSocket, HostError, HostKind, NodeClock, StartAhead};
use crate::open_files::explained;
use crate::progress::{Progress, told};
use crate::run::{CoreEnd, CoreThread};
use crate::runs::{RunDirectory, remove_left_over};

/// Most credit of one session, whatever it asks for.
const CREDIT_MAX: Credit = Credit { tasks: 256 * 1024, bytes: 64 * 1024 * 1024 };

/// Bytes that may wait for one shard's log before its core stops reading publishers.
const INTAKE_SIZE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most events that become due in one batch of a shard, several of which make a turn. What a batch touches, some 200
/// bytes an event from its due time until it is copied into its push, stays within a core's first-level cache.
const BATCH_COUNT_MAX: usize = 64;

/// Bytes of far-future events that are gathered for one run of a shard, where its memory allows. Larger runs are fewer
/// files; what is gathered waits in memory.
const RUN_SIZE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Names are written to a run once they take this part of the memory: a quarter of what they may take, so that as many
/// again find room while the run is made, and that indexes of some dozens of runs have the rest.
const NAMES_RUN_SHARE: usize = 16;

/// How often it is looked whether an operator has to know something.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// After how many looks it is said again which shards are out of service.
const OUT_AGAIN_LOOKS: u32 = 600;

/// A node that takes connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Where it listens.
    pub addr: SocketAddr,
    /// SHA-256 of its certificate, in lower-case hexadecimal: what clients pin.
    pub cert_sha256: String,
    /// How long the start took, in ms.
    pub start_ms: u64,
    /// Shards that it has.
    pub shard_count: u16,
    /// Of these, such that were refused and are out of service.
    pub out: Vec<ShardId>,
}

/// How serving ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServeEnd {
    /// Shards that were refused at the start, and why.
    pub refused: Vec<(ShardId, String)>,
    /// Shards that stopped while serving, and why. Where no other served, the node ended by itself.
    pub failures: Vec<(ShardId, String)>,
    /// Whether attempts were still running when the drain's time was over: their tasks will be redelivered.
    pub cut_short: bool,
}

/// Why the node did not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant is what its source says")]
pub enum ServeError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Quic(#[from] QuicConfigError),
    #[error("{0}; set the machine's clock, or confirm that it is right with --trust-clock")]
    Clock(#[from] StartAhead),
    #[error("no shard can serve: {}", .0.join("; "))]
    NoShard(Vec<String>),
    #[error(
        "{cores} cores cannot share {shards} shards: give at most as many cores as shards, from 1 to {CORES_MAX}"
    )]
    Cores { cores: u16, shards: u16 },
    #[error("cannot read random bytes from the operating system: {0}")]
    Random(std::io::Error),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    #[error("a core ended without being asked to: this is a bug, and its message is above")]
    Died,
}

/// The handle by which others stop a node.
#[derive(Debug, Default)]
pub struct Control {
    draining: AtomicBool,
    shared: Mutex<Option<Arc<Shared>>>,
}

impl Control {
    /// Stops intake, lets running attempts end, syncs and ends. Called again it changes nothing.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = &*shared {
            shared.drain();
        }
    }

    fn attach(&self, shared: &Arc<Shared>) {
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(shared));
        if self.draining.load(Ordering::Acquire) {
            self.drain();
        }
    }
}

/// One shard after recovery.
struct Recovered {
    shard: Shard,
    log: LocalWal,
    epoch: Epoch,
    leader_time: WallMs,
    loss: Option<Loss>,
}

/// Runs a node until it is drained or fails.
///
/// # Errors
/// Why it did not start. What happens later is in [`ServeEnd`].
pub fn serve(
    config: &NodeConfig,
    data: &DataDir,
    control: &Arc<Control>,
    on_ready: impl FnOnce(&Ready),
    on_notice: impl Fn(&str),
) -> Result<ServeEnd, ServeError> {
    serve_with(config, data, control, on_ready, on_notice, core_thread)
}

/// [`serve`], with `body` on the core's threads.
fn serve_with(
    config: &NodeConfig,
    data: &DataDir,
    control: &Arc<Control>,
    on_ready: impl FnOnce(&Ready),
    on_notice: impl Fn(&str),
    body: impl Fn(Seat, Plan, &Started) -> CoreEnd + Clone + Send + 'static,
) -> Result<ServeEnd, ServeError> {
    let started = Instant::now();
    io::return_freed_memory();
    let shard_count = data.shard_count();
    let core_count = u16::from(core_count(config, shard_count)?);
    let tls = server_tls(config)?;
    let sockets = io::bind_cores(config.listen, usize::from(core_count))?;
    let addr = sockets[0].local_addr();

    let (mut recovered, refused) = recover(config, data, &on_notice)?;
    let leader = recovered.iter().flatten().map(|shard| shard.leader_time).max().filter(|time| time.0 > 0);
    let clock = Arc::new(NodeClock::start(leader, config.trust_clock)?);
    let now = clock.now();
    let epoch = fence_epoch(&recovered);
    for shard in recovered.iter_mut().flatten() {
        shard.shard.recovered(now, epoch);
    }
    let pending: u64 = recovered.iter().flatten().map(|shard| shard.shard.stats().pending).sum();
    on_notice(&format!("recovered {pending} pending events in {} ms", started.elapsed().as_millis()));

    let host = host_kind(config, &on_notice);
    let out = refused.iter().cloned().collect();
    let shared = Arc::new(Shared::new(core_count, Arc::clone(&clock), shard_count, out));
    let plans = plan(config, data, (recovered, epoch), sockets, &clock, &tls, now, host)?;
    let seat = |index| Seat {
        index,
        core_count,
        shared: Arc::clone(&shared),
        turn_wait_us: config.turn_wait_us,
        drain_timeout_ms: config.drain_timeout_ms,
    };
    let cores = Cores::start(&shared, (0..core_count).map(seat).zip(plans).collect(), body)?;
    control.attach(&shared);
    let start_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let out = shared.out();
    on_ready(&Ready { addr, cert_sha256: tls.fingerprint(), start_ms, shard_count, out });
    let mut clock_notice = ClockNotice::default();
    let mut looks = 0;
    cores.wait(LOOK_EVERY, || {
        if let Some(notice) = clock_notice.of(clock.status()) {
            on_notice(&notice);
        }
        shared.take_notices().iter().for_each(|notice| on_notice(notice));
        looks += 1;
        if looks % OUT_AGAIN_LOOKS == 0 && !shared.out().is_empty() {
            on_notice(&format!("still {}: see above why", out_of_service(&shared.out(), shard_count)));
        }
    });
    let mut end = ServeEnd { refused, ..ServeEnd::default() };
    for core in cores.join()? {
        end.cut_short |= core.cut_short;
        end.failures.extend(core.failures.into_iter().map(|(shard, why)| (shard, why.to_string())));
    }
    Ok(end)
}

/// Which shards are out of service, in words.
pub(crate) fn out_of_service(out: &[ShardId], shard_count: u16) -> String {
    let numbers: Vec<String> = out.iter().map(|shard| shard.0.to_string()).collect();
    let (shards, are) = if out.len() == 1 { ("shard", "is") } else { ("shards", "are") };
    format!("{shards} {} of {shard_count} {are} out of service", numbers.join(", "))
}

/// The least epoch that logs are opened with in this start: above that of every log, also of those that will be refused.
/// With it the epochs of all shards that serve stay together, and a subscription's fences rise whoever decides for it.
/// They don't only where every log that served last has lost all copies of its `SUPER`.
fn least_epoch(data: &DataDir) -> Epoch {
    let epochs = (0..data.shard_count()).map(ShardId).filter_map(|shard| {
        let mut dir = FsDirectory::new(data.shard_dir(shard));
        escapement_wal::last_epoch(&mut dir, data.log_identity(shard)).ok()
    });
    Epoch(epochs.max().unwrap_or_default().0 + 1)
}

/// The epoch of this start's fences.
fn fence_epoch(recovered: &[Option<Recovered>]) -> Epoch {
    recovered.iter().flatten().map(|shard| shard.epoch).max().unwrap_or_default()
}

/// Whether a node of this configuration could listen, as far as that can be known without its data: the certificate
/// is read, and the address bound for a moment.
///
/// # Errors
/// As [`serve`] would fail.
pub fn check_start(config: &NodeConfig) -> Result<(), ServeError> {
    server_tls(config)?;
    io::bind_cores(config.listen, 1)?;
    Ok(())
}

fn core_count(config: &NodeConfig, shard_count: u16) -> Result<u8, ServeError> {
    let count = config.core_count(shard_count);
    let fits = u8::try_from(count).ok().filter(|fits| *fits > 0);
    fits.ok_or(ServeError::Cores { cores: count, shards: shard_count })
}

fn server_tls(config: &NodeConfig) -> Result<ServerTls, ServeError> {
    match (&config.tls.certificate, &config.tls.key) {
        (Some(certificate), Some(key)) => Ok(ServerTls::from_files(&TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: config.tls.client_ca.clone(),
        })?),
        _ => Ok(ServerTls::development()?),
    }
}

fn host_kind(config: &NodeConfig, on_notice: &impl Fn(&str)) -> HostKind {
    config.host.unwrap_or_else(|| {
        let (kind, why) = io::detect();
        on_notice(&why);
        kind
    })
}

fn wal_config(config: &NodeConfig, shard_count: u16) -> WalConfig {
    WalConfig {
        log_size_bytes_max: config.log_size_bytes_max / u64::from(shard_count),
        accept_loss: config.accept_loss,
        ..WalConfig::default()
    }
}

/// Shards that were refused, and why.
type Refused = Vec<(ShardId, String)>;

/// Recovers every shard, each on its own thread. A shard that refuses leaves the others serving.
fn recover(
    config: &NodeConfig,
    data: &DataDir,
    on_notice: &impl Fn(&str),
) -> Result<(Vec<Option<Recovered>>, Refused), ServeError> {
    let shard_count = data.shard_count();
    let wal = wal_config(config, shard_count);
    let least = least_epoch(data);
    let memory_bytes_max = (config.memory_bytes(shard_count) / u64::from(shard_count)) as usize;
    let seed = u64::from_le_bytes(io::random_bytes().map_err(ServeError::Random)?);
    let progress: Vec<Progress> =
        (0..shard_count).map(|shard| Progress::of(&data.shard_dir(ShardId(shard)))).collect();
    let results: Vec<Result<Recovered, String>> = thread::scope(|scope| {
        let (ended, ends) = channel();
        let threads: Vec<_> = (0..shard_count)
            .map(|shard| {
                let identity = data.log_identity(ShardId(shard));
                let config = ShardConfig {
                    shard: ShardId(shard),
                    shard_count,
                    memory_bytes_max,
                    admission_per_s: config.admission_per_s.div_ceil(u64::from(shard_count)),
                    block_size_bytes_max: wal.records_size_bytes_max(),
                    horizon_ms: config.horizon_ms,
                    run_size_bytes: RUN_SIZE_BYTES_MAX.min(memory_bytes_max / 8),
                    names_run_size_bytes: memory_bytes_max / NAMES_RUN_SHARE,
                    batch_count_max: BATCH_COUNT_MAX,
                    seed: seed ^ u64::from(shard),
                };
                let dir = data.shard_dir(ShardId(shard));
                let (ended, progress) = (ended.clone(), &progress[usize::from(shard)]);
                scope.spawn(move || {
                    // Held until the thread ends, whether it panics or not.
                    let _ended: Sender<()> = ended;
                    recover_shard(config, dir, (identity, least), &wal, progress)
                })
            })
            .collect();
        drop(ended);
        while let Err(RecvTimeoutError::Timeout) = ends.recv_timeout(LOOK_EVERY) {
            on_notice(&told(&progress));
        }
        threads
            .into_iter()
            .map(|thread| {
                thread.join().unwrap_or_else(|_| Err("recovery has a bug: see its message above".into()))
            })
            .collect()
    });
    let mut refused = Vec::new();
    let mut recovered = Vec::new();
    for (shard, result) in (0..).zip(results) {
        match result {
            Ok(shard) => recovered.push(Some(shard)),
            Err(why) => {
                on_notice(&format!("shard {shard} is not serving: {why}"));
                refused.push((ShardId(shard), why));
                recovered.push(None);
            }
        }
    }
    tell_losses(config.accept_loss, &recovered, !refused.is_empty(), on_notice);
    if recovered.iter().all(Option::is_none) {
        let refused = refused.into_iter().map(|(shard, why)| format!("shard {}: {why}", shard.0));
        return Err(ServeError::NoShard(refused.collect()));
    }
    if !refused.is_empty() {
        let out: Vec<ShardId> = refused.iter().map(|(shard, _)| *shard).collect();
        on_notice(&format!(
            "{}, and the others go on; nothing of it is changed. Stop the node, and run `escapement repair {}`",
            out_of_service(&out, shard_count),
            data.path().display()
        ));
    }
    Ok((recovered, refused))
}

/// Says what was given up, and where a token was given for nothing.
fn tell_losses(
    token: Option<u64>,
    recovered: &[Option<Recovered>],
    refused: bool,
    on_notice: &impl Fn(&str),
) {
    let Some(token) = token else { return };
    let losses = recovered.iter().enumerate().filter_map(|(shard, r)| Some((shard, r.as_ref()?.loss?)));
    let mut given_up = false;
    for (shard, Loss { first, last }) in losses {
        given_up = true;
        on_notice(&format!(
            "shard {shard} gave up blocks {first} to {last}, which were acknowledged, as --accept-loss {token:016x} asked: \
             the events in them are lost; remove the setting"
        ));
    }
    if given_up {
        return;
    }
    let then = if refused {
        "give the token that a refusal above offers"
    } else {
        "no log asks for one: remove the setting"
    };
    on_notice(&format!("--accept-loss {token:016x} fits no damage, and nothing was given up: {then}"));
}

fn recover_shard(
    config: ShardConfig,
    dir: PathBuf,
    (identity, least): (LogIdentity, Epoch),
    wal: &WalConfig,
    progress: &Progress,
) -> Result<Recovered, String> {
    let mut dir = FsDirectory::new(dir);
    let mut shard = Shard::new(config);
    let mut runs = RunDirectory(FsDirectory::new(dir.root()));
    let mut unread = None;
    let mut visit = |block: RecoveredBlock<'_>| {
        progress.replayed(&block);
        if unread.is_none() {
            let replayed = shard.replay_block(block.seq.0, block.records, &mut runs);
            unread = replayed.err().map(|error| (block.seq, error));
        }
    };
    let read = escapement_wal::read(&mut dir, identity, wal, &mut visit);
    let read = read.map_err(|error| explained(&error))?;
    // A shard that is refused is left as it is: the log too, where it is a run that is damaged.
    if let Some((block, error)) = unread {
        return Err(format!("block {block}: {error}"));
    }
    shard.replayed().map_err(|error| error.to_string())?;
    let (log, report) = read.open(&mut dir, least).map_err(|error| explained(&error))?;
    remove_left_over(&mut dir, &shard)
        .map_err(|error| format!("removing what is left over in far: {error}"))?;
    progress.done();
    Ok(Recovered {
        shard,
        log,
        epoch: report.epoch,
        leader_time: report.leader_time,
        loss: report.accepted_loss,
    })
}

/// What one core's thread starts from. Everything in it may cross threads.
struct Plan {
    core: Core<escapement_frontend::quic::StreamKey>,
    quic: QuicServer,
    host: HostKind,
    setup: CoreSetup,
    pin: bool,
}

#[expect(clippy::too_many_arguments, reason = "each is one thing that start-up has put together")]
fn plan(
    config: &NodeConfig,
    data: &DataDir,
    (recovered, epoch): (Vec<Option<Recovered>>, Epoch),
    sockets: Vec<CoreSocket>,
    clock: &Arc<NodeClock>,
    tls: &ServerTls,
    now: Now,
    host: HostKind,
) -> Result<Vec<Plan>, ServeError> {
    let shard_count = data.shard_count();
    let quic_core_count = core_count(config, shard_count)?;
    let core_count = u16::from(quic_core_count);
    let epochs: Vec<Option<Epoch>> = recovered.iter().map(|shard| shard.as_ref().map(|_| epoch)).collect();
    let (version, control) = newest_control(recovered.iter().flatten().map(|shard| &shard.shard));
    let registries = recovered.iter().flatten().map(|shard| shard.shard.registry());
    let registry = registries.max_by_key(|registry| registry.version()).cloned();
    let base = Instant::now().checked_sub(Duration::from_nanos(now.mono.0)).unwrap_or_else(Instant::now);
    let quic_clock =
        QuicClock { base, wall_at_base: WallMs(now.wall.0.saturating_sub(now.mono.0 / 1_000_000)) };
    let keys = QuicKeys::from_secrets(data.reset_secret(), data.token_secret());
    let seed: [u8; 32] = io::random_bytes().map_err(ServeError::Random)?;
    let pin = config.pin;
    let mut by_core: Vec<Vec<Option<(Shard, LocalWal)>>> = (0..core_count).map(|_| Vec::new()).collect();
    for (shard, state) in recovered.into_iter().enumerate() {
        let core = core_of(ShardId(shard as u16), core_count);
        by_core[usize::from(core)].push(state.map(|r| (r.shard, r.log)));
    }
    let mut plans = Vec::new();
    for ((core_index, shards), socket) in (0..quic_core_count).zip(by_core).zip(sockets) {
        let index = u16::from(core_index);
        let quic = QuicConfig {
            core_index,
            core_count: quic_core_count,
            mtu_upper_bound: config.mtu,
            ..QuicConfig::default()
        };
        let quic = QuicServer::new(quic, tls.crypto(), &keys, seed, quic_clock)?;
        let config = CoreConfig {
            core: index,
            core_count,
            shard_count,
            epochs: epochs.clone(),
            node_id: data.node_id(),
            commit: CommitPolicy::default(),
            intake_size_bytes_max: INTAKE_SIZE_BYTES_MAX,
            credit_max: CREDIT_MAX,
        };
        let mut core = Core::new(config, shards);
        if let Some(registry) = &registry {
            core.hold_registry(registry);
        }
        core.catch_up(now, version, &control);
        let owned = (index..shard_count).step_by(usize::from(core_count)).map(ShardId);
        let shard_dirs = owned.map(|shard| (shard, data.shard_dir(shard))).collect();
        let setup = CoreSetup { socket, shard_dirs, clock: Arc::clone(clock) };
        plans.push(Plan { core, quic, host, setup, pin });
    }
    Ok(plans)
}

fn core_thread(seat: Seat, plan: Plan, started: &Started) -> CoreEnd {
    if plan.pin {
        // A machine that refuses is slower, not wrong.
        let _ = io::pin_to_allowed_cpu(usize::from(seat.index));
    }
    // Nobody listens any more where another core did not start, and then this one ends too.
    let host = match io::open(plan.host, plan.setup) {
        Ok(host) => host,
        Err(error) => {
            let _ = started.send(Err(error.into()));
            return CoreEnd::default();
        }
    };
    seat.shared.mesh.attach(seat.index, host.waker());
    let _ = started.send(Ok(()));
    CoreThread::new(seat, plan.core, plan.quic, host).run()
}

#[cfg(test)]
mod tests;
