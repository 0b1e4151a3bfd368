//! Attempts that are worked on elsewhere, and their results on the way back to the session.

use std::sync::Mutex;

use escapement_protocol::Tag;
use escapement_protocol::frame::ResultItem;
use hashbrown::HashSet;
use tokio::sync::Notify;

use crate::link::UNPOISONED;

/// Shared by the session and whoever works on its attempts.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    running: HashSet<Tag>,
    results: Vec<ResultItem>,
}

impl Outbox {
    pub(super) fn start(&self, tag: Tag) {
        self.state.lock().expect(UNPOISONED).running.insert(tag);
    }

    /// Takes a result; one of an attempt that is not known any more is dropped.
    pub(super) fn finish(&self, result: ResultItem) {
        let mut state = self.state.lock().expect(UNPOISONED);
        if state.running.remove(&result.tag) {
            state.results.push(result);
            self.wake.notify_one();
        }
    }

    /// Moves the results to the end of `out`.
    pub(super) fn take(&self, out: &mut Vec<ResultItem>) {
        out.append(&mut self.state.lock().expect(UNPOISONED).results);
    }

    pub(super) async fn results(&self) {
        self.wake.notified().await;
    }

    /// Attempts that a new session should be told of: those without a result, and those whose result has not left.
    pub(super) fn running(&self) -> Vec<Tag> {
        let state = self.state.lock().expect(UNPOISONED);
        state.running.iter().copied().chain(state.results.iter().map(|result| result.tag)).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        let state = self.state.lock().expect(UNPOISONED);
        state.running.is_empty() && state.results.is_empty()
    }

    /// The tags mean nothing any more: their results would be ignored.
    pub(super) fn forget(&self) {
        *self.state.lock().expect(UNPOISONED) = State::default();
    }
}
