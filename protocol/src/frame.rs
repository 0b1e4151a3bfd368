//! Frames: what travels on a stream between a client and a node.
//!
//! A stream is frames back to back. A frame is a prefix of 8 bytes and a FlatBuffer whose root is the
//! table of the frame's kind (`schema/wire_v1.fbs`):
//!
//! ```text
//!  0         4      5         6         8                 8 + len
//!  | len u32 | kind | version | flags 0 | FlatBuffer      |
//! ```
//!
//! [`FrameDecoder`] turns stream bytes into [`Frame`]s: each is verified once, when it is decoded,
//! and borrows from the bytes it came in, so that walking a batch costs no allocation and no second
//! check. [`FrameWriter`] writes any frame; [`PublishBatchWriter`] and [`PushBatchWriter`] collect
//! the frames of the data path one event at a time, with each event's bytes copied once.
//!
//! Who may send what and when is the sessions' business and not decided here. The specification is
//! `docs/formats/wire-v1.md`.

mod acks;
mod admin;
mod batch;
mod decoder;
mod events;
mod group;
mod items;
mod list;
mod parse;
mod query;
mod views;
mod writer;

pub use acks::{AckDuplicate, encode_publish_ack};
pub use admin::{
    AdminAnswer, AdminRequest, LIST_COUNT_MAX, Page, SNAPSHOT_HOLD_MS_MAX, ShardCut, ShardMapInfo,
    SnapshotInfo, SubscriptionInfo, SubscriptionList, TopicInfo, TopicList,
};
pub use batch::{
    PUSH_DUE_SIZE_BYTES_MAX, PublishBatchWriter, PushBatchWriter, encode_publish_batch, encode_push_batch,
    encode_results,
};
pub use decoder::FrameDecoder;
pub use events::{EventIter, Events};
pub use group::{GROUP_EPOCH_COUNT_MAX, GroupAct, GroupAnswer, GroupEpoch, GroupOperation, GroupVerdict};
pub use items::{
    AckException, AckRun, CancelVerdict, Fixed, ItemIter, Items, PushDue, PushItem, RescheduleVerdict,
    ResultItem, ShardCore, TaskState,
};
pub use list::{
    EVENT_PAGE_COUNT_MAX, EVENT_PAGE_SIZE_BYTES_MAX, EventPage, ListEvents, ListedEvent,
    PAGE_TOKEN_SIZE_BYTES, PageToken, TokenError,
};
pub use parse::parse_body;
pub use query::{
    Counts, DUE_WITHIN_MS, DueCount, EventDetail, EventInfo, EventPlace, OutcomeCount, Query, QueryAnswer,
    TASK_INFO_COUNT_MAX, TaskInfo,
};
pub use views::{
    Accepted, AckItem, AckItems, Cancel, CancelByName, CancelReply, Credit, Durability, ErrorFrame,
    EventName, Frame, GoAway, Hello, PublishAck, PublishBatch, PushBatch, Reschedule, RescheduleReply,
    ResultBatch, Subscribe, Subscribed, Welcome,
};
pub use writer::FrameWriter;

use crate::{ErrorCode, FRAME_SIZE_BYTES_MAX};

/// Bytes before a frame's FlatBuffer.
pub const PREFIX_SIZE_BYTES: usize = 8;

/// Version in byte 5 of every frame.
pub const FRAME_VERSION: u8 = 1;

/// Most events in one frame: whatever becomes of them, one acknowledgement can say it.
pub const BATCH_COUNT_MAX: u32 = 16_384;

/// Shortest FlatBuffer there is: the offset of the root, a vtable without fields, a table without fields.
pub const BODY_SIZE_BYTES_MIN: usize = 12;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $side:ident;)+) => {
        /// What a frame is. The number travels on the wire and is never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum FrameKind { $($(#[doc = $doc])+ $name = $number,)+ }

        impl FrameKind {
            /// Every kind, in the order of its number.
            pub const ALL: &[FrameKind] = &[$(FrameKind::$name,)+];

            /// Reads the wire's number.
            #[must_use]
            pub fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }

            /// The name in the schema, documents and messages.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// Who sends it.
            #[must_use]
            pub fn sender(self) -> Sender {
                match self { $(Self::$name => Sender::$side,)+ }
            }
        }
    };
}

/// A side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// The side that dialled.
    Client,
    /// The side that was dialled.
    Node,
}

kinds! {
    /// Opens a connection: the first frame of its first stream.
    Hello = 1, Client;
    /// Answers `Hello`: who the node is, which core owns which shard, its limits.
    Welcome = 2, Node;
    /// Events to one topic.
    PublishBatch = 3, Client;
    /// Answers events of a stream, cumulatively.
    PublishAck = 4, Node;
    /// Opens a subscription's session on its stream.
    Subscribe = 5, Client;
    /// Answers `Subscribe`.
    Subscribed = 6, Node;
    /// Attempts, each with its event.
    PushBatch = 7, Node;
    /// Results of attempts.
    ResultBatch = 8, Client;
    /// Sets how much may be outstanding in a session.
    Credit = 9, Client;
    /// Asks for no more pushes in a session.
    Detach = 10, Client;
    /// Says that none will come any more.
    Detached = 11, Node;
    /// Asks to cancel events before they are due.
    Cancel = 12, Client;
    /// Answers `Cancel`, one verdict for each event.
    CancelReply = 13, Node;
    /// Creates, reads or lists topics and subscriptions, or reads the shard map.
    Admin = 14, Client;
    /// Answers `Admin`.
    AdminReply = 15, Node;
    /// Refuses a request, or ends a stream.
    Error = 16, Node;
    /// The node is draining: publish elsewhere, finish results, reconnect later.
    GoAway = 17, Node;
    /// Asks to give events another due time before they are due.
    Reschedule = 18, Client;
    /// Answers `Reschedule`, one verdict for each event.
    RescheduleReply = 19, Node;
    /// Asks what is known of a pending event.
    GetEvent = 20, Client;
    /// Answers `GetEvent`.
    GetEventReply = 21, Node;
    /// Asks how many events and tasks there are.
    CountEvents = 24, Client;
    /// Answers `CountEvents`.
    CountEventsReply = 25, Node;
    /// Asks to cancel events by the names that their publisher gave them; answered by `CancelReply`.
    CancelByName = 26, Client;
    /// Asks for pending events, a page of them.
    ListEvents = 27, Client;
    /// Answers `ListEvents`.
    ListEventsReply = 28, Node;
    /// Asks how many events come due soon.
    CountDue = 29, Client;
    /// Answers `CountDue`.
    CountDueReply = 30, Node;
    /// Asks a shard for an operation on its events of a group.
    GroupOperation = 32, Client;
    /// Answers `GroupOperation`.
    GroupOperationReply = 33, Node;
}

/// Why bytes are not a frame, or a frame was not taken. The stream cannot be read any further after one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length outside its range: nothing of the frame was read, or written.
    #[error(
        "a frame of {len_bytes} bytes after its prefix: it must have from {BODY_SIZE_BYTES_MIN} to {FRAME_SIZE_BYTES_MAX}"
    )]
    Length {
        /// Bytes after the prefix.
        len_bytes: u64,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended {held_bytes} bytes into a frame")]
    CutShort {
        /// Bytes of the frame that came.
        held_bytes: usize,
    },
    /// Another version of the protocol.
    #[error("a frame of version {version}, and version {FRAME_VERSION} is spoken here")]
    UnsupportedVersion {
        /// As the prefix states it.
        version: u8,
    },
    /// A kind that this version does not have.
    #[error("a frame of kind {kind}, which version {FRAME_VERSION} does not have")]
    UnknownFrame {
        /// As the prefix states it.
        kind: u8,
    },
    /// The bytes do not verify.
    #[error("a malformed {} frame: {reason}", kind.name())]
    Malformed {
        /// As the prefix states it.
        kind: FrameKind,
        /// What does not hold.
        reason: &'static str,
    },
    /// The frame is well-formed, and the session that it was handed to does not take it.
    #[error("a {} frame was refused: {reason}", kind.name())]
    Refused {
        /// The frame.
        kind: FrameKind,
        /// What the peer is told.
        code: ErrorCode,
        /// What does not hold.
        reason: &'static str,
    },
}

impl FrameError {
    /// The refusal that a peer receives.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Length { .. } | Self::CutShort { .. } => ErrorCode::FrameLength,
            Self::UnsupportedVersion { .. } => ErrorCode::UnsupportedVersion,
            Self::UnknownFrame { .. } => ErrorCode::UnknownFrame,
            Self::Malformed { .. } => ErrorCode::MalformedFrame,
            Self::Refused { code, .. } => *code,
        }
    }

    /// A frame that verifies and has no place in its session, or from this side.
    #[must_use]
    pub fn misplaced(kind: FrameKind, reason: &'static str) -> Self {
        Self::Refused { kind, code: ErrorCode::MalformedFrame, reason }
    }
}

/// A frame's first 8 bytes, verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// What follows.
    pub kind: FrameKind,
    /// Bytes that follow: [`BODY_SIZE_BYTES_MIN`] to [`FRAME_SIZE_BYTES_MAX`].
    pub len_bytes: usize,
}

impl Prefix {
    /// Reads a prefix.
    ///
    /// # Errors
    /// In this order: another version, an unknown kind, flags, a length out of range.
    pub fn parse(bytes: &[u8; PREFIX_SIZE_BYTES]) -> Result<Self, FrameError> {
        let &[l0, l1, l2, l3, kind, version, f0, f1] = bytes;
        if version != FRAME_VERSION {
            return Err(FrameError::UnsupportedVersion { version });
        }
        let kind = FrameKind::from_number(kind).ok_or(FrameError::UnknownFrame { kind })?;
        if [f0, f1] != [0, 0] {
            return Err(FrameError::Malformed { kind, reason: "its flags are not zero" });
        }
        let len_bytes = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        check_len(len_bytes)?;
        Ok(Prefix { kind, len_bytes })
    }

    /// The byte form.
    ///
    /// # Errors
    /// The length is out of range.
    pub fn to_bytes(self) -> Result<[u8; PREFIX_SIZE_BYTES], FrameError> {
        check_len(self.len_bytes)?;
        let [l0, l1, l2, l3] = (self.len_bytes as u32).to_le_bytes();
        Ok([l0, l1, l2, l3, self.kind as u8, FRAME_VERSION, 0, 0])
    }
}

fn check_len(len_bytes: usize) -> Result<(), FrameError> {
    if (BODY_SIZE_BYTES_MIN..=FRAME_SIZE_BYTES_MAX).contains(&len_bytes) {
        Ok(())
    } else {
        Err(FrameError::Length { len_bytes: len_bytes as u64 })
    }
}
