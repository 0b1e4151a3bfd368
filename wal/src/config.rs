//! What a log is told when it is formatted and opened.

use std::fmt;

use escapement_protocol::ShardId;

use crate::format::{
    EXTENT_ALIGN_BYTES, EXTENT_OVERHEAD_BYTES, EXTENT_SIZE_BYTES_MAX, IN_FLIGHT_COUNT_MAX,
    SEGMENT_HEADER_SIZE_BYTES,
};

/// Whose log it is. Fixed when the log is formatted, carried by everything in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// Cluster.
    pub cluster: u64,
    /// Shard.
    pub shard: ShardId,
    /// Shards in the data directory.
    pub shard_count: u16,
}

/// Sizes and limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalConfig {
    /// Size of a segment file, in bytes, a multiple of 4 KiB. Fixed when the log is formatted: opening takes it from
    /// the disk.
    pub segment_size_bytes: u64,
    /// Largest extent written, in bytes, a multiple of 4 KiB, at most 512 KiB; with the segment's header it fits a
    /// segment. A restart may change it.
    pub extent_size_bytes_max: usize,
    /// Segment files, besides the first, that formatting prepares. At least 1.
    pub spare_count: u32,
    /// Segment files that hold nothing needed and are kept ready, as far as the log's size allows. At least 1. A disk that is
    /// full is noticed when another can't be created: these are there then, for what ends events and frees segments.
    pub ahead_count: u32,
    /// Most bytes of segment files; at least two files are kept. A restart may change it.
    pub log_size_bytes_max: u64,
    /// Most blocks in flight, 1 to 4. A restart may change it.
    pub in_flight_count_max: usize,
    /// Loss that an operator accepts, by the token of [`crate::OpenError::Corrupt`]: the log then ends before the
    /// damage, and everything behind it is erased. A token fits one finding only.
    pub accept_loss: Option<u64>,
}

impl Default for WalConfig {
    fn default() -> WalConfig {
        WalConfig {
            segment_size_bytes: 64 * 1024 * 1024,
            extent_size_bytes_max: EXTENT_SIZE_BYTES_MAX,
            spare_count: 2,
            ahead_count: 3,
            log_size_bytes_max: 64 * 64 * 1024 * 1024,
            in_flight_count_max: IN_FLIGHT_COUNT_MAX,
            accept_loss: None,
        }
    }
}

impl fmt::Display for LogIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LogIdentity { cluster, shard, shard_count } = self;
        write!(f, "shard {} of {shard_count} in cluster {cluster:016x}", shard.0)
    }
}

impl WalConfig {
    /// Sizes so small that a test soon meets every edge: segments of 64 KiB, one of them ahead, blocks up to 16 KiB, 8 segments.
    #[must_use]
    pub fn tiny() -> WalConfig {
        WalConfig {
            segment_size_bytes: 64 * 1024,
            extent_size_bytes_max: 16 * 1024,
            spare_count: 1,
            ahead_count: 1,
            log_size_bytes_max: 8 * 64 * 1024,
            ..WalConfig::default()
        }
    }

    /// Most bytes of records in one block.
    #[must_use]
    pub fn records_size_bytes_max(&self) -> usize {
        self.extent_size_bytes_max - EXTENT_OVERHEAD_BYTES
    }

    /// Segment files allowed.
    pub(crate) fn slot_count_max(&self) -> u64 {
        (self.log_size_bytes_max / self.segment_size_bytes).clamp(2, u64::from(u32::MAX) - 1)
    }

    /// What is wrong with these values, if anything.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        let align = EXTENT_ALIGN_BYTES as u64;
        let extent_max = self.extent_size_bytes_max;
        if !self.segment_size_bytes.is_multiple_of(align) || self.segment_size_bytes > u64::from(u32::MAX) {
            Some("segment_size_bytes must be a multiple of 4 KiB below 4 GiB")
        } else if !extent_max.is_multiple_of(EXTENT_ALIGN_BYTES)
            || !(EXTENT_ALIGN_BYTES..=EXTENT_SIZE_BYTES_MAX).contains(&extent_max)
        {
            Some("extent_size_bytes_max must be a multiple of 4 KiB, from 4 KiB to 512 KiB")
        } else if SEGMENT_HEADER_SIZE_BYTES as u64 + extent_max as u64 > self.segment_size_bytes {
            Some("segment_size_bytes must hold its header and the largest extent")
        } else if !(1..=IN_FLIGHT_COUNT_MAX).contains(&self.in_flight_count_max) {
            Some("in_flight_count_max must be 1 to 4")
        } else if self.ahead_count == 0 {
            Some("ahead_count must be at least 1")
        } else if self.spare_count == 0 {
            Some("spare_count must be at least 1")
        } else {
            None
        }
    }
}
