//! The steering rule for the kernel, which has a classic BPF program of the sockets' reuseport group compute it. That
//! needs no privilege.

use std::io;
use std::os::fd::BorrowedFd;

pub use escapement_protocol::steering::{CORE_COUNT_MAX, core_of_datagram, first_byte_for};
use escapement_protocol::steering::{LONG_HEADER, LONG_HEADER_ID_AT, SHORT_HEADER_ID_AT};

use super::sys;

/// Attaches the rule to the reuseport group of `socket`. The group's sockets are numbered in the order in which
/// they were bound, and the last one takes the number of any that is closed: keep all of them open.
pub(super) fn attach(socket: BorrowedFd<'_>, core_count: usize) -> io::Result<()> {
    sys::attach_reuseport_filter(socket, &program(core_count as u32))
}

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const JUMP_IF_BITS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const MODULO: u32 = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_A;

fn program(core_count: u32) -> [libc::sock_filter; 7] {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    [
        step(LOAD_BYTE, 0, 0, 0),
        step(JUMP_IF_BITS, 0, 2, u32::from(LONG_HEADER)),
        step(LOAD_BYTE, 0, 0, LONG_HEADER_ID_AT as u32),
        step(JUMP, 0, 0, 1),
        step(LOAD_BYTE, 0, 0, SHORT_HEADER_ID_AT as u32),
        step(MODULO, 0, 0, core_count),
        step(RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program on a packet as the kernel does: a read past the packet's end returns 0.
    fn run(program: &[libc::sock_filter], packet: &[u8]) -> u32 {
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            match u32::from(step.code) {
                LOAD_BYTE => match packet.get(step.k as usize) {
                    Some(&byte) => accumulator = u32::from(byte),
                    None => return 0,
                },
                JUMP => at += step.k as usize,
                JUMP_IF_BITS if accumulator & step.k != 0 => at += usize::from(step.jt),
                JUMP_IF_BITS => at += usize::from(step.jf),
                MODULO => accumulator %= step.k,
                RETURN => return accumulator,
                other => panic!("unknown operation {other:#x}"),
            }
        }
    }

    #[test]
    fn the_kernels_program_and_the_function_agree_on_every_packet() {
        for core_count in [1, 2, 3, 7, 64, 255, 256] {
            let program = program(core_count as u32);
            for byte in 0..=u8::MAX {
                let short = [0x40, byte, 9, 9, 9, 9, 9, 9];
                let long = [0xc0, 0, 0, 0, 1, 8, byte, 9];
                for packet in [&short[..], &long[..], &short[..1], &long[..6], &[]] {
                    let core = core_of_datagram(packet, core_count);
                    assert_eq!(run(&program, packet) as usize, core, "{packet:?} of {core_count}");
                }
            }
        }
    }
}
