//! The two clocks. Due times live on the wall clock; deadlines, backoff and rates on the monotonic one.

use std::fmt;

/// Milliseconds since the Unix epoch, UTC, as the node sees them: this value never decreases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallMs(pub u64);

/// Nanoseconds since an arbitrary moment of this process, never decreasing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MonoNs(pub u64);

impl MonoNs {
    /// Later by `ms`, saturating.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> MonoNs {
        MonoNs(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Nanoseconds from `earlier` to this, 0 where `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: MonoNs) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl WallMs {
    /// Later by `ms`, saturating.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> WallMs {
        WallMs(self.0.saturating_add(ms))
    }
}

impl fmt::Display for WallMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One reading of both clocks. The core's logic learns the time only through this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic.
    pub mono: MonoNs,
    /// Wall.
    pub wall: WallMs,
}
