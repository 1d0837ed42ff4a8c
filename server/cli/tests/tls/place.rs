//! An etcd, folders with certificates, and servers and clients that use them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use driftless_client::{Client, ClientBuilder, GetError};

use super::certificates::{Ca, Pair};
use super::common::{EtcdProcess, PATIENCE, ServerProcess, http_get};

/// What servers serve here.
pub(crate) const PREFIX: &str = "/c/";

/// A folder with the files of one end.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A CA's certificate, and a certificate and key.
    pub(crate) fn with(ca: &Ca, pair: &Pair) -> Self {
        let folder = Self::new();
        folder.write("ca.pem", &ca.pem);
        folder.put(pair);
        folder
    }

    pub(crate) fn put(&self, pair: &Pair) {
        self.write("cert.pem", &pair.cert);
        self.write("key.pem", &pair.key);
    }

    /// Replaces a file at once, as everybody should.
    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path("new"), text).unwrap();
        std::fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

/// An etcd with the key `/c/a`, whose value is 1.
pub(crate) fn etcd() -> EtcdProcess {
    let etcd = EtcdProcess::start();
    etcd.put("/c/a", "1");
    etcd
}

/// A server with the certificate in `folder`, in sync.
pub(crate) fn server(etcd: &EtcdProcess, folder: &Folder) -> ServerProcess {
    let server = start(etcd, folder, 0, &[]);
    server.wait_ready();
    server
}

/// The same, which lets in only clients with a certificate of the folder's CA.
pub(crate) fn strict_server(etcd: &EtcdProcess, folder: &Folder) -> ServerProcess {
    let ca = folder.text("ca.pem");
    let server = start(etcd, folder, 0, &["--tls-client-ca", &ca]);
    server.wait_ready();
    server
}

/// A server on this port; it need not be in sync yet.
pub(crate) fn start(
    etcd: &EtcdProcess,
    folder: &Folder,
    port: u16,
    flags: &[&str],
) -> ServerProcess {
    let (cert, key) = (folder.text("cert.pem"), folder.text("key.pem"));
    let files = ["--tls-cert", &cert, "--tls-key", &key];
    let flags = [&files, flags].concat();
    ServerProcess::start_at(&etcd.url(), &[PREFIX], port, &flags)
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

/// What a client is told that is not let in. It is the same for whoever reads once and whoever watches.
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
    let (_, text) = http_get(server.admin(), "/metrics").expect("it answers");
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
