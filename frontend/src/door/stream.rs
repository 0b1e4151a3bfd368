//! What the door keeps for one stream.

use hashbrown::HashMap;

use escapement_protocol::frame::{CancelVerdict, FrameDecoder, RescheduleVerdict};

use super::{Publisher, Refusal};

/// State of one stream. Any frame may come on any stream; what a stream has been used for so far is here.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Among all that this door ever had: the order in which streams are gone through.
    pub(super) number: u64,
    pub(super) decoder: FrameDecoder,
    /// Frames to send.
    pub(super) out: Vec<u8>,
    pub(super) dirty: bool,
    /// Whether a `Hello` came.
    pub(super) greeted: bool,
    /// Set with the first batch.
    pub(super) publisher: Option<Box<Publisher>>,
    /// Set by a subscription.
    pub(super) session: Option<u64>,
    /// Whether the session asked for no more pushes.
    pub(super) left: bool,
    /// Cancellations and reschedulings by request.
    pub(super) changes: HashMap<u64, Changing>,
    /// Events in all of them.
    pub(super) change_events: usize,
    /// Administrative requests, and questions about what is pending, without an answer.
    pub(super) requests: usize,
    /// Bytes that the answers to those questions may come to.
    pub(super) answers_size_bytes: usize,
}

/// One for each event, in the order of the request.
#[derive(Debug)]
pub(super) enum Verdicts {
    Cancel(Vec<CancelVerdict>),
    Reschedule(Vec<RescheduleVerdict>),
}

impl Verdicts {
    pub(super) fn len(&self) -> usize {
        match self {
            Verdicts::Cancel(verdicts) => verdicts.len(),
            Verdicts::Reschedule(verdicts) => verdicts.len(),
        }
    }
}

/// A cancellation or rescheduling without an answer.
#[derive(Debug)]
pub(super) struct Changing {
    pub(super) verdicts: Verdicts,
    /// Events of the request.
    pub(super) count: usize,
    /// Events without a verdict.
    pub(super) missing: usize,
    /// Why some have none, and the whole request is refused.
    pub(super) refusal: Option<Refusal>,
}
