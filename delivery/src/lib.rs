//! Carries pushes out to attached sessions.
//!
//! The engine says which event goes to which session; here the pushes of one turn to one session become
//! one frame, so that an event's bytes are copied once into the frame and never again before the packet.
//! What waits in a session is bounded by the session's credit in bytes, which the router never exceeds.
//!
//! HTTP targets, host health and locality have their place in this crate; none of them is here yet.
#![forbid(unsafe_code)]

mod sessions;

pub use sessions::{Session, Sessions};
