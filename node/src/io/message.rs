//! Socket addresses and control messages as the kernel lays them out, built and read as bytes.
//!
//! Pure. Every host shares it, so that a datagram means the same whether it came through a ring or a call.
//! Layouts: `sockaddr_in`, `sockaddr_in6` and `cmsghdr` of Linux, native byte order except where the kernel
//! itself uses network order (ports, addresses).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use bytes::BytesMut;
use quinn_proto::{EcnCodepoint, Transmit};

use super::Datagram;

/// Room for the larger of the two address forms.
pub(super) const NAME_SIZE_BYTES: usize = 28;
/// Room for every control message that is asked for (TOS and traffic class, packet info, GRO stride) with slack.
pub(super) const CONTROL_SIZE_BYTES: usize = 128;

const WORD: usize = size_of::<usize>();
const CONTROL_HEADER: usize = WORD + 8;

/// A socket address for the kernel, or from it.
#[derive(Clone, Debug)]
#[repr(C, align(8))]
pub(super) struct NameBuf {
    bytes: [u8; NAME_SIZE_BYTES],
    len: usize,
}

impl NameBuf {
    pub(super) const fn new() -> Self {
        NameBuf { bytes: [0; NAME_SIZE_BYTES], len: 0 }
    }

    /// What is filled.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// All of it, for the kernel to fill.
    pub(super) fn space(&mut self) -> &mut [u8; NAME_SIZE_BYTES] {
        &mut self.bytes
    }

    pub(super) fn set_len(&mut self, len: usize) {
        self.len = len.min(NAME_SIZE_BYTES);
    }

    pub(super) fn encode(&mut self, address: SocketAddr) {
        self.bytes = [0; NAME_SIZE_BYTES];
        self.bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                self.bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                self.bytes[4..8].copy_from_slice(&v4.ip().octets());
                self.len = 16;
            }
            SocketAddr::V6(v6) => {
                self.bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                self.bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                self.bytes[8..24].copy_from_slice(&v6.ip().octets());
                self.bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                self.len = 28;
            }
        }
    }
}

/// Reads an address; `None` where it is neither IPv4 nor IPv6 or is cut short.
pub(super) fn decode_name(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(array(bytes, 0)?);
    let port = u16::from_be_bytes(array(bytes, 2)?);
    match i32::from(family) {
        libc::AF_INET => Some(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::from(array::<4>(bytes, 4)?), port))),
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(array::<16>(bytes, 8)?);
            let flow = u32::from_ne_bytes(array(bytes, 4)?);
            let scope = u32::from_ne_bytes(array(bytes, 24)?);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope)))
        }
        _ => None,
    }
}

/// Control messages for the kernel, or from it.
#[derive(Clone, Debug)]
#[repr(C, align(8))]
pub(super) struct ControlBuf {
    bytes: [u8; CONTROL_SIZE_BYTES],
    len: usize,
}

impl ControlBuf {
    pub(super) const fn new() -> Self {
        ControlBuf { bytes: [0; CONTROL_SIZE_BYTES], len: 0 }
    }

    /// What is filled.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// All of it, for the kernel to fill.
    pub(super) fn space(&mut self) -> &mut [u8; CONTROL_SIZE_BYTES] {
        &mut self.bytes
    }

    pub(super) fn set_len(&mut self, len: usize) {
        self.len = len.min(CONTROL_SIZE_BYTES);
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let header = CONTROL_HEADER + data.len();
        let at = self.len;
        let end = at + header.next_multiple_of(WORD);
        assert!(end <= CONTROL_SIZE_BYTES, "the control buffer holds every message that is ever sent");
        self.bytes[at..end].fill(0);
        self.bytes[at..at + WORD].copy_from_slice(&header.to_ne_bytes());
        self.bytes[at + WORD..at + WORD + 4].copy_from_slice(&level.to_ne_bytes());
        self.bytes[at + WORD + 4..at + WORD + 8].copy_from_slice(&kind.to_ne_bytes());
        self.bytes[at + CONTROL_HEADER..at + header].copy_from_slice(data);
        self.len = end;
    }

    /// What a transmit asks for beside its payload: ECN, segmentation, source address.
    pub(super) fn encode(&mut self, transmit: &Transmit) {
        self.len = 0;
        if let Some(ecn) = transmit.ecn {
            // A mapped address travels as IPv4, and the IPv4 layer ignores a traffic class.
            let (level, kind) = match transmit.destination.ip().to_canonical() {
                IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            self.push(level, kind, &(ecn as i32).to_ne_bytes());
        }
        if let Some(stride) = segment_size(transmit) {
            self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &stride.to_ne_bytes());
        }
        match transmit.src_ip {
            Some(IpAddr::V4(ip)) => {
                // in_pktinfo: interface index, source address, header destination.
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&ip.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(ip)) => {
                // in6_pktinfo: source address, interface index.
                let mut info = [0; 20];
                info[..16].copy_from_slice(&ip.octets());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
    }
}

/// The stride of a transmit that is more than one datagram.
fn segment_size(transmit: &Transmit) -> Option<u16> {
    let stride = transmit.segment_size.filter(|&stride| stride < transmit.size)?;
    Some(u16::try_from(stride).expect("a datagram is shorter than 64 KiB"))
}

/// Whether the kernel has to split it.
pub(super) fn is_segmented(transmit: &Transmit) -> bool {
    segment_size(transmit).is_some()
}

/// Whether a segmented send failed because the interface cannot: some lack the checksum offload that it needs,
/// and say so only here.
pub(super) fn means_no_segmentation(error: i32) -> bool {
    error == libc::EIO
}

/// What the kernel said about a received message beside its payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) local_ip: Option<IpAddr>,
    pub(super) ecn: Option<EcnCodepoint>,
    /// Length of every datagram of a merged message but the last; 0 where it is one datagram.
    pub(super) stride: usize,
}

/// Reads control messages; what is unknown or malformed is skipped.
pub(super) fn decode_control(mut bytes: &[u8]) -> Received {
    let mut received = Received::default();
    while let Some(header) = array(bytes, 0).map(usize::from_ne_bytes) {
        let (Some(level), Some(kind), Some(data)) =
            (array(bytes, WORD), array(bytes, WORD + 4), bytes.get(CONTROL_HEADER..header))
        else {
            break;
        };
        match (i32::from_ne_bytes(level), i32::from_ne_bytes(kind)) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                received.stride =
                    array(data, 0).map_or(0, |stride| i32::from_ne_bytes(stride).max(0) as usize);
            }
            // One byte, or an int in native order: either way the low bits are where a little-endian int has them.
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                received.ecn = data.first().copied().and_then(EcnCodepoint::from_bits);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                received.ecn =
                    array(data, 0).and_then(|class| EcnCodepoint::from_bits(i32::from_ne_bytes(class) as u8));
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                received.local_ip = array::<4>(data, 4).map(|ip| IpAddr::V4(ip.into()));
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                received.local_ip = array::<16>(data, 0).map(|ip| IpAddr::V6(ip.into()));
            }
            _ => {}
        }
        bytes = bytes.get(header.next_multiple_of(WORD)..).unwrap_or(&[]);
    }
    received
}

/// Hands over a received message datagram by datagram; how many.
///
/// One allocation holds them all: they are decrypted in place and dropped within the turn, mostly.
pub(super) fn split(
    remote: SocketAddr,
    received: Received,
    payload: &[u8],
    each: &mut dyn FnMut(Datagram),
) -> usize {
    let mut rest = BytesMut::from(payload);
    let stride = if received.stride == 0 { payload.len() } else { received.stride };
    let mut count = 0;
    while !rest.is_empty() {
        let data = rest.split_to(stride.min(rest.len()));
        each(Datagram { remote, local_ip: received.local_ip, ecn: received.ecn, data });
        count += 1;
    }
    count
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_kernels_form() {
        for text in ["192.0.2.7:4433", "[2001:db8::7]:1", "[::ffff:10.1.2.3]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut name = NameBuf::new();
            name.encode(address);
            assert_eq!(decode_name(name.bytes()), Some(address));
        }
        let scoped = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 3, 2));
        let mut name = NameBuf::new();
        name.encode(scoped);
        assert_eq!(decode_name(name.bytes()), Some(scoped));
    }

    #[test]
    fn a_cut_or_foreign_address_is_no_address() {
        let mut name = NameBuf::new();
        name.encode("[2001:db8::7]:1".parse().unwrap());
        for len in 0..name.bytes().len() {
            assert_eq!(decode_name(&name.bytes()[..len]), None, "{len} bytes");
        }
        assert_eq!(decode_name(&[0; NAME_SIZE_BYTES]), None);
    }

    #[test]
    fn control_messages_survive_the_kernels_form() {
        for (destination, src_ip) in [
            ("192.0.2.7:1", "192.0.2.9"),
            ("[2001:db8::7]:1", "2001:db8::9"),
            ("[::ffff:1.2.3.4]:1", "::ffff:9.9.9.9"),
        ] {
            let src_ip: IpAddr = src_ip.parse().unwrap();
            let transmit = Transmit {
                destination: destination.parse().unwrap(),
                ecn: Some(EcnCodepoint::Ce),
                size: 4000,
                segment_size: Some(1200),
                src_ip: Some(src_ip),
            };
            let mut control = ControlBuf::new();
            control.encode(&transmit);
            let received = decode_control(control.bytes());
            assert_eq!(received.ecn, Some(EcnCodepoint::Ce), "{destination}");
            // The source goes out where in_pktinfo keeps the local address, which is where it comes in.
            assert_eq!(received.local_ip, Some(src_ip), "{destination}");
        }
    }

    #[test]
    fn a_single_datagram_asks_for_no_segmentation() {
        let transmit = Transmit {
            destination: "192.0.2.7:1".parse().unwrap(),
            ecn: None,
            size: 1200,
            segment_size: Some(1200),
            src_ip: None,
        };
        let mut control = ControlBuf::new();
        control.encode(&transmit);
        assert!(control.bytes().is_empty());
    }

    #[test]
    fn malformed_control_bytes_end_the_reading_and_nothing_else() {
        let mut bytes = [0xff; CONTROL_SIZE_BYTES];
        assert_eq!(decode_control(&bytes), Received::default());
        bytes[..WORD].copy_from_slice(&0_usize.to_ne_bytes());
        assert_eq!(decode_control(&bytes), Received::default());
        bytes[..WORD].copy_from_slice(&(usize::MAX - 3).to_ne_bytes());
        assert_eq!(decode_control(&bytes), Received::default());
        for len in 0..CONTROL_HEADER {
            decode_control(&bytes[..len]);
        }
    }

    #[test]
    fn a_merged_message_splits_at_its_stride() {
        let payload: Vec<u8> = (0..250_u8).collect();
        let received = Received { stride: 100, ..Received::default() };
        let mut lengths = Vec::new();
        let count = split("192.0.2.7:1".parse().unwrap(), received, &payload, &mut |datagram| {
            lengths.push(datagram.data.len());
        });
        assert_eq!((count, lengths), (3, vec![100, 100, 50]));
    }
}
