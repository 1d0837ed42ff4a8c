//! Shared by the TLS tests: an etcd, folders with certificates, and servers and clients that use them.

use std::path::Path;
use std::time::Duration;

use driftless_client::{Client, ClientBuilder, GetError};
use driftless_test_support::certificates::Folder;
use driftless_test_support::{Etcd, PATIENCE, ServerProcess, http};

use crate::DRIFTLESS;

/// What servers serve here.
pub(crate) const PREFIX: &str = "/c/";

/// An etcd with the key `/c/a`, whose value is 1.
pub(crate) fn etcd() -> Etcd {
    let etcd = Etcd::started_blocking();
    etcd.put("/c/a", "1");
    etcd
}

/// A server with the certificate in `folder`, in sync.
pub(crate) fn server(etcd: &Etcd, folder: &Folder) -> ServerProcess {
    let server = start(etcd, folder, 0, &[]);
    server.wait_ready();
    server
}

/// The same, which lets in only clients with a certificate of the folder's CA.
pub(crate) fn strict_server(etcd: &Etcd, folder: &Folder) -> ServerProcess {
    let ca = folder.text("ca.pem");
    let server = start(etcd, folder, 0, &["--tls-client-ca", &ca]);
    server.wait_ready();
    server
}

/// A server on this port; it need not be in sync yet.
pub(crate) fn start(etcd: &Etcd, folder: &Folder, port: u16, flags: &[&str]) -> ServerProcess {
    let (cert, key) = (folder.text("cert.pem"), folder.text("key.pem"));
    let files = ["--tls-cert", &cert, "--tls-key", &key];
    let flags = [&files, flags].concat();
    DRIFTLESS.serve_at(&etcd.url(), &[PREFIX], port, &flags)
}

/// A client that trusts this file of a CA.
pub(crate) fn trusting(url: &str, ca: &Path) -> ClientBuilder {
    Client::builder().endpoint(url).tls_ca_file(ca)
}

/// The same, with the certificate in this folder.
pub(crate) fn known(url: &str, folder: &Folder) -> ClientBuilder {
    trusting(url, &folder.path("ca.pem"))
        .tls_client_files(folder.path("cert.pem"), folder.path("key.pem"))
}

/// The value of `/c/a`.
pub(crate) async fn value(client: &Client) -> Result<String, GetError> {
    let entries = client.get("/c/a").timeout(PATIENCE).await?;
    let entry = entries.iter().next().expect("the key is there");
    Ok(String::from_utf8_lossy(&entry.value).into_owned())
}

/// The error of a client that is not accepted. It is the same for a read and a watch.
#[track_caller]
pub(crate) fn refusal(builder: ClientBuilder) -> impl Future<Output = String> {
    let client = builder.build().unwrap();
    async move {
        let error = value(&client).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        let said = error.to_string();
        let why = said.trim_start_matches("no server could answer: ");
        until("a watch says the same", async || {
            let watch = client.watch::<u32>("/c/a");
            let watch = watch.first_value_within(Duration::from_millis(200)).await;
            watch.unwrap_err().to_string().ends_with(why)
        })
        .await;
        said
    }
}

/// A counter of a server.
pub(crate) fn counter(server: &ServerProcess, name: &str) -> u64 {
    let (_, text) = http::get(server.admin(), "/metrics").expect("it answers");
    let name = format!("driftless_{name}_total ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    value.and_then(|value| value.trim().parse().ok()).unwrap()
}

/// Waits for it without holding up the client's tasks.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"));
}
