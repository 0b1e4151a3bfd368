//! The system calls that no safe wrapper in the tree offers. Every `unsafe` block of the socket, clock and
//! thread side is here; the ring's is in `uring`.

use std::io;
use std::mem::{size_of, zeroed};
#[cfg(feature = "glommio")]
use std::os::fd::IntoRawFd;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::message::{ControlBuf, NameBuf};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Nanoseconds of one of the kernel's clocks; 0 where the clock stands before its epoch.
fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live, writable timespec for the length of the call.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "the kernel has no clock {clock}");
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// Nanoseconds since boot, time in suspend included.
pub(super) fn boot_ns() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME)
}

/// Nanoseconds since the Unix epoch, as the machine believes.
pub(super) fn real_ns() -> u64 {
    clock_ns(libc::CLOCK_REALTIME)
}

/// Whether the kernel calls its real-time clock synchronised.
pub(super) fn clock_synchronised() -> bool {
    // SAFETY: a zeroed timex asks (modes = 0) and sets nothing; it is writable for the length of the call.
    let state = unsafe {
        let mut query: libc::timex = zeroed();
        let state = libc::adjtimex(&raw mut query);
        if query.status & libc::STA_UNSYNC != 0 { libc::TIME_ERROR } else { state }
    };
    (0..libc::TIME_ERROR).contains(&state)
}

/// A blocking eventfd: a ring's read of a non-blocking one would not wait.
pub(super) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; on success the descriptor is new and ours alone.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC))?)) }
}

/// Adds 1 to an eventfd's counter.
pub(super) fn eventfd_signal(fd: BorrowedFd<'_>) {
    let one = 1_u64;
    // SAFETY: eight readable bytes, as an eventfd wants.
    let _ = unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// Takes an eventfd's counter back to 0. The caller knows that it is not 0, or this blocks.
pub(super) fn eventfd_drain(fd: BorrowedFd<'_>) {
    let mut count = 0_u64;
    // SAFETY: eight writable bytes, as an eventfd wants.
    let _ = unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
}

/// Blocks of memory of at least `size_bytes` are mapped for themselves from now on, and go back to the system when they
/// are freed. Left alone, the C library stops to do so after the first such block was freed.
#[cfg(target_env = "gnu")]
pub(super) fn map_blocks_from(size_bytes: libc::c_int) {
    // SAFETY: it takes two numbers and changes how later allocations are made.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, size_bytes) };
}

/// How late the kernel may run this thread's timers, in ns. The default of 50 µs doubles the lateness of `ppoll`.
pub(super) fn set_timer_slack(slack_ns: u32) {
    // SAFETY: PR_SET_TIMERSLACK takes a number and touches this thread's slack only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, libc::c_ulong::from(slack_ns), 0, 0, 0) };
}

/// CPUs that this thread may run on, ascending.
pub(super) fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: a cpu_set_t of zeroes is a valid empty set, writable for its full size.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        check(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set))?;
        Ok((0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect())
    }
}

/// Gives this thread the CPUs of the process's first thread.
pub(super) fn allow_cpus_of_the_process() -> io::Result<()> {
    // SAFETY: a cpu_set_t of zeroes is valid; the kernel fills it, then reads it, within its full size.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        check(libc::sched_getaffinity(libc::getpid(), size_of::<libc::cpu_set_t>(), &raw mut set))?;
        check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)).map(drop)
    }
}

/// Keeps this thread on one CPU.
pub(super) fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    assert!(cpu < libc::CPU_SETSIZE as usize, "no such CPU");
    // SAFETY: the set is initialised, `cpu` lies inside it, and the kernel only reads it.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        libc::CPU_SET(cpu, &mut set);
        check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)).map(drop)
    }
}

/// Sets an integer option of a socket.
pub(super) fn set_option(
    fd: BorrowedFd<'_>,
    (level, name): (libc::c_int, libc::c_int),
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the option value is a live c_int of the stated size.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    check(result).map(drop)
}

/// Attaches a classic BPF program that picks a socket of this socket's reuseport group.
pub(super) fn attach_reuseport_filter(fd: BorrowedFd<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies `length` instructions out of `program`, which outlives the call, and writes nothing.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    check(result).map(drop)
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    Read,
    ReadOrWrite,
}

/// Waits until one of the descriptors is ready, or `timeout_ns` passed. One flag per descriptor.
///
/// An interrupted wait reports nothing ready.
pub(super) fn wait_ready<const N: usize>(fds: [(BorrowedFd<'_>, Ready); N], timeout_ns: u64) -> [bool; N] {
    let mut polled = fds.map(|(fd, ready)| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: match ready {
            Ready::Read => libc::POLLIN,
            Ready::ReadOrWrite => libc::POLLIN | libc::POLLOUT,
        },
        revents: 0,
    });
    let timeout = libc::timespec {
        tv_sec: (timeout_ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (timeout_ns % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: N initialised pollfds and a timespec, all live and, where written, exclusively ours.
    let ready =
        unsafe { libc::ppoll(polled.as_mut_ptr(), N as libc::nfds_t, &raw const timeout, std::ptr::null()) };
    polled.map(|entry| ready > 0 && entry.revents != 0)
}

/// Sends one message without waiting.
pub(super) fn send_message(
    fd: BorrowedFd<'_>,
    name: &NameBuf,
    control: &ControlBuf,
    payload: &[u8],
) -> io::Result<()> {
    let mut part = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: an msghdr of zeroes is valid; each pointer set here names a live buffer of the length beside it;
    // sendmsg reads them and writes none.
    let result = unsafe {
        let mut header: libc::msghdr = zeroed();
        header.msg_name = name.bytes().as_ptr().cast_mut().cast();
        header.msg_namelen = name.bytes().len() as libc::socklen_t;
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        if !control.bytes().is_empty() {
            header.msg_control = control.bytes().as_ptr().cast_mut().cast();
            header.msg_controllen = control.bytes().len() as _;
        }
        libc::sendmsg(fd.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Where one received message is put.
#[derive(Debug)]
pub(super) struct RecvSlot {
    pub(super) payload: Vec<u8>,
    pub(super) name: NameBuf,
    pub(super) control: ControlBuf,
    /// Bytes of `payload` that hold the message.
    pub(super) length: usize,
    /// `MSG_TRUNC` and its like.
    pub(super) flags: libc::c_int,
}

/// Receives up to one message per slot without waiting; how many.
pub(super) fn recv_messages<const N: usize>(
    fd: BorrowedFd<'_>,
    slots: &mut [RecvSlot; N],
) -> io::Result<usize> {
    // SAFETY: mmsghdr and iovec are plain C structures for which zeroes are valid.
    let (mut headers, mut parts): ([libc::mmsghdr; N], [libc::iovec; N]) = unsafe { (zeroed(), zeroed()) };
    for ((slot, header), part) in slots.iter_mut().zip(&mut headers).zip(&mut parts) {
        part.iov_base = slot.payload.as_mut_ptr().cast();
        part.iov_len = slot.payload.len();
        let header = &mut header.msg_hdr;
        header.msg_name = slot.name.space().as_mut_ptr().cast();
        header.msg_namelen = slot.name.space().len() as libc::socklen_t;
        header.msg_iov = part;
        header.msg_iovlen = 1;
        header.msg_control = slot.control.space().as_mut_ptr().cast();
        header.msg_controllen = slot.control.space().len() as _;
    }
    // SAFETY: each header names buffers of its own slot with their true lengths; the slots are exclusively
    // borrowed and outlive the call.
    let result = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            N as libc::c_uint,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    let count = check(result)? as usize;
    for (slot, header) in slots.iter_mut().zip(&headers).take(count) {
        slot.length = (header.msg_len as usize).min(slot.payload.len());
        slot.name.set_len(header.msg_hdr.msg_namelen as usize);
        slot.control.set_len(header.msg_hdr.msg_controllen);
        slot.flags = header.msg_hdr.msg_flags;
    }
    Ok(count)
}

/// The socket as glommio's, for the executor that runs on this thread.
#[cfg(feature = "glommio")]
pub(super) fn glommio_datagrams(socket: OwnedFd) -> glommio::net::UdpSocket {
    // SAFETY: the descriptor is open, and ours to give away.
    unsafe { glommio::net::UdpSocket::from_raw_fd(socket.into_raw_fd()) }
}

/// The descriptor as a file of glommio's, for the executor that runs on this thread.
#[cfg(feature = "glommio")]
pub(super) fn glommio_file(file: OwnedFd) -> glommio::io::BufferedFile {
    // SAFETY: the descriptor is open, and ours to give away.
    unsafe { glommio::io::BufferedFile::from_raw_fd(file.into_raw_fd()) }
}
