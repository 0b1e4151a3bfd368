//! What a seed's run consists of.

use escapement_loadgen::{DelayLaw, Workload, WorkloadConfig};
use escapement_node::core::CommitPolicy;
use escapement_protocol::frame::Credit;
use escapement_protocol::{Misfire, SubscriptionSettings};
use escapement_wal::WalConfig;
use escapement_wal::memory::Rng;

/// When the first incarnation starts, in ms since the Unix epoch.
pub(super) const START_WALL_MS: u64 = 1_795_000_000_000;

/// A window that no run is longer than.
pub(super) const DAY_MS: u64 = 86_400_000;

/// One in so many seeds runs over QUIC: a handshake costs as much as some hundred turns.
const QUIC_ONE_IN: u64 = 8;

/// One in so many seeds takes snapshots.
const SNAPSHOTS_ONE_IN: u64 = 7;

/// Groups that events have.
pub(super) const GROUP_NAMES: [&str; 2] = ["account-7", "account-8"];

/// One subscriber's process.
#[derive(Clone, Debug)]
pub(super) struct SubscriberPlan {
    /// Index of its subscription.
    pub(super) subscription: usize,
    /// What it calls its host.
    pub(super) host: u64,
    /// Its credit.
    pub(super) credit: Credit,
    /// Longest time that its lambda takes, in ms.
    pub(super) work_ms: u64,
    /// One in so many attempts gets no result.
    pub(super) silent_one_in: u64,
}

/// One subscription.
#[derive(Clone, Debug)]
pub(super) struct SubscriptionPlan {
    pub(super) topic: usize,
    pub(super) settings: SubscriptionSettings,
    /// Created while events flow already.
    pub(super) late: bool,
}

/// Everything that is fixed before a run begins.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) shards: u16,
    pub(super) cores: u16,
    pub(super) workload: Workload,
    pub(super) topics: usize,
    pub(super) subscriptions: Vec<SubscriptionPlan>,
    pub(super) subscribers: Vec<SubscriberPlan>,
    pub(super) publishers: usize,
    pub(super) events: u64,
    pub(super) batch_max: u64,
    pub(super) crashes: u32,
    pub(super) wal: WalConfig,
    pub(super) commit: CommitPolicy,
    pub(super) batch_count_max: usize,
    /// Bytes that a stream to a client takes before it is full.
    pub(super) room_bytes: usize,
    /// Longest ordinary time of a disk operation, in µs.
    pub(super) disk_us: u64,
    /// One in so many disk operations takes very long.
    pub(super) disk_stall_one_in: u64,
    /// Longest ordinary way over the network, in µs.
    pub(super) net_us: u64,
    /// Longest ordinary way between cores, in µs.
    pub(super) mesh_us: u64,
    /// Most points between one crash and the next.
    pub(super) fuse_max: u64,
    pub(super) cancels: bool,
    /// Whether somebody reads what is pending.
    pub(super) reads: bool,
    pub(super) reschedules: bool,
    /// Whether events have groups, and somebody cancels, pauses and postpones these and takes that back.
    pub(super) groups: bool,
    /// Whether groups are only cancelled, of which more is known then.
    pub(super) only_cancels_groups: bool,
    pub(super) memory_bytes_max: usize,
    /// How far ahead of their time events are kept in memory, in ms.
    pub(super) horizon_ms: u64,
    /// Bytes of far-future events that make a run.
    pub(super) run_size_bytes: usize,
    /// Bytes of names in memory that make a run of names.
    pub(super) names_run_size_bytes: usize,
    /// Whether snapshots are taken.
    pub(super) snapshots: bool,
    /// `dedup_window` of each topic, in ms.
    pub(super) dedup_windows_ms: Vec<u64>,
    /// Whether clients speak QUIC, over datagrams, or below it, over streams.
    pub(super) quic: bool,
    /// Whether some events have a ttl.
    pub(super) has_ttls: bool,
    /// Whether the node may be down, or its machine suspended, for hours.
    pub(super) has_standstills: bool,
    /// Events of all topics but the last are due at multiples of so many ms, many at once; 0 where they are not.
    pub(super) burst_every_ms: u64,
}

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.below(of.len() as u64) as usize]
}

impl Plan {
    /// The subscription of that name, by its index.
    pub(super) fn subscription_named(&self, name: &str) -> Option<usize> {
        self.subscriptions.iter().position(|subscription| subscription.settings.name == name)
    }

    /// The ttl of an event in ms; 0 for none.
    pub(super) fn ttl_ms(&self, n: u64) -> u64 {
        let mut own = Rng::new(n ^ 0x7474_6c73 ^ self.workload.config().seed.rotate_left(17));
        if !self.has_ttls || own.one_in(3) {
            return 0;
        }
        pick(&mut own, &[1, 40, 300, 2_000, 30_000])
    }

    /// When event `n` is due that is published at `wall_ms`.
    pub(super) fn due_ms(&self, n: u64, wall_ms: u64) -> u64 {
        let due_ms = wall_ms + self.workload.delay_ms(n);
        let bursts = self.burst_every_ms > 0 && self.workload.topic(n) as usize + 1 < self.topics;
        if bursts { due_ms.next_multiple_of(self.burst_every_ms) } else { due_ms }
    }

    /// The group of an event, by its number.
    pub(super) fn group(&self, n: u64) -> Option<usize> {
        let mut own = Rng::new(n ^ 0x6772_6f75_7073 ^ self.workload.config().seed.rotate_left(29));
        (self.groups && !own.one_in(4)).then(|| own.below(GROUP_NAMES.len() as u64) as usize)
    }

    pub(super) fn draw(seed: u64, rng: &mut Rng) -> Plan {
        let shards = pick(rng, &[1, 1, 2, 3, 4]);
        let cores = (1 + rng.below(3) as u16).min(shards);
        let topics = pick(rng, &[1, 1, 2]);
        // Of the seed, and of its own numbers: seeds without bursts stay as they were. Nobody reads meanwhile: the judge
        // knows nothing of an answer that the answer to a rescheduling has overtaken.
        let has_bursts = matches!(seed % 13, 3 | 6 | 9) && seed % 3 != 2;
        let mut own_bursts = Rng::new(seed ^ 0x6275_7273_7473_2121);
        let topics = if has_bursts { 3 } else { topics };
        // Of its own numbers: seeds without names stay as they were.
        let mut own_names = Rng::new(seed ^ 0x6e61_6d65_7320_6f66);
        let has_names = matches!(seed % 12, 2 | 4 | 5 | 8 | 11);
        // So much in one log that its oldest blocks are freed, and the names in them stated again.
        let is_crowded = has_names && (own_names.one_in(2) || seed % 24 == 5);
        // In some of these with more than one shard, since an operation on a group is one for each.
        let of_shards = seed % 13 == 7 && !is_crowded;
        let groups = of_shards || seed % 13 == 11 || seed % 13 == 3 && has_bursts;
        let shards = if of_shards { shards.max(2) } else { shards };
        let (shards, cores) = if is_crowded || has_bursts { (1, 1) } else { (shards, cores) };
        let config = WorkloadConfig {
            seed,
            rate_per_s: 0,
            delay: pick(
                rng,
                &[
                    DelayLaw::Fixed(0),
                    DelayLaw::Uniform(0, 60),
                    DelayLaw::Uniform(0, 300),
                    DelayLaw::Uniform(20, 2_000),
                    DelayLaw::Uniform(0, 20_000),
                    DelayLaw::Exponential(400),
                ],
            ),
            payload_size_bytes: pick(rng, &[0, 13, 128, 128, 700, 2_000]).max(if is_crowded {
                2_000
            } else {
                0
            }),
            keys: pick(rng, &[0, 0, topics as u32, 3, 8]),
            topics: topics as u32,
            fail_permille: pick(rng, &[0, 0, 50, 300]),
        };
        // What is due at once is in no group for long.
        let config = match config.delay {
            DelayLaw::Fixed(_) | DelayLaw::Uniform(_, 60 | 300) if groups => {
                WorkloadConfig { delay: DelayLaw::Uniform(20, 1_200), ..config }
            }
            _ => config,
        };
        let subscription_count = pick(rng, &[1, 1, 2, 3]).max(if has_bursts { topics } else { 0 });
        let mut subscriptions: Vec<SubscriptionPlan> = (0..subscription_count)
            .map(|index| {
                // Every topic has a subscription, as far as they go round.
                let topic = index % topics;
                let settings = SubscriptionSettings {
                    name: format!("subscription-{index}"),
                    topic: format!("topic-{topic}"),
                    max_concurrent_dispatches: pick(rng, &[0, 1, 2, 5, 20]),
                    attempt_deadline_ms: pick(rng, &[100, 300, 2_000, 10_000]),
                    max_attempts: pick(rng, &[65_535, 65_535, 65_535, 3, 1]),
                    min_backoff_ms: pick(rng, &[1, 20, 200]),
                    max_backoff_ms: 2_000,
                    max_doublings: pick(rng, &[0, 3]),
                    jitter_permille: pick(rng, &[0, 200, 1_000]),
                    misfire: Misfire::Fire,
                };
                SubscriptionPlan { topic, settings, late: index > 0 && rng.one_in(4) }
            })
            .collect();
        let has_standstills = matches!(seed % 6, 1 | 4);
        let mut late = Rng::new(seed ^ 0x6d69_7366_6972_6573);
        for subscription in subscriptions.iter_mut().filter(|_| has_standstills) {
            subscription.settings.misfire = match late.below(4) {
                0 => Misfire::SkipOlderThan(pick(&mut late, &[1, 500, 8_000, 3_600_000])),
                1 => Misfire::SpreadOver(pick(&mut late, &[10, 500, 4_000])),
                _ => Misfire::Fire,
            };
        }
        let mut subscribers = Vec::new();
        for subscription in 0..subscription_count {
            let unnamed = rng.one_in(5);
            for _ in 0..1 + rng.below(3) {
                subscribers.push(SubscriberPlan {
                    subscription,
                    host: if unnamed { 0 } else { 1_000 + subscribers.len() as u64 },
                    credit: Credit {
                        tasks: pick(rng, &[1, 3, 30, 1_024]),
                        bytes: pick(rng, &[1, 3_000, 1_000_000]),
                    },
                    work_ms: pick(rng, &[0, 3, 30, 200]),
                    silent_one_in: pick(rng, &[u64::MAX, 50, 10]),
                });
            }
        }
        let small = rng.one_in(2) || is_crowded;
        let tiny = WalConfig::tiny();
        let segment_size_bytes = if small { 32 * 1024 } else { tiny.segment_size_bytes };
        let wal = WalConfig {
            segment_size_bytes,
            extent_size_bytes_max: if small { 12 * 1024 } else { tiny.extent_size_bytes_max },
            in_flight_count_max: 1 + rng.below(4) as usize,
            log_size_bytes_max: pick(rng, &[8, 12, 24]) * segment_size_bytes,
            ..tiny
        };
        // Of its own numbers: what was drawn before there were runs stays as it was.
        let mut own = Rng::new(seed ^ 0x6661_7220_7275_6e73);
        let has_runs = matches!(seed % 5, 0 | 4);
        let horizon_ms =
            if has_runs { pick(&mut own, &[15 * 60_000, 1_000, 200, 30]) } else { u64::MAX >> 16 };
        // The judge takes a day for longer than a run, and a standstill can be eight.
        let long_ms = if has_standstills { 2_000 } else { DAY_MS };
        let window_ms = |_| if has_names { pick(&mut own_names, &[long_ms, long_ms, 2_000, 0]) } else { 0 };
        // Likewise: seeds with names stay as they were, but that these go to the disk.
        let mut own_runs = Rng::new(seed ^ 0x6e61_6d65_2072_756e);
        let names_run_size_bytes = match pick(&mut own_runs, &[1, 4_000, 6_000, 1 << 20]) {
            // Some keep names in the log for as long as they can, where they are stated again most often.
            size_bytes if has_names && seed % 8 != 4 => size_bytes,
            _ => 1 << 20,
        };
        let dedup_windows_ms = (0..topics).map(window_ms).collect();
        Plan {
            shards,
            cores,
            workload: Workload::new(config),
            topics,
            subscriptions,
            subscribers,
            publishers: 1 + rng.below(3) as usize,
            events: pick(rng, &[5, 20, 40, 80, 150]).max(if is_crowded || has_bursts { 150 } else { 0 }),
            batch_max: pick(rng, &[1, 3, 12]),
            crashes: 3 + rng.below(8) as u32,
            wal,
            commit: CommitPolicy {
                size_bytes: pick(rng, &[1, 400, 4_096, 65_536]),
                seal_after_ms: pick(rng, &[1, 5]),
                trim_every_ms: pick(rng, &[2, 50]),
                relocate_size_bytes: pick(rng, &[16_384, 131_072]),
            },
            batch_count_max: pick(rng, &[1, 3, 4_096]).min(if has_bursts { 3 } else { usize::MAX }),
            room_bytes: pick(rng, &[1, 4_096, 1_000_000]),
            disk_us: pick(rng, &[50, 300, 3_000]),
            disk_stall_one_in: pick(rng, &[u64::MAX, 200, 20]),
            net_us: pick(rng, &[50, 500, 5_000]),
            mesh_us: pick(rng, &[5, 100, 1_000]),
            fuse_max: pick(rng, &[8, 60, 300, 1_000]).max(if is_crowded { 300 } else { 0 }),
            cancels: rng.one_in(2),
            // Of the seed alone, so that what others draw stays as it was.
            reads: seed % 3 == 2,
            // Without a number of those that the rest is drawn from.
            reschedules: matches!(seed % 11, 0 | 2 | 5 | 8),
            groups,
            only_cancels_groups: seed.is_multiple_of(2),
            memory_bytes_max: pick(rng, &[64 << 20, 64 << 20, 1 << 20]),
            horizon_ms,
            run_size_bytes: pick(&mut own, &[500, 4_000, 30_000]),
            names_run_size_bytes,
            has_ttls: matches!(seed % 7, 2 | 5),
            has_standstills,
            burst_every_ms: if has_bursts { pick(&mut own_bursts, &[200, 1_000, 5_000]) } else { 0 },
            snapshots: seed % SNAPSHOTS_ONE_IN == SNAPSHOTS_ONE_IN - 1,
            dedup_windows_ms,
            quic: seed % QUIC_ONE_IN == QUIC_ONE_IN - 1,
        }
    }
}
