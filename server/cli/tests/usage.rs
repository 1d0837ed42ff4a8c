//! The command's help, and its answers to wrong arguments.

use driftless_test_support::{Driftless, Process, files, run};
use rustix::process::Signal;

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

#[track_caller]
fn refused(arguments: &[&str]) -> String {
    let finished = run(DRIFTLESS.command().args(arguments));
    assert_eq!(finished.status.code(), Some(2), "{finished:?}");
    assert_eq!(finished.stdout, "");
    assert!(!finished.stderr.contains("panicked"), "{finished:?}");
    finished.stderr
}

#[test]
fn help_shows_how_to_begin() {
    for (arguments, phrases) in [
        (
            &["--help"][..],
            &["serve", "dev", "watch", "get", "Exit status:", "--log"][..],
        ),
        (&["-h"], &["Start with: driftless dev"]),
        (
            &["serve", "--help"],
            &[
                "--etcd <URL>...",
                "--prefix <PREFIX>...",
                "[default: 127.0.0.1:7400]",
                "[default: 127.0.0.1:7401]",
                "/healthz, /readyz and /metrics",
                "DRIFTLESS_LOG_BYTES",
                "Examples:",
                "--config <FILE>",
            ],
        ),
        (
            &["dev", "--help"],
            &["--data-dir <DIR>", "[default: /config/]", "Examples:"],
        ),
        (
            &["watch", "--help"],
            &[
                "driftless watch [OPTIONS] <KEY>",
                "[default: http://127.0.0.1:7400]",
                r#"{"type":"synced","revision":9,"keys":1}"#,
                "key_base64",
                "NO_COLOR",
            ],
        ),
        (
            &["get", "--help"],
            &["--timeout <TIME>", "[default: 10s]", "--print-value-only"],
        ),
    ] {
        let finished = run(DRIFTLESS.command().args(arguments));
        assert!(finished.status.success(), "{finished:?}");
        for phrase in phrases {
            assert!(
                finished.stdout.contains(phrase),
                "{arguments:?} does not say {phrase:?}:\n{}",
                finished.stdout
            );
        }
        assert!(!finished.stdout.contains("__with-parent"));
    }
    let version = run(DRIFTLESS.command().arg("--version"));
    assert_eq!(
        version.stdout,
        format!("driftless {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn misspelt_names_get_the_nearest_name() {
    assert!(refused(&["serv"]).contains("did you mean serve?"));
    assert!(refused(&["serve", "--lisen", "x"]).contains("did you mean --listen?"));
    assert!(refused(&["watch", "--perfix", "/a"]).contains("did you mean --prefix?"));
    assert!(refused(&["get", "/a", "--timeuot", "1s"]).contains("did you mean --timeout?"));
    assert!(refused(&["watch", "/a", "--color", "alway"]).contains("did you mean always?"));
}

#[test]
fn wrong_flags_name_the_flag_and_what_to_do() {
    let serve = |flags: &[&str]| refused(&[&["serve"], flags].concat());
    let etcd = ["--etcd", "http://127.0.0.1:2379"];
    let both = |flags: &[&str]| serve(&[&etcd, &["--prefix", "/a/"], flags].concat());
    for (message, expected) in [
        (
            serve(&["--prefix", "/a/"]),
            "no etcd to watch: give --etcd, set DRIFTLESS_ETCD",
        ),
        (serve(&etcd), "no prefix to serve: give --prefix"),
        (
            serve(&["--prefix", "/a/", "--etcd", "127.0.0.1:2379"]),
            "--etcd: \"127.0.0.1:2379\" does not start with http://; write it like http://127.0.0.1:2379",
        ),
        (
            both(&["--prefix", "/b/", "--prefix", "/a/"]),
            "--prefix: the prefix /a/ is listed twice",
        ),
        (
            both(&["--prefix", "/a/b/"]),
            "--prefix: the prefix /a/b/ lies inside /a/",
        ),
        (both(&["--prefix", ""]), "--prefix: the prefix is empty"),
        (
            both(&["--listen", "localhost"]),
            "--listen: \"localhost\" is not an address; write an IP address and a port",
        ),
        (both(&["--listen", "127.0.0.1:70000"]), "is not an address"),
        (
            both(&["--admin", "127.0.0.1:7400"]),
            "--admin: 127.0.0.1:7400 is the address of gRPC",
        ),
        (
            both(&["--drain-timeout", "8"]),
            "--drain-timeout: \"8\" is not a duration",
        ),
        (
            both(&["--log-bytes", "1KiB"]),
            "--log-bytes: 1KiB is below the minimum of 1MiB",
        ),
        (
            both(&["--config", "/nowhere/driftless.toml"]),
            "cannot read the settings file /nowhere/driftless.toml",
        ),
        (
            both(&["--log", "loud=very"]),
            "--log: \"loud=very\" is not a log filter",
        ),
        (
            refused(&["dev", "--prefix", "/a/", "/a/b/"]),
            "the prefix /a/b/ lies inside /a/",
        ),
    ] {
        assert!(message.starts_with("driftless: "), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.contains(expected), "{expected}\n{message}");
    }
}

#[test]
fn wrong_settings_name_their_file_or_variable() {
    let (_dir, path) = files::file(
        "driftless.toml",
        "etcd = 'http://127.0.0.1:2379'\n\nprefixs = ['/a/']\n",
    );
    let path = path.to_str().expect("it is UTF-8");
    let message = refused(&["serve", "--config", path]);
    let expected = format!(
        "driftless: {path}, line 3: unknown setting \"prefixs\"; did you mean \"prefix\"?\n"
    );
    assert_eq!(message, expected);

    let finished = run(DRIFTLESS
        .command()
        .arg("serve")
        .env("DRIFTLESS_PREFFIX", "/a/"));
    assert_eq!(finished.status.code(), Some(2));
    assert!(
        finished
            .stderr
            .contains("unknown setting \"DRIFTLESS_PREFFIX\"; did you mean \"DRIFTLESS_PREFIX\"?"),
        "{finished:?}"
    );
}

#[test]
fn flags_override_environment_overrides_file() {
    let (_dir, path) = files::file(
        "driftless.toml",
        "etcd = 'http://127.0.0.1:1'\nprefix = ['/file/']\nlisten = '127.0.0.1:0'\nadmin = 'off'\n",
    );
    let announced = |command: &mut std::process::Command| {
        let mut process = Process::spawn(command);
        let line = process.line();
        // Before etcd was ever reached.
        process.signal(Signal::TERM);
        assert!(process.wait().success());
        line
    };
    let with_file = || {
        let mut command = DRIFTLESS.command();
        command.arg("serve").env("DRIFTLESS_CONFIG", &path);
        command
    };
    let line = announced(&mut with_file());
    assert!(
        line.starts_with("serving /file/ on http://127.0.0.1:"),
        "{line}"
    );
    assert!(!line.contains("admin"), "{line}");

    let with_variables = || {
        let mut command = with_file();
        command
            .env("DRIFTLESS_PREFIX", "/env/a/,/env/b/")
            .env("DRIFTLESS_ADMIN", "127.0.0.1:0");
        command
    };
    let line = announced(&mut with_variables());
    assert!(line.starts_with("serving /env/a/, /env/b/ on"), "{line}");
    assert!(line.contains(", admin on http://127.0.0.1:"), "{line}");

    let line = announced(with_variables().args(["--prefix", "/flag/", "--admin", "off"]));
    assert!(line.starts_with("serving /flag/ on"), "{line}");
    assert!(!line.contains("admin"), "{line}");
}

#[test]
fn used_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flags in [
        ["--listen", &address, "--admin", "off"],
        ["--admin", &address, "--listen", "127.0.0.1:0"],
    ] {
        let finished = run(DRIFTLESS
            .command()
            .args(["serve", "--etcd", "http://127.0.0.1:1", "--prefix", "/a/"])
            .args(flags));
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert!(finished.stderr.contains(&address), "{finished:?}");
        assert!(finished.stderr.contains("in use"), "{finished:?}");
    }
}

#[test]
fn wrong_targets_fail_before_dialling() {
    for command in ["watch", "get"] {
        assert!(refused(&[command, ""]).contains("the key is empty"));
        assert!(refused(&[command, "--prefix", ""]).contains("the prefix is empty"));
        assert!(
            refused(&[command, &"k".repeat(4097)])
                .contains("the key is 4097 bytes long; at most 4096 are allowed")
        );
        assert!(refused(&[command, "/a", "--server", "nonsense"]).contains("nonsense"));
        assert!(refused(&[command]).contains("<KEY>"));
    }
    assert!(refused(&["get", "/a", "--timeout", "5"]).contains("is not a duration"));
}
