//! What an operator is told of segment files that cannot be created.

use escapement_protocol::ShardId;
use escapement_wal::{DiskCompletion, DiskOp, FileId, OpId};

/// Says once for each shard that it cannot create a segment file, and once that it can again, however often it tries
/// in between.
#[derive(Debug, Default)]
pub(crate) struct DiskNotice {
    creating: Vec<(ShardId, OpId, FileId)>,
    refused: Vec<ShardId>,
}

impl DiskNotice {
    /// An operation is about to be submitted.
    pub(crate) fn submitted(&mut self, shard: ShardId, op: &DiskOp) {
        if let DiskOp::Create { id, file, .. } = op {
            self.creating.push((shard, *id, *file));
        }
    }

    /// The line that the end of an operation is worth.
    pub(crate) fn completed(&mut self, shard: ShardId, completion: &DiskCompletion) -> Option<String> {
        let at = self.creating.iter().position(|(of, id, _)| (*of, *id) == (shard, completion.id))?;
        let (_, _, file) = self.creating.swap_remove(at);
        let told = self.refused.iter().position(|refused| *refused == shard);
        match (&completion.result, told) {
            (Err(error), None) => {
                self.refused.push(shard);
                Some(format!(
                    "shard {} cannot create {file}: {error}. It tries on; what is published may be refused meanwhile: \
                     free space on the disk of the data directory",
                    shard.0
                ))
            }
            (Ok(()), Some(told)) => {
                self.refused.swap_remove(told);
                Some(format!("shard {} can create segment files again", shard.0))
            }
            (Err(_), Some(_)) | (Ok(()), None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind, Result};

    use super::*;

    #[test]
    fn each_shard_tells_its_first_refusal_and_the_end_of_it() {
        let mut notice = DiskNotice::default();
        let mut id = 0;
        let mut create = |shard, result: Result<()>| {
            id += 1;
            let op = DiskOp::Create { id: OpId(id), file: FileId::Slot(7), size_bytes: 4096 };
            notice.submitted(ShardId(shard), &op);
            notice.completed(ShardId(shard), &DiskCompletion { id: OpId(id), result, buf: None })
        };
        let full = || Err(Error::from(ErrorKind::StorageFull));
        assert_eq!(create(0, Ok(())), None);
        let told = create(0, full()).unwrap();
        assert!(told.starts_with("shard 0 cannot create wal/0007.seg: "), "{told}");
        assert_eq!(create(0, full()), None);
        assert!(create(1, full()).is_some(), "another shard's is another matter");
        assert_eq!(create(0, Ok(())).unwrap(), "shard 0 can create segment files again");
        assert!(create(0, full()).is_some());
    }
}
