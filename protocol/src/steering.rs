//! Which core of a node a datagram belongs to: the first byte of its destination connection id, modulo the core count.
//!
//! Nodes issue ids that follow the rule ([`first_byte_for`]), so a connection stays on its core when the client's address
//! changes. The id of a client's very first packet is the client's choice: one that knows the rule picks its core by it,
//! any other lands on some core, and is served correctly there.

/// Most cores that one byte can tell apart.
pub const CORE_COUNT_MAX: usize = 256;

/// Set in the first byte of a packet with a long header. RFC 9000, section 17.
pub const LONG_HEADER: u8 = 0x80;

/// Where the id begins in a packet with a long header, after version and length.
pub const LONG_HEADER_ID_AT: usize = 6;

/// Where the id begins in a packet with a short header.
pub const SHORT_HEADER_ID_AT: usize = 1;

/// The core that a datagram belongs to; 0 where it is too short to say.
///
/// # Panics
/// If `core_count` is 0.
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
