//! Layers, messages and bounds of the settings, and what one entry of a table makes.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use driftless_proto::KeyRange;

use super::*;

fn minimal() -> SettingsBuilder {
    Settings::builder()
        .etcd("http://127.0.0.1:2379")
        .prefix("/config/")
}

fn refusal(result: Result<impl fmt::Debug, SettingsError>) -> String {
    result.unwrap_err().to_string()
}

fn file(text: &str) -> (tempfile::NamedTempFile, PathBuf) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let path = file.path().to_owned();
    (file, path)
}

#[test]
fn later_layers_replace_earlier_ones() {
    let (_file, path) = file(
        "etcd = 'http://file:1'\nprefix = ['/a/', '/b/']\nlisten = '127.0.0.1:1'\n\
         log_bytes = 2097152\nping_interval = '7s'\naudit_interval = 'off'\n\
         max_connections = 5\n",
    );
    let settings = minimal()
        .file(&path)
        .unwrap()
        .environment([
            ("DRIFTLESS_ETCD", "http://env:2,http://env:3"),
            ("DRIFTLESS_LISTEN", "127.0.0.1:2"),
            ("DRIFTLESS_PING_INTERVAL", ""),
            ("HOME", "/"),
        ])
        .unwrap()
        .flag(Setting::Listen, ["127.0.0.1:3".to_owned()])
        .unwrap()
        .flag(Setting::MaxConnections, [])
        .unwrap()
        .build()
        .unwrap();
    assert_eq!(settings.etcd(), ["http://env:2", "http://env:3"]);
    assert_eq!(
        settings.prefixes(),
        [
            KeyRange::prefix("/a/").unwrap(),
            KeyRange::prefix("/b/").unwrap()
        ]
    );
    assert_eq!(settings.listen().port(), 3);
    assert_eq!(settings.log_bytes(), 2 * 1024 * 1024);
    assert_eq!(settings.ping_interval(), Duration::from_secs(7));
    assert_eq!(settings.audit_interval(), None);
    assert_eq!(settings.max_connections(), 5);
    assert_eq!(settings.drain_timeout(), Duration::from_secs(8));
}

#[test]
fn unknown_names_get_the_nearest_known_one() {
    let (_file, path) = file("etcd = 'http://e:1'\n\nprefixes = ['/a/']\n");
    assert_eq!(
        refusal(minimal().file(&path)),
        format!(
            "{}, line 3: unknown setting \"prefixes\"; did you mean \"prefix\"?",
            path.display()
        )
    );
    assert_eq!(
        refusal(minimal().environment([("DRIFTLESS_LISTN", "x")])),
        "environment: unknown setting \"DRIFTLESS_LISTN\"; did you mean \"DRIFTLESS_LISTEN\"?"
    );
    assert!(
        refusal(minimal().environment([("DRIFTLESS_COLOUR", "x")]))
            .contains("known settings: DRIFTLESS_ETCD, DRIFTLESS_PREFIX, DRIFTLESS_LISTEN")
    );
    assert!(
        refusal(minimal().environment([("DRIFTLESS_SEVER", "x")]))
            .ends_with("did you mean \"DRIFTLESS_SERVER\"?")
    );
}

#[test]
fn memory_limit_is_off_the_cgroups_or_a_size_above_the_log() {
    let given = |value: &str| minimal().flag(Setting::MemoryLimit, [value.to_owned()]);
    assert_eq!(minimal().build().unwrap().memory_limit(), MemoryLimit::Off);
    for (value, limit) in [
        ("off", MemoryLimit::Off),
        ("cgroup", MemoryLimit::Cgroup),
        ("128MiB", MemoryLimit::Bytes(128 * 1024 * 1024)),
    ] {
        let settings = given(value).unwrap().build().unwrap();
        assert_eq!(settings.memory_limit(), limit, "{value}");
    }
    assert_eq!(
        refusal(given("127MiB").unwrap().build()),
        "--memory-limit: 127MiB is below twice log_bytes, which is 64MiB: the change log alone would \
         keep memory tight; give at least 128MiB, or lower log_bytes"
    );
    let small = given("2MiB").unwrap().log_bytes(1024 * 1024);
    assert_eq!(small.build().unwrap().log_bytes(), 1024 * 1024);
    assert!(given("half").is_err());
}

#[test]
fn foreign_variables_are_ignored() {
    let _ = minimal()
        .environment([
            ("DRIFTLESS_SERVER", "http://x:1"),
            ("DRIFTLESS_LOG", "debug"),
            ("DRIFTLESS_CA", "ca.pem"),
            ("DRIFTLESS_CERT", "c.pem"),
            ("DRIFTLESS_KEY", "k.pem"),
            ("DRIFTLESS_SERVER_NAME", "config.example"),
            ("DRIFTLESS_TOKEN_FILE", "token"),
            ("DRIFTLESS_SERVICE_HOST", "10.0.0.1"),
            ("DRIFTLESS_SERVICE_PORT", "7400"),
            ("DRIFTLESS_SERVICE_PORT_GRPC", "7400"),
            ("DRIFTLESS_PORT", "tcp://10.0.0.1:7400"),
            ("DRIFTLESS_PORT_7400_TCP", "tcp://10.0.0.1:7400"),
            ("DRIFTLESS_PORT_7400_TCP_ADDR", "10.0.0.1"),
            ("DRIFTLESS_EU_SERVICE_HOST", "10.0.0.1"),
        ])
        .unwrap();
}

#[test]
fn unreadable_values_are_named_with_their_place() {
    let flag = |setting, value: &str| refusal(minimal().flag(setting, [value.to_owned()]));
    assert_eq!(
        flag(Setting::Listen, "localhost"),
        "--listen: \"localhost\" is not an address; write an IP address and a port, such as 127.0.0.1:7400 or [::]:7400"
    );
    assert_eq!(
        flag(Setting::PingInterval, "10"),
        "--ping-interval: \"10\" is not a duration; write a whole number and ms, s, m or h, such as 10s"
    );
    assert_eq!(
        flag(Setting::LogBytes, "64MB"),
        "--log-bytes: \"64MB\" is not a number of bytes; write a whole number, alone or with KiB, MiB or GiB, such as 64MiB"
    );
    assert_eq!(
        refusal(minimal().environment([("DRIFTLESS_MAX_CONNECTIONS", "many")])),
        "DRIFTLESS_MAX_CONNECTIONS: \"many\" is not a whole number between 0 and 18446744073709551615"
    );
    let (_file, path) = file("\nlisten = true\n");
    assert_eq!(
        refusal(minimal().file(&path)),
        format!(
            "{}, line 2: listen: expected a string or an integer, found a boolean",
            path.display()
        )
    );
    assert!(
        refusal(minimal().file(Path::new("/nowhere/d.toml")))
            .starts_with("cannot read the settings file /nowhere/d.toml: No such file")
    );
}

#[test]
fn syntax_errors_do_not_quote_the_file() {
    let (_file, path) = file("listen = '127.0.0.1:1'\netcd = CANARY\n");
    let message = refusal(minimal().file(&path));
    assert!(message.contains("line 2: not valid TOML"), "{message}");
    assert!(!message.contains("CANARY"), "{message}");
}

#[test]
fn missing_settings_are_named_in_every_spelling() {
    assert_eq!(
        refusal(Settings::builder().prefix("/a/").build()),
        "no etcd to watch: give --etcd, set DRIFTLESS_ETCD, or write etcd in the settings file"
    );
    assert_eq!(
        refusal(Settings::builder().etcd("http://e:1").build()),
        "no prefix to serve: give --prefix, set DRIFTLESS_PREFIX, or write prefix in the settings file"
    );
}

#[test]
fn prefixes_may_not_overlap() {
    let flags = |prefixes: &[&str]| {
        refusal(
            minimal()
                .flag(Setting::Prefix, prefixes.iter().map(ToString::to_string))
                .unwrap()
                .build(),
        )
    };
    assert_eq!(
        flags(&["/a/", "/b/", "/a/"]),
        "--prefix: the prefix /a/ is listed twice; remove one of them"
    );
    let inside = "--prefix: the prefix /a/b/ lies inside /a/, which already serves its keys; remove one of them";
    assert_eq!(flags(&["/a/", "/a/b/"]), inside);
    assert_eq!(flags(&["/a/b/", "/a/"]), inside);
    assert_eq!(
        flags(&["/a/", ""]),
        "--prefix: the prefix is empty; name at least one byte, such as \"/config/\""
    );
    assert!(flags(&[&"k".repeat(5000)]).contains("5000 bytes long; at most 4096"));
}

#[test]
fn urls_are_checked_without_showing_passwords() {
    for (url, expected) in [
        ("", "the URL is empty"),
        (
            "127.0.0.1:2379",
            "\"127.0.0.1:2379\" does not start with http://; write it like http://127.0.0.1:2379",
        ),
        ("ftp://e:1", "does not start with http://"),
        ("https://e:1", "asks for TLS, which is not supported yet"),
        ("http://e", "has no port"),
        ("http://:2379", "names no host"),
        ("http://e:99999", "has no port between 1 and 65535"),
        ("http://e:1/v3", "has a path or query after the port"),
        ("http://root:CANARY@e:1", "user name or password"),
        ("root:CANARY@e:1", "user name or password"),
        (
            "http://e:1,http://f:1",
            "holds a comma; give several URLs one by one, each like http://127.0.0.1:2379",
        ),
    ] {
        let message = refusal(Settings::builder().etcd(url).prefix("/a/").build());
        assert!(message.contains(expected), "{url}: {message}");
        assert!(!message.contains("CANARY"), "{message}");
    }
    for url in ["http://e:1", "http://e:1/", "http://[::1]:2379"] {
        Settings::builder().etcd(url).prefix("/a/").build().unwrap();
    }
}

#[test]
fn values_out_of_bounds_are_refused_with_the_reason() {
    for (builder, expected) in [
        (
            minimal().log_bytes(1024),
            "log_bytes: 1KiB is below the minimum of 1MiB: a smaller log cannot hold",
        ),
        (
            minimal().progress_interval(Duration::ZERO),
            "progress_interval: 0s is below the minimum of 100ms: a shorter",
        ),
        (
            minimal().drain_timeout(Duration::from_secs(61)),
            "drain_timeout: 61s is above the maximum of 1m: service managers",
        ),
        (
            minimal().audit_interval(Some(Duration::from_millis(99))),
            "audit_interval: 99ms is below the minimum of 100ms: ",
        ),
        (
            minimal().stall_timeout(Duration::from_millis(999)),
            "stall_timeout: 999ms is below the minimum of 1s: ",
        ),
        (
            minimal().max_connections(0),
            "max_connections: 0 is below the minimum of 1: the server would",
        ),
        (minimal().generation("g".repeat(65)), "generation: it is 65"),
        (
            minimal().admin(DEFAULT_LISTEN),
            "admin: 127.0.0.1:7400 is the address of gRPC",
        ),
    ] {
        let message = refusal(builder.build());
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn tls_needs_a_certificate_and_its_key() {
    assert_eq!(minimal().build().unwrap().tls(), None);
    let settings = minimal()
        .tls_cert("c.pem")
        .tls_key("k.pem")
        .build()
        .unwrap();
    let files = settings.tls().unwrap();
    assert_eq!(
        (files.cert(), files.key()),
        ("c.pem".as_ref(), "k.pem".as_ref())
    );
    assert_eq!(files.client_ca(), None);
    for (builder, expected) in [
        (
            minimal().tls_cert("c.pem"),
            "tls_cert: it needs its key: give --tls-key, set DRIFTLESS_TLS_KEY, \
             or write tls_key in the settings file",
        ),
        (
            minimal().tls_key("k.pem"),
            "tls_key: it needs its certificate",
        ),
        (
            minimal().tls_key("k.pem").tls_client_ca("ca.pem"),
            "tls_key: it needs its certificate: give --tls-cert",
        ),
        (
            minimal().tls_client_ca("ca.pem"),
            "tls_client_ca: it needs a certificate for the server: give --tls-cert",
        ),
        (
            minimal().tls_cert("").tls_key("k.pem"),
            "tls_cert: the path is empty",
        ),
    ] {
        let message = refusal(builder.build());
        assert!(message.contains(expected), "{message}");
    }
    let given = minimal()
        .environment([("DRIFTLESS_TLS_CERT", "c.pem")])
        .unwrap();
    let message = refusal(given.build());
    assert!(message.starts_with("DRIFTLESS_TLS_CERT: "), "{message}");
}

#[test]
fn every_default_and_bound_is_valid() {
    let settings = minimal().build().unwrap();
    assert_eq!(settings.listen(), DEFAULT_LISTEN);
    assert_eq!(settings.admin(), None);
    let command_default = Setting::Admin.default_text().unwrap();
    assert_eq!(command_default, DEFAULT_ADMIN.to_string());
    assert_eq!(settings.log_bytes(), 64 * 1024 * 1024);
    assert_eq!(settings.audit_interval(), Some(Duration::from_secs(600)));
}

#[test]
fn summaries_fit_on_a_line_of_help() {
    for setting in Setting::ALL {
        let summary = setting.summary();
        assert!(!summary.is_empty() && summary.len() <= 80, "{summary}");
        assert!(!summary.contains('`'), "{summary}");
    }
}

/// What one entry of a table makes.
#[allow(unreachable_pub, reason = "the table makes public items")]
mod toy {
    use std::time::Duration;

    use super::super::declare::{Bound, Declaration, Fallback, settings};
    use super::super::error::Origin;
    use super::super::kind::{Kind, Time, at_least, at_most};

    struct Settings {
        values: Values,
    }

    struct SettingsBuilder {
        values: Values,
        origin: Option<(Setting, Origin)>,
    }

    impl SettingsBuilder {
        fn set_origin(&mut self, setting: Setting, origin: Origin) {
            self.origin = Some((setting, origin));
        }
    }

    settings! {
        /// How long to wait.
        ///
        /// After that, it gives up.
        Wait, wait: Duration as Time,
            default "20s",
            min "1s": "nobody is that fast",
            max "1m": "nobody is that patient";
    }

    #[test]
    fn one_entry_makes_a_whole_setting() {
        let declaration = Setting::Wait.declaration();
        assert_eq!((COUNT, declaration.name), (1, "wait"));
        assert_eq!(declaration.docs[0].trim(), "How long to wait.");
        assert!(matches!(declaration.default, Fallback::Value("20s")));
        assert_eq!(Setting::ALL, [Setting::Wait]);

        let builder = SettingsBuilder {
            values: Values::defaults(),
            origin: None,
        };
        assert_eq!(builder.values.wait, Duration::from_secs(20));
        let builder = builder.wait(Duration::from_secs(61));
        assert_eq!(builder.origin, Some((Setting::Wait, Origin::Code)));
        let mut values = builder.values;
        assert_eq!(
            values.check_bounds(),
            Err((
                Setting::Wait,
                "61s is above the maximum of 1m: nobody is that patient".to_owned()
            ))
        );
        values.read(Setting::Wait, &["30s".to_owned()]).unwrap();
        assert_eq!(values.check_bounds(), Ok(()));
        assert_eq!(Settings { values }.wait(), Duration::from_secs(30));
    }
}
