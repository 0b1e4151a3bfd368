use escapement_protocol::frame::{Frame, FrameDecoder, FrameWriter, Hello};

use super::*;

/// What a core of three shards, whose epochs are these, answers to `Hello`.
fn welcomed_to(epochs: [Option<Epoch>; 3]) -> Epoch {
    let config = CoreConfig {
        core: 0,
        core_count: 1,
        shard_count: 3,
        epochs: epochs.to_vec(),
        node_id: 1,
        commit: CommitPolicy::default(),
        intake_size_bytes_max: 1 << 20,
        credit_max: Credit::default(),
    };
    let mut core: Core<u32> = Core::new(config, vec![None, None, None]);
    let mut hello = Vec::new();
    FrameWriter::new().write(&Frame::Hello(Hello { version: 1, client: "test" }), &mut hello).unwrap();
    core.opened(0);
    core.bytes(Now::default(), 0, &hello).unwrap();
    let mut epoch = None;
    core.flush_replies(|_, bytes| {
        let welcome = |frame: Frame<'_>| {
            let Frame::Welcome(welcome) = frame else { panic!("{frame:?}") };
            epoch = Some(welcome.epoch);
            Ok(())
        };
        FrameDecoder::new().feed(&bytes, welcome).unwrap();
    });
    epoch.expect("a welcome")
}

#[test]
fn the_nodes_epoch_is_the_highest_of_the_shards_that_serve() {
    assert_eq!(welcomed_to([Some(Epoch(2)), Some(Epoch(9)), Some(Epoch(4))]), Epoch(9));
    assert_eq!(welcomed_to([None, Some(Epoch(3)), None]), Epoch(3));
}
