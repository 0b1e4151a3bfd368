//! Settings of topics and subscriptions, with their ranges and defaults.

use crate::ErrorCode;

/// Longest name, in bytes.
pub const NAME_SIZE_BYTES_MAX: usize = 128;

/// Longest `dedup_window`: 30 days.
pub const DEDUP_WINDOW_MS_MAX: u64 = 30 * DAY_MS;

const DAY_MS: u64 = 86_400_000;

/// What is wrong with a setting; the text says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Names are 1 to 128 letters, digits, `-`, `_` and `.`, and start with a letter or digit.
    #[error(
        "{what} {name:?} is not a name: use 1 to 128 of A-Z a-z 0-9 - _ . and start with a letter or digit"
    )]
    Name {
        /// Which name.
        what: &'static str,
        /// As it was given.
        name: String,
    },
    /// A number out of its range.
    #[error("{field} is {value}, and must be from {least} to {most}")]
    Range {
        /// The setting.
        field: &'static str,
        /// As it was given.
        value: u64,
        /// Smallest accepted.
        least: u64,
        /// Largest accepted.
        most: u64,
    },
    /// A text longer than its limit.
    #[error("{field} has {len} bytes, and at most {most} are accepted")]
    Length {
        /// The setting.
        field: &'static str,
        /// As it was given.
        len: usize,
        /// Most accepted.
        most: usize,
    },
}

impl SettingsError {
    /// The refusal that a peer receives.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Name { .. } => ErrorCode::InvalidName,
            Self::Range { .. } | Self::Length { .. } => ErrorCode::InvalidSettings,
        }
    }
}

/// A named channel that events are published to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicSettings {
    /// Unique name.
    pub name: String,
    /// `source` of events that state none.
    pub default_source: String,
    /// `type` of events that state none.
    pub default_type: String,
    /// `datacontenttype` of events that state none.
    pub default_content_type: String,
    /// An event whose ordering key, source and id are those of one that was accepted less than this long ago is that
    /// one, published again: it is answered with the receipt of the first. 0: every event is another.
    pub dedup_window_ms: u64,
}

impl TopicSettings {
    /// Checks every range.
    ///
    /// # Errors
    /// The first setting out of its range.
    pub fn validate(&self) -> Result<(), SettingsError> {
        check_name("topic", &self.name)?;
        for (field, text) in [
            ("default_source", &self.default_source),
            ("default_type", &self.default_type),
            ("default_content_type", &self.default_content_type),
        ] {
            if text.len() > 255 {
                return Err(SettingsError::Length { field, len: text.len(), most: 255 });
            }
        }
        check_range("dedup_window_ms", self.dedup_window_ms, 0, DEDUP_WINDOW_MS_MAX)
    }

    /// The settings in which these are not as those `held` under the same name, for people; empty where there are none.
    #[must_use]
    pub fn differences(&self, held: &TopicSettings) -> String {
        // Named one by one, so that none is forgotten.
        let TopicSettings { name: _, default_source, default_type, default_content_type, dedup_window_ms } =
            held;
        listed([
            difference("default_source", default_source, &self.default_source),
            difference("default_type", default_type, &self.default_type),
            difference("default_content_type", default_content_type, &self.default_content_type),
            difference("dedup_window_ms", dedup_window_ms, &self.dedup_window_ms),
        ])
    }
}

/// What becomes of a subscription's tasks of events that became due while their shard did not serve: while the node was
/// down or suspended, or when its clock was stepped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Misfire {
    /// They are dispatched as soon as may be.
    #[default]
    Fire,
    /// Where the event's due time is longer ago than this many ms when it is matched, the task ends undelivered.
    SkipOlderThan(u64),
    /// They are dispatched evenly over this many ms from when the shard serves again, in order.
    SpreadOver(u64),
}

/// Longest time of [`Misfire::SkipOlderThan`], in ms: ten years, as the longest delay.
pub const SKIP_OLDER_THAN_MS_MAX: u64 = crate::DELAY_MS_MAX;

/// Longest time of [`Misfire::SpreadOver`], in ms: thirty days.
pub const SPREAD_OVER_MS_MAX: u64 = 30 * 86_400_000;

impl Misfire {
    /// The numbers that travel on the wire and stand in the log: which, and its time in ms.
    #[must_use]
    pub fn code(self) -> (u8, u64) {
        match self {
            Self::Fire => (0, 0),
            Self::SkipOlderThan(ms) => (1, ms),
            Self::SpreadOver(ms) => (2, ms),
        }
    }

    /// Reads those numbers; `None` where they are none of a policy.
    #[must_use]
    pub fn from_code(code: u8, ms: u64) -> Option<Self> {
        match (code, ms) {
            (0, 0) => Some(Self::Fire),
            (1, ms) => Some(Self::SkipOlderThan(ms)),
            (2, ms) => Some(Self::SpreadOver(ms)),
            _ => None,
        }
    }
}

/// A subscriber's standing interest in one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionSettings {
    /// Unique name.
    pub name: String,
    /// Name of the topic.
    pub topic: String,
    /// Most attempts running at once, over all hosts and cores. Exact. 0 means no limit beyond credit.
    pub max_concurrent_dispatches: u32,
    /// An attempt without a result after this long has failed, retryably.
    pub attempt_deadline_ms: u64,
    /// Most attempts of one task, the first included.
    pub max_attempts: u32,
    /// Delay before the second attempt.
    pub min_backoff_ms: u64,
    /// Largest delay between attempts.
    pub max_backoff_ms: u64,
    /// After this many doublings the delay grows linearly, by the last doubled step.
    pub max_doublings: u32,
    /// Share of each delay that is random, in thousandths: the delay lies between (1 - jitter) and 1 times itself.
    pub jitter_permille: u32,
    /// What becomes of tasks whose time was missed.
    pub misfire: Misfire,
}

impl Default for SubscriptionSettings {
    fn default() -> Self {
        SubscriptionSettings {
            name: String::new(),
            topic: String::new(),
            max_concurrent_dispatches: 0,
            attempt_deadline_ms: 30_000,
            max_attempts: 16,
            min_backoff_ms: 1_000,
            max_backoff_ms: 3_600_000,
            max_doublings: 16,
            jitter_permille: 200,
            misfire: Misfire::Fire,
        }
    }
}

impl SubscriptionSettings {
    /// Checks every range.
    ///
    /// # Errors
    /// The first setting out of its range.
    pub fn validate(&self) -> Result<(), SettingsError> {
        check_name("subscription", &self.name)?;
        check_name("topic", &self.topic)?;
        check_range("max_concurrent_dispatches", self.max_concurrent_dispatches.into(), 0, 16_000_000)?;
        check_range("attempt_deadline_ms", self.attempt_deadline_ms, 100, DAY_MS)?;
        check_range("max_attempts", self.max_attempts.into(), 1, 65_535)?;
        check_range("min_backoff_ms", self.min_backoff_ms, 1, 7 * DAY_MS)?;
        check_range("max_backoff_ms", self.max_backoff_ms, self.min_backoff_ms, 7 * DAY_MS)?;
        check_range("max_doublings", self.max_doublings.into(), 0, 32)?;
        check_range("jitter_permille", self.jitter_permille.into(), 0, 1_000)?;
        match self.misfire {
            Misfire::Fire => Ok(()),
            Misfire::SkipOlderThan(ms) => check_range("skip_older_than_ms", ms, 1, SKIP_OLDER_THAN_MS_MAX),
            Misfire::SpreadOver(ms) => check_range("spread_over_ms", ms, 1, SPREAD_OVER_MS_MAX),
        }
    }

    /// The settings in which these are not as those `held` under the same name, for people; empty where there are none.
    #[must_use]
    pub fn differences(&self, held: &SubscriptionSettings) -> String {
        let SubscriptionSettings {
            name: _,
            topic,
            max_concurrent_dispatches,
            attempt_deadline_ms,
            max_attempts,
            min_backoff_ms,
            max_backoff_ms,
            max_doublings,
            jitter_permille,
            misfire,
        } = held;
        listed([
            difference("topic", topic, &self.topic),
            difference(
                "max_concurrent_dispatches",
                max_concurrent_dispatches,
                &self.max_concurrent_dispatches,
            ),
            difference("attempt_deadline_ms", attempt_deadline_ms, &self.attempt_deadline_ms),
            difference("max_attempts", max_attempts, &self.max_attempts),
            difference("min_backoff_ms", min_backoff_ms, &self.min_backoff_ms),
            difference("max_backoff_ms", max_backoff_ms, &self.max_backoff_ms),
            difference("max_doublings", max_doublings, &self.max_doublings),
            difference("jitter_permille", jitter_permille, &self.jitter_permille),
            difference("misfire", misfire, &self.misfire),
        ])
    }

    /// Delay after failed attempt number `attempt` (from 1), before jitter.
    ///
    /// Doubles from `min_backoff_ms` for `max_doublings` times, then grows by the last doubled step,
    /// and never exceeds `max_backoff_ms` (the rule of Cloud Tasks' retry configuration).
    #[must_use]
    pub fn backoff_ms(&self, attempt: u32) -> u64 {
        let nth = attempt.saturating_sub(1);
        let doublings = nth.min(self.max_doublings).min(63);
        let step = self.min_backoff_ms.saturating_mul(1 << doublings);
        let linear = u64::from(nth - nth.min(self.max_doublings));
        step.saturating_add(step.saturating_mul(linear)).min(self.max_backoff_ms)
    }
}

fn difference<T: PartialEq + std::fmt::Debug>(field: &str, held: &T, asked: &T) -> Option<String> {
    (held != asked).then(|| format!("{field} is {held:?} there and {asked:?} here"))
}

fn listed<const N: usize>(differences: [Option<String>; N]) -> String {
    differences.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn check_name(what: &'static str, name: &str) -> Result<(), SettingsError> {
    let legal = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if legal && starts && name.len() <= NAME_SIZE_BYTES_MAX {
        return Ok(());
    }
    // Hostile names may be long: the message repeats only their beginning.
    Err(SettingsError::Name { what, name: name.chars().take(40).collect() })
}

fn check_range(field: &'static str, value: u64, least: u64, most: u64) -> Result<(), SettingsError> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(SettingsError::Range { field, value, least, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_then_grows_linearly_then_stays() {
        let settings = SubscriptionSettings {
            min_backoff_ms: 10,
            max_backoff_ms: 200,
            max_doublings: 3,
            ..SubscriptionSettings::default()
        };
        let delays: Vec<u64> = (1..=8).map(|attempt| settings.backoff_ms(attempt)).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 200, 200, 200]);
    }

    #[test]
    fn backoff_never_overflows() {
        let settings = SubscriptionSettings {
            min_backoff_ms: 7 * 86_400_000,
            max_backoff_ms: 7 * 86_400_000,
            max_doublings: 32,
            ..SubscriptionSettings::default()
        };
        assert_eq!(settings.backoff_ms(u32::MAX), settings.max_backoff_ms);
    }

    #[test]
    fn settings_that_differ_are_named_with_both_values() {
        let held = SubscriptionSettings { topic: "a".into(), ..SubscriptionSettings::default() };
        assert_eq!(held.differences(&held), "");
        let asked = SubscriptionSettings { topic: "b".into(), max_attempts: 3, ..held.clone() };
        let said = "topic is \"a\" there and \"b\" here, max_attempts is 16 there and 3 here";
        assert_eq!(asked.differences(&held), said);
        let asked = TopicSettings { default_type: "t".into(), ..TopicSettings::default() };
        assert_eq!(asked.differences(&TopicSettings::default()), "default_type is \"\" there and \"t\" here");
    }

    #[test]
    fn a_misfire_policy_has_one_form_and_a_bounded_time() {
        for misfire in [Misfire::Fire, Misfire::SkipOlderThan(7), Misfire::SpreadOver(9)] {
            let (code, ms) = misfire.code();
            assert_eq!(Misfire::from_code(code, ms), Some(misfire));
        }
        assert_eq!((Misfire::from_code(0, 1), Misfire::from_code(3, 1)), (None, None));
        let settings = |misfire| SubscriptionSettings {
            name: "s".into(),
            topic: "t".into(),
            misfire,
            ..SubscriptionSettings::default()
        };
        assert_eq!(settings(Misfire::SpreadOver(SPREAD_OVER_MS_MAX)).validate(), Ok(()));
        for bad in [Misfire::SpreadOver(SPREAD_OVER_MS_MAX + 1), Misfire::SkipOlderThan(0)] {
            assert!(matches!(settings(bad).validate(), Err(SettingsError::Range { .. })), "{bad:?}");
        }
    }

    #[test]
    fn names_and_ranges_are_checked() {
        let good =
            SubscriptionSettings { name: "s".into(), topic: "t".into(), ..SubscriptionSettings::default() };
        assert_eq!(good.validate(), Ok(()));
        for name in ["", "-a", "a b", "ä", &"x".repeat(129)] {
            let bad = SubscriptionSettings { name: name.into(), ..good.clone() };
            assert!(matches!(bad.validate(), Err(SettingsError::Name { .. })), "{name}");
        }
        let bad = SubscriptionSettings { max_backoff_ms: 1, ..good };
        assert_eq!(bad.validate().map_err(|e| e.code()), Err(ErrorCode::InvalidSettings));
    }
}
