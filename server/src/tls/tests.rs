//! The files, what is made of them when they change, and clients that do not agree on TLS.

use rcgen::{CertificateParams, Issuer, KeyPair};
use tokio::io::duplex;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::*;
use crate::Settings;

/// More than any handshake takes here.
const PATIENCE: Duration = Duration::from_secs(10);

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

    fn settings(&self, with_client_ca: bool) -> TlsFiles {
        let path = |name| self.dir.path().join(name);
        let mut builder = Settings::builder()
            .etcd("http://127.0.0.1:1")
            .prefix("/c/")
            .tls_cert(path("cert.pem"))
            .tls_key(path("key.pem"));
        if with_client_ca {
            builder = builder.tls_client_ca(path("client_ca.pem"));
        }
        builder.build().unwrap().tls().unwrap().clone()
    }

    async fn load(&self) -> (Tls, Reloader) {
        load(self.settings(false)).await.unwrap()
    }

    /// The problem, with the setting and without the folder.
    async fn problem(&self, with_client_ca: bool) -> String {
        let error = load(self.settings(with_client_ca)).await.unwrap_err();
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
        let (shown, served) = tokio::join!(connect, tls.accept(server, PATIENCE));
        served.unwrap();
        let (_, session) = shown.unwrap().into_inner();
        session.peer_certificates().unwrap()[0].to_vec()
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_with_what_they_take() {
    let files = Files::new();
    files.write("client_ca.pem", &files.ca.pem);
    assert!(load(files.settings(true)).await.is_ok());
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
async fn new_connections_get_what_the_files_say_now_and_broken_ones_change_nothing() {
    let files = Files::new();
    let (tls, mut reloader) = files.load().await;
    let first = files.shown_by(&tls).await;
    // The same again is no news.
    assert!(reloader.look().await.unwrap().is_none());

    files.issue(2041);
    let found = reloader.look().await;
    assert!(matches!(found, Ok(Some(_))));
    reloader.take(found);
    let second = files.shown_by(&tls).await;
    assert_ne!(first, second);

    for broken in ["", "nonsense"] {
        files.write("key.pem", broken);
        let found = reloader.look().await;
        assert!(found.is_err());
        reloader.take(found);
        assert!(reloader.problem.is_some());
        assert_eq!(files.shown_by(&tls).await, second);
    }
    files.issue(2042);
    let found = reloader.look().await;
    reloader.take(found);
    assert!(reloader.problem.is_none());
    assert_ne!(files.shown_by(&tls).await, second);
}

#[tokio::test(start_paused = true)]
async fn files_that_are_swapped_by_a_link_are_noticed_by_the_task() {
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
async fn that_a_certificate_has_expired_is_said_once() {
    let files = Files::new();
    files.issue(2001);
    let (_, mut reloader) = files.load().await;
    assert!(!reloader.expiry_told);
    reloader.warn_of_expiry();
    assert!(reloader.expiry_told);
    files.issue(2040);
    let found = reloader.look().await;
    reloader.take(found);
    reloader.warn_of_expiry();
    assert!(!reloader.expiry_told);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_tls_is_told_so_and_let_go_soon() {
    let files = Files::new();
    let (tls, _) = files.load().await;
    let start = tokio::time::Instant::now();
    let (mut client, server) = duplex(64 * 1024);
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut heard = Vec::new();
    let (refused, ()) = tokio::join!(tls.accept(server, PATIENCE), async {
        client.read_to_end(&mut heard).await.unwrap();
        drop(client);
    });
    refused.unwrap_err();
    assert_eq!(heard.first(), Some(&0x15), "an alert: {heard:?}");
    // One that stays does not hold it up for long.
    let (mut client, server) = duplex(64 * 1024);
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    tls.accept(server, PATIENCE).await.unwrap_err();
    assert!(start.elapsed() <= Duration::from_secs(2));
}
