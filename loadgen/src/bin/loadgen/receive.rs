//! Receiving: every frame is judged where it lies, and answered at once.

use std::sync::{Arc, Mutex};

use escapement_client::{PushHandler, ResultSink};
use escapement_protocol::frame::{PushBatch, ResultItem};

use crate::clock::wall_ns;
use crate::judge::{Judge, Running};

/// Nothing in this program panics while it holds the judge.
pub(crate) const UNPOISONED: &str = "no holder of the judge panics";

/// One subscription's session on one connection.
#[derive(Debug)]
pub(crate) struct Receiver {
    judge: Arc<Mutex<Judge>>,
    running: Vec<Running>,
}

impl Receiver {
    pub(crate) fn new(judge: Arc<Mutex<Judge>>) -> Self {
        Receiver { judge, running: Vec::new() }
    }
}

impl PushHandler for Receiver {
    fn pushed(&mut self, batch: &PushBatch<'_>, results: &mut ResultSink) {
        // Before the lock and the work: what comes after is not the node's.
        let wall_ns = wall_ns();
        self.judge.lock().expect(UNPOISONED).pushed(batch, wall_ns, results, &mut self.running);
    }

    fn leaving(&mut self, _results: &[ResultItem]) {
        self.judge.lock().expect(UNPOISONED).leaving(&mut self.running);
    }
}
