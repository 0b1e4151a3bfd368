//! How commands fail, and what the process exits with.

use std::io;
use std::process::ExitCode;

use escapement_client::ClientError;

use crate::config::ConfigError;
use crate::data_dir::DataDirError;
use crate::open_files::explained;
use crate::serve::ServeError;

/// Exit status of the process. `docs/operating/running.md` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed, for a reason that no other status names.
    Failed = 1,
    /// The arguments or the configuration cannot be.
    Usage = 2,
    /// The node refused.
    Refused = 3,
    /// The node was not reached, or lost.
    Unreachable = 4,
    /// The data directory cannot be used.
    Data = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug)]
pub(super) struct Failure {
    exit: Exit,
    /// `None` where there is nobody to tell, or everything was said.
    text: Option<String>,
}

impl Failure {
    pub(super) fn new(exit: Exit, text: impl Into<String>) -> Failure {
        Failure { exit, text: Some(text.into()) }
    }

    /// Everything was said already.
    pub(super) fn silent(exit: Exit) -> Failure {
        Failure { exit, text: None }
    }

    /// What was printed is without what shards have that are out of service.
    pub(super) fn without_shards(missing: &[u16]) -> Failure {
        let (shards, are) = if missing.len() == 1 { ("shard", "is") } else { ("shards", "are") };
        let numbers: Vec<String> = missing.iter().map(u16::to_string).collect();
        Failure::new(
            Exit::Refused,
            format!(
                "UNAVAILABLE: this is without {shards} {}, which {are} out of service: the node's standard error says why",
                numbers.join(", ")
            ),
        )
    }

    pub(super) fn usage(text: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, text)
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    pub(super) fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// A failure to write to standard output. A reader that has seen enough, as `head` has, is no failure.
    pub(super) fn printing(error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::silent(Exit::Done),
            _ => Failure::new(Exit::Failed, format!("cannot print: {error}")),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let exit = match &error {
            ClientError::Refused { .. } => Exit::Refused,
            ClientError::Connect { .. }
            | ClientError::Lost { .. }
            | ClientError::GivenUp { .. }
            | ClientError::Socket(_) => Exit::Unreachable,
            ClientError::Tls { .. } | ClientError::Event(_) | ClientError::Settings(_) => Exit::Usage,
            ClientError::Protocol(_) | ClientError::Full | ClientError::Closed => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::usage(error.to_string())
    }
}

impl From<DataDirError> for Failure {
    fn from(error: DataDirError) -> Failure {
        let exit = match &error {
            DataDirError::Shares(_) => Exit::Usage,
            _ => Exit::Data,
        };
        Failure::new(exit, explained(&error))
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Failure {
        let exit = match &error {
            ServeError::NoShard(_) => Exit::Data,
            ServeError::Tls(_) => Exit::Usage,
            _ => Exit::Failed,
        };
        Failure::new(exit, explained(&error))
    }
}
