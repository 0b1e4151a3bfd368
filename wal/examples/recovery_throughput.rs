//! How fast a log is read back: opening it, against verifying the same blocks through a map.
//!
//! `cargo run --release -p escapement-wal --example recovery_throughput -- /var/tmp` writes 512 MiB of records of 160
//! bytes there, reads them three times each way, and removes them. Opening always reads past the page cache; the map finds
//! it empty at first, since the log was written past it, and full from then on.
#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::error::Error;
use std::time::Instant;

use escapement_protocol::{ShardId, WallMs};
use escapement_wal::{
    BlockContent, FsDirectory, LogError, LogIdentity, ShardLog, WalConfig, disk, format_log, inspect, open,
};

const RECORD_SIZE_BYTES: usize = 160;
const LOG_SIZE_BYTES: u64 = 512 * 1024 * 1024;
const IDENTITY: LogIdentity = LogIdentity { cluster: 1, shard: ShardId(0), shard_count: 1 };

fn fill(dir: &mut FsDirectory, config: &WalConfig, block_size_bytes: usize) -> Result<(), Box<dyn Error>> {
    format_log(dir, IDENTITY, config)?;
    let (mut wal, _) = open(dir, IDENTITY, config, &mut |_| {})?;
    let record_count = block_size_bytes / RECORD_SIZE_BYTES;
    let records: Vec<u8> = (0..record_count * RECORD_SIZE_BYTES).map(|at| (at * 31) as u8).collect();
    while wal.usage().written_bytes < LOG_SIZE_BYTES {
        let content =
            BlockContent { records: &records, record_count: record_count as u32, leader_time: WallMs(1) };
        match wal.submit(content) {
            Ok(_) | Err(LogError::Backpressure) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(op) = wal.poll_op() {
            wal.on_completion(disk::execute(dir, op));
        }
    }
    Ok(())
}

/// When a measurement began, on both clocks.
struct Start {
    wall: Instant,
    on_core_seconds: f64,
}

impl Start {
    fn now() -> Start {
        Start { wall: Instant::now(), on_core_seconds: on_core_seconds() }
    }
}

fn report(way: &str, block_size_bytes: usize, bytes: u64, records: u64, start: &Start) {
    let seconds = start.wall.elapsed().as_secs_f64();
    let on_core = on_core_seconds() - start.on_core_seconds;
    let gigabytes = bytes as f64 / 1e9;
    let millions = records as f64 / 1e6;
    println!(
        "| {way} | {} KiB | {:.2} | {:.1} | {:.2} | {:.1} |",
        (block_size_bytes + 128) / 1024,
        gigabytes / seconds,
        millions / seconds,
        on_core / gigabytes,
        millions / on_core,
    );
}

/// Time that this thread has spent on a core: on a shared machine it says more than the clock on the wall.
fn on_core_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e9
}

fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args().nth(1).unwrap_or_else(|| "/var/tmp".to_owned());
    println!(
        "| way | extents | GB/s | million records/s | core-s/GB | million records/core-s |\n|---|---|---|---|---|---|"
    );
    for block_size_bytes in [8, 64, 256].map(|kib| kib * 1024 - 128) {
        let dir = tempfile::tempdir_in(&parent)?;
        let mut files = FsDirectory::new(dir.path());
        let config = WalConfig::default();
        fill(&mut files, &config, block_size_bytes)?;
        for _ in 0..3 {
            let start = Start::now();
            let mut sum = 0_u64;
            let (_, found) = open(&mut files, IDENTITY, &config, &mut |block| {
                // What a visitor at least does: go from record to record.
                sum +=
                    block.records.iter().step_by(RECORD_SIZE_BYTES).map(|&byte| u64::from(byte)).sum::<u64>();
            })?;
            report("open", block_size_bytes, found.scanned_bytes, found.record_count, &start);
            std::hint::black_box(sum);
        }
        for way in ["map, cold", "map, cached", "map, cached"] {
            let start = Start::now();
            let (mut bytes, mut records) = (0, 0);
            for segment in inspect::inspect(dir.path())?.segments {
                for block in segment.extents().filter_map(|extent| extent.block) {
                    bytes += block.bytes().len() as u64;
                    records += u64::from(block.header().record_count);
                }
            }
            report(way, block_size_bytes, bytes, records, &start);
        }
    }
    Ok(())
}
