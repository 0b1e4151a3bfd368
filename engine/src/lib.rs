//! The shard: the durable state of its events, the timing wheel, and the decisions about both.
//!
//! [`Shard`] is a synchronous, deterministic state machine without I/O. [`Shard::step`] takes one input and
//! decides; what it decides becomes records ([`record`]) in [`Effects`]. When the records are durable,
//! [`Shard::apply_block`] changes the durable state, and only that does, live and in recovery alike.
//! [`Shard::maintain`] ends every turn: it fires what is due and lets the router pick.
//!
//! Invariants, and what holds them:
//! * every pending event is in memory, with exactly one table entry, one payload and one live count in its block, or in
//!   one run on the disk ([`far`]), and never in both ([`Shard::check`]);
//! * nothing is offered to a router before the wall clock has reached its due millisecond (asserted where it is offered);
//! * a record that ends an event is written at most once for it (its application asserts the order of ends).
//!
//! Left out on purpose: the log and its blocks (`wal`), sessions and frames (`frontend`, `delivery`),
//! threads and clocks (`node`).
#![forbid(unsafe_code)]

mod effects;
pub mod far;
pub mod groups;
pub mod names;
mod payload;
pub mod record;
mod registry;
mod shard;
mod table;
pub mod wheel;

pub use effects::{
    AdminRequest, Duplicate, Effects, Input, Message, Push, Refusal, Reply, ReplyBody, Ticket,
};
pub use registry::{Registry, Subscription, Topic, owner_of};
pub use shard::{
    ApplyError, Deadline, HeldRun, PendingEvent, Shard, ShardConfig, ShardStats, Undelivered, newest_control,
};
