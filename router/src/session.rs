//! Sessions: what is out where, in order of deadline.

use escapement_protocol::MonoNs;
use smallvec::SmallVec;

use crate::pool::{List, NIL, Pool};
use crate::{Credit, HostKey, SessionId};

/// Attempts that were given the same time: so the order of dispatch is the order of deadlines, also after
/// the subscription's deadline was changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lane {
    pub(crate) deadline_ms: u32,
    pub(crate) list: List,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) host: HostKey,
    pub(crate) subscription: u32,
    /// False for a cut session, which lives on while slots are held in its name.
    pub(crate) attached: bool,
    pub(crate) credit: Credit,
    pub(crate) tasks: u32,
    pub(crate) bytes: u64,
    pub(crate) lanes: SmallVec<[Lane; 1]>,
    /// Position among the open sessions of its subscription, or [`NIL`].
    pub(crate) open_at: u32,
    /// When its timer looks at it next.
    pub(crate) armed: Option<MonoNs>,
    /// Rises when the place is reused.
    pub(crate) stamp: u32,
}

impl Session {
    /// Whether there is room for at least a small task.
    pub(crate) fn has_credit(&self) -> bool {
        self.attached && self.tasks < self.credit.tasks && self.bytes < self.credit.bytes
    }

    pub(crate) fn fits(&self, size_bytes: u32) -> bool {
        self.tasks == 0 || self.bytes + u64::from(size_bytes) <= self.credit.bytes
    }

    pub(crate) fn push(&mut self, pool: &mut Pool, index: u32) {
        let (deadline_ms, size_bytes) = (pool[index].deadline_ms, pool[index].task.size_bytes);
        let at = self.lanes.iter().position(|lane| lane.deadline_ms == deadline_ms).unwrap_or_else(|| {
            // A lane that an earlier setting left empty is taken over.
            match self.lanes.iter().position(|lane| lane.list.is_empty()) {
                Some(at) => self.lanes[at].deadline_ms = deadline_ms,
                None => self.lanes.push(Lane { deadline_ms, list: List::EMPTY }),
            }
            self.lanes.iter().position(|lane| lane.deadline_ms == deadline_ms).expect("just put there")
        });
        self.lanes[at].list.push_back(pool, index);
        self.tasks += 1;
        self.bytes += u64::from(size_bytes);
    }

    pub(crate) fn remove(&mut self, pool: &mut Pool, index: u32) {
        let (deadline_ms, size_bytes) = (pool[index].deadline_ms, pool[index].task.size_bytes);
        let lane = self.lanes.iter_mut().find(|lane| lane.deadline_ms == deadline_ms);
        lane.expect("a running task is in its lane").list.remove(pool, index);
        self.tasks -= 1;
        self.bytes -= u64::from(size_bytes);
    }

    /// The attempt with the earliest deadline.
    pub(crate) fn earliest(&self, pool: &Pool) -> Option<(MonoNs, u32)> {
        let fronts = self.lanes.iter().filter_map(|lane| lane.list.front());
        fronts.map(|index| (pool[index].deadline, index)).min()
    }

    pub(crate) fn any(&self) -> Option<u32> {
        self.lanes.iter().find_map(|lane| lane.list.front())
    }
}

/// All sessions, attached and cut.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    places: Vec<Session>,
    free: Vec<u32>,
}

impl Sessions {
    pub(crate) fn add(&mut self, id: SessionId, host: HostKey, subscription: u32, credit: Credit) -> u32 {
        let mut session = Session {
            id,
            host,
            subscription,
            attached: true,
            credit,
            tasks: 0,
            bytes: 0,
            lanes: SmallVec::new(),
            open_at: NIL,
            armed: None,
            stamp: 0,
        };
        if let Some(index) = self.free.pop() {
            session.stamp = self[index].stamp + 1;
            self[index] = session;
            return index;
        }
        let index = u32::try_from(self.places.len()).expect("fewer than 2^32 sessions");
        self.places.push(session);
        index
    }

    /// Frees the place of a session that nothing is out at.
    pub(crate) fn forget(&mut self, index: u32) {
        self[index].stamp += 1;
        self.free.push(index);
    }
}

impl std::ops::Index<u32> for Sessions {
    type Output = Session;

    #[inline]
    fn index(&self, index: u32) -> &Session {
        &self.places[index as usize]
    }
}

impl std::ops::IndexMut<u32> for Sessions {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut Session {
        &mut self.places[index as usize]
    }
}
