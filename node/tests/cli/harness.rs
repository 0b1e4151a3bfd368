//! Processes of the real program. Everything is waited for with a bound; nothing outlives its test.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// Longest that anything may take on a slow, busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a process that ended had to say.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running process whose output is read line by line. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Running {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = lines(child.stdout.take().unwrap());
        let stderr = lines(child.stderr.take().unwrap());
        Running { child, stdout, stderr }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line on standard output.
    pub(crate) fn line(&self) -> String {
        self.stdout
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("no line came; stderr: {}", rest(&self.stderr)))
    }

    /// The next line on standard error that `wanted` accepts.
    pub(crate) fn notice(&self, wanted: impl Fn(&str) -> bool) -> String {
        loop {
            let line = self.stderr.recv_timeout(PATIENCE).expect("the notice should have come");
            if wanted(&line) {
                return line;
            }
        }
    }

    /// The next line on standard error, where there is one already.
    pub(crate) fn said(&self) -> Option<String> {
        self.stderr.try_recv().ok()
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.pid());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits until the process has ended.
    pub(crate) fn end(mut self) -> Ended {
        let (stdout, stderr) = (rest(&self.stdout), rest(&self.stderr));
        let code = self.status().code();
        Ended { code, stdout, stderr }
    }

    /// Its pipes are closed, so it has ended or is about to.
    fn status(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.status();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has usually ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
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

/// What is left until the pipe closes.
fn rest(lines: &Receiver<String>) -> String {
    let mut text = String::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => text = text + &line + "\n",
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return text,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                panic!("still running after {PATIENCE:?}: {text}")
            }
        }
    }
}

pub(crate) fn command(args: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_escapement"));
    for name in ["ESCAPEMENT_ADDR", "ESCAPEMENT_CERT_SHA256", "ESCAPEMENT_CA", "ESCAPEMENT_SERVER_NAME"] {
        command.env_remove(name);
    }
    command.args(args);
    command
}

/// Runs a command to its end.
pub(crate) fn run(args: &[&str]) -> Ended {
    Running::start(&mut command(args)).end()
}

/// Arguments that serve `data` in a small way.
pub(crate) fn serve_args(data: &Path) -> Vec<&OsStr> {
    let flags = [
        "serve",
        "--listen=127.0.0.1:0",
        "--shards=2",
        "--cores=1",
        "--pin=false",
        "--segment-size=1MiB",
        "--segment-spares=1",
        "--memory=32MiB",
        "--allow-tmpfs",
        "--data",
    ];
    flags.into_iter().map(OsStr::new).chain([data.as_os_str()]).collect()
}

/// A node, and how to reach it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) process: Running,
    pub(crate) addr: String,
    pub(crate) cert_sha256: String,
}

impl Node {
    /// Starts a node and waits until it takes connections.
    pub(crate) fn start(data: &Path) -> Node {
        Node::start_with(data, &[])
    }

    /// The same, with more flags of the form `--name=value`, which replace those of [`serve_args`].
    pub(crate) fn start_with(data: &Path, flags: &[String]) -> Node {
        let name = |flag: &str| flag.split('=').next().map(str::to_owned);
        let replaced =
            |arg: &OsStr| arg.to_str().is_some_and(|arg| flags.iter().any(|flag| name(flag) == name(arg)));
        let args: Vec<&OsStr> = serve_args(data).into_iter().filter(|arg| !replaced(arg)).collect();
        let mut command = command(&args);
        Node::from(Running::start(command.args(flags)))
    }

    /// A node whose process was just started: waits until it takes connections.
    pub(crate) fn from(process: Running) -> Node {
        let line = process.line();
        let words: Vec<&str> = line.split(' ').collect();
        let ["listening", "on", addr, "cert-sha256", cert_sha256] = words[..] else { panic!("{line}") };
        Node { addr: addr.to_owned(), cert_sha256: cert_sha256.to_owned(), process }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.env("ESCAPEMENT_ADDR", &self.addr).env("ESCAPEMENT_CERT_SHA256", &self.cert_sha256);
        command
    }

    /// Runs a command with this node to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        Running::start(&mut self.command(args)).end()
    }

    /// Runs a command that must succeed, and returns what it printed.
    pub(crate) fn ask(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
        ended.stdout
    }

    /// The same, as JSON.
    pub(crate) fn ask_json(&self, args: &[&str]) -> serde_json::Value {
        let args: Vec<&str> = ["-o", "json"].iter().chain(args).copied().collect();
        let text = self.ask(&args);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Makes a topic `mail` with the subscription `mailer`.
    pub(crate) fn with_mail(self) -> Node {
        self.ask(&["topic", "create", "mail"]);
        self.ask(&["subscription", "create", "mailer", "--topic", "mail"]);
        self
    }
}

/// Every file below, with what is in it.
pub(crate) fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    all
}
