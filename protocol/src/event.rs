//! The event's byte form: the same bytes on the wire, in the log and in the push.
//!
//! ```text
//!  0       4    5     6         8             16            16+attrs_len        len       padded
//!  | len   | v  | flg | attrs   | time        | attributes  | data               | zeros  |
//!  | u32   | u8 | u8  | len u16 | u64, ms     | packed      |                    | to 8   |
//! ```
//!
//! Little-endian. `len` counts header, attributes and data, not the zeros that pad an event to a
//! multiple of 8 where events follow one another. Attributes are `tag u8, len u8, bytes`, where a
//! `len` of 255 is followed by the true length as u16; tags strictly ascend, except that extension
//! attributes repeat theirs. What equals the topic's default (source, type, content type) is left out.

use crate::{DELAY_MS_MAX, EVENT_SIZE_BYTES_MAX, ErrorCode, WallMs};

/// Bytes before the attributes.
pub const HEADER_SIZE_BYTES: usize = 16;

/// Version in byte 4 of every event.
pub const EVENT_FORMAT: u8 = 1;

/// Largest attribute section, in bytes.
pub const ATTRIBUTES_SIZE_BYTES_MAX: usize = 16 * 1024;

/// Longest `id`, `source`, `ordering_key` and `group`, in bytes.
pub const KEY_SIZE_BYTES_MAX: usize = 255;

/// Set where `time` is a delay counted from acceptance; clear where it is an absolute `schedule_time`.
pub const FLAG_TIME_IS_DELAY: u8 = 1 << 0;
/// Set exactly where the attributes hold an ordering key.
pub const FLAG_ORDERING_KEY: u8 = 1 << 1;
/// Set exactly where the attributes hold a ttl.
pub const FLAG_TTL: u8 = 1 << 2;
/// Set exactly where the attributes hold a group.
pub const FLAG_GROUP: u8 = 1 << 3;
const FLAGS_KNOWN: u8 = FLAG_TIME_IS_DELAY | FLAG_ORDERING_KEY | FLAG_TTL | FLAG_GROUP;

/// Longest ttl, in ms: ten years, as the longest delay.
pub const TTL_MS_MAX: u64 = DELAY_MS_MAX;

/// Tags of attributes. Numbers from 32 are reserved for attributes of later versions, which this one refuses.
pub mod tag {
    /// CloudEvents `id`: required, 1 to 255 bytes.
    pub const ID: u8 = 1;
    /// CloudEvents `source`.
    pub const SOURCE: u8 = 2;
    /// CloudEvents `type`.
    pub const TYPE: u8 = 3;
    /// CloudEvents `subject`.
    pub const SUBJECT: u8 = 4;
    /// CloudEvents `time`, RFC 3339 text.
    pub const TIME: u8 = 5;
    /// CloudEvents `datacontenttype`.
    pub const DATA_CONTENT_TYPE: u8 = 6;
    /// CloudEvents `dataschema`.
    pub const DATA_SCHEMA: u8 = 7;
    /// Events of one key are delivered one at a time, by `(schedule_time, sequence)`.
    pub const ORDERING_KEY: u8 = 16;
    /// How long after its `schedule_time` the event is worth delivering: 8 bytes, little-endian, in ms.
    pub const TTL: u8 = 17;
    /// Events of one group of a topic can be cancelled together: text, 1 to 255 bytes.
    pub const GROUP: u8 = 18;
    /// CloudEvents extension attribute: `name`, a zero byte, `value`. The only tag that may repeat.
    pub const EXTENSION: u8 = 31;
}

/// What is wrong with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Fewer bytes than the header says, or than a header has.
    #[error("the event is cut short: its header asks for more bytes than are there")]
    Truncated,
    /// Larger than [`EVENT_SIZE_BYTES_MAX`].
    #[error("the event is larger than 262144 bytes: put the data elsewhere and send a reference")]
    TooLarge,
    /// Unknown format, unknown flag, non-zero padding, or lengths that contradict each other.
    #[error("the event's header is malformed")]
    Header,
    /// Attributes overlap, repeat, are out of order, too long, or not UTF-8.
    #[error("the event's attributes are malformed: tags must ascend, lengths must fit, texts must be UTF-8")]
    Attributes,
    /// An id, a source, an ordering key or a group longer than [`KEY_SIZE_BYTES_MAX`].
    #[error("the {0} is longer than 255 bytes, which is the limit")]
    TooLong(&'static str),
    /// No `id`.
    #[error("the event has no id: set one, unique for its source")]
    NoId,
    /// An attribute of a later version.
    #[error("the event carries attribute {0}, which this version does not implement")]
    UnsupportedAttribute(u8),
    /// Due more than ten years after acceptance.
    #[error("the due time is more than 10 years ahead, which is the limit")]
    DelayTooLong,
    /// A ttl that is not 8 bytes, or outside 1 ms to [`TTL_MS_MAX`].
    #[error("the ttl must be from 1 ms to 10 years")]
    Ttl,
    /// Its ttl had passed when it came.
    #[error("the event has expired: its ttl, counted from its schedule_time, has passed")]
    AlreadyExpired,
}

impl EventError {
    /// The refusal that a peer receives.
    #[must_use]
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Truncated | Self::Header | Self::Attributes | Self::TooLong(_) | Self::NoId | Self::Ttl => {
                ErrorCode::MalformedEvent
            }
            Self::AlreadyExpired => ErrorCode::AlreadyExpired,
            Self::TooLarge => ErrorCode::EventTooLarge,
            Self::UnsupportedAttribute(_) => ErrorCode::UnsupportedAttribute,
            Self::DelayTooLong => ErrorCode::DelayTooLong,
        }
    }
}

/// A verified event, borrowed. Every accessor is total: verification happened in [`EventView::parse`].
#[derive(Clone, Copy, Debug)]
pub struct EventView<'a> {
    bytes: &'a [u8],
    attributes_len: usize,
}

/// Bytes from the start of one event to the start of the next.
#[must_use]
pub fn padded_len(len: usize) -> usize {
    (len + 7) & !7
}

/// Whether an event that [`EventView::parse`] accepted before has a ttl: a look at one bit.
#[must_use]
pub fn has_ttl(event: &[u8]) -> bool {
    event.get(5).is_some_and(|flags| flags & FLAG_TTL != 0)
}

/// Whether an event that [`EventView::parse`] accepted before is of a group: a look at one bit.
#[must_use]
pub fn has_group(event: &[u8]) -> bool {
    event.get(5).is_some_and(|flags| flags & FLAG_GROUP != 0)
}

/// Length stated by an event's header, padding not included. `None` where fewer than 4 bytes are there.
#[must_use]
pub fn stated_len(bytes: &[u8]) -> Option<usize> {
    Some(u32::from_le_bytes(*bytes.first_chunk::<4>()?) as usize)
}

impl<'a> EventView<'a> {
    /// Verifies the event at the start of `bytes` and returns it with the bytes it takes, padding included.
    ///
    /// # Errors
    /// The first fault found. Nothing beyond the stated length and its padding is looked at.
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, usize), EventError> {
        let header = bytes.first_chunk::<HEADER_SIZE_BYTES>().ok_or(EventError::Truncated)?;
        let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let attributes_len = usize::from(u16::from_le_bytes([header[6], header[7]]));
        if len > EVENT_SIZE_BYTES_MAX {
            return Err(EventError::TooLarge);
        }
        if header[4] != EVENT_FORMAT
            || header[5] & !FLAGS_KNOWN != 0
            || attributes_len > ATTRIBUTES_SIZE_BYTES_MAX
            || len < HEADER_SIZE_BYTES + attributes_len
        {
            return Err(EventError::Header);
        }
        let total = padded_len(len);
        let padded = bytes.get(..total).ok_or(EventError::Truncated)?;
        let (event, padding) = padded.split_at(len);
        if padding.iter().any(|b| *b != 0) {
            return Err(EventError::Header);
        }
        let view = EventView { bytes: event, attributes_len };
        view.verify_attributes(header[5])?;
        Ok((view, total))
    }

    /// Takes bytes that [`EventView::parse`] accepted before, as the log and the engine keep them.
    ///
    /// Verifies lengths only, so that a mistaken caller gets `None` and not another event's bytes.
    #[must_use]
    pub fn trusted(bytes: &'a [u8]) -> Option<Self> {
        let len = stated_len(bytes)?;
        let event = bytes.get(..len)?;
        let attributes_len = usize::from(u16::from_le_bytes([*event.get(6)?, *event.get(7)?]));
        (len >= HEADER_SIZE_BYTES + attributes_len).then_some(EventView { bytes: event, attributes_len })
    }

    fn verify_attributes(&self, flags: u8) -> Result<(), EventError> {
        let mut last = 0;
        let mut walk = self.attributes();
        let (mut keyed, mut expires, mut grouped) = (false, false, false);
        for (tag, value) in walk.by_ref() {
            if tag < last || (tag == last && tag != tag::EXTENSION) || tag == 0 {
                return Err(EventError::Attributes);
            }
            if last == 0 && tag != tag::ID {
                return Err(EventError::NoId);
            }
            last = tag;
            match tag {
                tag::ID => check_key("id", value)?,
                tag::SOURCE => check_key("source", value)?,
                tag::ORDERING_KEY => check_key("ordering key", value)?,
                tag::GROUP => {
                    grouped = true;
                    check_key("group", value)?;
                }
                tag::TTL => {
                    expires = true;
                    ttl_of(value).filter(|ms| (1..=TTL_MS_MAX).contains(ms)).ok_or(EventError::Ttl)?;
                }
                tag::TYPE
                | tag::SUBJECT
                | tag::TIME
                | tag::DATA_CONTENT_TYPE
                | tag::DATA_SCHEMA
                | tag::EXTENSION => {}
                other => return Err(EventError::UnsupportedAttribute(other)),
            }
            if value.is_empty() || value.len() > ATTRIBUTES_SIZE_BYTES_MAX {
                return Err(EventError::Attributes);
            }
            if tag == tag::ORDERING_KEY {
                keyed = true;
            } else if tag != tag::TTL && std::str::from_utf8(value).is_err() {
                return Err(EventError::Attributes);
            }
            if tag == tag::EXTENSION && !is_extension(value) {
                return Err(EventError::Attributes);
            }
        }
        if !walk.rest.is_empty() {
            return Err(EventError::Attributes);
        }
        if last == 0 {
            return Err(EventError::NoId);
        }
        let said = [FLAG_ORDERING_KEY, FLAG_TTL, FLAG_GROUP].map(|flag| flags & flag != 0);
        if said != [keyed, expires, grouped] {
            return Err(EventError::Header);
        }
        Ok(())
    }

    /// The event's bytes, padding not included.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    fn flags(&self) -> u8 {
        self.bytes[5]
    }

    fn time_ms(&self) -> u64 {
        self.bytes[8..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
    }

    /// The due time, given the moment of acceptance: what was asked for, never changed by being past.
    ///
    /// # Errors
    /// [`EventError::DelayTooLong`] where it lies more than [`DELAY_MS_MAX`] after `accepted`.
    pub fn schedule_time(&self, accepted: WallMs) -> Result<WallMs, EventError> {
        let due = if self.flags() & FLAG_TIME_IS_DELAY == 0 {
            self.time_ms()
        } else {
            accepted.0.saturating_add(self.time_ms())
        };
        if due > accepted.0.saturating_add(DELAY_MS_MAX) {
            return Err(EventError::DelayTooLong);
        }
        Ok(WallMs(due))
    }

    /// The absolute due time that the event states; `None` where it states a delay.
    #[must_use]
    pub fn stated_time(&self) -> Option<WallMs> {
        (self.flags() & FLAG_TIME_IS_DELAY == 0).then(|| WallMs(self.time_ms()))
    }

    /// Says whether the event can still be delivered when it is accepted at `accepted`.
    ///
    /// # Errors
    /// Those of [`EventView::schedule_time`], and [`EventError::AlreadyExpired`].
    pub fn check_times(&self, accepted: WallMs) -> Result<(), EventError> {
        let due = self.schedule_time(accepted)?;
        let has_expired = self.expire_time(due).is_some_and(|expiry| expiry <= accepted);
        if has_expired { Err(EventError::AlreadyExpired) } else { Ok(()) }
    }

    /// From this moment on the event is not delivered any more; `None` where it never expires. The ttl counts from the
    /// due time that the event states, or from `due`, its effective due time, where it stated a delay.
    #[must_use]
    pub fn expire_time(&self, due: WallMs) -> Option<WallMs> {
        self.ttl_ms().map(|ttl_ms| self.stated_time().unwrap_or(due).plus_ms(ttl_ms))
    }

    /// The ttl in ms, where there is one.
    #[must_use]
    pub fn ttl_ms(&self) -> Option<u64> {
        if self.flags() & FLAG_TTL == 0 {
            return None;
        }
        self.attribute(tag::TTL).and_then(ttl_of)
    }

    /// The attributes in the order of their tags.
    #[must_use]
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes { rest: &self.bytes[HEADER_SIZE_BYTES..HEADER_SIZE_BYTES + self.attributes_len] }
    }

    /// The value of the first attribute with `tag`.
    #[must_use]
    pub fn attribute(&self, tag: u8) -> Option<&'a [u8]> {
        self.attributes().find(|(t, _)| *t == tag).map(|(_, value)| value)
    }

    /// CloudEvents `id`.
    #[must_use]
    pub fn id(&self) -> &'a [u8] {
        self.attribute(tag::ID).unwrap_or_default()
    }

    /// CloudEvents `source` where the event states one: empty means the topic's default.
    #[must_use]
    pub fn source(&self) -> &'a [u8] {
        self.attribute(tag::SOURCE).unwrap_or_default()
    }

    /// The ordering key; empty where there is none.
    #[must_use]
    pub fn ordering_key(&self) -> &'a [u8] {
        if self.flags() & FLAG_ORDERING_KEY == 0 {
            return &[];
        }
        self.attribute(tag::ORDERING_KEY).unwrap_or_default()
    }

    /// The group; empty where there is none.
    #[must_use]
    pub fn group(&self) -> &'a [u8] {
        if self.flags() & FLAG_GROUP == 0 {
            return &[];
        }
        self.attribute(tag::GROUP).unwrap_or_default()
    }

    /// The payload.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        &self.bytes[HEADER_SIZE_BYTES + self.attributes_len..]
    }
}

fn ttl_of(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_le_bytes)
}

fn is_extension(value: &[u8]) -> bool {
    // CloudEvents 1.0: names are 1 to 20 lower-case letters and digits.
    match value.iter().position(|b| *b == 0) {
        Some(at) => {
            (1..=20).contains(&at) && value[..at].iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        }
        None => false,
    }
}

/// Iterator over `(tag, value)`. Ends early where the bytes do not parse; `rest` is then not empty.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[tag, short], mut rest) = self.rest.split_first_chunk::<2>()?;
        let mut len = usize::from(short);
        if short == u8::MAX {
            let (long, after) = rest.split_first_chunk::<2>()?;
            len = usize::from(u16::from_le_bytes(*long));
            if len < usize::from(u8::MAX) {
                return None;
            }
            rest = after;
        }
        let (value, after) = rest.split_at_checked(len)?;
        self.rest = after;
        Some((tag, value))
    }
}

/// When an event is due, as its publisher says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// At this time; a past one means now.
    At(WallMs),
    /// This many ms after acceptance.
    After(u64),
}

/// An event to be encoded. Empty texts are left out.
#[derive(Clone, Copy, Debug)]
pub struct EventSpec<'a> {
    /// When it is due.
    pub due: Due,
    /// CloudEvents `id`, 1 to 255 bytes.
    pub id: &'a str,
    /// CloudEvents `source`; empty for the topic's default.
    pub source: &'a str,
    /// CloudEvents `type`; empty for the topic's default.
    pub type_: &'a str,
    /// CloudEvents `subject`.
    pub subject: &'a str,
    /// CloudEvents `time`, RFC 3339.
    pub time: &'a str,
    /// CloudEvents `datacontenttype`; empty for the topic's default.
    pub data_content_type: &'a str,
    /// CloudEvents `dataschema`.
    pub data_schema: &'a str,
    /// Ordering key, at most 255 bytes; empty for none.
    pub ordering_key: &'a [u8],
    /// How long after its due time the event is worth delivering, in ms, up to [`TTL_MS_MAX`]; 0 for always.
    pub ttl_ms: u64,
    /// Group, at most 255 bytes; empty for none.
    pub group: &'a str,
    /// CloudEvents extension attributes, name and value.
    pub extensions: &'a [(&'a str, &'a str)],
    /// The payload.
    pub data: &'a [u8],
}

impl<'a> EventSpec<'a> {
    /// An event with everything optional left out.
    #[must_use]
    pub fn new(due: Due, id: &'a str, data: &'a [u8]) -> Self {
        EventSpec {
            due,
            id,
            source: "",
            type_: "",
            subject: "",
            time: "",
            data_content_type: "",
            data_schema: "",
            ordering_key: &[],
            ttl_ms: 0,
            group: "",
            extensions: &[],
            data,
        }
    }

    /// Appends the event's bytes, padded to a multiple of 8, to `out`, whose length must be one too.
    ///
    /// # Errors
    /// What [`EventView::parse`] would find; `out` is then as it was.
    ///
    /// # Panics
    /// If the length of `out` is not a multiple of 8.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EventError> {
        assert!(out.len().is_multiple_of(8), "events start at multiples of 8");
        let start = out.len();
        let result = self.encode_at(start, out);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    fn encode_at(&self, start: usize, out: &mut Vec<u8>) -> Result<(), EventError> {
        let (time_ms, mut flags) = match self.due {
            Due::At(at) => (at.0, 0),
            Due::After(delay_ms) => (delay_ms, FLAG_TIME_IS_DELAY),
        };
        if !self.ordering_key.is_empty() {
            flags |= FLAG_ORDERING_KEY;
        }
        if self.ttl_ms > 0 {
            flags |= FLAG_TTL;
        }
        if !self.group.is_empty() {
            flags |= FLAG_GROUP;
        }
        // Before the attributes as a whole are too long.
        check_key("id", self.id.as_bytes())?;
        check_key("source", self.source.as_bytes())?;
        check_key("ordering key", self.ordering_key)?;
        check_key("group", self.group.as_bytes())?;
        out.extend_from_slice(&[0; HEADER_SIZE_BYTES]);
        let texts = [
            (tag::ID, self.id),
            (tag::SOURCE, self.source),
            (tag::TYPE, self.type_),
            (tag::SUBJECT, self.subject),
            (tag::TIME, self.time),
            (tag::DATA_CONTENT_TYPE, self.data_content_type),
            (tag::DATA_SCHEMA, self.data_schema),
        ];
        for (tag, text) in texts {
            put_attribute(out, tag, &[text.as_bytes()])?;
        }
        put_attribute(out, tag::ORDERING_KEY, &[self.ordering_key])?;
        if self.ttl_ms > 0 {
            put_attribute(out, tag::TTL, &[&self.ttl_ms.to_le_bytes()])?;
        }
        put_attribute(out, tag::GROUP, &[self.group.as_bytes()])?;
        for (name, value) in self.extensions {
            put_attribute(out, tag::EXTENSION, &[name.as_bytes(), &[0], value.as_bytes()])?;
        }
        let attributes_len = out.len() - start - HEADER_SIZE_BYTES;
        if attributes_len > ATTRIBUTES_SIZE_BYTES_MAX {
            return Err(EventError::Attributes);
        }
        if HEADER_SIZE_BYTES + attributes_len + self.data.len() > EVENT_SIZE_BYTES_MAX {
            return Err(EventError::TooLarge);
        }
        out.extend_from_slice(self.data);
        let len = out.len() - start;
        let header = &mut out[start..start + HEADER_SIZE_BYTES];
        header[..4].copy_from_slice(&(len as u32).to_le_bytes());
        header[4] = EVENT_FORMAT;
        header[5] = flags;
        header[6..8].copy_from_slice(&(attributes_len as u16).to_le_bytes());
        header[8..].copy_from_slice(&time_ms.to_le_bytes());
        out.resize(start + padded_len(len), 0);
        EventView { bytes: &out[start..start + len], attributes_len }.verify_attributes(flags)
    }
}

fn check_key(what: &'static str, value: &[u8]) -> Result<(), EventError> {
    if value.len() > KEY_SIZE_BYTES_MAX { Err(EventError::TooLong(what)) } else { Ok(()) }
}

fn put_attribute(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) -> Result<(), EventError> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    if len == 0 {
        return Ok(());
    }
    out.push(tag);
    if len < usize::from(u8::MAX) {
        out.push(len as u8);
    } else {
        let len = u16::try_from(len).map_err(|_| EventError::Attributes)?;
        out.push(u8::MAX);
        out.extend_from_slice(&len.to_le_bytes());
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(spec: &EventSpec<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        spec.encode(&mut out).expect("a valid event");
        out
    }

    #[test]
    fn an_event_reads_back_as_it_was_written() {
        let long = "x".repeat(300);
        let spec = EventSpec {
            source: "/orders",
            type_: "order.created",
            subject: &long,
            ordering_key: b"\xff\x00key",
            ttl_ms: 60_000,
            group: "account-7",
            extensions: &[("traceparent", "00-ab"), ("zone", "a")],
            ..EventSpec::new(Due::After(1_500), "id-1", b"payload")
        };
        let bytes = encoded(&spec);
        let (view, taken) = EventView::parse(&bytes).expect("parses");
        assert_eq!(taken, bytes.len());
        assert_eq!(view.id(), b"id-1");
        assert_eq!(view.source(), b"/orders");
        assert_eq!(view.ordering_key(), b"\xff\x00key");
        assert_eq!(view.attribute(tag::SUBJECT), Some(long.as_bytes()));
        assert_eq!(view.attributes().filter(|(t, _)| *t == tag::EXTENSION).count(), 2);
        assert_eq!(view.data(), b"payload");
        assert_eq!(view.schedule_time(WallMs(1_000)), Ok(WallMs(2_500)));
        assert_eq!(view.expire_time(WallMs(2_500)), Some(WallMs(62_500)));
        assert!(has_ttl(&bytes));
        assert!(has_group(&bytes));
        assert_eq!(view.group(), b"account-7");
    }

    #[test]
    fn a_group_has_at_most_255_bytes_and_exactly_where_the_header_says_so() {
        let long = "g".repeat(256);
        let spec = |group| EventSpec { group, ..EventSpec::new(Due::After(0), "a", b"") };
        assert!(spec(&long[..255]).encode(&mut Vec::new()).is_ok());
        assert_eq!(spec(&long).encode(&mut Vec::new()), Err(EventError::TooLong("group")));
        for (group, flags) in [("g", FLAG_TIME_IS_DELAY), ("", FLAG_TIME_IS_DELAY | FLAG_GROUP)] {
            let mut bytes = encoded(&spec(group));
            bytes[5] = flags;
            assert_eq!(EventView::parse(&bytes).map(|_| ()), Err(EventError::Header), "{group:?}");
        }
    }

    #[test]
    fn a_ttl_counts_from_the_stated_due_time_and_is_refused_once_it_has_passed() {
        let spec = EventSpec { ttl_ms: 10, ..EventSpec::new(Due::At(WallMs(1_000)), "a", b"") };
        let bytes = encoded(&spec);
        let (view, _) = EventView::parse(&bytes).expect("parses");
        assert_eq!(view.expire_time(WallMs(1_005)), Some(WallMs(1_010)), "whenever it was accepted");
        assert_eq!(view.check_times(WallMs(1_009)), Ok(()));
        assert_eq!(view.check_times(WallMs(1_010)), Err(EventError::AlreadyExpired));
        let bytes = encoded(&EventSpec::new(Due::At(WallMs(0)), "a", b""));
        let (view, _) = EventView::parse(&bytes).expect("parses");
        assert_eq!((view.expire_time(WallMs(5)), view.check_times(WallMs(5))), (None, Ok(())));
    }

    #[test]
    fn a_ttl_lies_between_a_millisecond_and_ten_years() {
        let spec = |ttl_ms| EventSpec { ttl_ms, ..EventSpec::new(Due::After(0), "a", b"") };
        assert!(spec(TTL_MS_MAX).encode(&mut Vec::new()).is_ok());
        assert_eq!(spec(TTL_MS_MAX + 1).encode(&mut Vec::new()), Err(EventError::Ttl));
        let mut bytes = encoded(&spec(1));
        let at = bytes.iter().position(|byte| *byte == tag::TTL).expect("a ttl") + 2;
        bytes[at] = 0;
        assert_eq!(EventView::parse(&bytes).map(|_| ()), Err(EventError::Ttl));
        bytes[at] = 1;
        bytes[5] = FLAG_TIME_IS_DELAY;
        assert_eq!(EventView::parse(&bytes).map(|_| ()), Err(EventError::Header), "a ttl without its flag");
    }

    #[test]
    fn a_plain_128_byte_event_takes_at_most_160_bytes() {
        let bytes = encoded(&EventSpec::new(Due::At(WallMs(1)), "0123456789ab", &[7; 128]));
        assert!(bytes.len() <= 160, "{}", bytes.len());
    }

    #[test]
    fn ten_years_are_accepted_and_one_millisecond_more_is_not() {
        let bytes = encoded(&EventSpec::new(Due::After(DELAY_MS_MAX), "a", b""));
        let (view, _) = EventView::parse(&bytes).expect("parses");
        assert!(view.schedule_time(WallMs(5)).is_ok());
        let bytes = encoded(&EventSpec::new(Due::At(WallMs(6 + DELAY_MS_MAX)), "a", b""));
        let (view, _) = EventView::parse(&bytes).expect("parses");
        assert_eq!(view.schedule_time(WallMs(5)), Err(EventError::DelayTooLong));
    }

    #[test]
    fn every_truncation_and_every_flipped_header_bit_is_an_error_or_another_event_never_a_panic() {
        let spec = EventSpec { ordering_key: b"k", ..EventSpec::new(Due::At(WallMs(9)), "id", b"data") };
        let bytes = encoded(&spec);
        for cut in 0..bytes.len() {
            assert!(EventView::parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            if let Ok((view, _)) = EventView::parse(&changed) {
                let _ = (view.id(), view.ordering_key(), view.data(), view.schedule_time(WallMs(0)));
            }
        }
    }

    #[test]
    fn attributes_of_later_versions_are_refused_by_number() {
        let mut bytes = encoded(&EventSpec::new(Due::At(WallMs(0)), "id", b""));
        bytes[HEADER_SIZE_BYTES + 4..].fill(0);
        bytes[HEADER_SIZE_BYTES + 4] = 40;
        bytes[HEADER_SIZE_BYTES + 5] = 1;
        bytes[6] += 3;
        bytes[0] += 3;
        bytes.resize(padded_len(usize::from(bytes[0])), 0);
        assert_eq!(EventView::parse(&bytes).map(|_| ()), Err(EventError::UnsupportedAttribute(40)));
    }
}
