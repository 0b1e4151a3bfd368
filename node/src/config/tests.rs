use super::settings::Lifetime;
use super::*;

fn read(text: &str) -> Result<NodeConfig, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    fs::write(&path, text).unwrap();
    let mut config = NodeConfig { data: "d".into(), ..NodeConfig::default() };
    config.read_file(&path)?;
    config.validate()?;
    Ok(config)
}

#[test]
fn a_file_sets_every_setting() {
    let config = read(
        r#"
        data = "/var/lib/escapement"
        listen = "[::]:5000"
        shards = 8
        cores = "4"
        host = "poll"
        memory = "2GiB"
        horizon = "1h"
        admission = "500k/s"
        mtu = 8952
        segment_size = "16MiB"
        segment_spares = 2
        log_size_max = "1GiB"
        drain_timeout = "1m"
        turn_wait = "100us"
        pin = false
        allow_tmpfs = true
        trust_clock = true
        accept_loss = "00000000deadbeef"
        [tls]
        certificate = "/etc/cert.pem"
        key = "key.pem"
        client_ca = "/etc/ca.pem"
        "#,
    )
    .unwrap();
    let key = config.tls.key.clone().unwrap();
    assert!(key.is_absolute() && key.ends_with("key.pem"), "beside the file: {}", key.display());
    assert_eq!(
        config,
        NodeConfig {
            data: "/var/lib/escapement".into(),
            listen: "[::]:5000".parse().unwrap(),
            shards: Some(8),
            cores: Some(4),
            host: Some(HostKind::Poll),
            memory_bytes: Some(2 << 30),
            horizon_ms: 3_600_000,
            admission_per_s: 500_000,
            mtu: 8952,
            tls: TlsConfig {
                certificate: Some("/etc/cert.pem".into()),
                key: Some(key),
                client_ca: Some("/etc/ca.pem".into()),
            },
            segment_size_bytes: 16 << 20,
            segment_spares: 2,
            log_size_bytes_max: 1 << 30,
            drain_timeout_ms: 60_000,
            turn_wait_us: 100,
            pin: false,
            allow_tmpfs: true,
            trust_clock: true,
            accept_loss: Some(0xdead_beef),
        }
    );
}

#[test]
fn defaults_and_the_tiny_profile_are_valid() {
    for config in [NodeConfig::default(), NodeConfig::tiny()] {
        NodeConfig { data: "d".into(), ..config }.validate().unwrap();
    }
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let default = NodeConfig { data: "d".into(), ..NodeConfig::default() };
    for setting in SETTINGS {
        let mut config = default.clone();
        if config.set(setting, setting.default).is_ok() && !setting.is_path {
            assert_eq!(config, default, "{}", setting.key);
        }
    }
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    let error = read("lisen = '127.0.0.1:1'").unwrap_err().to_string();
    assert!(error.ends_with("there is no setting \"lisen\"; did you mean \"listen\"?"), "{error}");
    let error = read("[tls]\ncertficate = 'x'").unwrap_err().to_string();
    assert!(error.ends_with("did you mean \"tls.certificate\"?"), "{error}");
}

#[test]
fn wrong_values_say_what_would_be_right() {
    for (text, says) in [
        ("segment_size = '64M'", "64MiB"),
        ("segment_size = '100KiB'", "at least 1MiB"),
        ("segment_size = 4100", "multiple of 4KiB"),
        ("memory = '1MiB'", "at least 16MiB"),
        ("mtu = 500", "1200 to 65527"),
        ("shards = 0", "from 1 to 256"),
        ("shards = 257", "from 1 to 256"),
        ("shards = 2\ncores = 4", "lower cores"),
        ("cores = 0", "from 1 to 255"),
        ("shards = 256\ncores = 256", "from 1 to 255"),
        ("cores = -1", "whole number"),
        ("turn_wait = '1ms'", "from 0 to 300"),
        ("drain_timeout = 10", "10s"),
        ("host = 'epoll'", "poll"),
        ("pin = 'yes'", "true or false"),
        ("listen = 'localhost'", "0.0.0.0:4433"),
        ("data = ''", "a path"),
        ("log_size_max = '1MiB'", "at least 2MiB"),
        ("accept_loss = 'yes'", "16 hexadecimal"),
        ("mtu = 1.5", "whole number"),
        ("shards = [1]", "whole number"),
        ("tls.certificate = 'a'", "tls.key is not"),
        ("tls.key = 'a'", "tls.certificate is not"),
        ("tls.client_ca = 'a'", "without tls.certificate"),
        ("shards = ", "is not TOML"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn a_missing_data_directory_and_a_missing_file_are_named() {
    let error = NodeConfig::default().validate().unwrap_err().to_string();
    assert!(error.contains("--data"), "{error}");
    let error = NodeConfig::default().read_file(Path::new("nowhere/node.toml")).unwrap_err().to_string();
    assert!(error.contains("nowhere/node.toml"), "{error}");
}

#[test]
fn each_shards_part_of_the_log_holds_two_segments() {
    let config = NodeConfig { log_size_bytes_max: 1 << 30, ..NodeConfig::default() };
    config.check_shares(8, 64 << 20).unwrap();
    config.check_shares(64, 8 << 20).unwrap();
    let error = config.check_shares(9, 64 << 20).unwrap_err().to_string();
    assert!(error.contains("set log_size_max to 1152MiB"), "{error}");
}

#[test]
fn each_shards_part_of_the_memory_is_enough_for_one() {
    let config = NodeConfig { memory_bytes: Some(64 << 20), ..NodeConfig::default() };
    config.check_shares(4, 1 << 20).unwrap();
    let error = config.check_shares(5, 1 << 20).unwrap_err().to_string();
    assert!(error.contains("set memory to 80MiB"), "{error}");
}

#[test]
fn memory_that_nobody_set_is_enough_for_every_number_of_shards() {
    for shard_count in [1, 2, 64, SHARD_COUNT_MAX] {
        NodeConfig::default().check_shares(shard_count, 1 << 20).unwrap();
    }
}

#[test]
fn spares_stay_within_the_logs_limit() {
    let config = NodeConfig { segment_spares: 4, ..NodeConfig::tiny() };
    assert_eq!(config.segment_spares_of(2), 4);
    assert_eq!(config.segment_spares_of(4), 3);
    assert_eq!(config.segment_spares_of(16), 1);
}

#[test]
fn a_core_owns_at_least_one_shard() {
    let config = NodeConfig { cores: Some(8), ..NodeConfig::default() };
    assert_eq!(config.core_count(2), 2);
    assert_eq!(config.core_count(16), 8);
    assert!(NodeConfig::default().core_count(256) >= 1);
}

#[test]
fn the_reference_has_a_row_for_every_setting_and_no_other() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating/configuration.md");
    let document = fs::read_to_string(path).unwrap();
    let rows: Vec<&str> = document.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> = SETTINGS
        .iter()
        .map(|setting| {
            let lifetime = match setting.lifetime {
                Lifetime::Format => "format",
                Lifetime::Start => "start",
            };
            let Setting { key, help, default, range, .. } = setting;
            format!("| `{key}` | `--{}` | {help} | {default} | {range} | {lifetime} |", setting.flag())
        })
        .collect();
    assert_eq!(rows, expected, "bring the table into line with the settings:\n{}", expected.join("\n"));
}
