//! Which core a datagram belongs to.
//!
//! All cores of a node bind one port with `SO_REUSEPORT`. The first byte of the destination connection id names the
//! core: `byte % core_count == core_index`. Ids issued by a core follow the rule, so a connection stays on its core
//! when the client's address changes. The id of a client's very first packet is the client's choice: one that knows
//! the rule picks its core by it, any other lands on some core, correctly.
//!
//! [`program`] is the rule for the kernel, as seven instructions of classic BPF: attach it to one socket of the group
//! with `SO_ATTACH_REUSEPORT_CBPF` after all of them are bound, in the order of their cores, and before any serves.
//! [`core_of_datagram`] is the same rule for everything that has no kernel.

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Bytes of every connection id that a server issues.
pub const CONNECTION_ID_SIZE_BYTES: usize = 8;

/// Where a long header (a handshake's packet) has the first byte of the destination connection id.
const LONG_HEADER_ID_OFFSET: u32 = 6;
/// Where a short header has it.
const SHORT_HEADER_ID_OFFSET: u32 = 1;
/// Bit of byte 0 that tells a long header.
const LONG_HEADER: u8 = 0x80;

/// One instruction of classic BPF, laid out as the kernel's `sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip where the condition holds.
    pub jump_true: u8,
    /// Instructions to skip where it does not.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

const LOAD_BYTE: u16 = 0x30;
const JUMP: u16 = 0x05;
const JUMP_IF_BITS: u16 = 0x45;
const MODULO: u16 = 0x94;
const RETURN_ACCUMULATOR: u16 = 0x16;

/// The steering rule for the kernel: returns the index of the socket in the port's group.
///
/// # Panics
/// If `core_count` is 0.
#[must_use]
pub fn program(core_count: u8) -> [Instruction; 7] {
    assert!(core_count > 0, "a port has at least one core");
    let op = |code, jump_true, jump_false, operand| Instruction { code, jump_true, jump_false, operand };
    [
        op(LOAD_BYTE, 0, 0, 0),
        op(JUMP_IF_BITS, 0, 2, u32::from(LONG_HEADER)),
        op(LOAD_BYTE, 0, 0, LONG_HEADER_ID_OFFSET),
        op(JUMP, 0, 0, 1),
        op(LOAD_BYTE, 0, 0, SHORT_HEADER_ID_OFFSET),
        op(MODULO, 0, 0, u32::from(core_count)),
        op(RETURN_ACCUMULATOR, 0, 0, 0),
    ]
}

/// The core that a datagram belongs to; `None` where it is too short to say.
///
/// # Panics
/// If `core_count` is 0.
#[must_use]
pub fn core_of_datagram(datagram: &[u8], core_count: u8) -> Option<u8> {
    let long = datagram.first()? & LONG_HEADER != 0;
    let offset = if long { LONG_HEADER_ID_OFFSET } else { SHORT_HEADER_ID_OFFSET };
    Some(datagram.get(offset as usize)? % core_count)
}

/// Turns a random byte into one that names `core_index`, keeping as much of the randomness as the rule leaves.
///
/// Clients use it for the first byte of their initial destination connection id.
///
/// # Panics
/// If `core_index` is not below `core_count`.
#[must_use]
pub fn steered_byte(random: u8, core_index: u8, core_count: u8) -> u8 {
    assert!(core_index < core_count, "core {core_index} of {core_count}");
    // core_count * slots <= 256 and core_index < core_count, so the sum fits a byte.
    let slots = (256 / u16::from(core_count)) as u8;
    let slot = if core_count == 1 { random } else { random % slots };
    slot.wrapping_mul(core_count).wrapping_add(core_index)
}

/// Issues connection ids: a hash of a secret and a counter, steered in the first byte.
///
/// Unpredictable and unlinkable for whoever does not know the seed, reproducible for the simulator, which does.
pub(super) struct SteeredIds {
    core_index: u8,
    core_count: u8,
    secret: [u8; 32],
    issued: u64,
}

impl SteeredIds {
    pub(super) fn new(core_index: u8, core_count: u8, rng_seed: &[u8; 32]) -> Self {
        let secret = Sha256::new()
            .chain_update(b"escapement connection ids")
            .chain_update([core_index])
            .chain_update(rng_seed)
            .finalize();
        SteeredIds { core_index, core_count, secret: secret.into(), issued: 0 }
    }
}

impl ConnectionIdGenerator for SteeredIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.issued += 1;
        let digest =
            Sha256::new().chain_update(self.secret).chain_update(self.issued.to_le_bytes()).finalize();
        let mut id = [0; CONNECTION_ID_SIZE_BYTES];
        id.copy_from_slice(&digest[..CONNECTION_ID_SIZE_BYTES]);
        id[0] = steered_byte(id[0], self.core_index, self.core_count);
        ConnectionId::new(&id)
    }

    /// Accepts ids of earlier processes of this node too, so that their connections get a stateless reset.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.first() {
            Some(byte) if byte % self.core_count == self.core_index => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_SIZE_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the kernel's program on a packet, as the kernel would.
    fn run(program: &[Instruction], packet: &[u8]) -> u32 {
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let op = program[at];
            at += 1;
            match op.code {
                LOAD_BYTE => accumulator = u32::from(packet[op.operand as usize]),
                JUMP => at += op.operand as usize,
                JUMP_IF_BITS if accumulator & op.operand != 0 => at += usize::from(op.jump_true),
                JUMP_IF_BITS => at += usize::from(op.jump_false),
                MODULO => accumulator %= op.operand,
                RETURN_ACCUMULATOR => return accumulator,
                other => panic!("unknown operation {other:#x}"),
            }
        }
    }

    #[test]
    fn the_kernels_program_and_the_function_agree_on_every_first_byte() {
        for core_count in [1, 2, 3, 7, 64, 255] {
            for byte in 0..=u8::MAX {
                let short = [0x40, byte, 9, 9, 9, 9, 9, 9];
                let long = [0xc0, 0, 0, 0, 1, 8, byte, 9];
                for packet in [short, long] {
                    let core = u32::from(core_of_datagram(&packet, core_count).expect("long enough"));
                    assert_eq!(run(&program(core_count), &packet), core);
                    assert_eq!(core, u32::from(byte % core_count));
                }
            }
        }
        assert_eq!(core_of_datagram(&[0xc0, 1, 2, 3, 4, 5], 2), None);
        assert_eq!(core_of_datagram(&[], 2), None);
    }

    #[test]
    fn a_steered_byte_names_its_core_whatever_the_randomness() {
        for core_count in 1..=u8::MAX {
            for core_index in [0, core_count / 2, core_count - 1] {
                for random in 0..=u8::MAX {
                    assert_eq!(steered_byte(random, core_index, core_count) % core_count, core_index);
                }
            }
        }
    }

    #[test]
    fn ids_are_distinct_steered_and_reproducible_from_the_seed() {
        let mut ids = SteeredIds::new(2, 3, &[7; 32]);
        let mut again = SteeredIds::new(2, 3, &[7; 32]);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1_000 {
            let id = ids.generate_cid();
            assert_eq!(id, again.generate_cid());
            assert_eq!((id.len(), id[0] % 3), (CONNECTION_ID_SIZE_BYTES, 2));
            assert!(ids.validate(&id).is_ok() && seen.insert(id));
        }
        assert!(ids.validate(&ConnectionId::new(&[3; 8])).is_err());
    }
}
