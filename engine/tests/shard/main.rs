//! Shards driven by hand: no log, no threads, no time but what a test says.

mod burst;
mod contradictions;
mod control;
mod delivery;
mod far;
mod groups;
mod groups_model;
mod lane;
mod listing;
mod misfire;
mod names;
mod names_runs;
mod reading;
mod refusals;
mod replay;
mod reschedule;
mod rewrite;
mod rig;
mod soon;
mod ttl;
