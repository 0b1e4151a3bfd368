//! The sessions of one core.

use std::collections::VecDeque;

use bytes::Bytes;
use hashbrown::HashMap;

use escapement_protocol::frame::{PUSH_DUE_SIZE_BYTES_MAX, PushBatchWriter, PushItem};
use escapement_protocol::{Epoch, MonoNs, SubscriptionId, WallMs};

/// A frame is handed over when it has grown to this, so that the first bytes leave while the rest is built.
const FRAME_SIZE_BYTES: usize = 64 * 1024;

/// One attached session.
#[derive(Debug)]
pub struct Session<S> {
    /// The stream that pushes go out on.
    pub stream: S,
    /// What it is attached to.
    pub subscription: SubscriptionId,
    writer: PushBatchWriter,
    /// Whole frames that the stream has not taken yet.
    waiting: VecDeque<Waiting>,
    /// When the pushes in the writer are no longer worth sending.
    stale_at: MonoNs,
    dirty: bool,
}

/// A frame that its stream has not taken yet.
#[derive(Debug)]
struct Waiting {
    frame: Bytes,
    /// From here on it is not worth sending.
    stale_at: MonoNs,
}

impl<S> Session<S> {
    fn end_frame(&mut self) {
        let frame = self.writer.finish_owned().into();
        self.waiting.push_back(Waiting { frame, stale_at: self.stale_at });
        self.stale_at = MonoNs(0);
    }
}

/// Sessions by number. `S` is the transport's name for a stream.
#[derive(Debug)]
pub struct Sessions<S> {
    sessions: HashMap<u64, Session<S>>,
    dirty: Vec<u64>,
}

impl<S> Default for Sessions<S> {
    fn default() -> Self {
        Sessions { sessions: HashMap::new(), dirty: Vec::new() }
    }
}

impl<S: Copy> Sessions<S> {
    /// Takes in a session. `epoch` is that of the subscription's owner, as pushes carry it.
    pub fn open(&mut self, session: u64, stream: S, subscription: SubscriptionId, epoch: Epoch) {
        let mut writer = PushBatchWriter::new();
        writer.begin(subscription, epoch);
        let (waiting, stale_at) = (VecDeque::new(), MonoNs(0));
        let opened = Session { stream, subscription, writer, waiting, stale_at, dirty: false };
        self.sessions.insert(session, opened);
    }

    /// Forgets a session and what waited in it.
    pub fn close(&mut self, session: u64) -> Option<Session<S>> {
        self.sessions.remove(&session)
    }

    /// Adds one push, with the time when its event was due where it was rescheduled, copying the event's bytes. Pushes to a session that has gone are dropped: its
    /// subscription's owner learns of the end, and sends the task elsewhere.
    ///
    /// One that still waits for its stream after half of its deadline is dropped, too: its result would come too late, and
    /// a stream that is slower than the deadlines would carry nothing but such pushes for good.
    pub fn push(
        &mut self,
        now: MonoNs,
        session: u64,
        (item, rescheduled): (PushItem, Option<WallMs>),
        event: &[u8],
    ) {
        let Some(target) = self.sessions.get_mut(&session) else { return };
        let needed_bytes = event.len() + rescheduled.map_or(0, |_| PUSH_DUE_SIZE_BYTES_MAX);
        if !target.writer.is_empty()
            && (target.writer.len_bytes() >= FRAME_SIZE_BYTES || !target.writer.fits(needed_bytes))
        {
            target.end_frame();
        }
        target.stale_at = target.stale_at.max(now.plus_ms(u64::from(item.deadline_ms / 2)));
        match rescheduled {
            Some(due) => target.writer.push_rescheduled(item, due, event),
            None => target.writer.push(item, event),
        }
        if !target.dirty {
            target.dirty = true;
            self.dirty.push(session);
        }
    }

    /// Offers what waits to the transport, session by session, in order. `write` takes a frame, or gives
    /// it back where its stream has no room now.
    pub fn flush(&mut self, now: MonoNs, mut write: impl FnMut(S, Bytes) -> Result<(), Bytes>) {
        let mut still_dirty = Vec::new();
        for number in self.dirty.drain(..) {
            let Some(session) = self.sessions.get_mut(&number) else { continue };
            if !session.writer.is_empty() {
                session.end_frame();
            }
            session.dirty = false;
            while let Some(Waiting { frame, stale_at }) = session.waiting.pop_front() {
                if stale_at < now {
                    continue;
                }
                if let Err(frame) = write(session.stream, frame) {
                    session.waiting.push_front(Waiting { frame, stale_at });
                    session.dirty = true;
                    still_dirty.push(number);
                    break;
                }
            }
        }
        self.dirty = still_dirty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use escapement_protocol::event::Due;
    use escapement_protocol::frame::{Frame, FrameDecoder};
    use escapement_protocol::{EventSpec, Sequence, ShardId, Tag, TopicId};

    fn item(n: u64) -> PushItem {
        PushItem {
            tag: Tag(n),
            sequence: Sequence(n),
            schedule_time: WallMs(5),
            deadline_ms: 1_000,
            topic: TopicId(1),
            shard: ShardId(0),
            attempt: 1,
        }
    }

    #[test]
    fn pushes_of_one_turn_leave_in_order_and_a_full_stream_loses_none() {
        let mut sessions = Sessions::default();
        sessions.open(9, 'a', SubscriptionId(1), Epoch(1));
        let mut event = Vec::new();
        EventSpec::new(Due::At(WallMs(5)), "id", &[1; 1000]).encode(&mut event).expect("valid");
        for n in 0..500 {
            sessions.push(MonoNs(0), 9, (item(n), None), &event);
        }
        let mut got = Vec::new();
        let mut room = 2;
        while room < 100 {
            let mut left = room;
            sessions.flush(MonoNs(0), |stream, frame| {
                assert_eq!(stream, 'a');
                if left == 0 {
                    return Err(frame);
                }
                left -= 1;
                let fed = FrameDecoder::new().feed(&frame, |frame| {
                    if let Frame::PushBatch(batch) = frame {
                        got.extend(batch.iter().map(|(item, bytes)| (item.tag.0, bytes.to_vec())));
                    }
                    Ok(())
                });
                assert_eq!(fed.map_err(|e| e.to_string()), Ok(()));
                Ok(())
            });
            room += 1;
            if sessions.dirty.is_empty() {
                break;
            }
        }
        assert!(room > 3, "the stream was full at least once");
        assert!(got.iter().map(|(tag, _)| *tag).eq(0..500));
        assert!(got.iter().all(|(_, bytes)| *bytes == event));
    }

    #[test]
    fn a_push_that_waits_for_half_its_deadline_is_not_sent_any_more() {
        let mut sessions = Sessions::default();
        sessions.open(9, 'a', SubscriptionId(1), Epoch(1));
        let mut event = Vec::new();
        EventSpec::new(Due::At(WallMs(5)), "id", b"").encode(&mut event).expect("valid");
        let at = |ms: u64| MonoNs(0).plus_ms(ms);
        for n in 0..3 {
            sessions.push(at(n * 300), 9, (item(n), None), &event);
            sessions.flush(at(n * 300), |_, frame| Err(frame));
        }
        let mut sent = 0;
        // Half of the deadline of 1,000 ms has passed for the first.
        sessions.flush(at(501), |_, _| {
            sent += 1;
            Ok(())
        });
        assert_eq!((sent, sessions.dirty.len()), (2, 0));
    }

    #[test]
    fn a_push_to_a_session_that_has_gone_is_dropped() {
        let mut sessions = Sessions::<u8>::default();
        sessions.push(MonoNs(0), 1, (item(1), None), &[0; 16]);
        sessions.flush(MonoNs(0), |_, _| panic!("nothing to write"));
    }
}
