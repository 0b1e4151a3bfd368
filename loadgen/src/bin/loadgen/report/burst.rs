//! What came of a burst.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::{thousands, time};
use crate::burst::Burst;

pub(super) fn json(burst: &Burst) -> Value {
    json!({
        "asked": burst.asked,
        "events": burst.accepted,
        "delivered": burst.delivered,
        "early": burst.early,
        "due_to_last_dispatch_ms": burst.drained.as_millis() as u64,
        "dispatched_per_s": burst.per_s(),
        "capacity_per_s": burst.capacity_per_s,
        "capacity_time_ms": burst.capacity_time().as_millis() as u64,
        "lateness_p99_us": {
            "usual": burst.usual.as_micros() as u64,
            "beside": burst.beside.as_micros() as u64,
            "beside_events": burst.beside_count,
        },
    })
}

pub(super) fn table(burst: &Burst) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    let mut row = |name: &str, value: String| {
        table.add_row(vec![name.to_owned(), value]);
    };
    let times = |part: f64, whole: f64| format!("{:.2} times", part / whole.max(1e-9));
    let (drained, capacity) = (burst.drained, burst.capacity_time());
    row("due at one instant", thousands(burst.accepted));
    row("delivered", thousands(burst.delivered));
    row("early", thousands(burst.early));
    row("from due to the last dispatch", format!("{:.3} s", drained.as_secs_f64()));
    row("dispatched a second", thousands(burst.per_s() as u64));
    row("completed a second, as fast as it goes", thousands(burst.capacity_per_s as u64));
    row("which would have taken", format!("{:.3} s", capacity.as_secs_f64()));
    row("the burst took", times(drained.as_secs_f64(), capacity.as_secs_f64()));
    row("p99(lateness) of the load, without it", time(burst.usual.as_micros() as u64));
    row("events of the load due until its last dispatch", thousands(burst.beside_count));
    row("p99(lateness) of these", time(burst.beside.as_micros() as u64));
    row("that is", times(burst.beside.as_secs_f64(), burst.usual.as_secs_f64()));
    if let Some(values) = table.column_mut(1) {
        values.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

pub(super) fn complaints(burst: &Burst) -> Vec<String> {
    let mut lines = Vec::new();
    if burst.accepted < burst.asked {
        lines.push(format!("BROKEN burst: {} of {} events were accepted", burst.accepted, burst.asked));
    }
    if burst.delivered < burst.accepted {
        let lost = burst.accepted - burst.delivered;
        lines.push(format!("BROKEN lost: {lost} events of the burst did not come"));
    }
    if burst.early > 0 {
        lines.push(format!("BROKEN early: {} events of the burst", burst.early));
    }
    lines
}
