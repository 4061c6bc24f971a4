use std::ffi::OsString;
use std::path::Path;

use clap::{CommandFactory, Parser};

use super::*;
use crate::access::{Account, Role};

/// What this file, these variables and these flags make.
fn load(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> Result<Loaded, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, file).unwrap();
    let config = ["vfu-agent", "--config", path.to_str().unwrap()];
    let args = Args::try_parse_from(config.iter().chain(flags)).unwrap();
    let variables = variables.iter().copied();
    let variables = variables.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let loaded = Sources::with_variables(args, variables).load();
    loaded.map_err(|Error(problems)| {
        let dir = format!("{}/", dir.path().display());
        let texts = problems.iter().map(|it| it.to_string().replace(&dir, ""));
        texts.collect()
    })
}

fn config(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> Config {
    load(file, variables, flags).unwrap().config
}

fn errors(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> Vec<String> {
    load(file, variables, flags).unwrap_err()
}

/// A configuration in which nothing is left out.
fn full() -> Config {
    Config {
        device_program: Some("/usr/bin/vfu-device".into()),
        models_dirs: vec!["/srv/models".into()],
        api: Api {
            listen: Some("unix:///run/api.sock".parse().unwrap()),
            mode: Mode(0o600),
            group: Some("0".to_owned()),
            tcp: Tcp {
                address: Some("[::1]:7717".parse().unwrap()),
                certificate: Some("/etc/vfu/tls.crt".into()),
                key: Some("/etc/vfu/tls.key".into()),
                client_ca: Some("/etc/vfu/ca.crt".into()),
            },
        },
        access: vec![Rule {
            role: Role::Admin,
            uid: Some(Account::Number(7)),
            gid: None,
            certificate: None,
        }],
        audit: Audit {
            path: Some("/var/log/vfu/audit.log".into()),
            max_bytes: 1 << 20,
        },
        limits: Limits {
            starting: Some(8),
            ..Limits::default()
        },
        cgroup: Cgroup {
            path: CgroupPath::At("/sys/fs/cgroup/vfu.slice".into()),
        },
        ..Config::default()
    }
}

#[test]
fn flags_are_sound() {
    Args::command().debug_assert();
}

#[test]
fn what_is_written_is_read() {
    for config in [Config::default(), full()] {
        let text = toml::to_string(&config).unwrap();
        assert_eq!(load(&text, &[], &[]).unwrap().config, config, "{text}");
    }
}

#[test]
fn all_keys_have_a_name_by_which_to_set_them() {
    fn names(prefix: &str, value: &toml::Value, all: &mut Vec<String>) {
        match value {
            toml::Value::Table(table) => {
                for (name, value) in table {
                    names(&format!("{prefix}.{name}"), value, all);
                }
            }
            _ => all.push(prefix[1..].to_owned()),
        }
    }
    let mut written = Vec::new();
    names("", &toml::Value::try_from(full()).unwrap(), &mut written);
    written.sort();
    let mut known: Vec<_> = keys::ALL.iter().map(|(key, _)| (*key).to_owned()).collect();
    known.sort();
    assert_eq!(known, written);
}

#[test]
fn the_later_layer_wins() {
    let file = "run_dir = '/file'\nstate_dir = '/file'\n[limits]\ndevices = 1\nwatches = 1";
    let nothing = config("", &[], &[]);
    assert_eq!(nothing, Config::default());
    let all = config(
        file,
        &[("VFU_STATE_DIR", "/variable"), ("VFU_LIMITS_DEVICES", "2")],
        &["--set", "limits.devices=3"],
    );
    assert_eq!(all.run_dir, Path::new("/file"));
    assert_eq!(all.state_dir, Path::new("/variable"));
    assert_eq!((all.limits.devices, all.limits.watches), (3, 1));
    let flag = config(
        file,
        &[("VFU_RUN_DIR", "/variable")],
        &["--run-dir", "/flag"],
    );
    assert_eq!(flag.run_dir, Path::new("/flag"));
}

#[test]
fn variables_and_flags_may_be_of_any_type() {
    let file = "[api]\ngroup = 'root'";
    let variables = [
        ("VFU_API_GROUP", "100"),
        ("VFU_API_MODE", "0600"),
        ("VFU_TIMEOUTS_START", "2s"),
        ("VFU_ACCESS", "[{ role = 'viewer', gid = 5 }]"),
        ("VFU_API_TCP_ADDRESS", "127.0.0.1:1"),
    ];
    let tcp = ["certificate=/c", "key=/k", "client_ca=/a"].map(|it| format!("api.tcp.{it}"));
    let flags: Vec<_> = tcp.iter().flat_map(|it| ["--set", it]).collect();
    let config = config(file, &variables, &flags);
    assert_eq!(config.api.group.as_deref(), Some("100"));
    assert_eq!(config.api.mode, Mode(0o600));
    assert_eq!(config.timeouts.start.as_secs(), 2);
    assert_eq!(config.access[0].gid, Some(Account::Number(5)));
    assert_eq!(config.api.tcp.address.unwrap().port(), 1);
    assert_eq!(config.api.tcp.key.as_deref(), Some(Path::new("/k")));
}

#[test]
fn the_socket_is_in_the_run_directory_unless_named() {
    let listen = |flags: &[&str]| config("", &[], flags).listen();
    assert_eq!(listen(&["--run-dir", "/r"]), Path::new("/r/agent.sock"));
    assert_eq!(
        listen(&["--listen", "unix:///x.sock"]),
        Path::new("/x.sock")
    );
    let variable = [("VFU_LISTEN", "unix:///y.sock")];
    assert_eq!(config("", &variable, &[]).listen(), Path::new("/y.sock"));
    for bad in ["unix://x.sock", "tcp://0.0.0.0:1"] {
        let errors = errors("", &[], &["--listen", bad]);
        assert!(
            errors[0].starts_with("--listen: api.listen: "),
            "{errors:?}"
        );
        assert!(
            errors[0].contains("unix:///run/vfu/agent.sock"),
            "{errors:?}"
        );
    }
}

#[test]
fn everything_that_is_wrong_is_told_with_its_place() {
    let file = "\
log = 'info'
[limits]
devces = 1
watches = 'many'
devices = 0
[timeouts]
stop = 5
[[access]]
role = 'king'
uid = 0
[apj]
[api.tpc]
";
    let variables = [("VFU_LIMITS_STARTING", "0")];
    let found = errors(file, &variables, &["--set", "x=1", "--set", "y"]);
    for (place, words) in [
        (
            "agent.toml:3:1: limits.devces: ",
            "did you mean limits.devices?",
        ),
        (
            "agent.toml:4:1: limits.watches: ",
            "expected u32; the default is 256",
        ),
        (
            "agent.toml:5:1: limits.devices: ",
            "0 is not from 1 to 65536",
        ),
        ("agent.toml:7:1: timeouts.stop: ", "as in \"10s\""),
        (
            "agent.toml:8:3: access[0].role: ",
            "`viewer`, `operator`, `admin`",
        ),
        ("agent.toml:11:2: apj: ", "did you mean api?"),
        (
            "agent.toml:12:6: api.tpc: ",
            "did you mean api.tcp? (in [api]: listen, mode, group, tcp)",
        ),
        ("VFU_LIMITS_STARTING: limits.starting: ", "0 is not from 1"),
        ("--set x=1: x: ", "there is no such key"),
        ("--set y: ", "expected KEY=VALUE"),
    ] {
        let told = found
            .iter()
            .any(|it| it.starts_with(place) && it.contains(words));
        assert!(told, "{place}{words} in {found:#?}");
    }
    assert_eq!(found.len(), 10, "{found:#?}");
}

#[test]
fn a_file_that_is_no_toml_is_told_with_its_place() {
    let found = errors("[limits]\ndevices = = 1\n", &[], &[]);
    assert!(found[0].starts_with("agent.toml:2:11: "), "{found:?}");
}

#[test]
fn what_does_not_go_together_is_refused() {
    let long = format!("/{}", "x".repeat(90));
    let found = errors("", &[], &["--run-dir", &long]);
    assert!(found[0].starts_with("--run-dir: run_dir: "), "{found:?}");
    assert!(found[0].contains("107"), "{found:?}");
    let found = errors("[api.tcp]\naddress = '127.0.0.1:1'\nkey = '/k'", &[], &[]);
    assert_eq!(found.len(), 2, "{found:?}");
    let found = errors("[[access]]\nrole = 'admin'\nuid = 1\ngid = 1", &[], &[]);
    assert!(found[0].contains("has 2 of uid, gid"), "{found:?}");
    let found = errors("log = 'x=loud'", &[], &[]);
    assert!(found[0].starts_with("agent.toml:1:1: log: "), "{found:?}");
}

#[test]
fn a_named_file_must_be_there_and_be_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, why) in [
        (dir.path().join("none"), "No such file"),
        (dir.path().to_owned(), "not a file"),
        (pipe, "not a file"),
        ("/dev/zero".into(), "not a file"),
    ] {
        let variables = [("VFU_CONFIG".into(), path.clone().into_os_string())];
        let sources = Sources::with_variables(Args::parse_from(["vfu-agent"]), variables);
        let error = sources.load().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_variable_that_is_nobodys_is_told_of() {
    let variables = [("VFU_LIMIT_DEVICES", "1"), ("VFU_SEED", "1"), ("HOME", "/")];
    let warnings = load("", &variables, &[]).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("did you mean VFU_LIMITS_DEVICES?"));
}

/// The file that is shipped.
const EXAMPLE: &str = include_str!("../../../deploy/agent.toml");

#[test]
fn the_example_changes_nothing() {
    assert_eq!(config(EXAMPLE, &[], &[]), Config::default());
}

#[test]
fn the_example_has_every_key_and_the_defaults_are_true() {
    // A comment that looks like a key or a section is one.
    let is_key = |line: &str| {
        let name = line.split(" = ").next().unwrap_or_default();
        line.starts_with('[') || (line.contains(" = ") && !name.contains(' '))
    };
    let lines = EXAMPLE.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if is_key(rest) => rest,
        Some(_) => "",
        None => line,
    });
    let text = lines
        .collect::<Vec<_>>()
        .join("\n")
        .replace("\"vfu\"", "\"root\"");
    let all: toml::Value = toml::from_str(&text).unwrap();
    for (key, _) in keys::ALL {
        assert!(load::get(&all, key).is_some(), "{key} is missing");
    }
    config(&text, &[], &[]);
    let default = toml::Value::try_from(Config::default()).unwrap();
    for (key, _) in keys::ALL.iter().filter(|(key, _)| *key != "access") {
        if let Some(default) = load::get(&default, key) {
            assert_eq!(load::get(&all, key), Some(default), "{key}");
        }
    }
}
