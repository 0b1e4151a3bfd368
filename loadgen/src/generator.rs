//! The n-th event of a seed.
//!
//! Everything here is a pure function of `(config, n)`: two processes that agree on the
//! configuration agree on every event, which is how an auditor can judge a payload that it never
//! stored.

mod template;

use escapement_protocol::AttemptResult;

pub use template::EventTemplate;

/// Bytes of every event's `id`: two of salt, ten of the event's number, hexadecimal.
pub const ID_SIZE_BYTES: usize = 12;

/// Bytes of every ordering key.
pub const KEY_SIZE_BYTES: usize = 8;

/// Attempts from this one on never fail by plan, so that no retry policy gives a task up.
pub const FAILING_ATTEMPTS_MAX: u32 = 8;

/// Numbers of events end before this: an id carries 40 bits.
pub const EVENTS_MAX: u64 = 1 << 40;

/// How long after its intended send time an event is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DelayLaw {
    /// Always this many ms.
    Fixed(u64),
    /// Evenly from the first to the second, both included, in ms.
    Uniform(u64, u64),
    /// Exponentially distributed around this mean, in ms; cut off at 20 times the mean.
    Exponential(u64),
}

impl DelayLaw {
    /// The longest delay that the law yields, in ms.
    #[must_use]
    pub fn longest_ms(self) -> u64 {
        match self {
            Self::Fixed(ms) => ms,
            Self::Uniform(_, most) => most,
            Self::Exponential(mean) => mean.saturating_mul(20),
        }
    }

    fn draw_ms(self, random: u64) -> u64 {
        match self {
            Self::Fixed(ms) => ms,
            Self::Uniform(least, most) => {
                let span = u128::from(most.saturating_sub(least)) + 1;
                least + ((u128::from(random) * span) >> 64) as u64
            }
            Self::Exponential(mean) => {
                // In (0, 1]: the logarithm of zero has no place here.
                let unit = ((random >> 11) + 1) as f64 / (1u64 << 53) as f64;
                ((-unit.ln() * mean as f64) as u64).min(self.longest_ms())
            }
        }
    }
}

/// What a load consists of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorkloadConfig {
    /// Everything random follows from it.
    pub seed: u64,
    /// Events offered per second, over all publishers. 0: no schedule, as fast as they are taken.
    pub rate_per_s: u64,
    /// Time from intended send to due.
    pub delay: DelayLaw,
    /// Bytes of data in each event.
    pub payload_size_bytes: usize,
    /// Number of ordering keys over all topics, at least one for each; 0: events have none.
    pub keys: u32,
    /// Number of topics, taken in turn; at least 1.
    pub topics: u32,
    /// Share of attempts that a subscriber answers with a retryable failure, in thousandths.
    pub fail_permille: u32,
}

impl Default for WorkloadConfig {
    fn default() -> Self {
        WorkloadConfig {
            seed: 1,
            rate_per_s: 0,
            delay: DelayLaw::Uniform(1_000, 2_000),
            payload_size_bytes: 128,
            keys: 0,
            topics: 1,
            fail_permille: 0,
        }
    }
}

/// The events of one configuration.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    config: WorkloadConfig,
    salt: [u8; 2],
}

impl Workload {
    /// The events of `config`.
    ///
    /// # Panics
    /// If there are no topics, or fewer keys than topics, or the failing share is not in thousandths.
    #[must_use]
    pub fn new(config: WorkloadConfig) -> Self {
        assert!(config.topics > 0, "a load needs a topic");
        assert!(config.keys == 0 || config.keys >= config.topics, "a key belongs to one topic");
        assert!(config.fail_permille <= 1_000, "a share in thousandths is at most 1000");
        let salt = mix(config.seed ^ DOMAIN_SALT);
        Workload { config, salt: [hex(salt), hex(salt >> 4)] }
    }

    /// What it was made from.
    #[must_use]
    pub fn config(&self) -> &WorkloadConfig {
        &self.config
    }

    /// When event `n` should be sent, in ns from the start of the load; 0 where there is no schedule.
    #[must_use]
    pub fn intended_ns(&self, n: u64) -> u64 {
        match self.config.rate_per_s {
            0 => 0,
            rate => (u128::from(n) * 1_000_000_000 / u128::from(rate)) as u64,
        }
    }

    /// How many events should have been sent when `elapsed_ns` have passed. 0 where there is no schedule.
    #[must_use]
    pub fn intended_count(&self, elapsed_ns: u64) -> u64 {
        if self.config.rate_per_s == 0 {
            return 0;
        }
        // The event at this very moment counts: its intended time has come.
        (u128::from(elapsed_ns) * u128::from(self.config.rate_per_s) / 1_000_000_000) as u64 + 1
    }

    /// Time from the intended send of event `n` until it is due, in ms.
    #[must_use]
    pub fn delay_ms(&self, n: u64) -> u64 {
        match self.config.delay {
            DelayLaw::Fixed(ms) => ms,
            law => law.draw_ms(self.random(n, DOMAIN_DELAY)),
        }
    }

    /// Index of the topic of event `n`.
    #[must_use]
    pub fn topic(&self, n: u64) -> u32 {
        match self.config.topics {
            1 => 0,
            topics => (n % u64::from(topics)) as u32,
        }
    }

    /// Index of the ordering key of event `n`, if the load has keys. Each key belongs to one topic,
    /// since it is within a topic that a key orders.
    #[must_use]
    pub fn key(&self, n: u64) -> Option<u32> {
        let WorkloadConfig { keys, topics, .. } = self.config;
        if keys == 0 {
            return None;
        }
        let topic = self.topic(n);
        let keys_of_topic = (keys - topic).div_ceil(topics);
        Some(topic + topics * (self.random(n, DOMAIN_KEY) % u64::from(keys_of_topic)) as u32)
    }

    /// What the subscriber answers to attempt `attempt` (from 1) at event `n`.
    #[must_use]
    pub fn result(&self, n: u64, attempt: u32) -> AttemptResult {
        if self.config.fail_permille == 0 || attempt >= FAILING_ATTEMPTS_MAX {
            return AttemptResult::Success;
        }
        let random = self.random(n, DOMAIN_FAIL ^ u64::from(attempt));
        if random % 1_000 < u64::from(self.config.fail_permille) {
            AttemptResult::RetryableFailure
        } else {
            AttemptResult::Success
        }
    }

    /// The `id` of event `n`.
    ///
    /// # Panics
    /// If `n` is not below [`EVENTS_MAX`].
    #[must_use]
    pub fn id(&self, n: u64) -> [u8; ID_SIZE_BYTES] {
        assert!(n < EVENTS_MAX, "an id carries 40 bits of a number");
        let mut id = [0; ID_SIZE_BYTES];
        id[..2].copy_from_slice(&self.salt);
        id[2..10].copy_from_slice(&hex_digits((n >> 8) as u32));
        id[10..].copy_from_slice(&[hex(n >> 4), hex(n)]);
        id
    }

    /// The number of the event with this `id`; `None` where it is not one of this load's.
    #[must_use]
    pub fn number(&self, id: &[u8]) -> Option<u64> {
        let id: &[u8; ID_SIZE_BYTES] = id.try_into().ok()?;
        if id[..2] != self.salt {
            return None;
        }
        id[2..].iter().try_fold(0, |n, &digit| Some(n << 4 | u64::from(hex_value(digit)?)))
    }

    /// The bytes of ordering key number `key`.
    #[must_use]
    pub fn key_bytes(&self, key: u32) -> [u8; KEY_SIZE_BYTES] {
        hex_digits(key)
    }

    /// Writes the data of event `n` into `out`.
    pub fn fill_data(&self, n: u64, out: &mut [u8]) {
        let base = self.random(n, DOMAIN_DATA);
        let (words, rest) = out.as_chunks_mut::<8>();
        for (i, word) in words.iter_mut().enumerate() {
            *word = data_word(base, i).to_le_bytes();
        }
        rest.copy_from_slice(&data_word(base, words.len()).to_le_bytes()[..rest.len()]);
    }

    /// Whether `data` is what [`Workload::fill_data`] writes for event `n`, in length and in content.
    #[must_use]
    pub fn is_data(&self, n: u64, data: &[u8]) -> bool {
        if data.len() != self.config.payload_size_bytes {
            return false;
        }
        let base = self.random(n, DOMAIN_DATA);
        let (words, rest) = data.as_chunks::<8>();
        // Differences are gathered, not branched on, so that the loop runs in vector registers.
        let differences = words
            .iter()
            .enumerate()
            .fold(0, |all, (i, word)| all | (u64::from_le_bytes(*word) ^ data_word(base, i)));
        differences == 0 && *rest == data_word(base, words.len()).to_le_bytes()[..rest.len()]
    }

    fn random(&self, n: u64, domain: u64) -> u64 {
        mix(mix(self.config.seed ^ domain).wrapping_add(n))
    }
}

// One per use, so that an event's delay says nothing about its key.
const DOMAIN_SALT: u64 = 0x5a17_0000_0000_0001;
const DOMAIN_DELAY: u64 = 0xde1a_0000_0000_0002;
const DOMAIN_KEY: u64 = 0x6e79_0000_0000_0003;
const DOMAIN_FAIL: u64 = 0xfa11_0000_0000_0000;
const DOMAIN_DATA: u64 = 0xda7a_0000_0000_0005;

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Cheap rather than random: an event's words need only differ from each other's and from those of
/// other events, and `base` is random already.
fn data_word(base: u64, index: usize) -> u64 {
    let sum = base.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    sum ^ (sum >> 29)
}

fn hex(value: u64) -> u8 {
    b"0123456789abcdef"[(value & 15) as usize]
}

/// Eight lower-case digits, the most significant first, all at once: one digit to a byte of a word.
fn hex_digits(value: u32) -> [u8; 8] {
    let mut spread = u64::from(value);
    spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    spread = (spread | spread << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    // A byte of 1 where the digit is a letter, which lies 39 above its place after '9'.
    let letters = ((spread + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    (spread + 0x3030_3030_3030_3030 + letters * 39).to_be_bytes()
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(config: WorkloadConfig) -> Workload {
        Workload::new(config)
    }

    #[test]
    fn ids_read_back_and_are_unique_to_their_seed() {
        let ours = load(WorkloadConfig::default());
        let theirs = load(WorkloadConfig { seed: 2, ..WorkloadConfig::default() });
        for n in [0, 1, 9, 10, 15, 16, 255, 0xabcd_ef01, EVENTS_MAX - 1] {
            let id = ours.id(n);
            assert!(std::str::from_utf8(&id).is_ok());
            assert_eq!(&id[2..], format!("{n:010x}").as_bytes());
            assert_eq!(ours.number(&id), Some(n));
            assert_eq!(theirs.number(&id), None);
        }
        assert_eq!(ours.number(b"short"), None);
        let mut odd = ours.id(7);
        odd[11] = b'G';
        assert_eq!(ours.number(&odd), None);
    }

    #[test]
    fn every_changed_byte_of_the_data_is_seen_and_every_other_event_differs() {
        for size in [0, 1, 7, 8, 20, 128] {
            let load = load(WorkloadConfig { payload_size_bytes: size, ..WorkloadConfig::default() });
            let mut data = vec![0; size];
            load.fill_data(41, &mut data);
            assert!(load.is_data(41, &data));
            for at in 0..size {
                data[at] ^= 1;
                assert!(!load.is_data(41, &data), "byte {at} of {size}");
                data[at] ^= 1;
            }
            data.push(0);
            assert!(!load.is_data(41, &data));
            data.pop();
            if size >= 7 {
                assert!((0..1_000).filter(|n| *n != 41).all(|n| !load.is_data(n, &data)));
            }
        }
    }

    #[test]
    fn delays_stay_in_their_law_and_fill_it() {
        let delays = |delay| {
            let load = load(WorkloadConfig { delay, ..WorkloadConfig::default() });
            (0..20_000).map(|n| load.delay_ms(n)).collect::<Vec<_>>()
        };
        assert!(delays(DelayLaw::Fixed(3)).iter().all(|ms| *ms == 3));
        let uniform = delays(DelayLaw::Uniform(10, 13));
        for ms in 10..=13 {
            let share = uniform.iter().filter(|d| **d == ms).count();
            assert!((4_500..5_500).contains(&share), "{ms}: {share}");
        }
        assert!(uniform.iter().all(|ms| (10..=13).contains(ms)));
        let exponential = delays(DelayLaw::Exponential(1_000));
        let mean = exponential.iter().sum::<u64>() / 20_000;
        assert!((950..1_050).contains(&mean), "{mean}");
        assert!(exponential.iter().all(|ms| *ms <= DelayLaw::Exponential(1_000).longest_ms()));
    }

    #[test]
    fn every_key_is_used_and_belongs_to_one_topic() {
        for (keys, topics) in [(1, 1), (7, 3), (9, 3), (5, 5)] {
            let load = load(WorkloadConfig { keys, topics, ..WorkloadConfig::default() });
            let mut topic_of_key = vec![None; keys as usize];
            for n in 0..2_000 {
                let key = load.key(n).expect("the load has keys") as usize;
                assert_eq!(*topic_of_key[key].get_or_insert(load.topic(n)), load.topic(n));
            }
            assert!(topic_of_key.iter().all(Option::is_some), "{keys} {topics}");
        }
    }

    #[test]
    fn the_schedule_and_the_count_of_what_should_be_sent_agree() {
        for rate_per_s in [1, 3, 999, 500_000, 7_000_001] {
            let load = load(WorkloadConfig { rate_per_s, ..WorkloadConfig::default() });
            for n in [0, 1, 2, 1_000, 12_345_678] {
                let at = load.intended_ns(n);
                assert!(load.intended_count(at + 1) > n, "{rate_per_s} {n}");
                assert!(at == 0 || load.intended_count(at - 1) <= n, "{rate_per_s} {n}");
            }
        }
    }

    #[test]
    fn the_failing_share_is_met_and_late_attempts_succeed() {
        let load = load(WorkloadConfig { fail_permille: 100, ..WorkloadConfig::default() });
        let failing = (0..50_000).filter(|n| load.result(*n, 1) == AttemptResult::RetryableFailure).count();
        assert!((4_500..5_500).contains(&failing), "{failing}");
        assert!((0..50_000).all(|n| load.result(n, FAILING_ATTEMPTS_MAX) == AttemptResult::Success));
    }
}
