//! How long a block takes to become durable: ways of syncing, ways of preparing the file, sizes.
//!
//! `cargo run --release -p escapement-wal --example commit_latency -- /var/tmp` prints a Markdown table. Needs 64 MiB
//! there, and removes them.
#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use escapement_wal::AlignedBuf;

const FILE_SIZE_BYTES: u64 = 64 * 1024 * 1024;
const COMMIT_COUNT_MAX: u64 = 1_000;

#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    zero_written: bool,
    flags: i32,
    sync_after: bool,
}

const WAYS: [Way; 4] = [
    Way {
        name: "zero-written, O_DIRECT + O_DSYNC",
        zero_written: true,
        flags: libc::O_DIRECT | libc::O_DSYNC,
        sync_after: false,
    },
    Way {
        name: "zero-written, O_DIRECT, then fdatasync",
        zero_written: true,
        flags: libc::O_DIRECT,
        sync_after: true,
    },
    Way { name: "zero-written, page cache, then fdatasync", zero_written: true, flags: 0, sync_after: true },
    Way {
        name: "growing, O_DIRECT, then fdatasync",
        zero_written: false,
        flags: libc::O_DIRECT,
        sync_after: true,
    },
];

fn prepare(path: &Path, way: Way) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(way.flags & !libc::O_DSYNC)
        .open(path)?;
    if way.zero_written {
        let zeros = AlignedBuf::zeroed(1024 * 1024);
        for offset in (0..FILE_SIZE_BYTES).step_by(zeros.len()) {
            file.write_all_at(&zeros, offset)?;
        }
    }
    file.sync_all()?;
    OpenOptions::new().read(true).write(true).custom_flags(way.flags).open(path)
}

fn commits(file: &File, way: Way, block: &[u8]) -> io::Result<Vec<Duration>> {
    let count = COMMIT_COUNT_MAX.min(FILE_SIZE_BYTES / block.len() as u64);
    let mut took = Vec::with_capacity(count as usize);
    for at in 0..count {
        let start = Instant::now();
        file.write_all_at(block, at * block.len() as u64)?;
        if way.sync_after {
            file.sync_data()?;
        }
        took.push(start.elapsed());
    }
    took.sort_unstable();
    Ok(took)
}

fn main() -> io::Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "/var/tmp".to_owned());
    let path = Path::new(&dir).join(format!("escapement-commit-latency-{}", std::process::id()));
    println!("| one commit, µs: p50 / p99 | 4 KiB | 64 KiB | 256 KiB | 512 KiB |\n|---|---|---|---|---|");
    for way in WAYS {
        print!("| {} |", way.name);
        for size_bytes in [4, 64, 256, 512].map(|kib| kib * 1024) {
            let mut block = AlignedBuf::zeroed(size_bytes);
            block.fill(0x5a);
            let file = prepare(&path, way)?;
            let took = commits(&file, way, &block);
            std::fs::remove_file(&path)?;
            let took = took?;
            print!(" {} / {} |", took[took.len() / 2].as_micros(), took[took.len() * 99 / 100].as_micros());
        }
        println!();
    }
    Ok(())
}
