//! Logs that no shard wrote: replay refuses them, and says why.

use escapement_engine::far::{NoRuns, RunId};
use escapement_engine::record::{RecordWriter, RunStatement};
use escapement_engine::{ApplyError, Shard};
use escapement_protocol::event::Due;
use escapement_protocol::{Sequence, TopicId, WallMs};

use crate::rig::{START, config, event};

fn replay(write: impl Fn(&mut RecordWriter<'_>)) -> (Shard, Result<(), ApplyError>) {
    let (mut records, mut count) = (Vec::new(), 0);
    write(&mut RecordWriter::new(&mut records, &mut count));
    let mut shard = Shard::new(config(1));
    let replayed = shard.replay_block(1, &records, &mut NoRuns);
    (shard, replayed)
}

fn publish(writer: &mut RecordWriter<'_>, sequence: u64, said: u32) {
    let event = event(Due::At(WallMs(START.0 + 1)), "id", b"data");
    writer.published(TopicId(1), Sequence(sequence), said, START, &event);
}

#[test]
fn a_log_that_publishes_an_event_twice_is_refused() {
    let (_, replayed) = replay(|writer| [7, 7].into_iter().for_each(|sequence| publish(writer, sequence, 1)));
    assert!(matches!(replayed, Err(ApplyError::Twice(Sequence(7)))), "{replayed:?}");
}

#[test]
fn a_record_that_counts_more_events_than_it_has_is_refused() {
    let (_, replayed) = replay(|writer| publish(writer, 7, 2));
    assert!(matches!(replayed, Err(ApplyError::Miscounted { first: Sequence(7) })), "{replayed:?}");
}

#[test]
fn what_is_replayed_and_holds_passes_the_audit() {
    let (mut shard, replayed) = replay(|writer| {
        publish(writer, 7, 1);
        writer.run(&RunStatement {
            run: RunId(3),
            closed: true,
            moved: 2,
            loaded: 2,
            footer_id: 1,
            as_of: 0,
            size_bytes: 8192,
        });
    });
    replayed.expect("nothing contradicts");
    shard.replayed().expect("a closed run needs no file");
    assert_eq!((shard.audit(), shard.stats().pending), (Ok(()), 1));
}
