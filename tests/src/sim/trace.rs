//! What happened, in order: as a digest always, as text on request.

use std::fmt::Arguments;
use std::io::Write;

/// Of a run. See the module's documentation.
#[derive(Debug)]
pub(super) struct Trace {
    hash: u64,
    print: bool,
}

impl Trace {
    pub(super) fn new(print: bool) -> Self {
        Trace { hash: 0xcbf2_9ce4_8422_2325, print }
    }

    /// Notes bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.number(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.number(u64::from(*byte));
        }
    }

    /// Notes a number.
    pub(super) fn number(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    /// Notes a line, which is also printed where that was asked for.
    pub(super) fn line(&mut self, at_ns: u64, what: Arguments<'_>) {
        self.number(at_ns);
        if self.print {
            let _ = writeln!(std::io::stderr(), "{:>12.3} {what}", at_ns as f64 / 1e6);
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }
}
