//! What an operator is told of the machine's clock.

use crate::io::ClockStatus;

/// Says when the machine's clock has jumped ahead, and when that is over.
#[derive(Debug, Default)]
pub(crate) struct ClockNotice {
    has_jumped: bool,
}

impl ClockNotice {
    /// The line that `status` is worth, given those before. A jump is told once, however it grows.
    pub(crate) fn of(&mut self, status: ClockStatus) -> Option<String> {
        match status {
            ClockStatus::Jumped { ahead_ms } if !self.has_jumped => {
                self.has_jumped = true;
                Some(format!(
                    "the machine's clock jumped {} s ahead and is not followed: events become due as if it had not. If it \
                     is right now, have a time service synchronise it, and it is followed a minute later, or restart \
                     the node; if not, set it",
                    ahead_ms / 1_000
                ))
            }
            ClockStatus::Jumped { .. } => None,
            ClockStatus::Following | ClockStatus::Slewing { .. } | ClockStatus::Behind { .. } => {
                let told = std::mem::take(&mut self.has_jumped);
                told.then(|| "the machine's clock and the node's agree again".to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_told_once_and_so_is_its_end() {
        let mut notice = ClockNotice::default();
        assert_eq!(notice.of(ClockStatus::Following), None);
        assert_eq!(notice.of(ClockStatus::Slewing { ahead_ns: 400_000_000 }), None);
        let told = notice.of(ClockStatus::Jumped { ahead_ms: 3_600_000 }).unwrap();
        assert!(told.contains("3600 s ahead") && told.contains("time service"), "{told}");
        assert_eq!(notice.of(ClockStatus::Jumped { ahead_ms: 3_700_000 }), None);
        let over = notice.of(ClockStatus::Following).unwrap();
        assert!(over.contains("agree again"), "{over}");
        assert_eq!(notice.of(ClockStatus::Behind { behind_ms: 700 }), None);
        assert!(notice.of(ClockStatus::Jumped { ahead_ms: 501 }).is_some());
    }
}
