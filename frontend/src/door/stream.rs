//! What the door keeps for one stream.

use hashbrown::HashMap;

use escapement_protocol::frame::{CancelVerdict, FrameDecoder};

use super::Publisher;

/// State of one stream. Any frame may come on any stream; what a stream has been used for so far is here.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) decoder: FrameDecoder,
    /// Frames to send.
    pub(super) out: Vec<u8>,
    pub(super) dirty: bool,
    /// Set with the first batch.
    pub(super) publisher: Option<Box<Publisher>>,
    /// Set by a subscription.
    pub(super) session: Option<u64>,
    /// Whether the session asked for no more pushes.
    pub(super) left: bool,
    /// Cancellations by request: the verdicts so far, and how many are missing.
    pub(super) cancels: HashMap<u64, (Vec<CancelVerdict>, usize)>,
    /// Administrative requests without an answer.
    pub(super) requests: usize,
}
