//! Whole runs against a node of their own, small enough for every test run.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn loadgen(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(line.split(' '))
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

/// Runs a load on a node in a directory of its own, and answers the exit status and the figures.
fn figures(line: &str) -> (Option<i32>, Value, String) {
    let place = tempfile::tempdir().expect("a directory");
    let json = place.path().join("result.json");
    let data = place.path().join("data");
    let line = format!("{line} --quiet --allow-tmpfs --json {} --data {}", json.display(), data.display());
    let output = loadgen(&line);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = std::fs::read_to_string(&json).unwrap_or_else(|error| panic!("{error}; it said: {said}"));
    (output.status.code(), serde_json::from_str(&text).expect("JSON"), said)
}

#[test]
fn a_small_load_is_delivered_and_every_figure_is_there() {
    let (status, json, said) = figures("--rate 2k/s --duration 1s --warmup 1s --delay uniform:0s..200ms");
    assert_eq!(status, Some(0), "{said}");
    for field in ["published", "acknowledged", "dispatched", "completed"] {
        assert_eq!(json[field], 4_000, "{field}: {said}");
    }
    for field in ["refused", "lost", "early", "duplicates", "wrong_payload", "out_of_order", "missed_sends"] {
        assert_eq!(json[field], 0, "{field}: {said}");
    }
    assert!(json["completed_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{said}");
    for metric in ["publish_ack_us", "lateness_us", "generator_lag_us"] {
        let of =
            |quantile: &str| json[metric][quantile].as_u64().unwrap_or_else(|| panic!("{metric} {quantile}"));
        assert!(of("p50") <= of("p90") && of("p90") <= of("p99") && of("p99") <= of("p99_9"));
        assert!(of("p99_9") <= of("max") && of("max") < 60_000_000);
    }
    for field in ["cpu_s", "cpu_s_per_million", "rss_peak_bytes", "log_bytes", "log_bytes_per_task"] {
        assert!(json["node"][field].as_f64().is_some_and(|figure| figure >= 0.0), "{field}");
    }
}

#[test]
fn keys_topics_planned_failures_and_limits_are_kept_and_counted() {
    let (status, json, said) = figures(
        "--rate 1k/s --duration 1s --warmup 1s --delay uniform:100ms..300ms --keys 200 --topics 3 --fail 5% \
         --max-concurrent 16 --publishers 2 --subscribers 2",
    );
    assert_eq!(status, Some(0), "{said}");
    assert_eq!((&json["completed"], &json["lost"]), (&2_000.into(), &0.into()), "{said}");
    let retried = json["dispatched"].as_u64().unwrap_or(0) - 2_000;
    assert!((20..=400).contains(&retried), "about one in twenty attempts failed by plan: {retried}");
    assert!((1..=16).contains(&json["running_most"].as_u64().unwrap_or(0)), "{said}");
}

#[test]
fn as_fast_as_it_goes_loses_nothing_either() {
    let (status, json, said) = figures("--rate max --duration 1s --warmup 1s --delay 0s --in-flight 2000");
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(json["published"], json["completed"], "{said}");
    assert!(json["completed"].as_u64().is_some_and(|completed| completed > 1_000), "{said}");
}

#[test]
fn a_missed_objective_is_named_and_exits_with_1() {
    let (status, json, said) =
        figures("--rate 100/s --duration 1s --warmup 1s --delay 0s --slo max(publish_ack)<1us");
    assert_eq!(status, Some(1));
    assert!(said.contains("MISSED max(publish_ack)<1us"), "{said}");
    assert_eq!(json["kept"], false);
}

#[test]
fn a_preload_is_counted_stays_pending_and_outlives_a_restart() {
    let (status, json, said) = figures(
        "--preload 5k --restart --rate 1k/s --duration 1s --warmup 1s --delay uniform:0s..200ms --node-arg=--shards=2",
    );
    assert_eq!(status, Some(0), "{said}");
    let preload = &json["preload"];
    assert_eq!((&preload["events"], &preload["asked"]), (&5_000.into(), &5_000.into()), "{said}");
    assert_eq!((&preload["refused"], &preload["delivered"]), (&0.into(), &0.into()), "{said}");
    assert_eq!((&preload["sampled"], &preload["sample_cancelled"]), (&100.into(), &100.into()), "{said}");
    for field in ["seconds", "events_per_s"] {
        assert!(preload[field].as_f64().is_some_and(|figure| figure > 0.0), "{field}");
    }
    for moment in ["after", "at_end"] {
        for field in ["rss_peak_bytes", "rss_anon_bytes", "disk_bytes_per_event"] {
            assert!(preload[moment][field].as_f64().is_some_and(|figure| figure > 0.0), "{moment} {field}");
        }
        assert!(preload[moment]["disk_bytes"]["log"].as_u64().is_some_and(|bytes| bytes > 0), "{said}");
    }
    for run in [&json, &json["before_preload"]] {
        assert_eq!((&run["completed"], &run["lost"]), (&2_000.into(), &0.into()), "{said}");
    }
    assert!(json["before_preload"]["node"]["core_major_faults"].is_u64(), "{said}");
    let restart = &json["restart"];
    assert_eq!((&restart["recovered"], &restart["expected"]), (&5_001.into(), &5_001.into()), "{said}");
    for field in ["listening_ms", "first_reply_ms", "cancel_ms", "due_dispatch_ms"] {
        assert!(restart[field].as_u64().is_some_and(|ms| ms < 60_000), "{field}");
    }
}

#[test]
fn a_preload_alone_delivers_what_comes_due_and_waits_as_the_node_asks() {
    let (status, json, said) =
        figures("--preload 3k --preload-delay 0s --duration 0s --batch-max 100 --node-arg=--admission=2k/s");
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(json["preload"]["events"], 3_000, "{said}");
    assert!(json["preload"]["retried"].as_u64().is_some_and(|retried| retried > 0), "{said}");
    assert!(json["preload"]["refused_by_code"]["RESOURCE_EXHAUSTED"].is_u64(), "{said}");
    assert_eq!((json["preload"]["sampled"].as_u64(), json["published"].as_u64()), (Some(0), None), "{said}");
    assert!(json["preload"]["delivered"].as_u64().is_some_and(|delivered| delivered > 0), "{said}");
}

#[test]
fn a_burst_comes_whole_and_not_early_beside_a_load_and_next_to_what_the_node_can_do() {
    let (status, json, said) =
        figures("--burst 20k --rate 500/s --duration 1s --warmup 1s --delay uniform:0s..200ms");
    assert_eq!(status, Some(0), "{said}");
    let burst = &json["burst"];
    for field in ["asked", "events", "delivered"] {
        assert_eq!(burst[field], 20_000, "{field}: {said}");
    }
    assert_eq!(burst["early"], 0, "{said}");
    for field in ["dispatched_per_s", "capacity_per_s", "capacity_time_ms", "due_to_last_dispatch_ms"] {
        assert!(burst[field].as_f64().is_some_and(|figure| figure > 0.0), "{field}: {said}");
    }
    for field in ["usual", "beside"] {
        assert!(burst["lateness_p99_us"][field].as_u64().is_some_and(|us| us > 0), "{field}: {said}");
    }
    assert_eq!((&json["lost"], &json["before_burst"]["lost"]), (&0.into(), &0.into()), "{said}");
}

#[test]
fn wrong_arguments_exit_with_2_and_an_example() {
    let output = loadgen("--rate fast");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("500k/s"));
}

#[test]
fn a_node_that_does_not_come_up_ends_the_run_with_its_own_words() {
    let output = loadgen("--quiet --node-arg=--no-such-setting");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-setting"));
}
