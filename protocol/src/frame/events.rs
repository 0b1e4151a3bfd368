//! Events back to back, each padded to a multiple of 8, as data frames carry them.

use std::fmt;

use super::BATCH_COUNT_MAX;
use crate::event::{HEADER_SIZE_BYTES, padded_len, stated_len};

/// The events of one frame.
///
/// Their lengths were checked: each begins where the one before ends, the last ends where the bytes
/// end, and there are as many as the frame says. The events themselves are for
/// [`EventView::parse`](crate::EventView::parse) to check, so that one bad event is one refusal and
/// not the end of its stream.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Events<'a> {
    bytes: &'a [u8],
    count: u32,
}

impl<'a> Events<'a> {
    /// Checks the lengths. `None` where `bytes` are not exactly `count` events back to back, or the
    /// count is above [`BATCH_COUNT_MAX`].
    #[must_use]
    pub fn new(bytes: &'a [u8], count: u32) -> Option<Self> {
        if count > BATCH_COUNT_MAX {
            return None;
        }
        let mut walk = EventIter { rest: bytes, left: count };
        walk.by_ref().for_each(drop);
        (walk.left == 0 && walk.rest.is_empty()).then_some(Events { bytes, count })
    }

    /// Number of events.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Each event's bytes, padding included: 16 bytes or more.
    #[must_use]
    pub fn iter(&self) -> EventIter<'a> {
        EventIter { rest: self.bytes, left: self.count }
    }
}

impl<'a> IntoIterator for Events<'a> {
    type Item = &'a [u8];
    type IntoIter = EventIter<'a>;

    fn into_iter(self) -> EventIter<'a> {
        self.iter()
    }
}

impl fmt::Debug for Events<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} events in {} bytes", self.count, self.bytes.len())
    }
}

/// Iterator over the bytes of [`Events`].
#[derive(Clone, Debug)]
pub struct EventIter<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Iterator for EventIter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        let len = stated_len(self.rest)?;
        if len < HEADER_SIZE_BYTES {
            return None;
        }
        let (event, rest) = self.rest.split_at_checked(padded_len(len))?;
        self.rest = rest;
        self.left -= 1;
        Some(event)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for EventIter<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Due, EventSpec};

    fn two_events() -> Vec<u8> {
        let mut bytes = Vec::new();
        EventSpec::new(Due::After(1), "a", b"x").encode(&mut bytes).expect("valid");
        EventSpec::new(Due::After(2), "bcdefghij", b"").encode(&mut bytes).expect("valid");
        bytes
    }

    #[test]
    fn events_are_cut_at_their_padded_lengths() {
        let bytes = two_events();
        let events = Events::new(&bytes, 2).expect("two events");
        let lens: Vec<usize> = events.iter().map(<[u8]>::len).collect();
        assert_eq!(lens, [24, 32]);
    }

    #[test]
    fn as_many_events_as_a_frame_may_have_are_taken_and_not_one_more() {
        let event = &two_events()[..24];
        let bytes = event.repeat(BATCH_COUNT_MAX as usize + 1);
        assert!(Events::new(&bytes[24..], BATCH_COUNT_MAX).is_some());
        assert_eq!(Events::new(&bytes, BATCH_COUNT_MAX + 1), None);
    }

    #[test]
    fn a_count_that_differs_or_bytes_left_over_are_refused() {
        let mut bytes = two_events();
        assert_eq!(Events::new(&bytes, 1), None);
        assert_eq!(Events::new(&bytes, 3), None);
        assert_eq!(Events::new(&bytes[..bytes.len() - 8], 2), None);
        bytes.extend_from_slice(&[0; 8]);
        assert_eq!(Events::new(&bytes, 2), None);
        assert_eq!(Events::new(&bytes, 3), None, "a length of zero is no event");
        bytes[0..4].fill(0xff);
        assert_eq!(Events::new(&bytes, 2), None);
    }
}
