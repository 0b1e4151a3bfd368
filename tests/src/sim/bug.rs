//! Planted bugs: faults of the composition, which the simulator must notice.

/// A fault planted in the simulator's composition root, never in the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The host calls writes done when it has taken them.
    AckBeforeDurable,
    /// Cores are given a wall clock that is ahead.
    ClockAhead,
    /// The host tries a failed write again and says that it is done.
    RetryAfterError,
    /// The end of a disk operation never reaches its core.
    LostCompletion,
    /// The mesh loses mail.
    LostMail,
    /// Recovery does not apply the last block.
    LastBlockForgotten,
    /// Recovery applies nothing, so that sequences are given out again.
    SequencesAgain,
    /// A push leaves twice.
    PushTwice,
    /// Cut connections are reported to the core as if the subscriber had left.
    CutAsLeft,
    /// The host reports the wrong end of bytes: a result's bytes are fed again.
    EventAltered,
    /// A new incarnation opens its logs under the epoch of the last.
    EpochAgain,
}

impl Bug {
    /// Every one.
    pub const ALL: [Bug; 11] = [
        Bug::AckBeforeDurable,
        Bug::ClockAhead,
        Bug::RetryAfterError,
        Bug::LostCompletion,
        Bug::LostMail,
        Bug::LastBlockForgotten,
        Bug::SequencesAgain,
        Bug::PushTwice,
        Bug::CutAsLeft,
        Bug::EventAltered,
        Bug::EpochAgain,
    ];
}
