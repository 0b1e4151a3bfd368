//! The typed refusals that a peer can receive. One entry each in `docs/errors.md`.

use std::fmt;

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal, $retry:literal;)+) => {
        /// A refusal's code: the number travels on the wire and is never reused; the name is what people read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum ErrorCode { $($(#[doc = $doc])+ $name = $number,)+ }

        impl ErrorCode {
            /// Every code, in the order of its number.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$name,)+];

            /// Reads the wire's number.
            #[must_use]
            pub fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }

            /// The name in documents, logs and command output.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// Whether the same request may succeed later, unchanged.
            #[must_use]
            pub fn is_retryable(self) -> bool {
                match self { $(Self::$name => $retry,)+ }
            }
        }
    };
}

codes! {
    /// A frame's bytes do not verify, or a frame came where it has no place.
    MalformedFrame = 1, "MALFORMED_FRAME", false;
    /// A frame is longer than the limit, or its length says less than its header.
    FrameLength = 2, "FRAME_LENGTH", false;
    /// The peer speaks a version of the protocol that this node does not.
    UnsupportedVersion = 3, "UNSUPPORTED_VERSION", false;
    /// A frame of a kind that this node does not know.
    UnknownFrame = 4, "UNKNOWN_FRAME", false;
    /// The topic does not exist.
    UnknownTopic = 10, "UNKNOWN_TOPIC", false;
    /// The subscription does not exist.
    UnknownSubscription = 11, "UNKNOWN_SUBSCRIPTION", false;
    /// A topic or subscription of that name exists with other settings.
    AlreadyExists = 12, "ALREADY_EXISTS", false;
    /// A setting is out of its range, or contradicts another.
    InvalidSettings = 13, "INVALID_SETTINGS", false;
    /// A name is empty, too long, or has characters outside the allowed set.
    InvalidName = 14, "INVALID_NAME", false;
    /// The event's bytes are not a well-formed event.
    MalformedEvent = 20, "MALFORMED_EVENT", false;
    /// The event is larger than the limit.
    EventTooLarge = 21, "EVENT_TOO_LARGE", false;
    /// The due time lies beyond the farthest that is accepted.
    DelayTooLong = 22, "DELAY_TOO_LONG", false;
    /// The event carries an attribute that this version does not implement.
    UnsupportedAttribute = 23, "UNSUPPORTED_ATTRIBUTE", false;
    /// The event's ttl had passed when it came, so that it could never be delivered.
    AlreadyExpired = 24, "ALREADY_EXPIRED", false;
    /// The event is postponed with its group: it gets no other due time until that is taken back.
    PostponedWithGroup = 25, "POSTPONED_WITH_GROUP", false;
    /// A quota, memory or disk limit is reached: publish again after the stated time.
    ResourceExhausted = 30, "RESOURCE_EXHAUSTED", true;
    /// The node is draining, or the shard stopped: publish to it again once it is back.
    Unavailable = 31, "UNAVAILABLE", true;
    /// Too many sessions, streams or requests at once for one connection.
    TooManyRequests = 32, "TOO_MANY_REQUESTS", true;
    /// The peer's certificate is missing or not accepted.
    Unauthenticated = 40, "UNAUTHENTICATED", false;
    /// The page token is damaged, of another listing, or of an earlier start: list from the first page.
    InvalidPageToken = 50, "INVALID_PAGE_TOKEN", false;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_from_its_number() {
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(code as u16), Some(code));
        }
        assert_eq!(ErrorCode::from_number(0), None);
    }
}
