//! Distributions in the file forms of HdrHistogram.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2Serializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::clock::Clock;
use crate::measure::Distributions;
use crate::slo::Metric;

/// Names of an interval log's columns, as HdrHistogram's own tools write and skip them.
const INTERVAL_LOG_LEGEND: &str =
    "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"";

/// HdrHistogram's percentile table, as its plotter reads it.
pub(super) fn write_percentiles(path: &Path, of: &Histogram<u64>) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    for value in of.iter_quantiles(5) {
        let share = value.quantile_iterated_to();
        let total = of.count_between(0, value.value_iterated_to());
        write!(out, "{:12.3} {share:2.12} {total:10}", value.value_iterated_to() as f64)?;
        if share < 1.0 {
            write!(out, " {:14.2}", 1.0 / (1.0 - share))?;
        }
        writeln!(out)?;
    }
    writeln!(out, "#[Mean = {:12.3}, StdDeviation = {:12.3}]", of.mean(), of.stdev())?;
    writeln!(out, "#[Max = {:12.3}, Total count = {:12}]", of.max() as f64, of.len())?;
    out.flush()?;
    Ok(())
}

/// Every second's distributions, written as they come.
pub(crate) struct IntervalLog {
    out: BufWriter<File>,
    last_ns: u64,
}

impl std::fmt::Debug for IntervalLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IntervalLog").field("last_ns", &self.last_ns).finish_non_exhaustive()
    }
}

impl IntervalLog {
    pub(crate) fn create(path: &Path, clock: Clock) -> Result<Self> {
        let create = || -> Result<Self> {
            let mut out = BufWriter::new(File::create(path)?);
            let start = SystemTime::UNIX_EPOCH + Duration::from_nanos(clock.wall_at_ns(0));
            IntervalLogWriterBuilder::new()
                .with_start_time(start)
                .with_base_time(start)
                .with_max_value_divisor(1_000.0)
                .begin_log_with(&mut out, &mut V2Serializer::new())?;
            writeln!(out, "{INTERVAL_LOG_LEGEND}")?;
            Ok(IntervalLog { out, last_ns: 0 })
        };
        create().with_context(|| format!("--hlog {}", path.display()))
    }

    /// Writes what was recorded since the last time.
    pub(crate) fn write(&mut self, second: &Distributions, at_ns: u64) -> Result<()> {
        let (from, length) = (Duration::from_nanos(self.last_ns), Duration::from_nanos(at_ns - self.last_ns));
        self.last_ns = at_ns;
        let mut serializer = V2Serializer::new();
        // The header was written when the log was created: what is built here goes to a scratch buffer first.
        let mut lines = Vec::new();
        {
            let mut log = IntervalLogWriterBuilder::new()
                .with_max_value_divisor(1_000.0)
                .begin_log_with(&mut lines, &mut serializer)
                .context("--hlog")?;
            for metric in Metric::ALL {
                let tag = Tag::new(metric.name());
                log.write_histogram(second.of(metric), from, length, tag)
                    .map_err(|error| anyhow::anyhow!("--hlog: {error:?}"))?;
            }
        }
        for line in lines.split_inclusive(|byte| *byte == b'\n').filter(|line| line.starts_with(b"Tag=")) {
            self.out.write_all(line).context("--hlog")?;
        }
        self.out.flush().context("--hlog")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_table_ends_with_every_value() {
        let mut all = Distributions::new();
        (1..=1_000).for_each(|ms| all.record(Metric::Lateness, ms * 1_000_000));
        let file = tempfile::NamedTempFile::new().expect("a file");
        write_percentiles(file.path(), all.of(Metric::Lateness)).expect("written");
        let text = std::fs::read_to_string(file.path()).expect("readable");
        let last = text.lines().rev().find(|line| !line.starts_with('#')).expect("lines");
        let cells: Vec<&str> = last.split_whitespace().collect();
        assert_eq!((cells[1], cells[2]), ("1.000000000000", "1000"));
    }

    #[test]
    fn the_interval_log_has_one_header_and_a_line_for_each_metric_and_second() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut log = IntervalLog::create(file.path(), Clock::start()).expect("created");
        let mut second = Distributions::new();
        second.record(Metric::Lateness, 1_000_000);
        log.write(&second, 1_000_000_000).expect("written");
        log.write(&second, 2_000_000_000).expect("written");
        let text = std::fs::read_to_string(file.path()).expect("readable");
        assert_eq!(text.lines().filter(|line| line.starts_with("Tag=")).count(), 6);
        assert_eq!(text.lines().filter(|line| line.contains("StartTimestamp\"")).count(), 1);
        assert!(text.contains("Tag=lateness,1."), "{text}");
    }
}
