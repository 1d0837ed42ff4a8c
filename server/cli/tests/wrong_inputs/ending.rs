//! Commands that end by themselves.

use driftless_test_support::wrong_inputs::{Row, check_table};
use driftless_test_support::{find_on_path, guarded};

use super::SECTIONS;
use super::place::Place;

#[test]
fn any_command_messages_match_the_page() {
    let place = Place::start();
    let rows = [
        ("a command that there is not", "driftless serv"),
        ("one that resembles none", "driftless xyzzy"),
        (
            "a flag that there is not",
            "driftless serve --lisen 127.0.0.1:0",
        ),
        ("one that resembles none", "driftless get /config/a --xyzzy"),
        (
            "a flag without its value",
            "driftless get /config/a --timeout",
        ),
        ("a flag twice", "driftless get /config/a --json --json"),
        (
            "flags that exclude each other",
            "driftless watch /config/a --json --color always",
        ),
        (
            "a value that is none of the few",
            "driftless watch /config/a --color alway",
        ),
        ("too many arguments", "driftless get /config/a /config/b"),
        ("too few", "driftless get"),
        (
            "an invalid log filter",
            "driftless --log loud=very get /config/a",
        ),
    ];
    let rows = rows.map(|(wrong, command)| place.row(wrong, command));
    check_table(SECTIONS[0], &rows);
}

/// What is wrong for `get` and `watch` alike.
fn targets(place: &Place, name: &str) -> Vec<Row> {
    let rows = [
        ("an empty key", "''"),
        ("an empty prefix", "--prefix ''"),
        ("a key that is too long", "$(printf '%04097d' 0)"),
        ("a key that is not served", "/other/key"),
        ("a prefix that is not served", "--prefix /other/"),
        ("a prefix that is served in part", "--prefix /"),
        ("a prefix without its last slash", "--prefix /config"),
        ("a key without its first slash", "config/a"),
        (
            "a URL without its scheme",
            "/config/a --server 127.0.0.1:7400",
        ),
        (
            "a URL with another scheme",
            "/config/a --server ftp://127.0.0.1:7400",
        ),
        ("a URL without a host", "/config/a --server http://:7400"),
        (
            "a URL with a port that cannot be",
            "/config/a --server http://localhost:74000",
        ),
        (
            "a URL with a path",
            "/config/a --server http://127.0.0.1:7400/v1",
        ),
        (
            "a URL with a blank",
            "/config/a --server 'http://local host:7400'",
        ),
        (
            "a URL with a password",
            "/config/a --server http://me:canary-8193@127.0.0.1:7400",
        ),
        (
            "the admin address",
            "/config/a --server http://127.0.0.1:7401",
        ),
        ("etcd's address", "/config/a --server http://127.0.0.1:2379"),
        (
            "a certificate without its key",
            "/config/a --cert client.pem",
        ),
        (
            "a key without its certificate",
            "/config/a --key client.key",
        ),
        (
            "a name that no certificate can be for",
            "/config/a --server https://127.0.0.1:7400 --server-name 'two words'",
        ),
        (
            "a CA for servers without TLS",
            "/config/a --server http://127.0.0.1:7400 --ca ca.pem",
        ),
        (
            "a token that would be sent in clear text",
            "/config/a --server http://192.0.2.1:7400 --token-file token",
        ),
    ];
    let rows = rows.map(|(wrong, target)| place.row(wrong, &format!("driftless {name} {target}")));
    let mut rows = Vec::from(rows);
    rows.push(place.row(
        "the same in the environment",
        &format!("DRIFTLESS_SERVER=nonsense driftless {name} /config/a"),
    ));
    rows.push(place.row(
        "a variable that there is not",
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
        ("a key that does not exist", "driftless get /config/none"),
        ("a prefix used as a key", "driftless get /config/"),
        (
            "a misspelt prefix, or an empty one",
            "driftless get --prefix /config/limts/",
        ),
        (
            "a key that cannot be printed",
            r"driftless get $'/config/\e[2J\xff'",
        ),
        (
            "a time without its unit",
            "driftless get /config/a --timeout 5",
        ),
        (
            "nobody at the server's address",
            "driftless get /config/a --server http://127.0.0.1:9",
        ),
        (
            "nobody at any of them",
            "driftless get /config/a --server http://127.0.0.1:9,http://127.0.0.2:9",
        ),
        (
            "a file of a CA that is not there",
            "driftless get /config/a --server https://127.0.0.1:7400 --ca ca.pem",
        ),
        (
            "one that holds no certificate",
            "echo canary-8193 >ca.pem; driftless get /config/a --server https://127.0.0.1:7400 --ca ca.pem",
        ),
        (
            "an empty token",
            "echo >token; driftless get /config/a --token-file token",
        ),
        (
            "a token of two words",
            "echo canary-8193 canary-8193 >token; driftless get /config/a --token-file token",
        ),
        (
            "a reader that is gone",
            "driftless get --prefix /config/ | head -c 1 >/dev/null",
        ),
        ("a full disk", "driftless get /config/a >/dev/full"),
    ] {
        rows.push(place.row(wrong, command));
    }
    check_table(SECTIONS[1], &rows);
}

/// Those of the table of `watch` that end by themselves.
pub(crate) fn watch(place: &Place) -> Vec<Row> {
    let mut rows = targets(place, "watch");
    rows.push(place.row(
        "a reader that is gone",
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
            "an etcd without its scheme",
            "driftless serve --etcd 127.0.0.1:2379",
        ),
        (
            "an etcd with another scheme",
            "driftless serve --etcd ftp://127.0.0.1:2379",
        ),
        (
            "an etcd with TLS",
            "driftless serve --etcd https://127.0.0.1:2379",
        ),
        (
            "an etcd without a host",
            "driftless serve --etcd http://:2379",
        ),
        (
            "an etcd without a port",
            "driftless serve --etcd http://localhost",
        ),
        (
            "an etcd with a port that cannot be",
            "driftless serve --etcd http://localhost:74000",
        ),
        (
            "an etcd with a path",
            "driftless serve --etcd http://127.0.0.1:2379/v3",
        ),
        (
            "an etcd with a blank",
            "driftless serve --etcd 'http://local host:2379'",
        ),
        (
            "an etcd with a password",
            "driftless serve --etcd http://me:canary-8193@127.0.0.1:2379",
        ),
        (
            "the same without its scheme",
            "driftless serve --etcd me:canary-8193@127.0.0.1:2379",
        ),
        (
            "etcds as a list of etcdctl's",
            "driftless serve --etcd http://a:2379,http://b:2379",
        ),
        ("an empty etcd", "driftless serve --etcd ''"),
        (
            "a prefix twice",
            "driftless serve --prefix /a/ --prefix /a/",
        ),
        (
            "a prefix inside another",
            "driftless serve --prefix /a/b/ /a/",
        ),
        ("an empty prefix", "driftless serve --prefix ''"),
        (
            "a prefix that is too long",
            "driftless serve --prefix $(printf '%04097d' 0)",
        ),
        (
            "a name for an address",
            "driftless serve --listen localhost:7400",
        ),
        (
            "a port that cannot be",
            "driftless serve --listen 127.0.0.1:74000",
        ),
        (
            "an address that is in use",
            "driftless serve --listen 127.0.0.1:7400",
        ),
        (
            "an address of another machine",
            "driftless serve --listen 192.0.2.1:7400",
        ),
        (
            "an admin address that is in use",
            "driftless serve --listen 127.0.0.1:0 --admin 127.0.0.1:7401",
        ),
        (
            "an admin address of another machine",
            "driftless serve --listen 127.0.0.1:0 --admin 192.0.2.1:7401",
        ),
        (
            "one address for both",
            "driftless serve --listen 127.0.0.1:7400 --admin 127.0.0.1:7400",
        ),
        ("`off` misspelt", "driftless serve --admin of"),
        (
            "a certificate without its key",
            "driftless serve --tls-cert server.pem",
        ),
        (
            "a key without its certificate",
            "driftless serve --tls-key server.key",
        ),
        (
            "a CA of clients without a certificate",
            "driftless serve --tls-client-ca ca.pem",
        ),
        (
            "a certificate that is not there",
            "driftless serve --listen 127.0.0.1:0 --tls-cert server.pem --tls-key server.key",
        ),
        (
            "one that is none",
            "echo canary-8193 | tee server.pem >server.key; driftless serve --listen 127.0.0.1:0 --tls-cert server.pem --tls-key server.key",
        ),
        (
            "no path",
            "driftless serve --tls-cert '' --tls-key server.key",
        ),
        (
            "a generation that is too long",
            "driftless serve --generation $(printf '%065d' 0)",
        ),
        (
            "too little for the log",
            "driftless serve --log-bytes 512KiB",
        ),
        ("a unit of another kind", "driftless serve --log-bytes 64MB"),
        (
            "more bytes than there can be",
            "driftless serve --log-bytes 99999999999GiB",
        ),
        (
            "an interval that is too short",
            "driftless serve --progress-interval 10ms",
        ),
        (
            "an interval that is too long",
            "driftless serve --ping-interval 2h",
        ),
        ("no interval at all", "driftless serve --report-interval 0s"),
        (
            "a time without its unit",
            "driftless serve --report-interval 10",
        ),
        (
            "a timeout that is too long",
            "driftless serve --drain-timeout 2m",
        ),
        ("no connections", "driftless serve --max-connections 0"),
        ("less than none", "driftless serve --max-connections -1"),
        ("not a number", "driftless serve --max-connections many"),
        (
            "a number that is too large",
            "driftless serve --max-connections 99999999999999999999",
        ),
        (
            "a setting twice",
            "driftless serve --listen 127.0.0.1:0 --listen 127.0.0.1:0",
        ),
        (
            "a variable that there is not",
            "DRIFTLESS_LISEN=127.0.0.1:0 driftless serve",
        ),
        (
            "one that resembles none",
            "DRIFTLESS_COLOUR=red driftless serve",
        ),
        (
            "a variable of the tools, misspelt",
            "DRIFTLESS_CONFG=driftless.toml driftless serve",
        ),
        (
            "a variable that cannot be read",
            "DRIFTLESS_LISTEN=localhost driftless serve",
        ),
        (
            "a variable that is not UTF-8",
            r"DRIFTLESS_GENERATION=$'\xff' driftless serve",
        ),
        (
            "a file that is not there",
            "driftless serve --config driftless.toml",
        ),
        ("a folder for a file", "driftless serve --config ."),
    ];
    let mut rows: Vec<Row> = flags
        .into_iter()
        .map(|(wrong, command)| settings_row(&place, wrong, command))
        .collect();
    for (wrong, text) in [
        ("a file that is not text", r"\xff"),
        ("a file that is not TOML", r"listen = 127.0.0.1:7400\n"),
        (
            "a string that does not end",
            r#"generation = "canary-8193\n"#,
        ),
        ("a name without a value", r"admin\n"),
        ("a name twice", r#"admin = "off"\nadmin = "off"\n"#),
        ("a name that there is not", r#"\nlisen = "127.0.0.1:0"\n"#),
        ("one that resembles none", r#"colour = "red"\n"#),
        ("a table", r#"[server]\nlisten = "127.0.0.1:0"\n"#),
        ("a boolean for a text", r"listen = true\n"),
        ("a list for a text", r#"listen = ["127.0.0.1:0"]\n"#),
        ("a fraction for a list", r"etcd = 1.5\n"),
        ("a boolean in a list", r"etcd = [true]\n"),
        ("an empty list", r"prefix = []\n"),
        ("a value that cannot be read", r#"\n\nlog_bytes = "64MB"\n"#),
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
        place.row("an empty prefix", "driftless dev --prefix ''"),
        place.row(
            "a prefix inside another",
            "driftless dev --prefix /a/ /a/b/",
        ),
        place.row(
            "a file for a folder",
            "touch data; driftless dev --data-dir data",
        ),
        place.row(
            "a folder in a file",
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
    rows.push(place.row_of("a folder that may not be written to", command, &mut bash));
    rows.push(place.row(
        "a folder that another one uses",
        "mkdir data; flock data/lock driftless dev --data-dir data",
    ));
    let command = "driftless dev";
    let mut bash = place.bash(command);
    bash.env("PATH", place.bare_path());
    rows.push(place.row_of("etcd is not on PATH", command, &mut bash));
    rows.push(place.row(
        "an etcd that ends at once",
        "printf '#!/bin/sh\\nexit 1\\n' >etcd; chmod +x etcd; PATH=.:$PATH driftless dev --data-dir data",
    ));
    check_table(SECTIONS[5], &rows);
}
