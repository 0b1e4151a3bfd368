//! Certificates and the rules of the handshake: TLS 1.3 only, [`ALPN`] required, no 0-RTT.
//!
//! One cryptography provider, aws-lc-rs. AES-128-GCM is preferred, because its cost per byte is the lowest where the
//! processor helps; AES-256-GCM and ChaCha20-Poly1305 stay for clients that insist. Session tickets shorten a
//! reconnect's handshake; early data is off, since it can be replayed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use escapement_protocol::ALPN;
use quinn_proto::crypto::rustls::QuicServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::{CipherSuite, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};

/// Names that a development certificate is valid for.
pub const DEVELOPMENT_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Where certificates come from. All files are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The node's certificate, then its intermediates.
    pub certificate: PathBuf,
    /// Its private key: PKCS #8, SEC 1 or PKCS #1.
    pub key: PathBuf,
    /// Authorities of client certificates. Where set, a client without a certificate of one of them is refused.
    pub client_ca: Option<PathBuf>,
}

/// Why the node has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}; check the path and that this user may read it", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file has no certificate in it, or a damaged one.
    #[error(
        "{path} holds no readable certificate; it must be PEM, beginning with -----BEGIN CERTIFICATE-----",
        path = .0.display()
    )]
    NoCertificate(PathBuf),
    /// A file has no private key in it, or a damaged one.
    #[error(
        "{path} holds no readable private key; it must be PEM, not encrypted, with a PRIVATE KEY section",
        path = .0.display()
    )]
    NoKey(PathBuf),
    /// Certificate and key are not usable together.
    #[error("certificate and key are refused: {0}; check that the key belongs to the first certificate")]
    Mismatch(rustls::Error),
    /// The authorities of client certificates are not usable.
    #[error("the client authorities in {path} are refused: {reason}; the file must hold CA certificates", path = .path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No certificate could be made.
    #[error("cannot make a development certificate: {0}")]
    Development(rcgen::Error),
    /// The provider refused something that every build of it should have.
    #[error("the cryptography provider is not usable: {0}")]
    Provider(String),
}

/// What a server shows to its clients, and asks of them. Cheap to clone; all cores share one.
#[derive(Clone)]
pub struct ServerTls {
    crypto: Arc<QuicServerConfig>,
    certificate: CertificateDer<'static>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads certificate, key and, where given, client authorities.
    ///
    /// # Errors
    /// Which file is wrong, and what to do about it.
    pub fn from_files(files: &TlsFiles) -> Result<Self, TlsError> {
        let chain = certificates(&files.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
            .map_err(|_| TlsError::NoKey(files.key.clone()))?;
        let clients = match &files.client_ca {
            Some(path) => Some((path.as_path(), certificates(path)?)),
            None => None,
        };
        Self::build(chain, key, clients)
    }

    /// Makes a self-signed certificate for [`DEVELOPMENT_NAMES`], new at every start.
    ///
    /// Clients trust it by its [`ServerTls::fingerprint`], or by being given [`ServerTls::certificate`].
    ///
    /// # Errors
    /// [`TlsError::Development`], [`TlsError::Provider`].
    pub fn development() -> Result<Self, TlsError> {
        let made = rcgen::generate_simple_self_signed(DEVELOPMENT_NAMES.map(String::from))
            .map_err(TlsError::Development)?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        Self::build(vec![made.cert.der().clone()], key.into(), None)
    }

    fn build(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        clients: Option<(&Path, Vec<CertificateDer<'static>>)>,
    ) -> Result<Self, TlsError> {
        let provider = provider();
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TlsError::Provider(error.to_string()))?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some((path, authorities)) => {
                let refused = |reason: String| TlsError::ClientCa { path: path.to_owned(), reason };
                let mut roots = RootCertStore::empty();
                for authority in authorities {
                    roots.add(authority).map_err(|error| refused(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| refused(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let certificate = chain[0].clone();
        let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Mismatch)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.max_early_data_size = 0;
        config.ignore_client_order = true;
        // Sealed tickets instead of remembered sessions: cores then share nothing but a key.
        config.ticketer =
            aws_lc_rs::Ticketer::new().map_err(|error| TlsError::Provider(error.to_string()))?;
        let crypto =
            QuicServerConfig::try_from(config).map_err(|error| TlsError::Provider(error.to_string()))?;
        Ok(ServerTls { crypto: Arc::new(crypto), certificate })
    }

    /// For [`crate::quic::QuicServer::new`].
    #[must_use]
    pub fn crypto(&self) -> Arc<dyn quinn_proto::crypto::ServerConfig> {
        Arc::clone(&self.crypto) as Arc<dyn quinn_proto::crypto::ServerConfig>
    }

    /// The node's own certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the certificate, 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        Sha256::digest(&self.certificate).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// aws-lc-rs with the TLS 1.3 suites, AES-128-GCM first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| suite.tls13().is_some());
    provider.cipher_suites.sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 1,
        _ => 2,
    });
    Arc::new(provider)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(TlsError::NoCertificate(path.to_owned())),
    }
}
