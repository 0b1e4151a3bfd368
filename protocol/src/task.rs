//! What becomes of a task: results of attempts, final outcomes, delivery tags.

/// What a subscriber says of one attempt. No result, an error, a timeout or a cut connection all
/// count as [`AttemptResult::RetryableFailure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AttemptResult {
    /// Done: the task completes.
    Success = 1,
    /// Try again later, within the subscription's retry policy.
    RetryableFailure = 2,
    /// Never try again: the task fails.
    PermanentFailure = 3,
}

impl AttemptResult {
    /// Reads the wire's code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Success),
            2 => Some(Self::RetryableFailure),
            3 => Some(Self::PermanentFailure),
            _ => None,
        }
    }
}

/// How a task ended. The number is the byte in the log: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// The subscriber said success.
    Succeeded = 1,
    /// The subscriber said permanent failure.
    FailedPermanently = 2,
    /// The last attempt that the retry policy allows has failed.
    AttemptsExhausted = 3,
    /// No subscription matched when the event became due.
    Unmatched = 4,
    /// Cancelled before it was due.
    Cancelled = 5,
    /// The subscription was deleted while the task waited.
    SubscriptionDeleted = 6,
    /// The event's ttl passed before the task was done.
    Expired = 7,
    /// The event's due time was missed, and the subscription does not want it so late.
    Skipped = 8,
}

impl Outcome {
    /// All outcomes, for tables and exhaustive tests.
    pub const ALL: [Outcome; 8] = [
        Outcome::Succeeded,
        Outcome::FailedPermanently,
        Outcome::AttemptsExhausted,
        Outcome::Unmatched,
        Outcome::Cancelled,
        Outcome::SubscriptionDeleted,
        Outcome::Expired,
        Outcome::Skipped,
    ];

    /// The name in documents and command output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Succeeded => "SUCCEEDED",
            Outcome::FailedPermanently => "FAILED_PERMANENTLY",
            Outcome::AttemptsExhausted => "ATTEMPTS_EXHAUSTED",
            Outcome::Unmatched => "UNMATCHED",
            Outcome::Cancelled => "CANCELLED",
            Outcome::SubscriptionDeleted => "SUBSCRIPTION_DELETED",
            Outcome::Expired => "EXPIRED",
            Outcome::Skipped => "SKIPPED",
        }
    }

    /// Reads the log's code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| *outcome as u8 == code)
    }
}

/// Names one attempt between a node and a subscriber: opaque to the subscriber, unique for the life
/// of the subscription's owner within one epoch. A result that carries a stale tag changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);
