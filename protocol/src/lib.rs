//! The words of the system: ids, clocks, error codes, the event's byte form, settings of topics and
//! subscriptions, and the frames that travel between clients and a node.
//!
//! Everything here is pure data and pure functions. The crate depends on nothing else of this
//! workspace, performs no I/O and reads no clock, so that the wire, the log, the engine and the
//! simulator all speak of the same things in the same words.
//!
//! Byte forms are specified in `docs/formats/wire-v1.md`; this crate is their only implementation.
// The generated FlatBuffers accessors are unsafe inside, and the only module that may be.
#![deny(unsafe_code)]

pub mod error;
pub mod event;
pub mod frame;
mod generated;
pub mod ids;
pub mod settings;
pub mod steering;
pub mod task;
pub mod time;

pub use error::ErrorCode;
pub use event::{EventError, EventSpec, EventView};
pub use frame::{Frame, FrameDecoder, FrameError, FrameKind, FrameWriter};
pub use ids::{Epoch, EventId, Sequence, ShardId, SubscriptionId, TaskId, TopicId};
pub use settings::{Misfire, SettingsError, SubscriptionSettings, TopicSettings};
pub use task::{AttemptResult, Outcome, Tag};
pub use time::{MonoNs, Now, WallMs};

/// Application protocol negotiated in the TLS handshake.
pub const ALPN: &[u8] = b"escapement/1";

/// Version of the frames that this crate writes and accepts.
pub const PROTOCOL_VERSION: u16 = 1;

/// Largest event, header and attributes included, in bytes.
pub const EVENT_SIZE_BYTES_MAX: usize = 256 * 1024;

/// Largest frame, its length prefix not included, in bytes.
pub const FRAME_SIZE_BYTES_MAX: usize = 1024 * 1024;

/// Farthest due time accepted, counted from the moment of acceptance: ten years of 365.25 days.
pub const DELAY_MS_MAX: u64 = 3_652 * 86_400_000 + 43_200_000;

const _: () = assert!(EVENT_SIZE_BYTES_MAX * 2 < FRAME_SIZE_BYTES_MAX, "a frame must hold the largest event");
