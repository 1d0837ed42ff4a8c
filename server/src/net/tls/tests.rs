//! The files, what is made of them when they change, and clients that do not agree on TLS.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use tokio_rustls::rustls::crypto::ring;

use super::files::{H2, MAX_FILE, roots};
use super::*;

/// More than any handshake takes here.
const TIMEOUT: Duration = Duration::from_secs(10);

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    /// A certificate until the begin of this year, and its key.
    fn issue(&self, until: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }
}

/// A folder with the files of a server.
struct Files {
    dir: tempfile::TempDir,
    ca: Ca,
}

impl Files {
    fn new() -> Self {
        let files = Self {
            dir: tempfile::tempdir().unwrap(),
            ca: Ca::new(),
        };
        files.issue(2040);
        files
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn issue(&self, until: i32) {
        let (cert, key) = self.ca.issue(until);
        self.write("cert.pem", cert);
        self.write("key.pem", key);
    }

    fn named(&self, with_client_ca: bool) -> TlsFiles {
        let named = |setting, name| NamedFile {
            setting,
            path: self.dir.path().join(name),
        };
        TlsFiles {
            cert: named("tls_cert", "cert.pem"),
            key: named("tls_key", "key.pem"),
            client_ca: with_client_ca.then(|| named("tls_client_ca", "client_ca.pem")),
        }
    }

    async fn load(&self) -> (Tls, Reloader) {
        load_tls(self.named(false)).await.unwrap()
    }

    /// The problem, with the setting and without the folder.
    async fn problem(&self, with_client_ca: bool) -> String {
        let error = load_tls(self.named(with_client_ca)).await.unwrap_err();
        let folder = format!("{}/", self.dir.path().display());
        error.to_string().replace(&folder, "")
    }

    /// The leaf that a new connection is shown.
    async fn shown_by(&self, tls: &Tls) -> Vec<u8> {
        let roots = roots(self.ca.pem.as_bytes()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![H2.to_vec()];
        let (client, server) = duplex(64 * 1024);
        let connect = TlsConnector::from(Arc::new(config));
        let connect = connect.connect(ServerName::try_from("localhost").unwrap(), client);
        let (shown, served) = tokio::join!(connect, tls.accept(server, TIMEOUT));
        served.unwrap();
        let (_, session) = shown.unwrap().into_inner();
        session.peer_certificates().unwrap()[0].to_vec()
    }
}

#[tokio::test]
async fn errors_name_the_file_and_what_it_must_hold() {
    let files = Files::new();
    files.write("client_ca.pem", &files.ca.pem);
    assert!(load_tls(files.named(true)).await.is_ok());
    let (cert, key) = files.ca.issue(2040);
    let (_, other) = files.ca.issue(2040);
    for (name, text, expected) in [
        (
            "cert.pem",
            "",
            "tls_cert: cert.pem: it holds no certificate that can be read",
        ),
        (
            "cert.pem",
            &key,
            "tls_cert: cert.pem: it holds no certificate that can be read",
        ),
        (
            "key.pem",
            "CANARY",
            "tls_key: key.pem: it holds no private key that can be used",
        ),
        (
            "key.pem",
            &cert,
            "tls_key: key.pem: it holds no private key that can be used",
        ),
        (
            "key.pem",
            "-----BEGIN PRIVATE KEY-----\nQ0FOQVJZ\n-----END PRIVATE KEY-----\n",
            "tls_key: key.pem: it holds no private key that can be used",
        ),
        (
            "key.pem",
            &other,
            "tls_key: key.pem: it is not the key of the certificate in cert.pem",
        ),
        (
            "client_ca.pem",
            "",
            "tls_client_ca: client_ca.pem: it holds no certificate",
        ),
        (
            "key.pem",
            &"k".repeat(MAX_FILE + 1),
            "tls_key: key.pem: it is longer than 1 MiB",
        ),
    ] {
        files.write("cert.pem", &cert);
        files.write("key.pem", &key);
        files.write("client_ca.pem", &files.ca.pem);
        files.write(name, text);
        let problem = files.problem(true).await;
        assert!(problem.starts_with(expected), "{problem}");
        assert!(!problem.contains("CANARY"), "{problem}");
    }
    std::fs::remove_file(files.dir.path().join("cert.pem")).unwrap();
    let problem = files.problem(false).await;
    assert!(problem.starts_with("tls_cert: cert.pem: it cannot be read: No such file"));
}

#[tokio::test(start_paused = true)]
async fn reloads_use_good_files_and_ignore_broken_ones() {
    let files = Files::new();
    let (tls, mut reloader) = files.load().await;
    let first = files.shown_by(&tls).await;
    // The same again is no news.
    assert!(reloader.read().await.unwrap().is_none());

    files.issue(2041);
    let found = reloader.read().await;
    assert!(matches!(found, Ok(Some(_))));
    reloader.apply(found);
    let second = files.shown_by(&tls).await;
    assert_ne!(first, second);

    for broken in ["", "nonsense"] {
        files.write("key.pem", broken);
        let found = reloader.read().await;
        assert!(found.is_err());
        reloader.apply(found);
        assert!(reloader.problem.is_some());
        assert_eq!(files.shown_by(&tls).await, second);
    }
    files.issue(2042);
    let found = reloader.read().await;
    reloader.apply(found);
    assert!(reloader.problem.is_none());
    assert_ne!(files.shown_by(&tls).await, second);
}

#[tokio::test(start_paused = true)]
async fn files_swapped_by_a_symlink_are_reloaded() {
    let files = Files::new();
    let dir = files.dir.path();
    // As Kubernetes does it: the names stay, and what they lead to is another folder.
    for (folder, until) in [("one", 2041), ("two", 2042)] {
        std::fs::create_dir(dir.join(folder)).unwrap();
        let (cert, key) = files.ca.issue(until);
        files.write(&format!("{folder}/cert.pem"), cert);
        files.write(&format!("{folder}/key.pem"), key);
    }
    let link = |target: &str| {
        std::os::unix::fs::symlink(target, dir.join("new")).unwrap();
        std::fs::rename(dir.join("new"), dir.join("data")).unwrap();
    };
    link("one");
    for name in ["cert.pem", "key.pem"] {
        std::fs::remove_file(dir.join(name)).unwrap();
        std::os::unix::fs::symlink(format!("data/{name}"), dir.join(name)).unwrap();
    }
    let (tls, reloader) = files.load().await;
    let mut task = std::pin::pin!(reloader.run());
    let first = files.shown_by(&tls).await;
    link("two");
    tokio::select! {
        () = &mut task => unreachable!(),
        () = async {
            while files.shown_by(&tls).await == first {
                sleep(Duration::from_secs(1)).await;
            }
        } => {}
    }
}

#[tokio::test]
async fn an_expired_certificate_is_reported_once() {
    let files = Files::new();
    files.issue(2001);
    let (_, mut reloader) = files.load().await;
    assert!(!reloader.expiry_reported);
    reloader.warn_of_expiry();
    assert!(reloader.expiry_reported);
    files.issue(2040);
    let found = reloader.read().await;
    reloader.apply(found);
    reloader.warn_of_expiry();
    assert!(!reloader.expiry_reported);
}

#[tokio::test(start_paused = true)]
async fn peers_without_tls_get_an_alert_and_are_closed_soon() {
    let files = Files::new();
    let (tls, _) = files.load().await;
    let start = tokio::time::Instant::now();
    let (mut client, server) = duplex(64 * 1024);
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut heard = Vec::new();
    let (refused, ()) = tokio::join!(tls.accept(server, TIMEOUT), async {
        client.read_to_end(&mut heard).await.unwrap();
        drop(client);
    });
    refused.unwrap_err();
    assert_eq!(heard.first(), Some(&0x15), "an alert: {heard:?}");
    // One that stays does not hold it up for long.
    let (mut client, server) = duplex(64 * 1024);
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    tls.accept(server, TIMEOUT).await.unwrap_err();
    assert!(start.elapsed() <= Duration::from_secs(2));
}
