//! Wrong inputs with which a command ends by itself.

use driftless_test_support::wrong_inputs::{Row, check_table};
use driftless_test_support::{find_on_path, guarded};

use super::SECTIONS;
use super::place::Place;

#[test]
fn any_command_messages_match_the_page() {
    let place = Place::start();
    let rows = [
        ("unknown command", "driftless serv"),
        ("unknown command, nothing similar", "driftless xyzzy"),
        ("unknown flag", "driftless serve --lisen 127.0.0.1:0"),
        (
            "unknown flag, nothing similar",
            "driftless get /config/a --xyzzy",
        ),
        ("flag without a value", "driftless get /config/a --timeout"),
        ("flag given twice", "driftless get /config/a --json --json"),
        (
            "flags that exclude each other",
            "driftless watch /config/a --json --color always",
        ),
        (
            "value that is not in the list",
            "driftless watch /config/a --color alway",
        ),
        ("too many arguments", "driftless get /config/a /config/b"),
        ("too few arguments", "driftless get"),
        (
            "invalid log filter",
            "driftless --log loud=very get /config/a",
        ),
    ];
    let rows = rows.map(|(wrong, command)| place.row(wrong, command));
    check_table(SECTIONS[0], &rows);
}

/// Wrong inputs that `get` and `watch` share.
fn targets(place: &Place, name: &str) -> Vec<Row> {
    let rows = [
        ("empty key", "''"),
        ("empty prefix", "--prefix ''"),
        ("key too long", "$(printf '%04097d' 0)"),
        ("key not served", "/other/key"),
        ("prefix not served", "--prefix /other/"),
        ("prefix served in part", "--prefix /"),
        ("prefix without its last slash", "--prefix /config"),
        ("key without its first slash", "config/a"),
        ("URL without a scheme", "/config/a --server 127.0.0.1:7400"),
        (
            "URL with another scheme",
            "/config/a --server ftp://127.0.0.1:7400",
        ),
        ("URL without a host", "/config/a --server http://:7400"),
        (
            "URL with an invalid port",
            "/config/a --server http://localhost:74000",
        ),
        (
            "URL with a path",
            "/config/a --server http://127.0.0.1:7400/v1",
        ),
        (
            "URL with a blank",
            "/config/a --server 'http://local host:7400'",
        ),
        (
            "URL with a password",
            "/config/a --server http://me:canary-8193@127.0.0.1:7400",
        ),
        (
            "admin address as the server",
            "/config/a --server http://127.0.0.1:7401",
        ),
        (
            "etcd's address as the server",
            "/config/a --server http://127.0.0.1:2379",
        ),
        ("certificate without its key", "/config/a --cert client.pem"),
        ("key without its certificate", "/config/a --key client.key"),
        (
            "invalid name for a certificate",
            "/config/a --server https://127.0.0.1:7400 --server-name 'two words'",
        ),
        (
            "CA for servers without TLS",
            "/config/a --server http://127.0.0.1:7400 --ca ca.pem",
        ),
        (
            "token that would be sent in clear text",
            "/config/a --server http://192.0.2.1:7400 --token-file token",
        ),
    ];
    let rows = rows.map(|(wrong, target)| place.row(wrong, &format!("driftless {name} {target}")));
    let mut rows = Vec::from(rows);
    rows.push(place.row(
        "invalid URL in the environment",
        &format!("DRIFTLESS_SERVER=nonsense driftless {name} /config/a"),
    ));
    rows.push(place.row(
        "unknown variable",
        &format!("DRIFTLESS_SEVER=http://127.0.0.1:7400 driftless {name} /config/a"),
    ));
    rows
}

#[test]
fn get_messages_match_the_page() {
    let place = Place::start();
    // More than a pipe holds.
    place.etcd.put("/config/large", &"v".repeat(100_000));
    place.wait_for_status("/readyz", 200, "/config/*: in sync at revision 3");
    let mut rows = targets(&place, "get");
    for (wrong, command) in [
        ("key does not exist", "driftless get /config/none"),
        ("prefix given as a key", "driftless get /config/"),
        (
            "misspelt prefix, or one without keys",
            "driftless get --prefix /config/limts/",
        ),
        ("unprintable key", r"driftless get $'/config/\e[2J\xff'"),
        ("time without a unit", "driftless get /config/a --timeout 5"),
        (
            "nothing listens at the server's address",
            "driftless get /config/a --server http://127.0.0.1:9",
        ),
        (
            "nothing listens at any address",
            "driftless get /config/a --server http://127.0.0.1:9,http://127.0.0.2:9",
        ),
        (
            "CA file does not exist",
            "driftless get /config/a --server https://127.0.0.1:7400 --ca ca.pem",
        ),
        (
            "CA file without a certificate",
            "echo canary-8193 >ca.pem; driftless get /config/a --server https://127.0.0.1:7400 --ca ca.pem",
        ),
        (
            "empty token file",
            "echo >token; driftless get /config/a --token-file token",
        ),
        (
            "token file with two words",
            "echo canary-8193 canary-8193 >token; driftless get /config/a --token-file token",
        ),
        (
            "output closed by its reader",
            "driftless get --prefix /config/ | head -c 1 >/dev/null",
        ),
        ("disk full", "driftless get /config/a >/dev/full"),
    ] {
        rows.push(place.row(wrong, command));
    }
    check_table(SECTIONS[1], &rows);
}

/// The rows of `watch` that end by themselves.
pub(crate) fn watch(place: &Place) -> Vec<Row> {
    let mut rows = targets(place, "watch");
    rows.push(place.row(
        "output closed by its reader",
        "driftless watch --prefix /config/ | head -n 1 >/dev/null",
    ));
    rows
}

#[test]
fn settings_messages_match_the_page() {
    let place = Place::start();
    let flags = [
        ("no etcd", "env -u DRIFTLESS_ETCD driftless serve"),
        ("no prefix", "env -u DRIFTLESS_PREFIX driftless serve"),
        (
            "etcd URL without a scheme",
            "driftless serve --etcd 127.0.0.1:2379",
        ),
        (
            "etcd URL with another scheme",
            "driftless serve --etcd ftp://127.0.0.1:2379",
        ),
        (
            "etcd URL with TLS",
            "driftless serve --etcd https://127.0.0.1:2379",
        ),
        (
            "etcd URL without a host",
            "driftless serve --etcd http://:2379",
        ),
        (
            "etcd URL without a port",
            "driftless serve --etcd http://localhost",
        ),
        (
            "etcd URL with an invalid port",
            "driftless serve --etcd http://localhost:74000",
        ),
        (
            "etcd URL with a path",
            "driftless serve --etcd http://127.0.0.1:2379/v3",
        ),
        (
            "etcd URL with a blank",
            "driftless serve --etcd 'http://local host:2379'",
        ),
        (
            "etcd URL with a password",
            "driftless serve --etcd http://me:canary-8193@127.0.0.1:2379",
        ),
        (
            "etcd URL with a password, without a scheme",
            "driftless serve --etcd me:canary-8193@127.0.0.1:2379",
        ),
        (
            "etcd URLs as one list, as etcdctl takes them",
            "driftless serve --etcd http://a:2379,http://b:2379",
        ),
        ("empty etcd URL", "driftless serve --etcd ''"),
        (
            "prefix given twice",
            "driftless serve --prefix /a/ --prefix /a/",
        ),
        (
            "prefix inside another",
            "driftless serve --prefix /a/b/ /a/",
        ),
        ("empty prefix", "driftless serve --prefix ''"),
        (
            "prefix too long",
            "driftless serve --prefix $(printf '%04097d' 0)",
        ),
        (
            "host name as an address",
            "driftless serve --listen localhost:7400",
        ),
        ("invalid port", "driftless serve --listen 127.0.0.1:74000"),
        ("address in use", "driftless serve --listen 127.0.0.1:7400"),
        (
            "address of another machine",
            "driftless serve --listen 192.0.2.1:7400",
        ),
        (
            "admin address in use",
            "driftless serve --listen 127.0.0.1:0 --admin 127.0.0.1:7401",
        ),
        (
            "admin address of another machine",
            "driftless serve --listen 127.0.0.1:0 --admin 192.0.2.1:7401",
        ),
        (
            "same address for gRPC and admin",
            "driftless serve --listen 127.0.0.1:7400 --admin 127.0.0.1:7400",
        ),
        ("`off` misspelt", "driftless serve --admin of"),
        (
            "certificate without its key",
            "driftless serve --tls-cert server.pem",
        ),
        (
            "key without its certificate",
            "driftless serve --tls-key server.key",
        ),
        (
            "client CA without a certificate",
            "driftless serve --tls-client-ca ca.pem",
        ),
        (
            "certificate file does not exist",
            "driftless serve --listen 127.0.0.1:0 --tls-cert server.pem --tls-key server.key",
        ),
        (
            "certificate file without a certificate",
            "echo canary-8193 | tee server.pem >server.key; driftless serve --listen 127.0.0.1:0 --tls-cert server.pem --tls-key server.key",
        ),
        (
            "empty path",
            "driftless serve --tls-cert '' --tls-key server.key",
        ),
        (
            "generation too long",
            "driftless serve --generation $(printf '%065d' 0)",
        ),
        (
            "memory limit below what the log needs",
            "driftless serve --memory-limit 96MiB",
        ),
        ("`cgroup` misspelt", "driftless serve --memory-limit group"),
        ("log too small", "driftless serve --log-bytes 512KiB"),
        ("unknown unit", "driftless serve --log-bytes 64MB"),
        (
            "too many bytes",
            "driftless serve --log-bytes 99999999999GiB",
        ),
        (
            "interval too short",
            "driftless serve --progress-interval 10ms",
        ),
        ("interval too long", "driftless serve --ping-interval 2h"),
        ("interval of zero", "driftless serve --report-interval 0s"),
        (
            "time without a unit",
            "driftless serve --report-interval 10",
        ),
        ("timeout too long", "driftless serve --drain-timeout 2m"),
        ("no connections", "driftless serve --max-connections 0"),
        ("negative number", "driftless serve --max-connections -1"),
        ("not a number", "driftless serve --max-connections many"),
        (
            "number too large",
            "driftless serve --max-connections 99999999999999999999",
        ),
        (
            "setting given twice",
            "driftless serve --listen 127.0.0.1:0 --listen 127.0.0.1:0",
        ),
        (
            "unknown variable",
            "DRIFTLESS_LISEN=127.0.0.1:0 driftless serve",
        ),
        (
            "unknown variable, nothing similar",
            "DRIFTLESS_COLOUR=red driftless serve",
        ),
        (
            "misspelt variable of the tools",
            "DRIFTLESS_CONFG=driftless.toml driftless serve",
        ),
        (
            "variable with an invalid value",
            "DRIFTLESS_LISTEN=localhost driftless serve",
        ),
        (
            "variable that is not UTF-8",
            r"DRIFTLESS_GENERATION=$'\xff' driftless serve",
        ),
        (
            "settings file does not exist",
            "driftless serve --config driftless.toml",
        ),
        ("folder as the settings file", "driftless serve --config ."),
    ];
    let mut rows: Vec<Row> = flags
        .into_iter()
        .map(|(wrong, command)| settings_row(&place, wrong, command))
        .collect();
    for (wrong, text) in [
        ("settings file that is not text", r"\xff"),
        (
            "settings file that is not TOML",
            r"listen = 127.0.0.1:7400\n",
        ),
        ("unterminated string", r#"generation = "canary-8193\n"#),
        ("name without a value", r"admin\n"),
        ("name given twice", r#"admin = "off"\nadmin = "off"\n"#),
        ("unknown name", r#"\nlisen = "127.0.0.1:0"\n"#),
        ("unknown name, nothing similar", r#"colour = "red"\n"#),
        ("table", r#"[server]\nlisten = "127.0.0.1:0"\n"#),
        ("boolean for a string", r"listen = true\n"),
        ("list for a string", r#"listen = ["127.0.0.1:0"]\n"#),
        ("fraction for a list", r"etcd = 1.5\n"),
        ("boolean in a list", r"etcd = [true]\n"),
        ("empty list", r"prefix = []\n"),
        ("invalid value in the file", r#"\n\nlog_bytes = "64MB"\n"#),
    ] {
        // Percent signs and quotes mean something to printf and bash; there are none.
        let command =
            format!("printf '{text}' >driftless.toml; driftless serve --config driftless.toml");
        rows.push(settings_row(&place, wrong, &command));
    }
    check_table(SECTIONS[3], &rows);
}

fn settings_row(place: &Place, wrong: &str, command: &str) -> Row {
    let mut bash = place.bash(command);
    bash.env("DRIFTLESS_ETCD", place.etcd.url());
    bash.env("DRIFTLESS_PREFIX", "/config/");
    place.row_of(wrong, command, &mut bash)
}

#[test]
fn dev_messages_match_the_page() {
    let place = Place::start();
    let mut rows = vec![
        place.row("empty prefix", "driftless dev --prefix ''"),
        place.row("prefix inside another", "driftless dev --prefix /a/ /a/b/"),
        place.row(
            "file as the data folder",
            "touch data; driftless dev --data-dir data",
        ),
        place.row(
            "data folder inside a file",
            "touch file; driftless dev --data-dir file/data",
        ),
    ];
    // Root may write anywhere, unless it gives that up.
    let command = "mkdir -m 555 data; driftless dev --data-dir data";
    let mut bash = place.bash(command);
    if rustix::process::geteuid().is_root() {
        let (program, arguments) = (bash.get_program().to_owned(), bash.get_args());
        let mut without = guarded(find_on_path("setpriv").expect("setpriv is on PATH"));
        without
            .args(["--bounding-set", "-dac_override,-dac_read_search"])
            .arg(program)
            .args(arguments);
        for (name, value) in bash.get_envs() {
            match value {
                Some(value) => without.env(name, value),
                None => without.env_remove(name),
            };
        }
        bash = without;
    }
    rows.push(place.row_of("data folder without write permission", command, &mut bash));
    rows.push(place.row(
        "data folder in use",
        "mkdir data; flock data/lock driftless dev --data-dir data",
    ));
    let command = "driftless dev";
    let mut bash = place.bash(command);
    bash.env("PATH", place.bare_path());
    rows.push(place.row_of("etcd is not on PATH", command, &mut bash));
    rows.push(place.row(
        "etcd exits at once",
        "printf '#!/bin/sh\\nexit 1\\n' >etcd; chmod +x etcd; PATH=.:$PATH driftless dev --data-dir data",
    ));
    check_table(SECTIONS[5], &rows);
}
