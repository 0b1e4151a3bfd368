//! The sockets of a node: one per core, all on one address, each datagram steered to the core it belongs to.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::{steering, sys};

/// Receive buffer asked for, in bytes: several milliseconds of a core's full rate.
pub const RECEIVE_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// Largest payload of one send, all its segments together, whatever the address family.
pub const SEND_SIZE_BYTES_MAX: usize = 65_487;
/// Most datagrams handed to the kernel in one send. Old kernels take 64; 44 of the usual size fill a send.
pub const SEGMENT_COUNT_MAX: usize = 44;

/// How many datagrams of `segment_size_bytes` one send may carry. At least 1.
#[must_use]
pub fn segments_per_send(segment_size_bytes: usize) -> usize {
    (SEND_SIZE_BYTES_MAX / segment_size_bytes.max(1)).clamp(1, SEGMENT_COUNT_MAX)
}

/// Why a node's sockets could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another socket holds the address, whether or not it would share it.
    #[error("{0} is taken by another socket")]
    AddressInUse(SocketAddr),
    /// Zero cores, or more than a connection id's first byte can name.
    #[error("{0} cores: between 1 and {max} can share an address", max = steering::CORE_COUNT_MAX)]
    CoreCount(usize),
    /// The kernel refused a step.
    #[error("{step} for {address}: {source}")]
    Os {
        /// What was asked of the kernel.
        step: &'static str,
        /// Where.
        address: SocketAddr,
        /// What it answered.
        source: io::Error,
    },
}

/// A core's socket, bound and set up. Blocking, as a ring wants it; the hosts' own calls never wait on it.
#[derive(Debug)]
pub struct CoreSocket {
    socket: Socket,
    address: SocketAddr,
    segmentation: bool,
}

impl CoreSocket {
    /// The address that all of the node's sockets share, its port resolved.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Whether the kernel splits a send into datagrams.
    pub(super) fn segmentation(&self) -> bool {
        self.segmentation
    }
}

impl AsFd for CoreSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Binds one socket per core to `address` and steers datagrams between them.
///
/// Port 0 takes a free port, the same for all. `[::]` takes IPv4 as well. Move each socket to its core's thread
/// and keep all of them open for as long as any is served: the steering counts them.
///
/// # Errors
/// [`BindError`]; nothing stays bound.
pub fn bind_cores(address: SocketAddr, core_count: usize) -> Result<Vec<CoreSocket>, BindError> {
    if core_count == 0 || core_count > steering::CORE_COUNT_MAX {
        return Err(BindError::CoreCount(core_count));
    }
    let os = |step| move |source| BindError::Os { step, address, source };
    // The first is bound without SO_REUSEPORT, so that it fails where anybody holds the address, also one who
    // would share it; the group is opened on it afterwards. Nobody can slip in between.
    let first = open(address).map_err(os("opening a socket"))?;
    first.bind(&address.into()).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::AddressInUse(address),
        _ => BindError::Os { step: "binding", address, source },
    })?;
    let bound = first
        .local_addr()
        .and_then(|name| name.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into()))
        .map_err(os("reading the bound address"))?;
    let share = |socket: &Socket| {
        sys::set_option(socket.as_fd(), (libc::SOL_SOCKET, libc::SO_REUSEPORT), 1)
            .map_err(os("sharing the address"))
    };
    let mut sockets = vec![first];
    if core_count > 1 {
        share(&sockets[0])?;
        for _ in 1..core_count {
            let socket = open(address).map_err(os("opening a socket"))?;
            share(&socket)?;
            socket.bind(&bound.into()).map_err(os("binding"))?;
            sockets.push(socket);
        }
        steering::attach(sockets[0].as_fd(), core_count).map_err(os("steering datagrams"))?;
    }
    sockets
        .into_iter()
        .map(|socket| {
            let segmentation = set_up(&socket, address.is_ipv6()).map_err(os("setting up a socket"))?;
            Ok(CoreSocket { socket, address: bound, segmentation })
        })
        .collect()
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}

/// Options that QUIC relies on; whether the kernel can segment sends.
fn set_up(socket: &Socket, v6: bool) -> io::Result<bool> {
    let fd = socket.as_fd();
    let size = RECEIVE_BUFFER_BYTES as libc::c_int;
    // Past the system's limit where we may, up to it where not.
    sys::set_option(fd, (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE), size)
        .or_else(|_| socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES))?;
    sys::set_option(fd, (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE), size)
        .or_else(|_| socket.set_send_buffer_size(RECEIVE_BUFFER_BYTES))?;
    // Don't fragment, and don't believe the kernel's own path MTU: QUIC discovers it with probes that must be
    // lost where they are too large. The IPv4 options also count on a socket that takes IPv4 as mapped.
    let v4_options =
        [(libc::IP_RECVTOS, 1), (libc::IP_PKTINFO, 1), (libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)];
    for (name, value) in v4_options {
        sys::set_option(fd, (libc::IPPROTO_IP, name), value)?;
    }
    if v6 {
        let v6_options = [
            (libc::IPV6_RECVTCLASS, 1),
            (libc::IPV6_RECVPKTINFO, 1),
            (libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
        ];
        for (name, value) in v6_options {
            sys::set_option(fd, (libc::IPPROTO_IPV6, name), value)?;
        }
    }
    // Absent before Linux 5.0 and 4.18; QUIC works without, at a price.
    let _ = sys::set_option(fd, (libc::SOL_UDP, libc::UDP_GRO), 1);
    Ok(sys::set_option(fd, (libc::SOL_UDP, libc::UDP_SEGMENT), 0).is_ok())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_send_holds_what_the_kernel_takes() {
        assert_eq!(segments_per_send(1200), SEGMENT_COUNT_MAX);
        assert_eq!(segments_per_send(1472), SEGMENT_COUNT_MAX);
        assert_eq!(segments_per_send(8952), 7);
        assert_eq!(segments_per_send(65_000), 1);
        assert_eq!(segments_per_send(70_000), 1);
    }

    #[test]
    fn cores_share_a_free_port_and_datagrams_find_theirs() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let sockets = bind_cores(local.parse().unwrap(), 3).unwrap();
            let address = sockets[0].local_addr();
            assert_ne!(address.port(), 0);
            let client = UdpSocket::bind(local).unwrap();
            for byte in 0..=255_u8 {
                let long = [0xc3, 0, 0, 0, 1, 8, byte, 0xee];
                let short = [0x43, byte, 0xee];
                for datagram in [&long[..], &short] {
                    client.send_to(datagram, address).unwrap();
                    let core = steering::core_of_datagram(datagram, 3);
                    let mut buffer = [std::mem::MaybeUninit::uninit(); 64];
                    let socket = &sockets[core].socket;
                    socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
                    assert_eq!(socket.recv(&mut buffer).unwrap(), datagram.len(), "{byte} on {core}");
                }
            }
        }
    }

    #[test]
    fn an_address_that_anybody_holds_is_refused_even_if_they_would_share() {
        for core_count in [1, 2] {
            let held = bind_cores("127.0.0.1:0".parse().unwrap(), core_count).unwrap();
            for second in [1, 2] {
                let refused = bind_cores(held[0].local_addr(), second);
                assert!(matches!(refused, Err(BindError::AddressInUse(_))), "{refused:?}");
            }
        }
    }

    #[test]
    fn impossible_core_counts_are_refused() {
        for count in [0, 257] {
            let refused = bind_cores("127.0.0.1:0".parse().unwrap(), count);
            assert!(matches!(refused, Err(BindError::CoreCount(_))));
        }
    }
}
