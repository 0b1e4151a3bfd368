//! What a node is told at its start: defaults, then a file, then flags.
//!
//! One table, [`settings::SETTINGS`], says for each setting its name, range, default and lifetime, and how its text is
//! read. The file's keys, the command line's flags and `docs/operating/configuration.md` all follow from it. Values
//! are text with units; `units` reads them.
//!
//! The environment is not consulted: a node's behaviour follows from its file and its command line alone.

mod memory;
pub mod settings;
pub mod units;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use escapement_protocol::ids::SHARD_COUNT_MAX;

use crate::io::{HostKind, MIN_WAIT_US_MAX, allowed_cpu_count};
use settings::{SETTINGS, Setting};
use units::format_bytes;

/// Most core threads: their count fits a byte, as their index in a connection id does.
pub const CORES_MAX: u16 = u8::MAX as u16;
/// Smallest segment: its header and the largest extent fit.
pub const SEGMENT_SIZE_BYTES_MIN: u64 = 1024 * 1024;
/// Segments are smaller than this: offsets in them are 32 bits wide.
pub const SEGMENT_SIZE_BYTES_END: u64 = 4 * 1024 * 1024 * 1024;
/// Segments are multiples of this.
pub const SEGMENT_ALIGN_BYTES: u64 = 4096;
/// Fewest segments of a shard: one is written while the other is freed.
pub const SEGMENT_COUNT_MIN: u64 = 2;
/// Least memory of a shard for pending events. A few MiB of it stay taken once it has had any, and a few of the largest
/// events have to fit beside.
pub const MEMORY_PER_SHARD_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Shortest horizon: what is due beyond it still has to reach the disk, and come back, in time.
pub const HORIZON_MS_MIN: u64 = 1_000;
/// Longest horizon: a month.
pub const HORIZON_MS_MAX: u64 = 30 * 24 * 3_600 * 1_000;
/// Memory for pending events where the machine does not say how much it has.
const MEMORY_BYTES_FALLBACK: u64 = 1024 * 1024 * 1024;

/// Everything a node is told. Each field's range and lifetime are in [`settings::SETTINGS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The data directory. No default: empty means that it is missing.
    pub data: PathBuf,
    /// Where QUIC is served, UDP. Port 0 lets the system choose. Default 127.0.0.1:4433.
    pub listen: SocketAddr,
    /// Shards of the data directory, fixed when it is formatted. Default: one for each CPU this process may use.
    pub shards: Option<u16>,
    /// Core threads. Default: one for each CPU this process may use, at most one for each shard.
    pub cores: Option<u16>,
    /// How cores talk to the operating system. Default: the best that works here.
    pub host: Option<HostKind>,
    /// Most bytes of pending events and their index, divided evenly over the shards. Default: a quarter of the memory
    /// that the process may use, and at least [`MEMORY_PER_SHARD_BYTES_MIN`] for each shard.
    pub memory_bytes: Option<u64>,
    /// How far ahead of its time an event is kept in memory, in ms, while half of the memory is free; what is due later
    /// waits on the disk. Default 15 min.
    pub horizon_ms: u64,
    /// Most events accepted per second by the whole node, 0 for no bound; divided evenly over the shards, each share
    /// rounded up. Default 0.
    pub admission_per_s: u64,
    /// Largest datagram that path discovery probes for, in bytes of UDP payload. Default 1,452.
    pub mtu: u16,
    /// Certificates. Default: a development certificate, new at every start.
    pub tls: TlsConfig,
    /// Size of a segment file in bytes, fixed when the data directory is formatted. Default 64 MiB.
    pub segment_size_bytes: u64,
    /// Segment files that formatting prepares for each shard, besides the first. Default 4.
    pub segment_spares: u32,
    /// Most bytes of segment files, divided evenly over the shards. Default 16 GiB.
    pub log_size_bytes_max: u64,
    /// Longest a drain may take, in ms. Default 10,000.
    pub drain_timeout_ms: u64,
    /// How long a loaded core collects before it takes a turn, in µs. Default 200.
    pub turn_wait_us: u32,
    /// Whether each core keeps to one CPU. Default true.
    pub pin: bool,
    /// Whether the data directory may lie in memory, where a restart of the machine loses it. Default false.
    pub allow_tmpfs: bool,
    /// Whether a clock that is far ahead of the log's last time is right. Default false.
    pub trust_clock: bool,
    /// Damage to a log that is accepted, by the token that its refusal names. Default none.
    pub accept_loss: Option<u64>,
}

/// Certificates of a node, all PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// The node's certificate, then its intermediates.
    pub certificate: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// Authorities of client certificates: where set, a client must show one.
    pub client_ca: Option<PathBuf>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        NodeConfig {
            data: PathBuf::new(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 4433)),
            shards: None,
            cores: None,
            host: None,
            memory_bytes: None,
            horizon_ms: 15 * 60 * 1_000,
            admission_per_s: 0,
            mtu: 1_452,
            tls: TlsConfig::default(),
            segment_size_bytes: 64 * 1024 * 1024,
            segment_spares: 4,
            log_size_bytes_max: 16 * 1024 * 1024 * 1024,
            drain_timeout_ms: 10_000,
            turn_wait_us: 200,
            pin: true,
            allow_tmpfs: false,
            trust_clock: false,
            accept_loss: None,
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not TOML: {message}", path = .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A key that no setting has.
    #[error("{path}: there is no setting {key:?}{}", nearest_text(*nearest), path = .path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// As it was given.
        key: String,
        /// The setting whose name is most like it.
        nearest: Option<&'static str>,
    },
    /// A value that its setting does not take.
    #[error("{key} = {value}: {reason}")]
    Value {
        /// The setting.
        key: &'static str,
        /// As it was given.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// Settings that contradict each other, or one that is missing.
    #[error("{0}")]
    Contradiction(String),
}

fn nearest_text(nearest: Option<&'static str>) -> String {
    nearest.map(|name| format!("; did you mean {name:?}?")).unwrap_or_default()
}

impl NodeConfig {
    /// Sizes so small that a test soon meets every edge, any free port, and no pinning: tests share their CPUs.
    #[must_use]
    pub fn tiny() -> NodeConfig {
        NodeConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            shards: Some(2),
            cores: Some(1),
            memory_bytes: Some(64 * 1024 * 1024),
            segment_size_bytes: SEGMENT_SIZE_BYTES_MIN,
            segment_spares: 1,
            log_size_bytes_max: 16 * SEGMENT_SIZE_BYTES_MIN,
            drain_timeout_ms: 2_000,
            pin: false,
            ..NodeConfig::default()
        }
    }

    /// Reads a file over what is set so far. Relative paths in it are relative to its folder.
    ///
    /// # Errors
    /// [`ConfigError`]; some settings may have been taken then.
    pub fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        for (key, value) in flatten(&table) {
            let setting = settings::find(&key).ok_or_else(|| ConfigError::UnknownKey {
                path: path.to_owned(),
                nearest: settings::nearest(&key),
                key: key.clone(),
            })?;
            let text = value_text(value).ok_or_else(|| ConfigError::Value {
                key: setting.key,
                value: value.to_string(),
                reason: "a text, a whole number, or true or false is needed".to_owned(),
            })?;
            let text = if setting.is_path { beside(path, &text) } else { text };
            self.set(setting, &text)?;
        }
        Ok(())
    }

    /// Sets one setting from its text.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn set(&mut self, setting: &Setting, text: &str) -> Result<(), ConfigError> {
        setting.apply(self, text).map_err(|reason| ConfigError::Value {
            key: setting.key,
            value: text.to_owned(),
            reason,
        })
    }

    /// Checks every range, and what settings mean together.
    ///
    /// # Errors
    /// The first fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.data.as_os_str().is_empty() {
            return contradiction("no data directory: give --data DIR, or data in the file".to_owned());
        }
        if let Some(shards) = self.shards {
            within("shards", shards, 1, SHARD_COUNT_MAX)?;
        }
        if let Some(cores) = self.cores {
            within("cores", cores, 1, CORES_MAX)?;
            if let Some(shards) = self.shards.filter(|shards| *shards < cores) {
                return contradiction(format!(
                    "cores is {cores} and shards is {shards}: each core owns at least one shard, so lower cores"
                ));
            }
        }
        if let Some(bytes) = self.memory_bytes.filter(|bytes| *bytes < MEMORY_PER_SHARD_BYTES_MIN) {
            let least = format_bytes(MEMORY_PER_SHARD_BYTES_MIN);
            return Err(wrong("memory", format_bytes(bytes), format!("at least {least} is needed")));
        }
        within("horizon", self.horizon_ms, HORIZON_MS_MIN, HORIZON_MS_MAX)?;
        within("mtu", self.mtu, 1_200, 65_527)?;
        self.validate_log()?;
        within("drain_timeout", self.drain_timeout_ms, 0, 600_000)?;
        within("turn_wait", self.turn_wait_us, 0, MIN_WAIT_US_MAX)?;
        match &self.tls {
            TlsConfig { certificate: Some(_), key: None, .. } => {
                contradiction("tls.certificate is set and tls.key is not: give both, or neither".to_owned())
            }
            TlsConfig { certificate: None, key: Some(_), .. } => {
                contradiction("tls.key is set and tls.certificate is not: give both, or neither".to_owned())
            }
            TlsConfig { certificate: None, client_ca: Some(_), .. } => contradiction(
                "tls.client_ca is set without tls.certificate: asking clients for certificates needs one of this node"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }

    fn validate_log(&self) -> Result<(), ConfigError> {
        let size = self.segment_size_bytes;
        if !(SEGMENT_SIZE_BYTES_MIN..SEGMENT_SIZE_BYTES_END).contains(&size)
            || !size.is_multiple_of(SEGMENT_ALIGN_BYTES)
        {
            let reason = "a multiple of 4KiB is needed, at least 1MiB and below 4GiB".to_owned();
            return Err(wrong("segment_size", format_bytes(size), reason));
        }
        within("segment_spares", self.segment_spares, 1, 64)?;
        let least = SEGMENT_COUNT_MIN * SEGMENT_SIZE_BYTES_MIN;
        if self.log_size_bytes_max < least {
            let reason = format!("at least {} is needed", format_bytes(least));
            return Err(wrong("log_size_max", format_bytes(self.log_size_bytes_max), reason));
        }
        Ok(())
    }

    /// Checks that what the shards divide among them is enough for each, given a data directory that was formatted, or
    /// is to be, with so many shards and segments of this size.
    ///
    /// # Errors
    /// The first fault.
    pub fn check_shares(&self, shard_count: u16, segment_size_bytes: u64) -> Result<(), ConfigError> {
        let log_least = segment_size_bytes.saturating_mul(u64::from(shard_count) * SEGMENT_COUNT_MIN);
        if self.log_size_bytes_max < log_least {
            return contradiction(format!(
                "log_size_max is {}, and {shard_count} shards need {SEGMENT_COUNT_MIN} segments of {} each: set \
                 log_size_max to {} or more, or format another directory with fewer shards or smaller segments",
                format_bytes(self.log_size_bytes_max),
                format_bytes(segment_size_bytes),
                format_bytes(log_least),
            ));
        }
        let memory = self.memory_bytes(shard_count);
        let memory_least = u64::from(shard_count) * MEMORY_PER_SHARD_BYTES_MIN;
        if memory < memory_least {
            return contradiction(format!(
                "memory is {}, and {shard_count} shards need {} each: set memory to {} or more, or format another \
                 directory with fewer shards",
                format_bytes(memory),
                format_bytes(MEMORY_PER_SHARD_BYTES_MIN),
                format_bytes(memory_least),
            ));
        }
        Ok(())
    }

    /// Most bytes of pending events and their index, over so many shards.
    #[must_use]
    pub fn memory_bytes(&self, shard_count: u16) -> u64 {
        self.memory_bytes.unwrap_or_else(|| {
            let quarter = memory::available_bytes().map_or(MEMORY_BYTES_FALLBACK, |bytes| bytes / 4);
            quarter.max(u64::from(shard_count) * MEMORY_PER_SHARD_BYTES_MIN)
        })
    }

    /// Shards that a new data directory gets.
    #[must_use]
    pub fn shard_count_of_new_directory(&self) -> u16 {
        self.shards.unwrap_or_else(|| allowed_cpus().min(SHARD_COUNT_MAX))
    }

    /// Segment files that formatting prepares for each shard besides the first, as far as the log's limit allows.
    #[must_use]
    pub fn segment_spares_of(&self, shard_count: u16) -> u32 {
        let allowed = self.log_size_bytes_max / u64::from(shard_count) / self.segment_size_bytes;
        u32::try_from(allowed.saturating_sub(1))
            .map_or(self.segment_spares, |most| self.segment_spares.min(most))
            .max(1)
    }

    /// Core threads that serve a data directory of this many shards.
    #[must_use]
    pub fn core_count(&self, shard_count: u16) -> u16 {
        self.cores.unwrap_or_else(allowed_cpus).min(shard_count)
    }
}

fn allowed_cpus() -> u16 {
    // A machine that hides its CPUs still has one.
    let count = allowed_cpu_count().unwrap_or(1);
    u16::try_from(count).unwrap_or(CORES_MAX).clamp(1, CORES_MAX)
}

fn contradiction(text: String) -> Result<(), ConfigError> {
    Err(ConfigError::Contradiction(text))
}

fn wrong(key: &'static str, value: String, reason: String) -> ConfigError {
    ConfigError::Value { key, value, reason }
}

fn within<T: Copy + PartialOrd + std::fmt::Display>(
    key: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<(), ConfigError> {
    if value >= least && value <= most {
        return Ok(());
    }
    Err(wrong(key, value.to_string(), format!("it must be from {least} to {most}")))
}

/// The entries of a table, those of tables in it named `table.key`.
fn flatten(table: &toml::Table) -> Vec<(String, &toml::Value)> {
    let mut entries = Vec::with_capacity(SETTINGS.len());
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => {
                entries
                    .extend(flatten(inner).into_iter().map(|(rest, value)| (format!("{key}.{rest}"), value)));
            }
            value => entries.push((key.clone(), value)),
        }
    }
    entries
}

fn value_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// `path` as seen from the folder of `file`. Empty stays empty, which is refused.
fn beside(file: &Path, path: &str) -> String {
    if path.is_empty() {
        return String::new();
    }
    let folder = file.parent().unwrap_or(Path::new(""));
    folder.join(path).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
