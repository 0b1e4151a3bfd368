//! The connections to one node, dialled when needed and again when lost.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::Instant;

use crate::dial::{Core, Dialer};
use crate::link::Link;
use crate::{
    ClientError, ConnectOptions, NodeInfo, Publisher, PublisherOptions, Subscriber, SubscriberOptions,
};

/// First wait between dials of a lost connection; each wait doubles the one before.
const REDIAL_AFTER: Duration = Duration::from_millis(50);
/// Longest wait between dials.
const REDIAL_AFTER_MAX: Duration = Duration::from_secs(2);

/// A client of one node. Clones share its connections.
///
/// Needs a tokio runtime with time and I/O, from [`Client::connect`] on. The connections close when
/// the last clone, publisher and subscriber are gone.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: ConnectOptions,
    dialer: Dialer,
    links: tokio::sync::Mutex<Links>,
}

#[derive(Debug, Default)]
struct Links {
    /// The first connection: it lands on any core.
    home: Option<Arc<Link>>,
    /// Connections to cores that were chosen.
    cores: HashMap<u16, Arc<Link>>,
}

/// What the connections of a client have sent and received so far; lost ones are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Datagrams received.
    pub datagrams_received: u64,
    /// Bytes of UDP payload sent.
    pub bytes_sent: u64,
    /// Bytes of UDP payload received.
    pub bytes_received: u64,
    /// Packets declared lost.
    pub packets_lost: u64,
    /// Largest datagram in use, in bytes of UDP payload.
    pub mtu: u16,
}

impl Client {
    /// Dials a node and greets it.
    ///
    /// # Errors
    /// What keeps the connection from coming about; it is not tried again here.
    pub async fn connect(options: ConnectOptions) -> Result<Self, ClientError> {
        let dialer = Dialer::new(&options)?;
        Self::connect_from(options, dialer).await
    }

    /// One more client of the same node with connections of its own, through the same socket.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn another(&self) -> Result<Self, ClientError> {
        Self::connect_from(self.inner.options.clone(), self.inner.dialer.clone()).await
    }

    async fn connect_from(options: ConnectOptions, dialer: Dialer) -> Result<Self, ClientError> {
        let home = Arc::new(Link::open(dialer.dial(&options, None).await?, &options).await?);
        let links = Links { home: Some(home), cores: HashMap::new() };
        Ok(Client { inner: Arc::new(Inner { options, dialer, links: tokio::sync::Mutex::new(links) }) })
    }

    /// What the node said of itself when it was last greeted.
    ///
    /// # Errors
    /// What keeps a lost connection from coming back.
    pub async fn node(&self) -> Result<NodeInfo, ClientError> {
        Ok(self.home().await?.info().clone())
    }

    /// A publisher, whose streams open with its first events.
    ///
    /// # Errors
    /// What keeps a lost connection from coming back.
    pub async fn publisher(&self, options: PublisherOptions) -> Result<Publisher, ClientError> {
        let info = self.node().await?;
        Ok(Publisher::new(self.clone(), options, &info))
    }

    /// A subscriber of the subscription with this name, whose session opens when it is run.
    #[must_use]
    pub fn subscriber(&self, subscription: &str, options: SubscriberOptions) -> Subscriber {
        Subscriber::new(self.clone(), subscription, options)
    }

    /// Traffic of the connections that are open.
    pub async fn stats(&self) -> ClientStats {
        let links = self.inner.links.lock().await;
        let mut sum = ClientStats::default();
        for link in links.home.iter().chain(links.cores.values()) {
            let stats = link.connection().stats();
            sum.datagrams_sent += stats.udp_tx.datagrams;
            sum.datagrams_received += stats.udp_rx.datagrams;
            sum.bytes_sent += stats.udp_tx.bytes;
            sum.bytes_received += stats.udp_rx.bytes;
            sum.packets_lost += stats.path.lost_packets;
            sum.mtu = sum.mtu.max(stats.path.current_mtu);
        }
        sum
    }

    pub(crate) fn options(&self) -> &ConnectOptions {
        &self.inner.options
    }

    /// The first connection, dialled once more if it is lost.
    pub(crate) async fn home(&self) -> Result<Arc<Link>, ClientError> {
        let mut links = self.inner.links.lock().await;
        if let Some(link) = links.home.as_ref().filter(|link| link.is_usable()) {
            return Ok(link.clone());
        }
        let link = Arc::new(self.open(None).await?);
        links.home = Some(link.clone());
        Ok(link)
    }

    /// A connection to a core: the first one where the node has a single core.
    pub(crate) async fn core(&self, core: u16) -> Result<Arc<Link>, ClientError> {
        let home = self.home().await?;
        let count = home.info().core_count;
        if count == 1 {
            return Ok(home);
        }
        let mut links = self.inner.links.lock().await;
        if let Some(link) = links.cores.get(&core).filter(|link| link.is_usable()) {
            return Ok(link.clone());
        }
        let link = Arc::new(self.open(Some(Core { index: core, count })).await?);
        links.cores.insert(core, link.clone());
        Ok(link)
    }

    async fn open(&self, core: Option<Core>) -> Result<Link, ClientError> {
        let Inner { options, dialer, .. } = &*self.inner;
        Link::open(dialer.dial(options, core).await?, options).await
    }
}

/// Waits between attempts at one thing, and when to stop.
#[derive(Debug)]
pub(crate) struct Redial {
    since: Instant,
    wait: Duration,
    give_up_after: Duration,
}

impl Redial {
    pub(crate) fn new(options: &ConnectOptions) -> Self {
        Redial { since: Instant::now(), wait: REDIAL_AFTER, give_up_after: options.give_up_after }
    }

    /// Begins anew, after a success.
    pub(crate) fn again(&self) -> Self {
        Redial { since: Instant::now(), wait: REDIAL_AFTER, give_up_after: self.give_up_after }
    }

    /// Waits before the next attempt, after `error` ended the one before.
    ///
    /// # Errors
    /// `error` where another attempt cannot help; [`ClientError::GivenUp`] where it took too long.
    pub(crate) async fn wait(&mut self, error: ClientError) -> Result<(), ClientError> {
        if !error.is_retryable() {
            return Err(error);
        }
        if self.since.elapsed() >= self.give_up_after {
            return Err(ClientError::GivenUp {
                waited_s: self.give_up_after.as_secs(),
                reason: error.to_string(),
            });
        }
        let asked = match error {
            ClientError::Refused { retry_after_ms, .. } => Duration::from_millis(retry_after_ms.into()),
            _ => Duration::ZERO,
        };
        tokio::time::sleep(self.wait.max(asked)).await;
        self.wait = (self.wait * 2).min(REDIAL_AFTER_MAX);
        Ok(())
    }
}
