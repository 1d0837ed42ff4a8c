//! The command line tools over TLS.

use driftless_test_support::certificates::{Ca, Folder};
use driftless_test_support::{Process, run};

use super::place::{etcd, strict_server};
use crate::DRIFTLESS;

#[test]
fn get_and_watch_read_tls_flags_and_variables() {
    let (etcd, ca) = (etcd(), Ca::new("ca"));
    let files = Folder::with(&ca, &ca.server());
    let server = strict_server(&etcd, &files);
    let mine = Folder::with(&ca, &ca.client());
    mine.write("token", "a-token\n");
    let (authority, cert, key) = (
        mine.text("ca.pem"),
        mine.text("cert.pem"),
        mine.text("key.pem"),
    );
    let token = mine.text("token");
    let url = server.url();
    let got = run(DRIFTLESS
        .command()
        .args(["get", "/c/a", "--print-value-only", "--server", &url])
        .args(["--ca", &authority, "--cert", &cert, "--key", &key])
        .args(["--token-file", &token]));
    assert_eq!((&*got.stdout, &*got.stderr), ("1\n", ""));
    let mut watch = Process::spawn(
        DRIFTLESS
            .command()
            .args(["watch", "/c/a", "--json", "--server-name", "localhost"])
            .env("DRIFTLESS_SERVER", &url)
            .env("DRIFTLESS_CA", &authority)
            .env("DRIFTLESS_CERT", &cert)
            .env("DRIFTLESS_KEY", &key)
            .env("DRIFTLESS_TOKEN_FILE", &token),
    );
    assert_eq!(watch.json()["value"], "1");
    etcd.put("/c/a", "2");
    watch.lines_to(r#""value":"2""#);

    // Without: one line that says what is missing, and the status of a server that cannot be reached.
    let refused = run(DRIFTLESS
        .command()
        .args(["get", "/c/a", "--server", &url, "--ca", &authority]));
    assert_eq!(refused.status.code(), Some(4));
    assert_eq!(
        refused.stderr,
        format!(
            "driftless: no server could answer: {url}: the server requires a client certificate; \
             give this client a certificate and its key\n"
        )
    );
}
