//! The byte forms of `IDENTITY` and `KEYS`: lines of text in a fixed order, closed by a checksum over the lines before.

use std::fmt::Write as _;

use escapement_protocol::ShardId;
use escapement_protocol::ids::SHARD_COUNT_MAX;
use escapement_wal::LogIdentity;

/// Version of both files that this program writes and reads.
pub const IDENTITY_FORMAT: u32 = 1;

/// Size of each secret.
pub(super) const SECRET_SIZE_BYTES: usize = 32;

const IDENTITY_TITLE: &str = "escapement data directory, format ";
const KEYS_TITLE: &str = "escapement keys, format ";

/// What is wrong with one of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFault {
    /// Another version wrote it.
    OtherFormat(u32),
    /// No version wrote this.
    Damaged(&'static str),
}

/// Whose data directory it is. Written by formatting, never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node's number.
    pub node: u64,
    /// The cluster's number, in every block of every log.
    pub cluster: u64,
    /// Number of shards.
    pub shard_count: u16,
    /// Size of the segment files, in bytes.
    pub segment_size_bytes: u64,
}

impl Identity {
    /// Whose log a shard's is.
    #[must_use]
    pub fn log(&self, shard: ShardId) -> LogIdentity {
        LogIdentity { cluster: self.cluster, shard, shard_count: self.shard_count }
    }

    pub(super) fn encode(&self) -> String {
        let Identity { node, cluster, shard_count, segment_size_bytes } = self;
        sealed(format!(
            "{IDENTITY_TITLE}{IDENTITY_FORMAT}\nnode {node:016x}\ncluster {cluster:016x}\nshard_count {shard_count}\n\
             segment_size_bytes {segment_size_bytes}\n"
        ))
    }

    pub(super) fn parse(text: &str) -> Result<Identity, FileFault> {
        let mut lines = unsealed(text, IDENTITY_TITLE)?;
        let identity = Identity {
            node: lines.hex("node ")?,
            cluster: lines.hex("cluster ")?,
            shard_count: lines.number("shard_count ")?,
            segment_size_bytes: lines.number("segment_size_bytes ")?,
        };
        lines.end()?;
        if !(1..=SHARD_COUNT_MAX).contains(&identity.shard_count) {
            return Err(FileFault::Damaged("its shard count is out of range"));
        }
        Ok(identity)
    }
}

/// Secrets of a node. Whoever has them can end its connections.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) reset: [u8; SECRET_SIZE_BYTES],
    pub(super) token: [u8; SECRET_SIZE_BYTES],
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    pub(super) fn encode(&self) -> String {
        let (reset, token) = (hex(&self.reset), hex(&self.token));
        sealed(format!("{KEYS_TITLE}{IDENTITY_FORMAT}\nreset {reset}\ntoken {token}\n"))
    }

    pub(super) fn parse(text: &str) -> Result<Keys, FileFault> {
        let mut lines = unsealed(text, KEYS_TITLE)?;
        let keys = Keys { reset: lines.secret("reset ")?, token: lines.secret("token ")? };
        lines.end()?;
        Ok(keys)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

fn sealed(mut text: String) -> String {
    let checksum = crc32c::crc32c(text.as_bytes());
    text += &format!("crc32c {checksum:08x}\n");
    text
}

/// The title's version is read before the checksum is asked for, so that another version may place it elsewhere.
fn unsealed<'a>(text: &'a str, title: &str) -> Result<Lines<'a>, FileFault> {
    let version = text.strip_prefix(title).and_then(|rest| rest.split_once('\n'));
    let (version, _) = version.ok_or(FileFault::Damaged("its first line is not that of this file"))?;
    let version: u32 = version.parse().map_err(|_| FileFault::Damaged("its format is not a number"))?;
    if version != IDENTITY_FORMAT {
        return Err(FileFault::OtherFormat(version));
    }
    let (body, checksum) = text.rsplit_once("crc32c ").ok_or(FileFault::Damaged("it has no checksum"))?;
    if checksum != format!("{:08x}\n", crc32c::crc32c(body.as_bytes())) {
        return Err(FileFault::Damaged("its checksum does not hold"));
    }
    let mut lines = body.lines();
    lines.next();
    Ok(Lines(lines))
}

struct Lines<'a>(std::str::Lines<'a>);

const LINE: FileFault = FileFault::Damaged("one of its lines is not as it should be");

impl<'a> Lines<'a> {
    fn value(&mut self, name: &str) -> Result<&'a str, FileFault> {
        self.0.next().and_then(|line| line.strip_prefix(name)).ok_or(LINE)
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Result<T, FileFault> {
        self.value(name)?.parse().map_err(|_| LINE)
    }

    fn hex(&mut self, name: &str) -> Result<u64, FileFault> {
        u64::from_str_radix(self.value(name)?, 16).map_err(|_| LINE)
    }

    fn secret(&mut self, name: &str) -> Result<[u8; SECRET_SIZE_BYTES], FileFault> {
        let text = self.value(name)?;
        let mut secret = [0; SECRET_SIZE_BYTES];
        if text.len() != 2 * SECRET_SIZE_BYTES || !text.is_ascii() {
            return Err(LINE);
        }
        for (at, byte) in secret.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| LINE)?;
        }
        Ok(secret)
    }

    fn end(mut self) -> Result<(), FileFault> {
        if self.0.next().is_none() { Ok(()) } else { Err(LINE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Identity =
        Identity { node: 7, cluster: u64::MAX, shard_count: 2, segment_size_bytes: 1024 * 1024 };

    #[test]
    fn both_files_read_back() {
        assert_eq!(Identity::parse(&SAMPLE.encode()), Ok(SAMPLE));
        let keys = Keys { reset: [1; 32], token: [0xfe; 32] };
        assert_eq!(Keys::parse(&keys.encode()), Ok(keys));
    }

    #[test]
    fn the_identity_is_the_text_that_the_documents_show() {
        let expected = "escapement data directory, format 1\nnode 0000000000000007\ncluster ffffffffffffffff\n\
                        shard_count 2\nsegment_size_bytes 1048576\ncrc32c ";
        let text = SAMPLE.encode();
        assert!(text.starts_with(expected), "{text}");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating/data-directory.md");
        let document = std::fs::read_to_string(path).unwrap();
        assert!(document.contains(&text), "the document's sample should be\n{text}");
    }

    #[test]
    fn no_changed_byte_goes_unnoticed() {
        let text = SAMPLE.encode();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            if let Ok(changed) = String::from_utf8(bytes) {
                assert!(Identity::parse(&changed).is_err(), "byte {at}");
            }
            assert!(Identity::parse(&text[..at]).is_err(), "cut at {at}");
        }
        assert!(Identity::parse(&format!("{text}\n")).is_err());
    }

    #[test]
    fn another_version_is_named_even_where_nothing_else_can_be_read() {
        let text = "escapement data directory, format 2\nsomething new\n";
        assert_eq!(Identity::parse(text), Err(FileFault::OtherFormat(2)));
        assert!(matches!(Keys::parse(text), Err(FileFault::Damaged(_))));
    }
}
