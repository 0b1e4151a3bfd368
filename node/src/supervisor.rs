//! What a service manager is told, where there is one that listens: systemd's protocol of `sd_notify(3)`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Names the socket, where the process runs under such a service manager.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// How much longer a start may take after each line of progress: the manager's own bound is for starts that hang.
const EXTENDED_US: u64 = 30_000_000;

/// Takes lines of progress and the end of the start to the service manager.
#[derive(Debug)]
pub(crate) struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl Supervisor {
    /// The one that the environment names, or nobody.
    pub(crate) fn from_environment() -> Supervisor {
        let socket = std::env::var_os(SOCKET_VARIABLE).and_then(|name| open(&name).ok());
        Supervisor { socket }
    }

    /// The node is starting, and getting on.
    pub(crate) fn starting(&self, status: &str) {
        self.send(&format!("STATUS={status}\nEXTEND_TIMEOUT_USEC={EXTENDED_US}"));
    }

    /// The node takes connections.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// Something that an operator has to know has happened since.
    pub(crate) fn status(&self, text: &str) {
        self.send(&format!("STATUS={text}"));
    }

    fn send(&self, text: &str) {
        if let Some((socket, addr)) = &self.socket {
            // A manager that does not listen is no reason not to serve.
            let _ = socket.send_to_addr(text.as_bytes(), addr);
        }
    }
}

fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let addr = match name.as_bytes().strip_prefix(b"@") {
        Some(unnamed) => SocketAddr::from_abstract_name(unnamed)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, addr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_hears_of_progress_and_of_the_end_of_the_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bound");
        let supervisor = Supervisor { socket: open(path.as_os_str()).ok() };
        supervisor.starting("recovering");
        supervisor.ready("listening");
        let mut buf = [0; 200];
        let mut next = || {
            let len = manager.recv(&mut buf).expect("sent");
            String::from_utf8_lossy(&buf[..len]).into_owned()
        };
        assert_eq!(next(), "STATUS=recovering\nEXTEND_TIMEOUT_USEC=30000000");
        assert_eq!(next(), "READY=1\nSTATUS=listening");
        supervisor.status("a shard has stopped");
        assert_eq!(next(), "STATUS=a shard has stopped");
    }

    #[test]
    fn without_a_manager_nothing_is_sent() {
        Supervisor { socket: None }.ready("listening");
        let gone = Supervisor { socket: open(OsStr::new("/nonexistent/notify")).ok() };
        gone.ready("listening");
    }
}
