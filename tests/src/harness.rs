//! Real nodes in processes of their own, and a ledger of what went in and came out.
//!
//! Everything is waited for with a bound, and no process outlives its [`NodeProcess`].

mod clients;
mod ledger;
mod words;

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use escapement_client::{ConnectOptions, Trust};

pub use clients::{create, patient};
pub use ledger::{Counts, Ledger, wall_ms};
pub use words::{say, setting};

/// Longest that anything may take on a slow, busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How to start a node, again and again on the same data.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    program: PathBuf,
    args: Vec<String>,
    variables: Vec<(String, String)>,
}

impl NodeSpec {
    /// A small node: two shards on one core, small segments, little memory. `program` is the path of
    /// `node_under_test`, which only a test knows.
    #[must_use]
    pub fn small(program: &str, data: &Path) -> Self {
        let spec =
            NodeSpec { program: program.into(), args: vec!["serve".to_owned()], variables: Vec::new() };
        spec.flag("data", &data.display().to_string())
            .flag("listen", "127.0.0.1:0")
            .flag("shards", "2")
            .flag("cores", "1")
            .flag("pin", "false")
            .flag("segment-size", "1MiB")
            .flag("segment-spares", "1")
            .flag("memory", "64MiB")
            .flag("allow-tmpfs", "true")
    }

    /// A small node with its data in `dir`, whose address and certificate stay over restarts, so that clients find it
    /// again.
    ///
    /// # Panics
    /// If no port is free, or the certificate cannot be written.
    #[must_use]
    pub fn steady(program: &str, dir: &Path) -> Self {
        let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let addr = free.expect("a free port").to_string();
        NodeSpec::small(program, &dir.join("data")).flag("listen", &addr).certified(dir)
    }

    /// Sets a flag, in place of what was set before.
    #[must_use]
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        let name = format!("--{name}=");
        self.args.retain(|arg| !arg.starts_with(&name));
        self.args.push(name + value);
        self
    }

    /// Sets a variable of the process's environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives the node a certificate of its own for `localhost`, so that it stays over restarts. It lies
    /// in `dir` as `cert.pem`.
    ///
    /// # Panics
    /// If it cannot be made or written.
    #[must_use]
    pub fn certified(self, dir: &Path) -> Self {
        let issued = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
        let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        std::fs::write(&certificate, issued.cert.pem()).expect("written");
        std::fs::write(&key, issued.signing_key.serialize_pem()).expect("written");
        self.flag("tls-certificate", &certificate.display().to_string())
            .flag("tls-key", &key.display().to_string())
    }

    /// Starts the process and waits for nothing.
    ///
    /// # Panics
    /// If the program cannot be started.
    #[must_use]
    pub fn spawn(&self) -> StartingNode {
        let mut command = Command::new(&self.program);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let stdout = lines(child.stdout.take().expect("a pipe"));
        let stderr = lines(child.stderr.take().expect("a pipe"));
        StartingNode(Process { child, stdout, stderr })
    }

    /// Starts the process and waits until it takes connections.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn start(&self) -> NodeProcess {
        match self.spawn().ready_within(PATIENCE) {
            Ok(node) => node,
            Err(starting) => panic!("the node is not ready after {PATIENCE:?}: {}", starting.0.notices()),
        }
    }
}

#[derive(Debug)]
struct Process {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Process {
    /// What it wrote to standard error so far.
    fn notices(&self) -> String {
        self.stderr.try_iter().collect::<Vec<_>>().join("\n")
    }

    /// SIGKILL, and the wait for the end.
    fn kill(&mut self) -> ExitStatus {
        self.child.kill().expect("a child can be killed until it is waited for");
        self.child.wait().expect("a child can be waited for")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has usually ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node that may still be recovering.
#[derive(Debug)]
pub struct StartingNode(Process);

impl StartingNode {
    /// Waits at most that long until the node takes connections; where it does not, it is handed back.
    ///
    /// # Errors
    /// The node is still starting.
    ///
    /// # Panics
    /// If the node ended, or said something else than that it listens.
    pub fn ready_within(self, most: Duration) -> Result<NodeProcess, Self> {
        let line = match self.0.stdout.recv_timeout(most) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => return Err(self),
            Err(RecvTimeoutError::Disconnected) => panic!("the node ended: {}", self.0.notices()),
        };
        let words: Vec<&str> = line.split(' ').collect();
        let ["listening", "on", addr, "cert-sha256", sha256] = words[..] else { panic!("{line}") };
        let mut pin = [0; 32];
        for (at, byte) in pin.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&sha256[2 * at..2 * at + 2], 16).expect("hexadecimal digits");
        }
        Ok(NodeProcess { process: self.0, addr: addr.parse().expect("an address"), pin })
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.0.kill();
    }
}

/// A node that takes connections. Killed when dropped.
#[derive(Debug)]
pub struct NodeProcess {
    process: Process,
    addr: SocketAddr,
    pin: [u8; 32],
}

impl NodeProcess {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How the SDK reaches it.
    #[must_use]
    pub fn options(&self) -> ConnectOptions {
        ConnectOptions::new(self.addr, Trust::Pin(self.pin))
    }

    /// Whether the process has not ended.
    ///
    /// # Panics
    /// If the operating system does not know the process.
    pub fn is_alive(&mut self) -> bool {
        self.process.child.try_wait().expect("our child").is_none()
    }

    /// What it wrote to standard error since it was asked last.
    #[must_use]
    pub fn notices(&self) -> String {
        self.process.notices()
    }

    /// Waits for a line on standard error with `start` in it, and returns what follows.
    ///
    /// # Panics
    /// If it does not come.
    #[must_use]
    pub fn notice(&self, start: &str) -> String {
        loop {
            let line = self.process.stderr.recv_timeout(PATIENCE).expect("the notice comes");
            let line = line.split_once(start).map(|(_, rest)| rest.to_owned());
            if let Some(rest) = line {
                return rest;
            }
        }
    }

    /// Sends a signal, by its name without `SIG`.
    ///
    /// # Panics
    /// If the process has ended.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.process.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status().expect("a shell");
        assert!(sent.success(), "the node ended by itself: {}", self.notices());
    }

    /// SIGKILL.
    ///
    /// # Panics
    /// If it had ended by itself before.
    pub fn kill(mut self) {
        assert!(self.is_alive(), "the node ended by itself: {}", self.notices());
        self.process.kill();
    }

    /// SIGTERM, and the wait until the node has drained.
    ///
    /// # Panics
    /// If it ends with anything but success, or not at all.
    pub fn drain(mut self) {
        self.signal("TERM");
        // Standard error closes with the process, so this waits for the end, with a bound.
        let mut notices = Vec::new();
        loop {
            match self.process.stderr.recv_timeout(PATIENCE) {
                Ok(line) => notices.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("still draining: {notices:?}"),
            }
        }
        let status = self.process.child.wait().expect("our child");
        assert!(status.success(), "{status}: {notices:?}");
    }
}

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
