//! The node as a process of its own, and what the operating system counts of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use crate::NODE_ARGUMENT;
use crate::args::Args;
use crate::disk::DiskUse;
use crate::report::say;
use crate::sys;
use crate::units::sha256;

/// How long a node that was asked to end may drain before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// A running node. Dropped, it is ended, and its temporary data removed.
#[derive(Debug)]
pub(crate) struct NodeProcess {
    child: Child,
    pub(crate) addr: SocketAddr,
    pub(crate) cert_sha256: [u8; 32],
    /// Kept open, so that the node can print.
    _stdout: BufReader<ChildStdout>,
    path: PathBuf,
    cpus: Vec<usize>,
    _data: Option<TempDir>,
}

/// How a node came up again.
#[derive(Debug)]
pub(crate) struct Restart {
    /// When its process was started.
    pub(crate) since: Instant,
    /// From then until it took connections.
    pub(crate) listening: Duration,
    /// Pending events that it said to have recovered, where it said so.
    pub(crate) recovered: Option<u64>,
}

/// A process that takes connections.
struct Started {
    child: Child,
    stdout: BufReader<ChildStdout>,
    addr: SocketAddr,
    cert_sha256: [u8; 32],
}

impl NodeProcess {
    /// Starts a node on these CPUs and waits until it takes connections.
    pub(crate) fn start(args: &Args, cpus: &[usize]) -> Result<Self> {
        let (directory, path) = data_directory(args)?;
        let Started { child, stdout, addr, cert_sha256 } =
            Started::wait(command(args, &path, cpus)?.spawn().context("starting the node")?)?;
        let cpus = cpus.to_vec();
        Ok(NodeProcess { child, addr, cert_sha256, _stdout: stdout, path, cpus, _data: directory })
    }

    /// Ends the node as a crash would, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // Errors say that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts a node that was killed on the same data, and waits until it takes connections.
    ///
    /// To be called on the thread that called [`NodeProcess::start`]: the node ends with the thread that starts it.
    pub(crate) fn start_again(&mut self, args: &Args) -> Result<Restart> {
        let since = Instant::now();
        let mut child = command(args, &self.path, &self.cpus)?
            .stderr(Stdio::piped())
            .spawn()
            .context("starting the node again")?;
        let stderr = child.stderr.take().ok_or_else(|| anyhow!("the node has no standard error"))?;
        let (found, recovered) = mpsc::channel();
        std::thread::spawn(move || pass_on(BufReader::new(stderr), &found));
        let Started { child, stdout, addr, cert_sha256 } = Started::wait(child)?;
        let listening = since.elapsed();
        (self.child, self._stdout, self.addr, self.cert_sha256) = (child, stdout, addr, cert_sha256);
        // It was said before the line that was waited for, and is here as soon as the other thread has run.
        let recovered = recovered.recv_timeout(Duration::from_secs(1)).ok();
        Ok(Restart { since, listening, recovered })
    }

    /// What it takes in memory and on its disk now.
    pub(crate) fn footprint(&self) -> Result<Footprint> {
        let disk = DiskUse::of(&self.path).with_context(|| format!("--data {}", self.path.display()))?;
        Ok(Footprint { memory: self.sample(), disk })
    }

    /// What the operating system counts of the node now.
    pub(crate) fn sample(&self) -> NodeSample {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let read = |file| fs::read_to_string(process.join(file)).unwrap_or_default();
        NodeSample {
            cpu: cpu_of(&read("stat")),
            rss_peak_bytes: field(&read("status"), "VmHWM:") * 1_024,
            rss_anon_bytes: field(&read("status"), "RssAnon:") * 1_024,
            written_bytes: field(&read("io"), "write_bytes:"),
            core_major_faults: core_major_faults(&process),
        }
    }

    /// Whether the node has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

impl Started {
    fn wait(mut child: Child) -> Result<Started> {
        let stdout = child.stdout.take().ok_or_else(|| anyhow!("the node has no standard output"))?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        // Ends when the node prints or dies; a node that does neither is ended by hand.
        let read = stdout.read_line(&mut line);
        match read.context("reading what the node prints").and_then(|_| address(&line)) {
            Ok((addr, cert_sha256)) => Ok(Started { child, stdout, addr, cert_sha256 }),
            Err(error) => {
                stop(&mut child);
                Err(error)
            }
        }
    }
}

fn command(args: &Args, path: &Path, cpus: &[usize]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("the path of this program")?);
    command
        .args([NODE_ARGUMENT, "serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(path)
        .args(["--mtu", &args.mtu().to_string()])
        .args(&args.node_arg)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    sys::prepare_child(&mut command, sys::cpu_set(cpus));
    Ok(command)
}

/// Says what the node says, and tells how many pending events it has recovered.
fn pass_on(stderr: impl BufRead, found: &mpsc::Sender<u64>) {
    for line in stderr.lines().map_while(Result::ok) {
        if let Some(pending) = recovered(&line) {
            // Nobody may be waiting any more.
            let _ = found.send(pending);
        }
        say(&line);
    }
}

/// Reads `recovered N pending events in T ms`.
fn recovered(line: &str) -> Option<u64> {
    line.strip_prefix("recovered ")?.split_once(" pending events ")?.0.parse().ok()
}

fn stop(child: &mut Child) {
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    sys::terminate(child);
    let asked = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if asked.elapsed() > STOP_WITHIN {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn data_directory(args: &Args) -> Result<(Option<TempDir>, PathBuf)> {
    let (directory, path) = match &args.data {
        Some(path) => {
            fs::create_dir_all(path).with_context(|| format!("--data {}", path.display()))?;
            (None, path.clone())
        }
        None => {
            let directory = tempfile::Builder::new()
                .prefix("escapement-loadgen-")
                .tempdir_in(default_place())
                .context("a temporary directory: name one with --data DIR")?;
            let path = directory.path().to_owned();
            (Some(directory), path)
        }
    };
    let in_memory = sys::is_in_memory(&path).with_context(|| format!("--data {}", path.display()))?;
    if in_memory && !args.allow_tmpfs {
        bail!(
            "{} lies in memory, where durability costs nothing: name a directory on a disk with --data DIR, or say \
             --allow-tmpfs",
            path.display()
        );
    }
    Ok((directory, path))
}

/// The system's place for temporary files, or, where that lies in memory, the one that survives a restart.
fn default_place() -> PathBuf {
    let usual = std::env::temp_dir();
    match sys::is_in_memory(&usual) {
        Ok(true) if Path::new("/var/tmp").is_dir() => PathBuf::from("/var/tmp"),
        _ => usual,
    }
}

/// Reads `listening on ADDR cert-sha256 HEX`.
fn address(line: &str) -> Result<(SocketAddr, [u8; 32])> {
    let wrong =
        || anyhow!("the node did not say where it listens; it said {:?}, and why is above", line.trim());
    let (addr, cert) = line
        .trim()
        .strip_prefix("listening on ")
        .and_then(|rest| rest.split_once(" cert-sha256 "))
        .ok_or_else(wrong)?;
    Ok((addr.parse().map_err(|_| wrong())?, sha256(cert).map_err(|_| wrong())?))
}

/// What a node takes at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Footprint {
    pub(crate) memory: NodeSample,
    pub(crate) disk: DiskUse,
}

/// Figures of a process at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NodeSample {
    /// CPU time used so far, over all threads, kernel included.
    pub(crate) cpu: Duration,
    /// Most memory resident at once so far.
    pub(crate) rss_peak_bytes: u64,
    /// Memory resident now that no file backs.
    pub(crate) rss_anon_bytes: u64,
    /// Bytes that it had written to disks so far.
    pub(crate) written_bytes: u64,
    /// Times that a core's thread waited for the disk because it touched memory that was not there; `None` where the
    /// node has no such thread to ask of.
    pub(crate) core_major_faults: Option<u64>,
}

/// Over the threads that carry shards, which the node names `core-0` and so on.
fn core_major_faults(process: &Path) -> Option<u64> {
    let tasks = fs::read_dir(process.join("task")).ok()?;
    let stats = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let cores = stats.filter(|stat| stat.contains("(core-"));
    cores.map(|stat| major_faults_of(&stat)).reduce(|all, more| all + more)
}

/// The 12th field, counted after the thread's name.
fn major_faults_of(stat: &str) -> u64 {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_whitespace().nth(9).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// User and system time: the 14th and 15th field, counted after the command's name, which may hold anything.
fn cpu_of(stat: &str) -> Duration {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    Duration::from_secs_f64(ticks as f64 / sys::ticks_per_second() as f64)
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// CPU time that this process has used so far.
pub(crate) fn own_cpu() -> Duration {
    cpu_of(&fs::read_to_string("/proc/self/stat").unwrap_or_default())
}

/// Time that the hypervisor has kept from this machine's CPUs so far, where there is one: while it does, everything
/// stands still, and what a run measures then is the machine.
pub(crate) fn stolen() -> Duration {
    stolen_of(&fs::read_to_string("/proc/stat").unwrap_or_default())
}

/// The eighth figure of the line over all CPUs.
fn stolen_of(stat: &str) -> Duration {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let ticks = all.and_then(|rest| rest.split_whitespace().nth(7)?.parse().ok()).unwrap_or(0_u64);
    Duration::from_secs_f64(ticks as f64 / sys::ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_first_line_is_read_and_anything_else_is_quoted() {
        let line = format!("listening on 127.0.0.1:4433 cert-sha256 {}\n", "ab".repeat(32));
        let (addr, cert) = address(&line).expect("the line that nodes print");
        assert_eq!((addr.port(), cert), (4433, [0xab; 32]));
        assert!(address("").is_err_and(|error| error.to_string().contains("\"\"")));
        assert!(address("listening on nowhere cert-sha256 00").is_err());
    }

    #[test]
    fn what_the_node_recovered_is_read_of_its_own_words() {
        assert_eq!(recovered("recovered 1200 pending events in 34 ms"), Some(1_200));
        assert_eq!(recovered("recovered some pending events in 34 ms"), None);
        let (found, pending) = mpsc::channel();
        pass_on(&b"one line\nrecovered 7 pending events in 0 ms\n"[..], &found);
        assert_eq!(pending.try_recv(), Ok(7));
    }

    #[test]
    fn figures_are_found_whatever_the_command_is_called() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        let expected = 200.0 / sys::ticks_per_second() as f64;
        assert_eq!(cpu_of(stat), Duration::from_secs_f64(expected));
        assert_eq!(major_faults_of("7 (core-0) S 1 2 3 4 5 6 7 8 99 10 150 50 0 0"), 99);
        assert_eq!(field("VmPeak: 9 kB\nVmHWM:\t  1234 kB\n", "VmHWM:"), 1_234);
        assert_eq!(field("", "VmHWM:"), 0);
        assert_eq!(
            stolen_of("cpu  1 2 3 4 5 6 7 300 0 0\ncpu0 1 2 3 4 5 6 7 9 0 0"),
            Duration::from_secs_f64(300.0 / sys::ticks_per_second() as f64)
        );
        assert_eq!(stolen_of(""), Duration::ZERO);
        assert!(own_cpu() < Duration::from_secs(3_600));
    }
}
