//! What there is to say of a record.

use escapement_engine::groups::{Effect, GroupId, Operation};
use escapement_engine::record::{Record, RunStatement};
use serde_json::{Value, json};

use crate::cli::moment::rfc3339;

/// What stands for a group where its name is not said.
fn group_name(GroupId([low, high]): GroupId) -> String {
    format!("{high:016x}{low:016x}")
}

fn operation(Operation { epoch, effect, taken, undone, .. }: &Operation) -> Value {
    let (what, by_ms) = match effect {
        Effect::Cancel => ("cancel", 0),
        Effect::Pause => ("pause", 0),
        Effect::Postpone(by_ms) => ("postpone", *by_ms),
    };
    json!({ "epoch": epoch, "act": what, "by_ms": by_ms, "taken": taken, "undone": undone.is_some() })
}

/// A record's name, and what there is to say of it.
pub(super) fn describe(record: &Record<'_>) -> (&'static str, Value) {
    match record {
        Record::Published { topic, first_sequence, count, accepted, names, events } => (
            "published",
            json!({
                "topic": topic.0, "first_sequence": first_sequence.0, "count": count,
                "accepted": rfc3339(*accepted), "names": names.count(), "bytes": events.len(),
            }),
        ),
        Record::Relocated { topic, sequence, due, forward, has_left, progress, event } => (
            "relocated",
            json!({
                "topic": topic.0, "sequence": sequence.0, "due": rfc3339(*due), "tasks": progress.len(), "left_group": has_left,
                "version": forward.map_or(0, |forward| forward.version), "bytes": event.len(),
            }),
        ),
        Record::Rescheduled { sequence, due, forward, left } => (
            "rescheduled",
            json!({
                "sequence": sequence.0, "due": rfc3339(*due), "version": forward.version,
                "schedule_time": rfc3339(forward.schedule_time), "left_group": left.map(group_name),
            }),
        ),
        Record::RescheduledInRun { run, topic, sequence, was_due, due, forward, event } => (
            "rescheduled_in_run",
            json!({
                "run": run.0, "topic": topic.0, "sequence": sequence.0, "was_due": rfc3339(*was_due),
                "due": rfc3339(*due), "version": forward.version,
                "schedule_time": rfc3339(forward.schedule_time), "bytes": event.len(),
            }),
        ),
        Record::Completed { subscription, outcome, last, sequences } => (
            "completed",
            json!({
                "subscription": subscription.0, "outcome": format!("{outcome:?}"), "last": last,
                "sequences": sequences.iter().map(|sequence| sequence.0).collect::<Vec<_>>(),
            }),
        ),
        Record::AttemptFailed { subscription, sequence, attempt, excused, next_due } => (
            "attempt_failed",
            json!({
                "subscription": subscription.0, "sequence": sequence.0, "attempt": attempt, "excused": excused,
                "next_due": rfc3339(*next_due),
            }),
        ),
        Record::Topic { id, version, settings } => {
            ("topic", json!({ "topic": id.0, "version": version, "name": settings.name }))
        }
        Record::Subscription { id, version, topic, settings } => (
            "subscription",
            json!({ "subscription": id.0, "version": version, "topic": topic.0, "name": settings.name }),
        ),
        Record::Names { topic, of_block, first, names } => (
            "names",
            json!({
                "topic": topic.0, "of_block": of_block, "first_sequence": first.0, "count": names.iter().len(),
            }),
        ),
        Record::NamesForgotten { topic, before } => {
            ("names_forgotten", json!({ "topic": topic.0, "before_sequence": before.0 }))
        }
        Record::NamesRun { run, footer_id } => {
            ("names_run", json!({ "run": run.0, "footer_id": format!("{footer_id:016x}") }))
        }
        Record::NamesRunEnded { run } => ("names_run_ended", json!({ "run": run.0 })),
        Record::Group(group) => (
            "group",
            json!({
                "topic": group.topic.0, "group": group.name,
                "waiting": group.stretches.iter().map(|stretch| stretch.waiting).sum::<u64>(),
                "stretches": group.stretches.iter()
                    .map(|stretch| json!({ "events": stretch.waiting, "held_by": format!("{:b}", stretch.holders.0) }))
                    .collect::<Vec<_>>(),
                "operations": group.operations.iter().map(operation).collect::<Vec<_>>(),
            }),
        ),
        Record::GroupLeft { group, is_cancelled, sequences } => (
            "group_left",
            json!({
                "group": group_name(*group), "cancelled": is_cancelled,
                "sequences": sequences.iter().map(|sequence| sequence.0).collect::<Vec<_>>(),
            }),
        ),
        Record::CancelledInRunOfGroup { run, key, topic, group } => (
            "cancelled_in_run_of_group",
            json!({
                "run": run.0, "sequence": key.1.0, "topic": topic.0, "group": group_name(*group),
            }),
        ),
        Record::Mark { next_sequence } => ("mark", json!({ "next_sequence": next_sequence.0 })),
        Record::Run(RunStatement { run, closed, moved, loaded, footer_id, as_of, size_bytes }) => (
            "run",
            json!({
                "run": run.0, "closed": closed, "moved_blocks": moved, "loaded_blocks": loaded,
                "footer": footer_id, "as_of": as_of, "bytes": size_bytes,
            }),
        ),
        Record::Moved { run, first_block, block_count, sequences } => (
            "moved",
            json!({
                "run": run.0, "first_block": first_block, "blocks": block_count,
                "sequences": sequences.iter().map(|sequence| sequence.0).collect::<Vec<_>>(),
            }),
        ),
        Record::Loaded { run, first_block, block_count } => {
            ("loaded", json!({ "run": run.0, "first_block": first_block, "blocks": block_count }))
        }
        Record::CancelledInRun { run, events } => (
            "cancelled_in_run",
            json!({
                "run": run.0,
                "sequences": events.iter().map(|(_, sequence)| sequence.0).collect::<Vec<_>>(),
                "topics": events.with_topics().map(|(_, topic)| topic.0).collect::<Vec<_>>(),
            }),
        ),
    }
}
