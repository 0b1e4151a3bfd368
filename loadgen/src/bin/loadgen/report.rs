//! Results, for people and for programs.

mod burst;
mod histograms;
mod preload;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use escapement_protocol::ErrorCode;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

pub(crate) use histograms::IntervalLog;

use crate::args::Args;
use crate::burst::Burst;
use crate::judge::Noted;
use crate::measure::Distributions;
use crate::preload::Preloaded;
use crate::restart::Restarted;
use crate::run::{Datagrams, Mark};
use crate::slo::{Metric, QUANTILES, Slo};

/// Time between two lines of progress.
const TICK: Duration = Duration::from_secs(1);

/// Prints a line for people, beside what the program was asked for.
#[expect(clippy::print_stderr, reason = "the one place where the program speaks")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

/// All that was done.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// The measured run before the preload or the burst, where there is one.
    pub(crate) before: Option<Outcome>,
    /// The measured run; on top of the preload or beside the burst, where there is one.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) preload: Option<Preloaded>,
    pub(crate) restart: Option<Restarted>,
    pub(crate) burst: Option<Burst>,
}

impl Results {
    /// Whether every promise and objective was kept.
    pub(crate) fn is_kept(&self) -> bool {
        let runs = self.before.iter().chain(&self.outcome).all(Outcome::is_kept);
        let preload = self.preload.as_ref().is_none_or(Preloaded::is_kept);
        let burst = self.burst.as_ref().is_none_or(Burst::is_kept);
        runs && preload && burst && self.restart.as_ref().is_none_or(Restarted::is_kept)
    }

    fn before_what(&self) -> &'static str {
        if self.burst.is_some() { "without the burst" } else { "before the preload" }
    }

    fn to_json(&self, args: &Args) -> Value {
        let mut json = self.outcome.as_ref().map_or_else(|| json!({}), |outcome| outcome.to_json(args));
        if let Some(before) = &self.before {
            json[if self.burst.is_some() { "before_burst" } else { "before_preload" }] = before.to_json(args);
        }
        if let Some(preload) = &self.preload {
            json["preload"] = preload::json(preload);
        }
        if let Some(restart) = &self.restart {
            json["restart"] = preload::restart_json(restart);
        }
        if let Some(burst) = &self.burst {
            json["burst"] = burst::json(burst);
        }
        json["kept"] = json!(self.is_kept());
        json
    }
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) has_node: bool,
    /// Begin of the measured time.
    pub(crate) begin: Mark,
    /// Its end.
    pub(crate) end: Mark,
    /// When nothing more was waited for.
    pub(crate) last: Mark,
    /// Events that the schedule asked for and that were not sent in time.
    pub(crate) missed: u64,
    pub(crate) drained: bool,
    pub(crate) lost_examples: Vec<u64>,
    pub(crate) refused_by_code: BTreeMap<u16, u64>,
    /// Events that were to be noted one by one.
    pub(crate) noted: Vec<Noted>,
    pub(crate) resent: u64,
    pub(crate) datagrams: Datagrams,
    pub(crate) missed_objectives: Vec<String>,
    pub(crate) all: Distributions,
}

impl Outcome {
    /// Whether every promise and objective was kept.
    pub(crate) fn is_kept(&self) -> bool {
        self.drained && self.last.report.is_clean() && self.missed_objectives.is_empty()
    }

    fn measured(&self) -> Duration {
        Duration::from_nanos(self.end.at_ns - self.begin.at_ns)
    }

    fn completed(&self) -> u64 {
        self.end.report.completed - self.begin.report.completed
    }

    /// Events that completed a second of the measured time.
    pub(crate) fn completed_per_s(&self) -> f64 {
        self.completed() as f64 / self.measured().as_secs_f64().max(1e-9)
    }

    fn node_cpu_s(&self) -> f64 {
        self.end.node.cpu.saturating_sub(self.begin.node.cpu).as_secs_f64()
    }

    fn core_major_faults(&self) -> Option<u64> {
        Some(self.end.node.core_major_faults?.saturating_sub(self.begin.node.core_major_faults?))
    }

    fn own_cpu_s(&self) -> f64 {
        self.end.own_cpu.saturating_sub(self.begin.own_cpu).as_secs_f64()
    }

    fn stolen_s(&self) -> f64 {
        self.end.stolen.saturating_sub(self.begin.stolen).as_secs_f64()
    }

    fn log_bytes(&self) -> u64 {
        self.end.node.written_bytes.saturating_sub(self.begin.node.written_bytes)
    }

    fn to_json(&self, args: &Args) -> Value {
        let (report, per_task) = (&self.last.report, 1.0 / (self.completed().max(1) as f64));
        let mut json = json!({
            "rate": args.rate_per_s(),
            "seed": args.seed,
            "payload_bytes": args.payload,
            "measured_s": self.measured().as_secs_f64(),
            "published": report.published,
            "missed_sends": self.missed,
            "acknowledged": report.acknowledged,
            "refused": report.refused,
            "refused_by_code": refusals(&self.refused_by_code),
            "resent": self.resent,
            "dispatched": report.dispatched,
            "completed": report.completed,
            "duplicates": report.duplicates,
            "foreign": report.foreign,
            "lost": report.outstanding,
            "running_most": report.running_most,
            "completed_per_s": self.completed_per_s(),
            "generator_cpu_s": self.own_cpu_s(),
            "stolen_cpu_s": self.stolen_s(),
            "tasks_per_datagram": per(report.dispatched, self.datagrams.received.datagrams_received),
            "events_per_datagram": per(report.published, self.datagrams.published.datagrams_sent),
            "mtu": self.datagrams.received.mtu.max(self.datagrams.published.mtu),
            "packets_lost": self.datagrams.received.packets_lost + self.datagrams.published.packets_lost,
            "missed_objectives": self.missed_objectives,
            "kept": self.is_kept(),
        });
        for (name, breaches) in report.breaches() {
            json[name] = json!(breaches.count);
        }
        for metric in Metric::ALL {
            let of = self.all.of(metric);
            let figures = QUANTILES
                .iter()
                .map(|(name, quantile)| (name.replace('.', "_"), of.value_at_quantile(*quantile)));
            json[format!("{}_us", metric.name())] = figures.map(|(name, us)| (name, json!(us))).collect();
        }
        if self.has_node {
            json["node"] = json!({
                "cpu_s": self.node_cpu_s(),
                "cpu_s_per_million": self.node_cpu_s() * 1e6 * per_task,
                "rss_peak_bytes": self.last.node.rss_peak_bytes,
                "rss_anon_bytes": self.last.node.rss_anon_bytes,
                "core_major_faults": self.core_major_faults(),
                "log_bytes": self.log_bytes(),
                "log_bytes_per_task": self.log_bytes() as f64 * per_task,
            });
        }
        json
    }
}

/// Counts of refusals under the names of their codes.
fn refusals(by_code: &BTreeMap<u16, u64>) -> Value {
    let name = |number: &u16| {
        ErrorCode::from_number(*number).map_or_else(|| number.to_string(), |code| code.name().to_owned())
    };
    by_code.iter().map(|(number, count)| (name(number), json!(count))).collect()
}

fn per(events: u64, datagrams: u64) -> f64 {
    events as f64 / datagrams.max(1) as f64
}

/// The objectives that were not met, each with what was measured.
pub(crate) fn missed_objectives(objectives: &[Slo], all: &Distributions) -> Vec<String> {
    let missed = objectives.iter().filter_map(|slo| {
        let of = all.of(slo.metric);
        let us = of.value_at_quantile(slo.quantile);
        // Without a value nothing was shown to be in time.
        let met = !of.is_empty() && u128::from(us) < slo.below.as_micros();
        (!met).then(|| format!("{slo} was {}", time(us)))
    });
    missed.collect()
}

/// Prints the results and writes what was asked for.
pub(crate) fn write(args: &Args, results: &Results) -> Result<()> {
    let json = results.to_json(args);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&json).context("JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("--json {}", path.display()))?;
    }
    if let (Some(path), Some(outcome)) = (&args.hgrm, &results.outcome) {
        histograms::write_percentiles(path, outcome.all.of(Metric::Lateness))
            .with_context(|| format!("--hgrm {}", path.display()))?;
    }
    if let Some(outcome) = &results.outcome {
        say(&tables(outcome, results.before.as_ref().zip(Some(results.before_what())), &json));
    }
    if let Some(burst) = &results.burst {
        say(&burst::table(burst));
    }
    if let Some(preload) = &results.preload {
        say(&preload::table(preload, results.restart.as_ref()));
    }
    let when = results.before_what();
    let before = results.before.iter().flat_map(complaints).map(|line| format!("{when}: {line}"));
    let after = results.outcome.iter().flat_map(complaints);
    let burst = results.burst.iter().flat_map(burst::complaints);
    for line in before.chain(after).chain(preload::complaints(results)).chain(burst) {
        say(&line);
    }
    Ok(())
}

fn tables(outcome: &Outcome, before: Option<(&Outcome, &str)>, json: &Value) -> String {
    let report = &outcome.last.report;
    let mut times = Table::new();
    times
        .load_preset(presets::UTF8_BORDERS_ONLY)
        .set_header(std::iter::once("").chain(QUANTILES.iter().map(|(name, _)| *name)).collect::<Vec<_>>());
    let mut add = |name: String, of: &Histogram<u64>| {
        let cells = QUANTILES.iter().map(|(_, quantile)| time(of.value_at_quantile(*quantile)));
        times.add_row(std::iter::once(name).chain(cells).collect::<Vec<_>>());
    };
    for metric in Metric::ALL {
        add(metric.name().to_owned(), outcome.all.of(metric));
        if let Some((before, when)) = before {
            add(format!("  {}, {when}", metric.name()), before.all.of(metric));
        }
    }
    let mut counts = Table::new();
    counts.load_preset(presets::UTF8_BORDERS_ONLY);
    let mut row = |name: &str, value: String| {
        counts.add_row(vec![name.to_owned(), value]);
    };
    row("completed a second", thousands(json["completed_per_s"].as_f64().unwrap_or(0.0) as u64));
    for (name, count) in [
        ("published", report.published),
        ("missed sends", outcome.missed),
        ("acknowledged", report.acknowledged),
        ("refused", report.refused),
        ("dispatched", report.dispatched),
        ("completed", report.completed),
        ("duplicates", report.duplicates),
        ("lost", report.outstanding),
        ("early", report.early.count),
        ("wrong payload", report.wrong_payload.count),
        ("out of order", report.out_of_order.count),
        ("over the limit", report.over_limit.count),
    ] {
        row(name, thousands(count));
    }
    row("tasks a datagram", format!("{:.1}", json["tasks_per_datagram"].as_f64().unwrap_or(0.0)));
    row("events a datagram", format!("{:.1}", json["events_per_datagram"].as_f64().unwrap_or(0.0)));
    row(
        "generator CPU",
        format!("{:.1} s of {:.1} s", outcome.own_cpu_s(), outcome.measured().as_secs_f64()),
    );
    row("kept by the hypervisor", format!("{:.2} s", outcome.stolen_s()));
    if outcome.has_node {
        let figure = |name: &str| json["node"][name].as_f64().unwrap_or(0.0);
        row("node CPU", format!("{:.1} s, {:.2} s a million", figure("cpu_s"), figure("cpu_s_per_million")));
        row("node memory, most", format!("{:.0} MiB", figure("rss_peak_bytes") / 1024.0 / 1024.0));
        let faults = outcome.core_major_faults().map_or("unknown".to_owned(), thousands);
        row("major faults of its cores", faults);
        row("node log", format!("{:.0} bytes a task", figure("log_bytes_per_task")));
    }
    if let Some(values) = counts.column_mut(1) {
        values.set_cell_alignment(CellAlignment::Right);
    }
    format!("{times}\n{counts}")
}

fn complaints(outcome: &Outcome) -> Vec<String> {
    let report = &outcome.last.report;
    let mut lines = Vec::new();
    for (name, breaches) in report.breaches() {
        if breaches.count > 0 {
            lines.push(format!(
                "BROKEN {name}: {} times, first at events {:?}",
                breaches.count, breaches.examples
            ));
        }
    }
    if !outcome.drained {
        lines.push(format!(
            "BROKEN lost: {} acknowledged events did not complete, such as {:?}; {} were not answered",
            report.outstanding,
            outcome.lost_examples,
            report.published - report.acknowledged - report.refused,
        ));
    }
    lines.extend(outcome.missed_objectives.iter().map(|missed| format!("MISSED {missed}")));
    if outcome.missed > 0 {
        lines.push(format!(
            "{} sends of the schedule were not made: the node or this machine cannot keep up",
            outcome.missed
        ));
    }
    lines
}

/// A line every second.
#[derive(Debug)]
pub(crate) struct Progress {
    quiet: bool,
    over: bool,
    next: Instant,
    last: Mark,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        Progress {
            quiet,
            over: std::io::stderr().is_terminal(),
            next: Instant::now() + TICK,
            last: Mark::default(),
        }
    }

    /// Time until the next line is due.
    pub(crate) fn until_next(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    #[expect(clippy::print_stderr, reason = "a line that is written over on a terminal")]
    pub(crate) fn print(&mut self, mark: &Mark, second: &Distributions) {
        self.next = Instant::now() + TICK;
        let last = std::mem::replace(&mut self.last, mark.clone());
        if self.quiet {
            return;
        }
        let seconds = ((mark.at_ns - last.at_ns) as f64 / 1e9).max(1e-9);
        let rate = |now: u64, before: u64| thousands(((now - before) as f64 / seconds) as u64);
        let share =
            |now: Duration, before: Duration| 100.0 * now.saturating_sub(before).as_secs_f64() / seconds;
        let late = second.of(Metric::Lateness);
        let line = format!(
            "{:4.0} s  sent {}/s  acked {}/s  done {}/s  pending {}  late p50 {} p99 {}  cpu node {:.0} % own {:.0} %",
            mark.at_ns as f64 / 1e9,
            rate(mark.report.published, last.report.published),
            rate(mark.report.acknowledged, last.report.acknowledged),
            rate(mark.report.completed, last.report.completed),
            thousands(mark.report.outstanding),
            time(late.value_at_quantile(0.5)),
            time(late.value_at_quantile(0.99)),
            share(mark.node.cpu, last.node.cpu),
            share(mark.own_cpu, last.own_cpu),
        );
        if self.over {
            eprint!("\r\x1b[2K{line}");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{line}");
        }
    }
}

/// Ends a line that was written over.
impl Drop for Progress {
    #[expect(clippy::print_stderr, reason = "ends what Progress::print began")]
    fn drop(&mut self) {
        if self.over && !self.quiet {
            eprintln!();
        }
    }
}

/// A time in the unit that reads best.
fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or("")).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slo::slo;

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!([thousands(0), thousands(999), thousands(1_234_567)], ["0", "999", "1,234,567"]);
        assert_eq!([time(7), time(1_500), time(2_500_000)], ["7 µs", "1.50 ms", "2.50 s"]);
    }

    #[test]
    fn an_objective_is_missed_where_the_figure_is_not_below_it_and_where_there_is_none() {
        let mut all = Distributions::new();
        let objectives =
            [slo("p99(lateness)<5ms").expect("valid"), slo("max(publish_ack)<1s").expect("valid")];
        assert_eq!(missed_objectives(&objectives, &all).len(), 2);
        for _ in 0..100 {
            all.record(Metric::Lateness, 4_000_000);
            all.record(Metric::PublishAck, 4_000_000);
        }
        assert_eq!(missed_objectives(&objectives, &all), Vec::<String>::new());
        (0..5).for_each(|_| all.record(Metric::Lateness, 5_100_000));
        assert_eq!(missed_objectives(&objectives, &all), ["p99(lateness)<5ms was 5.10 ms"]);
    }
}
