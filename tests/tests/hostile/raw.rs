//! A client without manners: bare QUIC, and whatever bytes the test wants on it.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use escapement_protocol::event::EventView;
use escapement_protocol::frame::{FrameKind, Hello};
use escapement_protocol::{ErrorCode, Frame, FrameDecoder, FrameWriter, PROTOCOL_VERSION, Tag};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for what must come.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// A socket, and QUIC that trusts the certificate in `certificate` and offers `alpn`.
pub(crate) fn endpoint(certificate: &Path, alpn: &[u8]) -> Endpoint {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).expect("a certificate")).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let crypto = QuicClientConfig::try_from(tls).expect("QUIC's cipher suite");
    let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).expect("a socket");
    endpoint.set_default_client_config(ClientConfig::new(Arc::new(crypto)));
    endpoint
}

/// The bytes of one frame.
pub(crate) fn frame(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    FrameWriter::new().write(frame, &mut bytes).expect("a frame within limits");
    bytes
}

pub(crate) fn hello() -> Vec<u8> {
    frame(&Frame::Hello(Hello { version: PROTOCOL_VERSION, client: "hostile" }))
}

/// What the node said, as far as tests look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Error { request: u64, code: Option<ErrorCode>, message: String },
    Ack { through_item: u64, refused: Vec<(u64, u16)> },
    Push(Vec<(Tag, u16, String)>),
    Other(FrameKind),
}

impl Said {
    fn of(frame: &Frame<'_>) -> Self {
        match frame {
            Frame::Error(error) => Said::Error {
                request: error.request,
                code: ErrorCode::from_number(error.code),
                message: error.message.to_owned(),
            },
            Frame::PublishAck(ack) => Said::Ack {
                through_item: ack.through_item,
                refused: ack.exceptions.iter().map(|exception| (exception.item, exception.code)).collect(),
            },
            Frame::PushBatch(batch) => Said::Push(
                batch
                    .iter()
                    .map(|(item, bytes)| {
                        let (event, _) = EventView::parse(bytes).expect("the node sends whole events");
                        (item.tag, item.attempt, String::from_utf8_lossy(event.id()).into_owned())
                    })
                    .collect(),
            ),
            other => Said::Other(other.kind()),
        }
    }
}

/// One bidirectional stream.
pub(crate) struct Stream {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    decoder: FrameDecoder,
    said: VecDeque<Said>,
}

impl Stream {
    pub(crate) async fn open(connection: &Connection) -> Self {
        let (send, recv) = within("a stream", connection.open_bi()).await.expect("the connection is open");
        Stream { send, recv, decoder: FrameDecoder::new(), said: VecDeque::new() }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        within("room on the stream", self.send.write_all(bytes)).await.expect("the stream is open");
    }

    /// The next frame; `None` once the stream or its connection is over.
    pub(crate) async fn next(&mut self) -> Option<Said> {
        loop {
            if let Some(said) = self.said.pop_front() {
                return Some(said);
            }
            let chunk = within("a frame or an end", self.recv.read_chunk(usize::MAX, true)).await.ok()??;
            let Stream { decoder, said, .. } = self;
            let fed = decoder.feed(&chunk.bytes, |frame| {
                said.push_back(Said::of(&frame));
                Ok(())
            });
            fed.expect("the node sends sound frames");
        }
    }

    /// The next frame that `wanted` accepts.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Said) -> bool) -> Said {
        loop {
            let said = self.next().await.expect("the stream goes on");
            if wanted(&said) {
                return said;
            }
        }
    }
}

/// The code and the reason that the node closed the connection with.
pub(crate) async fn closed(connection: &Connection) -> (u64, String) {
    match within("the end of the connection", connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => {
            (close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned())
        }
        other => panic!("the node did not say why it closed: {other}"),
    }
}
