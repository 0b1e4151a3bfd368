//! Secrets that outlive the process, and the clock that QUIC sees.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{hkdf, hmac};
use escapement_protocol::{MonoNs, WallMs};
use quinn_proto::TimeSource;
use quinn_proto::crypto::{HandshakeTokenKey, HmacKey};

/// Bytes of each secret.
pub const SECRET_SIZE_BYTES: usize = 32;

/// The keys by which a node recognizes its own words after a restart. All cores of a node share them.
///
/// With the reset key persisted, clients of a crashed node learn at their first packet that their connection
/// is gone, and not only when it times out. The token key seals retry tokens.
#[derive(Clone)]
pub struct QuicKeys {
    /// Derives stateless reset tokens from connection ids.
    pub reset: Arc<dyn HmacKey>,
    /// Derives the keys of retry tokens.
    pub token: Arc<dyn HandshakeTokenKey>,
}

impl QuicKeys {
    /// Keys from secrets that were drawn at random once and kept private.
    #[must_use]
    pub fn from_secrets(reset: &[u8; SECRET_SIZE_BYTES], token: &[u8; SECRET_SIZE_BYTES]) -> Self {
        QuicKeys {
            reset: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset)),
            token: Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, b"escapement retry token").extract(token)),
        }
    }
}

impl fmt::Debug for QuicKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QuicKeys(secret)")
    }
}

/// Ties the node's clocks to the types that quinn-proto asks for. Read once, at start.
#[derive(Clone, Copy, Debug)]
pub struct QuicClock {
    /// The moment of `MonoNs(0)`.
    pub base: Instant,
    /// The wall clock at that moment: stamps retry tokens, which are valid for 15 s.
    pub wall_at_base: WallMs,
}

impl QuicClock {
    pub(super) fn instant(&self, now: MonoNs) -> Instant {
        self.base + Duration::from_nanos(now.0)
    }

    pub(super) fn mono(&self, at: Instant) -> MonoNs {
        let since = at.saturating_duration_since(self.base).as_nanos();
        MonoNs(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

/// The time that retry tokens are stamped and judged by: the core's own, so that a simulated one holds too.
pub(super) struct TokenClock {
    wall_at_base: SystemTime,
    mono_ns: AtomicU64,
}

impl TokenClock {
    pub(super) fn new(clock: QuicClock) -> Self {
        let wall_at_base = UNIX_EPOCH + Duration::from_millis(clock.wall_at_base.0);
        TokenClock { wall_at_base, mono_ns: AtomicU64::new(0) }
    }

    pub(super) fn set(&self, now: MonoNs) {
        self.mono_ns.store(now.0, Ordering::Relaxed);
    }
}

impl TimeSource for TokenClock {
    fn now(&self) -> SystemTime {
        self.wall_at_base + Duration::from_nanos(self.mono_ns.load(Ordering::Relaxed))
    }
}
