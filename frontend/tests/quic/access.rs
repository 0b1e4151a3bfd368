//! Who gets in: application protocol, certificates, and the files they come from.

use std::fs;
use std::path::PathBuf;

use escapement_frontend::quic::{QuicConfig, QuicEvent};
use escapement_frontend::tls::{ServerTls, TlsError, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, CertifiedKey, IsCa, KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;

use crate::net::{ClientOptions, Echo, Net};

/// Connects with `options`; returns whether both sides agreed.
fn gets_in(net: &mut Net, options: ClientOptions) -> bool {
    let mut app = Echo::default();
    let client = net.connect_with(options);
    net.run_for(&mut app, 3_000);
    let connected = app.events.iter().any(|event| matches!(event, QuicEvent::Connected { .. }));
    assert_eq!(connected, net.clients[client].connected && net.clients[client].lost.is_none());
    assert_eq!(net.server.stats().handshakes, 0);
    connected
}

#[test]
fn another_application_protocol_or_none_is_refused() {
    let mut net = Net::new(QuicConfig::default());
    for alpn in [vec![b"escapement/2".to_vec()], vec![b"h3".to_vec()], vec![]] {
        let options = ClientOptions { alpn, ..ClientOptions::new(net.trusted.clone()) };
        assert!(!gets_in(&mut net, options));
    }
    assert_eq!(net.server.stats().handshakes_failed, 3);
    let alpn = vec![b"h3".to_vec(), escapement_protocol::ALPN.to_vec()];
    let options = ClientOptions { alpn, ..ClientOptions::new(net.trusted.clone()) };
    assert!(gets_in(&mut net, options));
}

#[test]
fn a_client_that_expects_another_certificate_does_not_connect() {
    let mut net = Net::new(QuicConfig::default());
    let other = ServerTls::development().expect("a certificate");
    assert!(!gets_in(&mut net, ClientOptions::new(other.certificate().clone())));
    assert_eq!(net.server.stats().handshakes_failed, 1);
}

#[test]
fn development_certificates_differ_and_are_known_by_their_fingerprint() {
    let (one, two) = (ServerTls::development().expect("one"), ServerTls::development().expect("two"));
    assert_ne!(one.fingerprint(), two.fingerprint());
    assert_eq!(one.fingerprint().len(), 64);
    assert!(one.fingerprint().bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
}

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Files { dir: tempfile::tempdir().expect("a directory") }
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).expect("written");
        path
    }

    fn node(&self) -> (TlsFiles, CertifiedKey<KeyPair>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let certificate = self.put("node.pem", &made.cert.pem());
        let key = self.put("node.key", &made.signing_key.serialize_pem());
        (TlsFiles { certificate, key, client_ca: None }, made)
    }
}

#[test]
fn certificate_and_key_come_from_pem_files() {
    let files = Files::new();
    let (paths, made) = files.node();
    let tls = ServerTls::from_files(&paths).expect("usable");
    assert_eq!(tls.certificate(), made.cert.der());
    let mut net = Net::with_tls(QuicConfig::default(), &tls);
    let options = ClientOptions::new(net.trusted.clone());
    assert!(gets_in(&mut net, options));
}

#[test]
fn every_unusable_file_is_named_with_what_to_do() {
    let files = Files::new();
    let (good, made) = files.node();
    let junk = files.put("junk", "not PEM at all");
    let missing = files.dir.path().join("missing");
    let other = files.put("other.key", &KeyPair::generate().expect("a key").serialize_pem());
    let leaf_only_key = files.put("key-as-certificate", &made.signing_key.serialize_pem());

    let error = |certificate: &PathBuf, key: &PathBuf, client_ca: Option<&PathBuf>| {
        let files =
            TlsFiles { certificate: certificate.clone(), key: key.clone(), client_ca: client_ca.cloned() };
        ServerTls::from_files(&files).expect_err("unusable")
    };
    assert!(matches!(error(&missing, &good.key, None), TlsError::Unreadable { path, .. } if path == missing));
    assert!(
        matches!(error(&good.certificate, &missing, None), TlsError::Unreadable { path, .. } if path == missing)
    );
    assert!(matches!(error(&junk, &good.key, None), TlsError::NoCertificate(path) if path == junk));
    assert!(
        matches!(error(&leaf_only_key, &good.key, None), TlsError::NoCertificate(path) if path == leaf_only_key)
    );
    assert!(matches!(error(&good.certificate, &junk, None), TlsError::NoKey(path) if path == junk));
    assert!(matches!(error(&good.certificate, &other, None), TlsError::Mismatch(_)));
    assert!(
        matches!(error(&good.certificate, &good.key, Some(&junk)), TlsError::NoCertificate(path) if path == junk)
    );
    let text = error(&good.certificate, &missing, None).to_string();
    assert!(text.contains("missing") && text.contains("check the path"), "{text}");
}

#[test]
fn with_client_authorities_only_clients_they_vouch_for_get_in() {
    let files = Files::new();
    let (mut paths, _) = files.node();
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority =
        CertifiedIssuer::self_signed(params.clone(), KeyPair::generate().expect("a key")).expect("made");
    let stranger = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("made");
    paths.client_ca = Some(files.put("clients.pem", &authority.pem()));
    let tls = ServerTls::from_files(&paths).expect("usable");
    let mut net = Net::with_tls(QuicConfig::default(), &tls);

    let identity = |issuer: &CertifiedIssuer<'_, KeyPair>| {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["publisher".to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, issuer).expect("signed");
        Some((certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    };
    let trusted = net.trusted.clone();
    let options = |identity| ClientOptions { identity, ..ClientOptions::new(trusted.clone()) };
    assert!(!gets_in(&mut net, options(None)));
    assert!(!gets_in(&mut net, options(identity(&stranger))));
    assert!(gets_in(&mut net, options(identity(&authority))));
}
