use std::os::unix::fs::PermissionsExt;

use super::*;

fn config(path: &Path) -> NodeConfig {
    NodeConfig { data: path.to_owned(), allow_tmpfs: true, ..NodeConfig::tiny() }
}

fn refusal(config: &NodeConfig) -> String {
    DataDir::open_or_format(config).unwrap_err().to_string()
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_new_directory_is_formatted_and_found_again() {
    let root = tempfile::tempdir().unwrap();
    let config = config(&root.path().join("a/b"));
    let first = DataDir::open_or_format(&config).unwrap();
    assert!(first.is_new());
    assert_eq!(names(first.path()), ["IDENTITY", "KEYS", "LOCK", "shard-0000", "shard-0001"]);
    let keys = fs::metadata(first.path().join("KEYS")).unwrap().permissions().mode() & 0o777;
    assert_eq!(keys, 0o600);
    let (node, reset, token) = (first.node_id(), *first.reset_secret(), *first.token_secret());
    assert_ne!(reset, token);
    drop(first);
    let again = DataDir::open_or_format(&config).unwrap();
    assert!(!again.is_new());
    assert_eq!((again.node_id(), *again.reset_secret(), *again.token_secret()), (node, reset, token));
    let mut dir = escapement_wal::FsDirectory::new(again.shard_dir(ShardId(1)));
    let wal = escapement_wal::WalConfig::default();
    escapement_wal::open(&mut dir, again.log_identity(ShardId(1)), &wal, &mut |_| {}).unwrap();
}

#[test]
fn a_second_node_is_refused_by_the_first_ones_process_id() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    let first = DataDir::open_or_format(&config).unwrap();
    let pid = std::process::id();
    let refused = DataDir::open_or_format(&config).unwrap_err();
    assert!(matches!(refused, DataDirError::Locked { pid: Some(found), .. } if found == pid), "{refused}");
    drop(first);
    DataDir::open_or_format(&config).unwrap();
}

#[test]
fn a_directory_of_something_else_is_refused_and_left_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("thesis.odt"), "years of work").unwrap();
    let refused = refusal(&config(root.path()));
    assert!(refused.contains("thesis.odt"), "{refused}");
    assert_eq!(names(root.path()), ["thesis.odt"]);
}

#[test]
fn the_root_of_a_fresh_file_system_counts_as_empty() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("lost+found")).unwrap();
    assert!(DataDir::open_or_format(&config(root.path())).unwrap().is_new());
}

#[test]
fn shards_without_an_identity_are_never_formatted_over() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    drop(DataDir::open_or_format(&config).unwrap());
    fs::remove_file(root.path().join("IDENTITY")).unwrap();
    let before = names(root.path());
    assert!(matches!(DataDir::open_or_format(&config), Err(DataDirError::NoIdentity { .. })));
    assert_eq!(names(root.path()), before);
}

#[test]
fn formatting_that_a_crash_cut_short_begins_anew() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    // What each step of formatting may leave behind, the file's content possibly lost.
    fs::write(path.join("IDENTITY.new"), "").unwrap();
    let config = config(path);
    drop(DataDir::open_or_format(&config).unwrap());
    fs::rename(path.join("IDENTITY"), path.join("IDENTITY.new")).unwrap();
    fs::remove_dir_all(path.join("shard-0001")).unwrap();
    fs::remove_file(path.join("shard-0000/SUPER")).unwrap();
    assert!(DataDir::open_or_format(&config).unwrap().is_new());
    assert_eq!(names(path), ["IDENTITY", "KEYS", "LOCK", "shard-0000", "shard-0001"]);
    assert!(path.join("shard-0000/SUPER").exists());
}

#[test]
fn a_log_that_was_in_use_is_never_formatted_over_whatever_is_left_of_it() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    let config = config(path);
    let data = DataDir::open_or_format(&config).unwrap();
    let mut dir = escapement_wal::FsDirectory::new(data.shard_dir(ShardId(1)));
    let wal = escapement_wal::WalConfig::default();
    escapement_wal::open(&mut dir, data.log_identity(ShardId(1)), &wal, &mut |_| {}).unwrap();
    drop(data);
    fs::rename(path.join("IDENTITY"), path.join("IDENTITY.new")).unwrap();
    let refused = || {
        let refused = DataDir::open_or_format(&config).unwrap_err();
        assert!(matches!(&refused, DataDirError::InUse { shard, .. } if shard == "shard-0001"), "{refused}");
    };
    refused();
    fs::write(path.join("shard-0001/SUPER"), "damaged").unwrap();
    refused();
    fs::remove_file(path.join("shard-0001/SUPER")).unwrap();
    refused();
    fs::remove_dir_all(path.join("shard-0001/wal")).unwrap();
    assert!(DataDir::open_or_format(&config).unwrap().is_new(), "nothing is left that was in use");
}

#[test]
fn a_directory_keeps_its_number_of_shards() {
    let root = tempfile::tempdir().unwrap();
    let two = config(root.path());
    drop(DataDir::open_or_format(&two).unwrap());
    let refused = refusal(&NodeConfig { shards: Some(3), ..two.clone() });
    assert!(refused.contains("formatted with 2 shards") && refused.contains("--shards 2"), "{refused}");
    let unsaid = NodeConfig { shards: None, ..two };
    assert_eq!(DataDir::open_or_format(&unsaid).unwrap().shard_count(), 2);
}

#[test]
fn the_logs_limit_is_divided_over_the_shards_that_there_are() {
    let root = tempfile::tempdir().unwrap();
    let one = NodeConfig { shards: Some(1), log_size_bytes_max: 2 << 20, ..config(root.path()) };
    drop(DataDir::open_or_format(&one).unwrap());
    // Neither the CPUs of this machine nor the size of new segments matter to a directory that has its own.
    let unsaid = NodeConfig { shards: None, cores: None, segment_size_bytes: 64 << 20, ..one };
    unsaid.validate().unwrap();
    drop(DataDir::open_or_format(&unsaid).unwrap());

    let root = tempfile::tempdir().unwrap();
    let many = NodeConfig {
        shards: Some(16),
        memory_bytes: None,
        log_size_bytes_max: 32 << 20,
        ..config(root.path())
    };
    drop(DataDir::open_or_format(&many).unwrap());
    let short = NodeConfig { shards: None, cores: None, log_size_bytes_max: 31 << 20, ..many };
    short.validate().unwrap();
    let refused = refusal(&short);
    assert!(refused.contains("16 shards") && refused.contains("set log_size_max to 32MiB"), "{refused}");
}

#[test]
fn a_new_directory_with_too_little_for_each_shard_is_not_formatted() {
    let root = tempfile::tempdir().unwrap();
    let config = NodeConfig { log_size_bytes_max: 2 << 20, ..config(root.path()) };
    config.validate().unwrap();
    assert!(matches!(DataDir::open_or_format(&config), Err(DataDirError::Shares(_))));
    assert_eq!(names(root.path()), ["LOCK"]);
}

#[test]
fn what_was_lost_or_damaged_is_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    let config = config(path);
    drop(DataDir::open_or_format(&config).unwrap());
    let identity = fs::read_to_string(path.join("IDENTITY")).unwrap();
    for (text, says) in [
        (identity.replace("format 1", "format 2"), "start the newer program"),
        (identity.replace("format 1", "format 0"), "convert it"),
        (identity.replace("shard_count 2", "shard_count 1"), "checksum does not hold"),
        (String::new(), "first line"),
    ] {
        fs::write(path.join("IDENTITY"), text).unwrap();
        let refused = refusal(&config);
        assert!(refused.contains(says), "{refused}");
    }
    fs::write(path.join("IDENTITY"), identity).unwrap();
    fs::rename(path.join("shard-0001"), path.join("elsewhere")).unwrap();
    assert!(matches!(DataDir::open_or_format(&config), Err(DataDirError::ShardMissing { .. })));
    fs::rename(path.join("elsewhere"), path.join("shard-0001")).unwrap();
    fs::remove_file(path.join("KEYS")).unwrap();
    let refused = refusal(&config);
    assert!(refused.contains("KEYS"), "{refused}");
}

#[test]
fn a_directory_in_memory_is_refused_unless_it_is_asked_for() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let config = NodeConfig { allow_tmpfs: false, ..config(root.path()) };
    let refused = refusal(&config);
    assert!(refused.contains("--allow-tmpfs"), "{refused}");
    let new = NodeConfig { data: root.path().join("a/b"), ..config.clone() };
    assert!(matches!(DataDir::open_or_format(&new), Err(DataDirError::InMemory { .. })));
    assert!(names(root.path()).is_empty(), "not even the directory was made");
    DataDir::open_or_format(&NodeConfig { allow_tmpfs: true, ..config }).unwrap();
}

#[test]
fn a_refusal_leaves_what_a_crash_left_of_formatting() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    drop(DataDir::open_or_format(&config).unwrap());
    fs::write(root.path().join("IDENTITY.new"), "").unwrap();
    let before = names(root.path());
    refusal(&NodeConfig { shards: Some(3), ..config.clone() });
    assert_eq!(names(root.path()), before);
    drop(DataDir::open_or_format(&config).unwrap());
    assert!(!root.path().join("IDENTITY.new").exists());
}

#[test]
fn tools_read_the_identity_without_the_lock() {
    let root = tempfile::tempdir().unwrap();
    assert!(matches!(read_identity(root.path()), Err(DataDirError::Missing { .. })));
    let data = DataDir::open_or_format(&config(root.path())).unwrap();
    let identity = read_identity(root.path()).unwrap();
    assert_eq!((identity.node, identity.shard_count), (data.node_id(), 2));
}
