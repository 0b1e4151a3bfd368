//! Which core a datagram belongs to: the first byte of its destination connection id, modulo the core count.
//!
//! The kernel computes it in a classic BPF program of the sockets' reuseport group, which needs no privilege;
//! [`core_of_datagram`] is the same rule in Rust. Connection ids are made so that it holds
//! ([`first_byte_for`]), which is why a connection stays on its core when the client's address changes.

use std::io;
use std::os::fd::BorrowedFd;

use super::sys;

/// Most cores that one byte can tell apart.
pub const CORE_COUNT_MAX: usize = 256;

/// Set in the first byte of a packet with a long header, where the id starts at byte 6 (after version and
/// length); in one with a short header it starts at byte 1. RFC 9000, section 17.
const LONG_HEADER: u8 = 0x80;
const LONG_HEADER_ID_AT: usize = 6;
const SHORT_HEADER_ID_AT: usize = 1;

/// The core that a datagram belongs to; 0 where it is too short to say, as the kernel's filter has it.
#[must_use]
pub fn core_of_datagram(datagram: &[u8], core_count: usize) -> usize {
    let at = match datagram.first() {
        Some(first) if first & LONG_HEADER != 0 => LONG_HEADER_ID_AT,
        _ => SHORT_HEADER_ID_AT,
    };
    datagram.get(at).map_or(0, |&byte| usize::from(byte) % core_count)
}

/// A connection id's first byte that names `core`, drawn with the given random byte.
///
/// # Panics
/// If `core` is not below `core_count`, or `core_count` is above [`CORE_COUNT_MAX`].
#[must_use]
pub fn first_byte_for(core: usize, core_count: usize, random: u8) -> u8 {
    assert!(core < core_count && core_count <= CORE_COUNT_MAX, "core {core} of {core_count}");
    let strides = CORE_COUNT_MAX / core_count;
    ((usize::from(random) % strides) * core_count + core) as u8
}

/// Attaches the rule to the reuseport group of `socket`. The group's sockets are numbered in the order in which
/// they were bound, and the last one takes the number of any that is closed: keep all of them open.
pub(super) fn attach(socket: BorrowedFd<'_>, core_count: usize) -> io::Result<()> {
    sys::attach_reuseport_filter(socket, &program(core_count as u32))
}

fn program(core_count: u32) -> [libc::sock_filter; 7] {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load_byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    [
        step(load_byte, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 2, u32::from(LONG_HEADER)),
        step(load_byte, 0, 0, LONG_HEADER_ID_AT as u32),
        step(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        step(load_byte, 0, 0, SHORT_HEADER_ID_AT as u32),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, core_count),
        step(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_first_byte_made_for_a_core_leads_to_it() {
        for core_count in 1..=CORE_COUNT_MAX {
            for core in 0..core_count {
                for random in [0, 1, 127, 128, 255] {
                    let byte = first_byte_for(core, core_count, random);
                    assert_eq!(core_of_datagram(&[0x40, byte], core_count), core);
                    assert_eq!(core_of_datagram(&[0xc0, 0, 0, 0, 1, 8, byte], core_count), core);
                }
            }
        }
    }

    #[test]
    fn a_datagram_too_short_to_name_a_core_goes_to_the_first() {
        for datagram in [&[][..], &[0x40], &[0xc0, 9, 9, 9, 9, 9]] {
            assert_eq!(core_of_datagram(datagram, 4), 0);
        }
    }
}
