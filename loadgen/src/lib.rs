//! What a load is and how it is judged: free of transport, clock and I/O, so that the simulator and
//! the load generator put the same events to a node and hold it to the same promises.
//!
//! * [`generator`] makes the n-th event of a seed: when it is sent, when it is due, its bytes, and
//!   which of its attempts fail.
//! * [`auditor`] is told what was published, acknowledged, pushed and finished, and counts every
//!   broken promise: lost, early, altered, out of order, over the limit.
//!
//! Neither allocates per event, and neither remembers an event that is acknowledged and done: a
//! run's memory follows what is outstanding, not what has passed.
#![forbid(unsafe_code)]

pub mod auditor;
pub mod generator;

pub use auditor::{Auditor, Pushed, Verdict};
pub use generator::{DelayLaw, Workload, WorkloadConfig};
