//! What becomes of published events.

use std::sync::Arc;

use escapement_protocol::frame::{AckException, AckRun, Durability};
use escapement_protocol::{ErrorCode, EventId, Sequence, ShardId, WallMs};

use crate::error::refused_event;

/// An accepted event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// What the node calls the event, to cancel it by.
    pub event_id: EventId,
    /// Moment of acceptance, which a delay counts from.
    pub accepted: WallMs,
    /// How safe it is.
    pub durability: Durability,
    /// Whether an event of this name had been accepted before, within its topic's `dedup_window`. All else here is then
    /// about that one: of what was published now, nothing is stored.
    pub duplicate: bool,
}

/// Accepted events of a batch that lie next to each other and have consecutive sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptRun {
    /// Place of the first of them in the batch, from 0.
    pub first_index: u32,
    /// How many.
    pub count: u32,
    /// Their shard.
    pub shard: ShardId,
    /// Sequence of the first.
    pub first_sequence: Sequence,
    /// Moment of acceptance.
    pub accepted: WallMs,
}

/// An accepted event of a batch that had been published before: its run names the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Its place in the batch, from 0.
    pub index: u32,
    /// When the first one is scheduled for, which its id carries.
    pub schedule_time: WallMs,
}

/// An event of a batch that was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its place in the batch, from 0.
    pub index: u32,
    /// An [`ErrorCode`]'s number, perhaps of a later version.
    pub number: u16,
    /// Earliest sensible time to publish it again; 0 where that would be refused again.
    pub retry_after_ms: u32,
}

impl Refusal {
    /// The code, where this version knows it.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        ErrorCode::from_number(self.number)
    }
}

/// What became of a batch: every event of it is in exactly one run or refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchReceipt {
    /// Accepted events, ascending.
    pub runs: Vec<ReceiptRun>,
    /// Of those, the ones that had been published before, ascending.
    pub duplicates: Vec<Duplicate>,
    /// Refused events, ascending.
    pub refusals: Vec<Refusal>,
    /// How safe the accepted ones are: the last acknowledgement's word.
    pub durability: Option<Durability>,
    /// Which limits the events met that were refused with [`ErrorCode::ResourceExhausted`], and which shards are out of
    /// service where it was [`ErrorCode::Unavailable`], in the node's words.
    pub exhausted: Option<Arc<str>>,
    /// Whether the batch was sent more than once, so that events of it may be stored twice.
    pub resent: bool,
}

impl BatchReceipt {
    /// The answer to the event at `index`, due at `due`: a pure delay counts from acceptance.
    #[must_use]
    pub(crate) fn answer(
        &self,
        index: u32,
        due: escapement_protocol::event::Due,
    ) -> Option<Result<Receipt, Refusal>> {
        use escapement_protocol::event::Due;
        if let Some(refusal) = self.refusals.iter().find(|refusal| refusal.index == index) {
            return Some(Err(*refusal));
        }
        let run =
            self.runs.iter().find(|run| (run.first_index..run.first_index + run.count).contains(&index))?;
        let duplicate = self.duplicates.binary_search_by_key(&index, |duplicate| duplicate.index).ok();
        let schedule_time = match (duplicate, due) {
            (Some(at), _) => self.duplicates[at].schedule_time,
            (None, Due::At(at)) => at,
            (None, Due::After(delay_ms)) => run.accepted.plus_ms(delay_ms),
        };
        let sequence = Sequence(run.first_sequence.0 + u64::from(index - run.first_index));
        Some(Ok(Receipt {
            event_id: EventId { shard: run.shard, sequence, schedule_time_ms: schedule_time.0 },
            accepted: run.accepted,
            durability: self.durability.unwrap_or(Durability(0)),
            duplicate: duplicate.is_some(),
        }))
    }

    /// Why an event was refused: in the node's words, where it sent some.
    pub(super) fn words_of(&self, refusal: Refusal) -> &str {
        match &self.exhausted {
            Some(words)
                if matches!(refusal.code(), Some(ErrorCode::ResourceExhausted | ErrorCode::Unavailable)) =>
            {
                words
            }
            _ => refused_event(refusal.number),
        }
    }

    pub(super) fn accept(&mut self, first_index: u32, run: AckRun, durability: Durability) {
        self.durability = Some(durability);
        self.runs.push(ReceiptRun {
            first_index,
            count: run.count,
            shard: run.shard,
            first_sequence: run.first_sequence,
            accepted: run.accepted,
        });
    }

    pub(super) fn refuse(&mut self, index: u32, exception: AckException) {
        let AckException { code: number, retry_after_ms, .. } = exception;
        self.refusals.push(Refusal { index, number, retry_after_ms });
    }
}
