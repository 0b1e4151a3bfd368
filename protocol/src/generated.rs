//! What flatc made of `schema/wire_v1.fbs` (see `schema/generate.sh`). Not to be edited.
#![allow(unsafe_code, missing_docs, unreachable_pub, unused_qualifications, rust_2018_idioms)]
#![allow(clippy::all, clippy::undocumented_unsafe_blocks, clippy::semicolon_if_nothing_returned)]

#[rustfmt::skip]
mod wire_v1;

pub(crate) use wire_v1::wire;
