//! What only the operating system can do, each behind a safe function. The only unsafe code of the program.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use tokio::io::unix::AsyncFd;

/// A set of CPUs.
pub(crate) type CpuSet = libc::cpu_set_t;

/// The CPUs that this process may run on, ascending.
pub(crate) fn allowed_cpus() -> io::Result<Vec<usize>> {
    let mut set = empty_set();
    // SAFETY: `set` is a valid, writable cpu_set_t of the size that is passed, and 0 names this thread.
    let failed = unsafe { libc::sched_getaffinity(0, size_of::<CpuSet>(), &raw mut set) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every index is below CPU_SETSIZE, the number of bits in the set.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect())
}

/// The set of these CPUs.
pub(crate) fn cpu_set(cpus: &[usize]) -> CpuSet {
    let mut set = empty_set();
    for &cpu in cpus.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: the index is below CPU_SETSIZE, the number of bits in the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    set
}

fn empty_set() -> CpuSet {
    // SAFETY: cpu_set_t is an array of integers, for which all zeros is a value: the empty set.
    unsafe { std::mem::zeroed() }
}

/// Keeps this thread, and those that it starts, on these CPUs.
pub(crate) fn pin(set: &CpuSet) -> io::Result<()> {
    // SAFETY: `set` is a valid cpu_set_t of the size that is passed, and 0 names this thread.
    match unsafe { libc::sched_setaffinity(0, size_of::<CpuSet>(), &raw const *set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the command run on these CPUs, in a process group of its own, and end when this process does.
pub(crate) fn prepare_child(command: &mut Command, set: CpuSet) {
    let parent = std::process::id();
    let before_exec = move || {
        pin(&set)?;
        // SAFETY: both calls take plain numbers and touch no memory of ours.
        let orphaned = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::getppid() as u32 != parent
        };
        // The parent may have died before the request was made.
        if orphaned { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
    };
    command.process_group(0);
    // SAFETY: the closure makes three system calls, allocates nothing and takes no lock, so that it is
    // safe between fork and exec.
    unsafe { command.pre_exec(before_exec) };
}

/// Asks a child to end.
pub(crate) fn terminate(child: &Child) {
    // SAFETY: a signal to a process that we started and have not reaped: its id cannot be another's.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
}

/// Whether a path lies in memory and not on a disk.
pub(crate) fn is_in_memory(path: &Path) -> io::Result<bool> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: statfs is a plain struct of integers, for which all zeros is a value.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a zero byte, and `found` is valid and writable.
    match unsafe { libc::statfs(path.as_ptr(), &raw mut found) } {
        0 => Ok([libc::TMPFS_MAGIC, 0x8584_58f6].contains(&found.f_type)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Clock ticks in a second of the figures in `/proc/PID/stat`.
pub(crate) fn ticks_per_second() -> u64 {
    // SAFETY: takes and returns plain numbers.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100)
}

/// A timer that is precise to some 50 µs, where tokio's own is to 1 ms.
#[derive(Debug)]
pub(crate) struct Timer(AsyncFd<File>);

impl Timer {
    /// A timer that is not set. Needs a runtime.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes plain numbers; the result is checked before it is used.
        let fd =
            unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just opened and belongs to nobody else.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: the file keeps the same descriptor open until it is dropped, which the registration does last.
        Ok(Timer(unsafe { AsyncFd::register(file) }?))
    }

    /// Waits that long; at once where it is zero.
    pub(crate) async fn sleep(&self, wait: Duration) -> io::Result<()> {
        if wait.is_zero() {
            return Ok(());
        }
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::timespec {
            tv_sec: wait.as_secs() as libc::time_t,
            tv_nsec: wait.subsec_nanos() as libc::c_long,
        };
        let spec = libc::itimerspec { it_interval: zero, it_value: value };
        let fd = self.0.get_ref().as_fd().as_raw_fd();
        // SAFETY: the descriptor is open, `spec` is valid, and no old value is asked for.
        if unsafe { libc::timerfd_settime(fd, 0, &raw const spec, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut expirations = [0; 8];
        loop {
            let mut ready = self.0.readable().await?;
            // An error means that it has not expired after all.
            if let Ok(read) = ready.try_io(|file| io::Read::read(&mut file.get_ref(), &mut expirations)) {
                return read.map(|_| ());
            }
        }
    }
}
