//! An event's bytes with holes: encoded once, then patched for each event.

use escapement_protocol::WallMs;
use escapement_protocol::event::{Due, EventError, EventSpec, EventView, HEADER_SIZE_BYTES};

use super::{ID_SIZE_BYTES, KEY_SIZE_BYTES, Workload};

/// Writes the events of one load at a cost of little more than copying them.
#[derive(Clone, Debug)]
pub struct EventTemplate {
    workload: Workload,
    bytes: Vec<u8>,
    id_at: usize,
    key_at: usize,
    data_at: usize,
}

impl EventTemplate {
    /// The form that all events of `workload` share.
    ///
    /// # Errors
    /// Where its payload makes an event that is too large.
    pub fn new(workload: Workload) -> Result<Self, EventError> {
        let id = workload.id(0);
        let data = vec![0; workload.config().payload_size_bytes];
        let key = workload.key_bytes(0);
        let text = std::str::from_utf8(&id).unwrap_or("-");
        let mut spec = EventSpec::new(Due::At(WallMs(0)), text, &data);
        if workload.config().keys > 0 {
            spec.ordering_key = &key;
        }
        let mut bytes = Vec::new();
        spec.encode(&mut bytes)?;
        let (view, _) = EventView::parse(&bytes)?;
        let place = |part: &[u8]| part.as_ptr() as usize - bytes.as_ptr() as usize;
        let (id_at, data_at) = (place(view.id()), view.as_bytes().len() - data.len());
        let key_at = if spec.ordering_key.is_empty() { 0 } else { place(view.ordering_key()) };
        assert!(id_at >= HEADER_SIZE_BYTES && view.id().len() == ID_SIZE_BYTES);
        Ok(EventTemplate { workload, bytes, id_at, key_at, data_at })
    }

    /// Bytes of every event, padding included.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Event `n`, due at `due`, padded to a multiple of 8.
    pub fn event(&mut self, n: u64, due: WallMs) -> &[u8] {
        let event = &mut self.bytes[..];
        event[8..16].copy_from_slice(&due.0.to_le_bytes());
        event[self.id_at..self.id_at + ID_SIZE_BYTES].copy_from_slice(&self.workload.id(n));
        if let Some(key) = self.workload.key(n) {
            event[self.key_at..self.key_at + KEY_SIZE_BYTES].copy_from_slice(&self.workload.key_bytes(key));
        }
        let data_end = self.data_at + self.workload.config().payload_size_bytes;
        self.workload.fill_data(n, &mut event[self.data_at..data_end]);
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::WorkloadConfig;

    #[test]
    fn a_patched_template_is_byte_for_byte_the_event_that_the_protocol_encodes() {
        for (keys, payload_size_bytes) in [(0, 128), (5, 128), (5, 0), (0, 3)] {
            let workload = Workload::new(WorkloadConfig { keys, payload_size_bytes, ..Default::default() });
            let mut template = EventTemplate::new(workload).expect("small enough");
            let mut patched = Vec::new();
            let mut encoded = Vec::new();
            for n in [0, 1, 77, 0xff_ffff_ffff] {
                let due = WallMs(1_795_000_000_000 + n);
                patched.extend_from_slice(template.event(n, due));
                let (id, key) = (workload.id(n), workload.key(n).map(|key| workload.key_bytes(key)));
                let mut data = vec![0; payload_size_bytes];
                workload.fill_data(n, &mut data);
                let text = std::str::from_utf8(&id).expect("ids are text");
                let spec = EventSpec {
                    ordering_key: key.as_ref().map_or(&[], |key| &key[..]),
                    ..EventSpec::new(Due::At(due), text, &data)
                };
                spec.encode(&mut encoded).expect("encodes");
            }
            assert_eq!(patched, encoded);
        }
    }

    #[test]
    fn a_plain_128_byte_event_takes_160_bytes() {
        let template = EventTemplate::new(Workload::new(WorkloadConfig::default())).expect("small enough");
        assert_eq!(template.size_bytes(), 160);
    }
}
