//! How commands find and trust a node.

use std::future::Future;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::time::Duration;

use escapement_client::{Client, ConnectOptions, Identity, Trust};

use super::failure::{Exit, Failure};

/// Longest wait for a node that does not answer: a person is waiting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Flags of every command that talks to a node.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct ConnectArgs {
    /// Where the node listens
    #[arg(long, env = "ESCAPEMENT_ADDR", default_value = "127.0.0.1:4433", value_name = "HOST:PORT")]
    addr: String,
    /// Trust the one certificate with this SHA-256, which the node prints at its start
    #[arg(long, env = "ESCAPEMENT_CERT_SHA256", value_name = "HEX", value_parser = fingerprint, conflicts_with = "ca")]
    cert_sha256: Option<Fingerprint>,
    /// Trust certificates of this authority (PEM); without this and --cert-sha256 the system's authorities count
    #[arg(long, env = "ESCAPEMENT_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Name that the certificate must be for, where it is not that of --addr
    #[arg(long, env = "ESCAPEMENT_SERVER_NAME", value_name = "NAME")]
    server_name: Option<String>,
    /// Certificate to show to the node (PEM)
    #[arg(long, env = "ESCAPEMENT_CLIENT_CERT", value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// Private key of that certificate (PEM)
    #[arg(long, env = "ESCAPEMENT_CLIENT_KEY", value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
}

/// SHA-256 of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 32]);

pub(super) fn fingerprint(text: &str) -> Result<Fingerprint, &'static str> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("64 hexadecimal digits are needed");
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte =
            u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| "hexadecimal digits are needed")?;
    }
    Ok(Fingerprint(bytes))
}

impl ConnectArgs {
    /// A node on this machine by its fingerprint.
    pub(super) fn pinned(addr: String, cert_sha256: Fingerprint) -> ConnectArgs {
        ConnectArgs {
            addr,
            cert_sha256: Some(cert_sha256),
            ca: None,
            server_name: None,
            client_cert: None,
            client_key: None,
        }
    }

    fn options(&self) -> Result<ConnectOptions, Failure> {
        let wrong = |why: String| Failure::usage(format!("--addr {}: {why}", self.addr));
        let mut found = self.addr.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
        let addr = found.next().ok_or_else(|| wrong("the name has no address".to_owned()))?;
        let trust = match (self.cert_sha256, &self.ca) {
            (Some(Fingerprint(sha256)), _) => Trust::Pin(sha256),
            (None, Some(path)) => Trust::CaFile(path.clone()),
            (None, None) => Trust::System,
        };
        let named = self.addr.rsplit_once(':').map_or(self.addr.as_str(), |(host, _)| host);
        let server_name = self.server_name.as_deref().unwrap_or(named);
        let mut options = ConnectOptions::new(addr, trust);
        options.server_name = server_name.trim_start_matches('[').trim_end_matches(']').to_owned();
        options.client_name = concat!("escapement-cli/", env!("CARGO_PKG_VERSION")).to_owned();
        options.connect_timeout = CONNECT_TIMEOUT;
        if let (Some(chain), Some(key)) = (&self.client_cert, &self.client_key) {
            options.identity = Some(Identity { chain: chain.clone(), key: key.clone() });
        }
        Ok(options)
    }

    /// Connects, and runs `work` with the client to its end.
    pub(super) fn run<T, W>(&self, work: impl FnOnce(Client) -> W) -> Result<T, Failure>
    where
        W: Future<Output = Result<T, Failure>>,
    {
        let options = self.options()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(Exit::Failed, format!("no runtime: {error}")))?;
        runtime.block_on(async { work(Client::connect(options).await?).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(addr: &str) -> ConnectArgs {
        ConnectArgs { addr: addr.to_owned(), ..ConnectArgs::pinned(String::new(), Fingerprint([7; 32])) }
    }

    #[test]
    fn the_certificate_must_be_for_the_host_that_was_named() {
        for (addr, name) in [("127.0.0.1:1", "127.0.0.1"), ("[::1]:1", "::1"), ("localhost:1", "localhost")] {
            assert_eq!(args(addr).options().unwrap().server_name, name);
        }
        let named = ConnectArgs { server_name: Some("node.example".to_owned()), ..args("127.0.0.1:1") };
        assert_eq!(named.options().unwrap().server_name, "node.example");
    }

    #[test]
    fn an_address_without_a_port_is_a_wrong_argument() {
        assert_eq!(args("127.0.0.1").options().unwrap_err().exit(), Exit::Usage);
    }

    #[test]
    fn fingerprints_are_64_hexadecimal_digits() {
        assert_eq!(fingerprint(&"0A".repeat(32)), Ok(Fingerprint([10; 32])));
        for text in ["", "0a", &"g".repeat(64), &"é".repeat(32)] {
            assert!(fingerprint(text).is_err(), "{text}");
        }
    }
}
