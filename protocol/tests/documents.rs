//! `docs/formats/wire-v1.md` and `docs/errors.md` against the schema and the code: what they say in tables is held here.

use std::collections::BTreeMap;

use escapement_protocol::event::{self, Due, EventSpec};
use escapement_protocol::frame::{
    BATCH_COUNT_MAX, BODY_SIZE_BYTES_MIN, EVENT_PAGE_COUNT_MAX, EVENT_PAGE_SIZE_BYTES_MAX, FRAME_VERSION,
    FrameKind, LIST_COUNT_MAX, PAGE_TOKEN_SIZE_BYTES, PREFIX_SIZE_BYTES, Sender, TaskState,
};
use escapement_protocol::{ErrorCode, ids, settings};

const WIRE: &str = include_str!("../../docs/formats/wire-v1.md");
const ERRORS: &str = include_str!("../../docs/errors.md");
const SCHEMA: &str = include_str!("../schema/wire_v1.fbs");

type Rows = Vec<Vec<String>>;

/// The rows of every table under each heading, cells trimmed, without backticks; heads and rulers left out.
fn tables(document: &str) -> BTreeMap<String, Vec<Rows>> {
    let mut sections: BTreeMap<String, Vec<Rows>> = BTreeMap::new();
    let mut heading = String::new();
    let mut in_table = false;
    for line in document.lines() {
        if let Some(title) = line.strip_prefix('#') {
            heading = title.trim_start_matches('#').replace('`', "").trim().to_owned();
            sections.entry(heading.clone()).or_default();
        }
        let Some(row) = line.strip_prefix('|') else {
            in_table = false;
            continue;
        };
        let section = sections.entry(heading.clone()).or_default();
        if !in_table {
            in_table = true;
            section.push(Vec::new());
            continue;
        }
        if row.starts_with("---") {
            continue;
        }
        let cells = row.trim_end_matches('|').split('|').map(|cell| cell.replace('`', "").trim().to_owned());
        section.last_mut().expect("a table was begun").push(cells.collect());
    }
    sections
}

/// Name, type and default of each field of each `keyword` definition in the schema.
fn schema(keyword: &str) -> BTreeMap<String, Vec<[String; 3]>> {
    let code: String = SCHEMA.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    code.split(&format!("{keyword} "))
        .skip(1)
        .map(|definition| {
            let (name, rest) = definition.split_once('{').expect("a body");
            let (body, _) = rest.split_once('}').expect("an end");
            let fields = body.split(';').filter(|field| !field.trim().is_empty()).map(|field| {
                let (name, type_) = field.split_once(':').expect("a field has a type");
                let type_ = type_.split('(').next().unwrap_or_default();
                let (type_, default) = type_.split_once('=').unwrap_or((type_, ""));
                [name.trim().to_owned(), type_.trim().to_owned(), default.trim().to_owned()]
            });
            (name.trim().to_owned(), fields.collect())
        })
        .collect()
}

fn size_bytes(type_: &str) -> usize {
    match type_ {
        "ubyte" => 1,
        "ushort" => 2,
        "uint" => 4,
        "ulong" => 8,
        "[ubyte:16]" => 16,
        other => panic!("{other} in a struct"),
    }
}

#[test]
fn every_table_is_documented_field_by_field() {
    let documented = tables(WIRE);
    for (name, fields) in schema("table") {
        let mut expected = Vec::new();
        for [field, type_, default] in fields {
            // FlatBuffers keeps a union's type in a field of its own before it.
            if type_.ends_with("Body") {
                expected.push([format!("{field}_type"), "ubyte".to_owned(), String::new()]);
            }
            expected.push([field, type_, default]);
        }
        let sections = documented.get(&name).unwrap_or_else(|| panic!("no section for {name}"));
        let rows = sections.first().cloned().unwrap_or_default();
        let has_defaults = name == "SubscriptionSettings";
        let found: Vec<[String; 3]> = rows
            .iter()
            .enumerate()
            .map(|(id, row)| {
                assert_eq!(row[0], id.to_string(), "{name}");
                let default = if has_defaults { row[3].as_str() } else { "" };
                let default = default.strip_prefix("0").map_or(default, |rest| rest);
                [row[1].clone(), row[2].clone(), default.to_owned()]
            })
            .collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn every_struct_is_documented_byte_by_byte() {
    let documented = tables(WIRE);
    for (name, fields) in schema("struct") {
        let mut at = 0;
        let mut expected = Vec::new();
        for [field, type_, _] in fields {
            let size = size_bytes(&type_);
            assert!(type_.starts_with('[') || at % size == 0, "{name}.{field} would make FlatBuffers pad");
            expected.push([at.to_string(), size.to_string(), field]);
            at += size;
        }
        let heading = format!("Struct {name}, {at} bytes");
        let sections = documented.get(&heading).unwrap_or_else(|| panic!("no section {heading:?}"));
        let found: Vec<_> =
            sections[0].iter().map(|row| [row[0].clone(), row[1].clone(), row[2].clone()]).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn the_members_of_unions_are_documented_with_their_numbers() {
    let documented = tables(WIRE);
    for (union, frame) in [("AdminBody", "Admin"), ("AdminReplyBody", "AdminReply")] {
        let (_, rest) = SCHEMA.split_once(&format!("union {union} {{")).expect("the union");
        let (members, _) = rest.split_once('}').expect("an end");
        let expected: Vec<_> = (1..)
            .zip(members.split(','))
            .map(|(number, member)| [number.to_string(), member.trim().to_owned()])
            .collect();
        let found: Vec<_> = documented[frame][1].iter().map(|row| [row[0].clone(), row[1].clone()]).collect();
        assert_eq!(found, expected, "{union}");
    }
}

#[test]
fn every_kind_is_listed_with_its_number_and_sender() {
    let rows = &tables(WIRE)["Frames"][1];
    let found: Vec<_> = rows
        .iter()
        .map(|row| {
            let name = row[1].trim_start_matches('[').split(']').next().unwrap_or_default();
            (row[0].clone(), name.to_owned(), row[2].clone())
        })
        .collect();
    let side = |sender| match sender {
        Sender::Client => "client",
        Sender::Node => "node",
    };
    let expected: Vec<_> = FrameKind::ALL
        .iter()
        .map(|kind| ((*kind as u8).to_string(), kind.name().to_owned(), side(kind.sender()).to_owned()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn the_documented_limits_are_those_of_the_code() {
    let expected: BTreeMap<&str, u64> = [
        ("PROTOCOL_VERSION", escapement_protocol::PROTOCOL_VERSION.into()),
        ("FRAME_VERSION", FRAME_VERSION.into()),
        ("PREFIX_SIZE_BYTES", PREFIX_SIZE_BYTES as u64),
        ("BODY_SIZE_BYTES_MIN", BODY_SIZE_BYTES_MIN as u64),
        ("FRAME_SIZE_BYTES_MAX", escapement_protocol::FRAME_SIZE_BYTES_MAX as u64),
        ("BATCH_COUNT_MAX", BATCH_COUNT_MAX.into()),
        ("EVENT_PAGE_COUNT_MAX", EVENT_PAGE_COUNT_MAX.into()),
        ("EVENT_PAGE_SIZE_BYTES_MAX", EVENT_PAGE_SIZE_BYTES_MAX as u64),
        ("PAGE_TOKEN_SIZE_BYTES", PAGE_TOKEN_SIZE_BYTES as u64),
        ("LIST_COUNT_MAX", LIST_COUNT_MAX.into()),
        ("EVENT_SIZE_BYTES_MAX", escapement_protocol::EVENT_SIZE_BYTES_MAX as u64),
        ("ATTRIBUTES_SIZE_BYTES_MAX", event::ATTRIBUTES_SIZE_BYTES_MAX as u64),
        ("KEY_SIZE_BYTES_MAX", event::KEY_SIZE_BYTES_MAX as u64),
        ("NAME_SIZE_BYTES_MAX", settings::NAME_SIZE_BYTES_MAX as u64),
        ("SHARD_COUNT_MAX", ids::SHARD_COUNT_MAX.into()),
        ("DELAY_MS_MAX", escapement_protocol::DELAY_MS_MAX),
        ("TTL_MS_MAX", event::TTL_MS_MAX),
    ]
    .into();
    let documented = tables(WIRE);
    let found: BTreeMap<&str, u64> = documented["Limits"][0]
        .iter()
        .map(|row| (row[0].as_str(), row[1].replace(',', "").parse().expect("a number")))
        .collect();
    assert_eq!(found, expected);
    assert!(WIRE.contains(&format!("(ALPN) `{}`", String::from_utf8_lossy(escapement_protocol::ALPN))));
}

#[test]
fn the_documented_tags_and_states_are_those_of_the_code() {
    let documented = tables(WIRE);
    let tags: Vec<_> =
        documented["Events"][1].iter().map(|row| row[0].parse::<u8>().expect("a tag")).collect();
    let known: Vec<u8> = (0..=u8::MAX).filter(|tag| is_known(*tag)).collect();
    assert_eq!(tags, known);
    let states: Vec<_> = documented["Struct CancelVerdict, 8 bytes"][1]
        .iter()
        .map(|row| (row[0].clone(), row[1].split(':').next().unwrap_or_default().to_owned()))
        .collect();
    let expected: Vec<_> = TaskState::ALL
        .iter()
        .map(|state| ((*state as u8).to_string(), format!("{state:?}").to_uppercase()))
        .collect();
    assert_eq!(states, expected);
}

/// Whether an event with this attribute, after its id, is read without a word about the tag.
fn is_known(tag: u8) -> bool {
    let mut bytes = Vec::new();
    EventSpec::new(Due::After(0), "a", &[0; 8]).encode(&mut bytes).expect("valid");
    bytes[19..24].copy_from_slice(&[tag, 3, b'x', 0, b'y']);
    bytes[6] += 5;
    let outcome = escapement_protocol::EventView::parse(&bytes);
    tag == event::tag::ID
        || (tag > event::tag::ID && !matches!(outcome, Err(event::EventError::UnsupportedAttribute(_))))
}

#[test]
fn the_event_that_the_document_spells_out_is_what_is_encoded() {
    let mut bytes = Vec::new();
    EventSpec::new(Due::After(1_500), "a", b"x").encode(&mut bytes).expect("valid");
    let spelled: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let line = WIRE.lines().find(|line| line.starts_with("14 00 00 00")).expect("the example");
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), spelled);
}

#[test]
fn every_error_code_is_explained_with_its_number_and_whether_to_retry() {
    let documented = tables(ERRORS);
    for code in ErrorCode::ALL {
        let sections = documented.get(code.name()).unwrap_or_else(|| panic!("no entry for {code}"));
        let retry = if code.is_retryable() { "yes" } else { "no" };
        assert_eq!(sections[0], [[(*code as u16).to_string(), retry.to_owned()]], "{code}");
        let (_, entry) = ERRORS.split_once(&format!("### `{code}`")).expect("the entry");
        let entry = entry.split("\n#").next().unwrap_or_default();
        assert!(entry.contains("**What happened.**") && entry.contains("**What to do.**"), "{code}");
    }
    let entries = ERRORS.lines().filter(|line| line.starts_with("### ")).count();
    assert_eq!(entries, ErrorCode::ALL.len());
}
