//! Events: what parses is bounded, readable throughout, and the only encoding of what it says.

use escapement_protocol::event::{Due, EventSpec, EventView, padded_len, stated_len, tag};
use escapement_protocol::{DELAY_MS_MAX, EVENT_SIZE_BYTES_MAX, WallMs};

/// Parses `input` as one event, and where that succeeds reads everything, writes it again and compares.
///
/// # Panics
/// Where an accepted event reaches past its stated length, cannot be read, or encodes to other bytes.
pub fn event_parse(input: &[u8]) {
    let Ok((view, taken)) = EventView::parse(input) else { return };
    let bytes = view.as_bytes();
    assert_eq!(Some(bytes.len()), stated_len(input));
    assert_eq!(taken, padded_len(bytes.len()));
    assert!(taken <= input.len() && bytes.len() <= EVENT_SIZE_BYTES_MAX);

    let trusted = EventView::trusted(bytes).expect("what parsed once is trusted");
    assert_eq!(trusted.id(), view.id());
    assert_eq!(trusted.data(), view.data());

    for accepted in [WallMs(0), WallMs(1_700_000_000_000), WallMs(u64::MAX)] {
        if let Ok(due) = view.schedule_time(accepted) {
            assert!(due.0 <= accepted.0.saturating_add(DELAY_MS_MAX));
            assert!(view.expire_time(due).is_none_or(|expiry| Some(expiry) > view.stated_time()));
        }
    }
    assert_eq!(encoded_again(&view), input[..taken], "an event has one encoding");
}

fn encoded_again(view: &EventView<'_>) -> Vec<u8> {
    let text = |tag| std::str::from_utf8(view.attribute(tag).unwrap_or_default()).expect("texts are UTF-8");
    let extensions: Vec<_> = view
        .attributes()
        .filter(|(tag, _)| *tag == tag::EXTENSION)
        .map(|(_, value)| std::str::from_utf8(value).expect("extensions are UTF-8"))
        .map(|value| value.split_once('\0').expect("an extension has a name"))
        .collect();
    let spec = EventSpec {
        source: text(tag::SOURCE),
        type_: text(tag::TYPE),
        subject: text(tag::SUBJECT),
        time: text(tag::TIME),
        data_content_type: text(tag::DATA_CONTENT_TYPE),
        data_schema: text(tag::DATA_SCHEMA),
        ordering_key: view.ordering_key(),
        ttl_ms: view.ttl_ms().unwrap_or(0),
        group: text(tag::GROUP),
        extensions: &extensions,
        ..EventSpec::new(stated_due(view), text(tag::ID), view.data())
    };
    let mut out = Vec::new();
    spec.encode(&mut out).expect("what parsed can be written");
    out
}

/// The due time as the event states it: two moments of acceptance tell a delay from a time.
fn stated_due(view: &EventView<'_>) -> Due {
    let header = view.as_bytes();
    let time_ms = header[8..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if header[5] & escapement_protocol::event::FLAG_TIME_IS_DELAY == 0 {
        Due::At(WallMs(time_ms))
    } else {
        Due::After(time_ms)
    }
}

/// Small events that between them hold every attribute, both kinds of time and every width of a length.
pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let encoded = |spec: EventSpec<'_>| {
        let mut out = Vec::new();
        spec.encode(&mut out).expect("a seed is a valid event");
        out
    };
    let minimal = EventSpec::new(Due::At(WallMs(1_700_000_000_000)), "1", b"");
    let long_subject = "s".repeat(300);
    vec![
        ("minimal", encoded(minimal)),
        ("delayed", encoded(EventSpec { due: Due::After(90_000), data: b"payload", ..minimal })),
        ("keyed", encoded(EventSpec { ordering_key: b"\x00\xffaccount-7", data: b"{}", ..minimal })),
        ("long-subject", encoded(EventSpec { subject: &long_subject, ..minimal })),
        (
            "every-attribute",
            encoded(EventSpec {
                source: "/orders",
                type_: "order.created",
                subject: "order/7",
                time: "2030-01-01T00:00:00Z",
                data_content_type: "application/json",
                data_schema: "urn:order:1",
                ordering_key: b"order-7",
                extensions: &[("traceparent", "00-ab-cd-01"), ("zone", "a"), ("zone", "")],
                data: b"{\"n\":1}",
                ..minimal
            }),
        ),
        ("expiring", encoded(EventSpec { ttl_ms: 300_000, ordering_key: b"k", data: b"{}", ..minimal })),
        ("grouped", encoded(EventSpec { group: "account-7", ttl_ms: 9, data: b"{}", ..minimal })),
        ("farthest-delay", encoded(EventSpec { due: Due::After(DELAY_MS_MAX), ..minimal })),
    ]
}
