//! A disk of which every write is logged, with a file system on it; and the tools that this takes.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Bytes of the disk.
const DISK_SIZE_BYTES: u64 = 96 * 1024 * 1024;

const TOOLS: [&str; 5] = ["qemu-storage-daemon", "losetup", "mkfs.ext4", "mount", "umount"];

/// Why power cuts can't be made here.
pub fn missing() -> Option<String> {
    lacking(&TOOLS, &["/dev/fuse", "/dev/loop-control"])
}

/// Which of these tools is not installed, or which of these devices can't be opened.
pub(crate) fn lacking(tools: &[&str], devices: &[&str]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    if let Some(tool) = tools.iter().find(|tool| !dirs.iter().any(|dir| dir.join(tool).exists())) {
        return Some(format!("{tool} is not installed"));
    }
    let closed = devices.iter().find(|path| File::options().read(true).write(true).open(path).is_err());
    closed.map(|path| format!("{path} can't be opened: that takes root, and a kernel with it"))
}

/// Runs a tool to its end.
pub(crate) fn tool(name: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(name).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{name} {args:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A mounted file system. Unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) path: PathBuf,
}

impl Mount {
    /// Mounts a device, or an image through a loop device that goes with the mount.
    pub(crate) fn new(device: &Path, path: &Path, options: &str) -> Result<Mount, String> {
        std::fs::create_dir_all(path).map_err(|error| error.to_string())?;
        tool("mount", &["-t", "ext4", "-o", options, text(device), text(path)])?;
        Ok(Mount { path: path.to_owned() })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(why) = tool("umount", &[text(&self.path)]) {
            // Lazily, so that nothing of it outlives the processes that hold it.
            let lazily = tool("umount", &["-l", text(&self.path)]);
            assert!(std::thread::panicking() || lazily.is_ok(), "{why}, {lazily:?}");
        }
    }
}

/// A loop device. Detached when dropped.
#[derive(Debug)]
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = tool("losetup", &["-d", &self.0]);
        assert!(std::thread::panicking() || detached.is_ok(), "{detached:?}");
    }
}

/// The daemon that logs. It ends, and what it exports with it, when dropped.
#[derive(Debug)]
struct Daemon {
    child: Child,
    /// Open for as long as it may answer.
    stdout: BufReader<ChildStdout>,
    export: PathBuf,
}

impl Daemon {
    fn start(dir: &Path) -> Result<Daemon, String> {
        let export = dir.join("export");
        for (path, size_bytes) in
            [(dir.join("disk"), DISK_SIZE_BYTES), (dir.join("log"), 0), (export.clone(), 0)]
        {
            let made = File::create(&path).and_then(|file| file.set_len(size_bytes));
            made.map_err(|error| format!("{}: {error}", path.display()))?;
        }
        let file = |node: &str| format!("driver=file,node-name={node},filename={}", text(&dir.join(node)));
        let export_option =
            format!("type=fuse,id=export,node-name=logged,mountpoint={},writable=on", text(&export));
        let mut command = Command::new("qemu-storage-daemon");
        command
            .args(["--blockdev", &file("disk"), "--blockdev", &file("log")])
            .args([
                "--blockdev",
                "driver=blklogwrites,node-name=logged,file=disk,log=log,log-sector-size=512",
            ])
            .args(["--export", &export_option])
            .args(["--chardev", "stdio,id=monitor", "--monitor", "chardev=monitor"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("qemu-storage-daemon: {error}"))?;
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut daemon = Daemon { child, stdout, export };
        // Options take effect in their order: once the monitor speaks, the export is there.
        let mut greeting = String::new();
        daemon.stdout.read_line(&mut greeting).map_err(|error| error.to_string())?;
        if greeting.contains("QMP") { Ok(daemon) } else { Err("qemu-storage-daemon does not start".into()) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let quit = "{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"quit\"}\n";
        let asked = self.child.stdin.take().map(|mut stdin| stdin.write_all(quit.as_bytes()));
        if !matches!(asked, Some(Ok(()))) {
            let _ = self.child.kill();
            let _ = tool("umount", &["-l", text(&self.export)]);
        }
        let _ = self.child.wait();
    }
}

/// A disk of which every write is logged, mounted. Everything goes when it is dropped, but the log.
#[derive(Debug)]
pub(super) struct LoggedDisk {
    // In this order they are dropped.
    mount: Mount,
    _device: Loop,
    _daemon: Daemon,
    log: PathBuf,
}

impl LoggedDisk {
    /// Makes one, its files in `dir`.
    pub(super) fn new(dir: &Path) -> Result<LoggedDisk, String> {
        let daemon = Daemon::start(dir)?;
        let device = Loop(tool("losetup", &["-f", "--show", text(&daemon.export)])?);
        let plain = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
        tool("mkfs.ext4", &["-q", "-E", plain, "-b", "4096", "-J", "size=4", &device.0])?;
        let mount = Mount::new(Path::new(&device.0), &dir.join("mounted"), "nodiscard")?;
        Ok(LoggedDisk { mount, _device: device, _daemon: daemon, log: dir.join("log") })
    }

    /// Where its file system is.
    pub(super) fn path(&self) -> &Path {
        &self.mount.path
    }

    /// The file with the log.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }
}

/// An empty image of the disk's size.
pub(super) fn empty_image(path: &Path) -> std::io::Result<File> {
    let image = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    image.set_len(DISK_SIZE_BYTES)?;
    Ok(image)
}
