//! What came of a preload and of a restart.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::{Results, refusals, thousands, time};
use crate::node_process::Footprint;
use crate::preload::Preloaded;
use crate::restart::Restarted;

const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn json(preload: &Preloaded) -> Value {
    let mut json = json!({
        "asked": preload.asked,
        "events": preload.tally.acknowledged,
        "seconds": preload.elapsed.as_secs_f64(),
        "events_per_s": preload.events_per_s(),
        "refused": preload.tally.refused,
        "retried": preload.tally.retried,
        "refused_by_code": refusals(&preload.tally.refused_by_code),
        "resent": preload.resent,
        "delivered": preload.delivered,
        "sampled": preload.cancelled.0,
        "sample_cancelled": preload.cancelled.1,
    });
    for (name, footprint) in [("after", preload.after), ("at_end", preload.at_end)] {
        let Some(Footprint { memory, disk }) = footprint else { continue };
        json[name] = json!({
            "rss_peak_bytes": memory.rss_peak_bytes,
            "rss_anon_bytes": memory.rss_anon_bytes,
            "disk_bytes": { "log": disk.log_bytes, "far": disk.far_bytes },
            "disk_bytes_per_event": preload.per_event(disk.bytes()),
        });
    }
    json
}

pub(super) fn restart_json(restart: &Restarted) -> Value {
    json!({
        "listening_ms": restart.listening.as_millis() as u64,
        "first_reply_ms": restart.first_reply.as_millis() as u64,
        "cancel_ms": restart.cancel.map(|cancel| cancel.as_millis() as u64),
        "due_dispatch_ms": restart.due_dispatch.as_millis() as u64,
        "recovered": restart.recovered,
        "expected": restart.expected.0,
    })
}

pub(super) fn table(preload: &Preloaded, restart: Option<&Restarted>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    let mut row = |name: &str, value: String| {
        table.add_row(vec![name.to_owned(), value]);
    };
    row("preloaded", thousands(preload.tally.acknowledged));
    row("preloaded a second", thousands(preload.events_per_s() as u64));
    row("preload took", format!("{:.1} s", preload.elapsed.as_secs_f64()));
    row("refused, sent again", thousands(preload.tally.retried));
    row("refused for good", thousands(preload.tally.refused));
    row("came due meanwhile", thousands(preload.delivered));
    row("cancelled of the sample", format!("{} of {}", preload.cancelled.1, preload.cancelled.0));
    for (when, footprint) in [("after it", preload.after), ("at the end", preload.at_end)] {
        let Some(Footprint { memory, disk }) = footprint else { continue };
        let mib = |bytes| format!("{:.0} MiB", bytes as f64 / MIB);
        row(&format!("{when}: most node memory so far"), mib(memory.rss_peak_bytes));
        row(&format!("{when}: node memory without files"), mib(memory.rss_anon_bytes));
        let of =
            |bytes| format!("{:.0} MiB, {:.0} bytes an event", bytes as f64 / MIB, preload.per_event(bytes));
        row(&format!("{when}: runs of far events"), of(disk.far_bytes));
        row(&format!("{when}: logs as allocated"), of(disk.log_bytes));
    }
    if let Some(restart) = restart {
        let ms = |time_taken: std::time::Duration| time(time_taken.as_micros() as u64);
        row("restart: until it listens", ms(restart.listening));
        row("restart: until the first receipt", ms(restart.first_reply));
        row("restart: until a cancellation", restart.cancel.map_or_else(|| "-".to_owned(), ms));
        row("restart: until a due event came", ms(restart.due_dispatch));
        row("restart: pending events recovered", restart.recovered.map_or_else(|| "-".to_owned(), thousands));
    }
    if let Some(values) = table.column_mut(1) {
        values.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

pub(super) fn complaints(results: &Results) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(preload) = &results.preload {
        let (asked, acknowledged) = (preload.asked, preload.tally.acknowledged);
        if acknowledged < asked {
            let why = preload.tally.words.as_deref().unwrap_or("no reason was given");
            lines.push(format!(
                "INCOMPLETE preload: {} of {} events were accepted; {why}",
                thousands(acknowledged),
                thousands(asked)
            ));
        }
        let (sampled, cancelled) = preload.cancelled;
        if cancelled < sampled {
            lines.push(format!(
                "BROKEN lost: of {sampled} preloaded events that are not due yet, {} could not be cancelled",
                sampled - cancelled
            ));
        }
    }
    if let Some(restart) = results.restart.as_ref().filter(|restart| !restart.is_kept()) {
        let recovered = restart.recovered.map_or_else(|| "an unknown number of".to_owned(), thousands);
        lines.push(format!(
            "BROKEN restart: {recovered} pending events were recovered, and {} were acknowledged and not delivered",
            thousands(restart.expected.0)
        ));
    }
    lines
}
