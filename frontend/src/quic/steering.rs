//! Connection ids that steer their datagrams to the core that issued them.

use std::time::Duration;

use escapement_protocol::steering::first_byte_for;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use sha2::{Digest, Sha256};

/// Bytes of every connection id that a server issues.
const CONNECTION_ID_SIZE_BYTES: usize = 8;

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
        id[0] = first_byte_for(self.core_index.into(), self.core_count.into(), id[0]);
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
