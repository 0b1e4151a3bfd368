//! What can go wrong, and what to do about it.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::dial::in_words;
use escapement_protocol::{ErrorCode, EventError, FrameError, SettingsError};

/// Why an operation of this crate failed. Cheap to clone, since one lost connection fails many.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The node refused the request, the stream or the connection.
    #[error("the node refused: {}: {message}{}", code_name(*number), retry_text(*retry_after_ms))]
    Refused {
        /// An [`ErrorCode`]'s number, perhaps of a later version.
        number: u16,
        /// Earliest sensible time to try again; 0 where nothing is known of it.
        retry_after_ms: u32,
        /// The node's words.
        message: String,
    },
    /// No connection to the node came about.
    #[error(
        "no connection to {addr}: {reason}; check the address, that the node runs, and what it is trusted by"
    )]
    Connect {
        /// Where the node was looked for.
        addr: SocketAddr,
        /// What happened.
        reason: String,
        /// Whether dialling again may help.
        retryable: bool,
    },
    /// The connection, or the stream on it, ended.
    #[error("the connection was lost: {reason}")]
    Lost {
        /// What happened.
        reason: String,
    },
    /// The connection, or the session on it, could not be had back in time. What was sent and not acknowledged may be stored or not.
    #[error(
        "given up after {waited_s} s: {reason}; what was published and not acknowledged may be stored or not"
    )]
    GivenUp {
        /// How long it was tried.
        waited_s: u64,
        /// What the last try came to.
        reason: String,
    },
    /// Certificates, keys or their files.
    #[error("{what}: {reason}")]
    Tls {
        /// What was being read or made.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused a socket.
    #[error("no socket: {0}")]
    Socket(Arc<io::Error>),
    /// The node sent what the protocol does not allow.
    #[error("the node broke the protocol: {0}")]
    Protocol(FrameError),
    /// An event that no node would accept.
    #[error(transparent)]
    Event(#[from] EventError),
    /// Settings that no node would accept.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// As much is unacknowledged as [`PublisherOptions`](crate::PublisherOptions) allow.
    #[error("as much is unacknowledged as the options allow: wait for receipts, or raise the limits")]
    Full,
    /// The publisher or subscriber was closed.
    #[error("it was closed")]
    Closed,
}

impl ClientError {
    /// The node's code, where it refused with one that this version knows.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { number, .. } => ErrorCode::from_number(*number),
            Self::Protocol(error) => Some(error.code()),
            Self::Event(error) => Some(error.code()),
            Self::Settings(error) => Some(error.code()),
            _ => None,
        }
    }

    /// Whether the same may succeed later, unchanged.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { number, .. } => {
                ErrorCode::from_number(*number).is_some_and(ErrorCode::is_retryable)
            }
            Self::Connect { retryable, .. } => *retryable,
            Self::Lost { .. } | Self::GivenUp { .. } | Self::Socket(_) | Self::Full => true,
            Self::Tls { .. } | Self::Protocol(_) | Self::Event(_) | Self::Settings(_) | Self::Closed => false,
        }
    }

    pub(crate) fn lost(reason: impl Display) -> Self {
        Self::Lost { reason: reason.to_string() }
    }

    pub(crate) fn tls(what: impl Into<String>, reason: impl Display) -> Self {
        Self::Tls { what: what.into(), reason: reason.to_string() }
    }
}

impl From<FrameError> for ClientError {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error)
    }
}

/// A node that closes a connection for a reason says it by an [`ErrorCode`]: then dialling again helps
/// exactly where the code says so.
impl From<quinn::ConnectionError> for ClientError {
    fn from(error: quinn::ConnectionError) -> Self {
        if let quinn::ConnectionError::ApplicationClosed(close) = &error
            && let Ok(number) = u16::try_from(close.error_code.into_inner())
            && ErrorCode::from_number(number).is_some()
        {
            let message = String::from_utf8_lossy(&close.reason).into_owned();
            return Self::Refused { number, retry_after_ms: 0, message };
        }
        Self::lost(in_words(&error))
    }
}

impl From<quinn::WriteError> for ClientError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::ConnectionLost(error) => error.into(),
            error => Self::lost(error),
        }
    }
}

impl From<quinn::ReadError> for ClientError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::ConnectionLost(error) => error.into(),
            error => Self::lost(error),
        }
    }
}

pub(crate) fn code_name(number: u16) -> String {
    ErrorCode::from_number(number).map_or_else(|| format!("code {number}"), |code| code.to_string())
}

/// What an acknowledgement, which carries no words, means by a code for one event.
pub(crate) fn refused_event(number: u16) -> &'static str {
    match ErrorCode::from_number(number) {
        Some(ErrorCode::UnknownTopic) => "no topic has that number: create it, or look its number up by name",
        Some(ErrorCode::MalformedEvent) => "the event is not well-formed: encode it with this library",
        Some(ErrorCode::EventTooLarge) => {
            "the event is too large: put the data elsewhere and publish a reference"
        }
        Some(ErrorCode::DelayTooLong) => {
            "the event is due more than 10 years ahead: check the unit, which is milliseconds"
        }
        Some(ErrorCode::UnsupportedAttribute) => {
            "the node does not know an attribute of the event: leave it out, or upgrade the node"
        }
        Some(ErrorCode::ResourceExhausted) => {
            "a quota, memory or disk limit is reached: publish the event again after the stated time"
        }
        Some(ErrorCode::Unavailable) => {
            "the node is draining or the event's shard has stopped: publish the event again once it is back"
        }
        _ => "the event was not accepted: look the code up in docs/errors.md",
    }
}

fn retry_text(retry_after_ms: u32) -> String {
    if retry_after_ms == 0 { String::new() } else { format!(" (try again in {retry_after_ms} ms)") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_code_and_says_whether_to_come_again() {
        let exhausted =
            ClientError::Refused { number: 30, retry_after_ms: 250, message: "the disk is full".into() };
        assert_eq!(
            exhausted.to_string(),
            "the node refused: RESOURCE_EXHAUSTED: the disk is full (try again in 250 ms)"
        );
        assert!(exhausted.is_retryable());
        let later = ClientError::Refused { number: 9999, retry_after_ms: 0, message: "new".into() };
        assert_eq!((later.code(), later.is_retryable()), (None, false));
        assert_eq!(later.to_string(), "the node refused: code 9999: new");
    }
}
