//! The table of settings.

use std::path::PathBuf;

use super::NodeConfig;
use super::units::{parse_bytes, parse_duration, parse_rate};

/// When a setting takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Written into the data directory when it is formatted, and read from there ever after.
    Format,
    /// Read at every start.
    Start,
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Key in the file, its table first: `tls.key`. The flag is the same with dashes: `--tls-key`.
    pub key: &'static str,
    /// What stands for the value in help.
    pub value_name: &'static str,
    /// What it does, in one line without a full stop.
    pub help: &'static str,
    /// The default, as text.
    pub default: &'static str,
    /// What is accepted, as text.
    pub range: &'static str,
    /// When it takes effect.
    pub lifetime: Lifetime,
    /// Whether it names a file or folder.
    pub is_path: bool,
    /// Whether the flag may stand alone, and then means `true`.
    pub is_switch: bool,
    /// Reads the text; the error says what would be right.
    set: fn(&mut NodeConfig, &str) -> Result<(), String>,
}

impl Setting {
    /// Reads the setting's text.
    ///
    /// # Errors
    /// What would be right.
    pub fn apply(&self, config: &mut NodeConfig, text: &str) -> Result<(), String> {
        (self.set)(config, text)
    }

    /// The flag, without its dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        self.key.replace(['.', '_'], "-")
    }
}

const BLANK: Setting = Setting {
    key: "",
    value_name: "",
    help: "",
    default: "",
    range: "",
    lifetime: Lifetime::Start,
    is_path: false,
    is_switch: false,
    set: |_, _| Ok(()),
};

/// Every setting, in the order of help and documents.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "data",
        value_name: "DIR",
        help: "Data directory; formatted where it is new or empty",
        default: "none",
        range: "a directory of one node, on a disk",
        is_path: true,
        set: |config, text| set(&mut config.data, path(text)),
        ..BLANK
    },
    Setting {
        key: "listen",
        value_name: "ADDR:PORT",
        help: "UDP address to serve QUIC on; port 0 lets the system choose",
        default: "127.0.0.1:4433",
        range: "an IP address and a port",
        set: |config, text| {
            set(&mut config.listen, text.parse().map_err(|_| "write for example 0.0.0.0:4433 or [::]:4433"))
        },
        ..BLANK
    },
    Setting {
        key: "shards",
        value_name: "N",
        help: "Shards of a new data directory; another number at a later start is refused",
        default: "one for each CPU that the process may use",
        range: "1 to 256",
        lifetime: Lifetime::Format,
        set: |config, text| set(&mut config.shards, number(text).map(Some)),
        ..BLANK
    },
    Setting {
        key: "cores",
        value_name: "N",
        help: "Core threads, each of which owns a part of the shards",
        default: "one for each CPU that the process may use, at most one for each shard",
        range: "1 to 255; more than there are shards count as one for each",
        set: |config, text| set(&mut config.cores, number(text).map(Some)),
        ..BLANK
    },
    Setting {
        key: "host",
        value_name: "HOST",
        help: "How cores talk to the operating system: uring, poll, or glommio if built in",
        default: "the best that works here",
        range: "uring or poll, or glommio in a build with that feature",
        set: |config, text| {
            config.host = Some(text.parse().map_err(|error: crate::io::UnknownHost| error.to_string())?);
            Ok(())
        },
        ..BLANK
    },
    Setting {
        key: "memory",
        value_name: "BYTES",
        help: "Most bytes of pending events and their index, divided evenly over the shards",
        default: "a quarter of the memory that the process may use, at least 16MiB for each shard",
        range: "at least 16MiB for each shard",
        set: |config, text| set(&mut config.memory_bytes, parse_bytes(text).map(Some)),
        ..BLANK
    },
    Setting {
        key: "horizon",
        value_name: "DURATION",
        help: "How far ahead of its time an event is kept in memory; what is due later waits on the disk",
        default: "15m",
        range: "1s to 30d; it shrinks by itself once half of the memory is in use",
        set: |config, text| {
            set(&mut config.horizon_ms, parse_duration(text).map(|time| time.as_millis() as u64))
        },
        ..BLANK
    },
    Setting {
        key: "admission",
        value_name: "RATE",
        help: "Most events accepted per second, divided evenly over the shards, each share rounded up; 0 for no bound",
        default: "0",
        range: "a rate such as 500k/s",
        set: |config, text| set(&mut config.admission_per_s, parse_rate(text)),
        ..BLANK
    },
    Setting {
        key: "mtu",
        value_name: "BYTES",
        help: "Largest datagram that path discovery probes for, in bytes of UDP payload",
        default: "1452",
        range: "1200 to 65527",
        set: |config, text| set(&mut config.mtu, number(text)),
        ..BLANK
    },
    Setting {
        key: "tls.certificate",
        value_name: "FILE",
        help: "Certificate chain to show, PEM; without one a development certificate is made",
        default: "none",
        range: "a PEM file, together with tls.key",
        is_path: true,
        set: |config, text| set(&mut config.tls.certificate, path(text).map(Some)),
        ..BLANK
    },
    Setting {
        key: "tls.key",
        value_name: "FILE",
        help: "Private key of the certificate, PEM",
        default: "none",
        range: "a PEM file, together with tls.certificate",
        is_path: true,
        set: |config, text| set(&mut config.tls.key, path(text).map(Some)),
        ..BLANK
    },
    Setting {
        key: "tls.client_ca",
        value_name: "FILE",
        help: "Authorities of client certificates, PEM; where set, every client must show one",
        default: "none",
        range: "a PEM file, together with tls.certificate",
        is_path: true,
        set: |config, text| set(&mut config.tls.client_ca, path(text).map(Some)),
        ..BLANK
    },
    Setting {
        key: "segment_size",
        value_name: "BYTES",
        help: "Size of the segment files of a new data directory",
        default: "64MiB",
        range: "a multiple of 4KiB, at least 1MiB and below 4GiB",
        lifetime: Lifetime::Format,
        set: |config, text| set(&mut config.segment_size_bytes, parse_bytes(text)),
        ..BLANK
    },
    Setting {
        key: "segment_spares",
        value_name: "N",
        help: "Segment files that formatting prepares for each shard, besides the first",
        default: "4",
        range: "1 to 64",
        lifetime: Lifetime::Format,
        set: |config, text| set(&mut config.segment_spares, number(text)),
        ..BLANK
    },
    Setting {
        key: "log_size_max",
        value_name: "BYTES",
        help: "Most bytes of segment files, divided evenly over the shards; publishes are refused beyond",
        default: "16GiB",
        range: "at least two segments for each shard",
        set: |config, text| set(&mut config.log_size_bytes_max, parse_bytes(text)),
        ..BLANK
    },
    Setting {
        key: "drain_timeout",
        value_name: "DURATION",
        help: "Longest that a drain may take before the node ends anyway",
        default: "10s",
        range: "0 to 10m",
        set: |config, text| {
            set(&mut config.drain_timeout_ms, parse_duration(text).map(|time| time.as_millis() as u64))
        },
        ..BLANK
    },
    Setting {
        key: "turn_wait",
        value_name: "DURATION",
        help: "How long a loaded core collects before it takes a turn",
        default: "200us",
        range: "0 to 300us",
        set: |config, text| {
            let us = parse_duration(text).map(|time| u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
            set(&mut config.turn_wait_us, us)
        },
        ..BLANK
    },
    Setting {
        key: "pin",
        value_name: "BOOL",
        help: "Whether each core keeps to one CPU",
        default: "true",
        range: "true or false",
        is_switch: true,
        set: |config, text| set(&mut config.pin, flag(text)),
        ..BLANK
    },
    Setting {
        key: "allow_tmpfs",
        value_name: "BOOL",
        help: "Whether the data directory may lie in memory, where a restart of the machine loses it",
        default: "false",
        range: "true or false",
        is_switch: true,
        set: |config, text| set(&mut config.allow_tmpfs, flag(text)),
        ..BLANK
    },
    Setting {
        key: "trust_clock",
        value_name: "BOOL",
        help: "Whether the machine's clock is right although it is far ahead of the log's last time",
        default: "false",
        range: "true or false",
        is_switch: true,
        set: |config, text| set(&mut config.trust_clock, flag(text)),
        ..BLANK
    },
    Setting {
        key: "accept_loss",
        value_name: "TOKEN",
        help: "Give up the damaged end of a log: the token is in the refusal to open it",
        default: "none",
        range: "16 hexadecimal digits",
        set: |config, text| set(&mut config.accept_loss, token(text).map(Some)),
        ..BLANK
    },
];

/// The setting of that key.
#[must_use]
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// The key most like this text, if any is at all like it: one that it begins, or else the one that is fewest edits away.
#[must_use]
pub fn nearest(text: &str) -> Option<&'static str> {
    let text = text.get(..64).unwrap_or(text);
    let begun = SETTINGS.iter().find(|setting| !text.is_empty() && setting.key.starts_with(text));
    if let Some(setting) = begun {
        return Some(setting.key);
    }
    let text: Vec<char> = text.chars().collect();
    let (distance, key) = SETTINGS
        .iter()
        .map(|setting| (edit_distance(&text, &setting.key.chars().collect::<Vec<_>>()), setting.key))
        .min()?;
    (distance <= text.len().max(key.len()) / 2).then_some(key)
}

/// Fewest insertions, deletions and replacements that make one text the other (Wagner and Fischer 1974).
fn edit_distance(from: &[char], to: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

fn set<T>(field: &mut T, value: Result<T, impl ToString>) -> Result<(), String> {
    *field = value.map_err(|error| error.to_string())?;
    Ok(())
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, &'static str> {
    text.replace('_', "").parse().map_err(|_| "a whole number is needed, within the setting's range")
}

fn flag(text: &str) -> Result<bool, &'static str> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("true or false is needed"),
    }
}

/// A refusal's token.
pub(crate) fn token(text: &str) -> Result<u64, &'static str> {
    let is_token = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let value = is_token.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    value.ok_or("16 hexadecimal digits are needed, as the refusal names them")
}

fn path(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() { Err("a path is needed") } else { Ok(PathBuf::from(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_the_textbook() {
        let distance =
            |a: &str, b: &str| edit_distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("flaw", "lawn"), 2);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn a_slip_of_the_pen_finds_its_setting() {
        for (text, key) in [
            ("segmentsize", "segment_size"),
            ("tls.cert", "tls.certificate"),
            ("Listen", "listen"),
            ("drain-timeout", "drain_timeout"),
            ("log_size", "log_size_max"),
        ] {
            assert_eq!(nearest(text), Some(key), "{text}");
        }
        assert_eq!(nearest("zzzzzzzzzzzzzzzzzzzz"), None);
    }
}
