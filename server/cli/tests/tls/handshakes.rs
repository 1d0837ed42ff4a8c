//! Which clients are accepted, and what the others are told.

use std::sync::Arc;

use driftless_client::{Client, Connecting, Endpoint, Io};
use driftless_test_support::certificates::{Ca, Folder, NOW, Usage, self_signed};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::place::{
    PREFIX, counter, etcd, known, refusal, server, strict_server, trusting, until, value,
};
use crate::DRIFTLESS;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutual_tls_delivers_changes() {
    let (etcd, ca) = (etcd(), Ca::new("ca"));
    let files = Folder::with(&ca, &ca.server());
    let server = strict_server(&etcd, &files);
    assert!(server.url().starts_with("https://"));
    let mine = Folder::with(&ca, &ca.client());
    let client = known(&server.url(), &mine).build().unwrap();
    let mut watcher = client.watch::<u32>("/c/a").await.unwrap();
    assert_eq!(*watcher.load(), 1);
    etcd.put("/c/a", "2");
    watcher.changed().await.unwrap();
    assert_eq!(*watcher.load(), 2);
    let endpoint = watcher.status().endpoint;
    assert_eq!(endpoint.as_deref(), Some(&*server.url()));
    // By its name it is the same server.
    let by_name = server.url().replace("127.0.0.1", "localhost");
    let client = known(&by_name, &mine).build().unwrap();
    assert_eq!(value(&client).await.unwrap(), "2");
    assert_eq!(counter(&server, "tls_handshakes_failed"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_without_its_certificate_is_told_why() {
    let (etcd, ca) = (etcd(), Ca::new("ca"));
    let files = Folder::with(&ca, &ca.server());
    let server = strict_server(&etcd, &files);
    let said = refusal(trusting(&server.url(), &files.path("ca.pem"))).await;
    let expected = format!(
        "{}: the server requires a client certificate; give this client a certificate and its key",
        server.url()
    );
    assert!(said.ends_with(&expected), "{said}");

    // By the same name, and another all the same.
    let other = Ca::new("ca");
    let mine = Folder::with(&ca, &other.client());
    let said = refusal(known(&server.url(), &mine)).await;
    let expected = "the server rejected this client's certificate";
    assert!(said.contains(expected), "{said}");

    let expired = ca.issue(&["client.example"], (2001, 2002), Usage::Client);
    let mine = Folder::with(&ca, &expired);
    let said = refusal(known(&server.url(), &mine)).await;
    assert!(
        said.contains("this client's certificate has expired"),
        "{said}"
    );

    // One that is for servers only.
    let mine = Folder::with(&ca, &ca.server());
    let said = refusal(known(&server.url(), &mine)).await;
    assert!(said.contains(expected), "{said}");
    assert!(counter(&server, "tls_handshakes_failed") >= 4);
    let log = server.stop().stderr;
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn untrusted_server_is_rejected_with_the_reason() {
    let (etcd, ca, other) = (etcd(), Ca::new("ca"), Ca::new("other"));
    let trusted = Folder::with(&ca, &ca.client());
    let loopback = ["localhost", "127.0.0.1"];
    for (pair, expected) in [
        (
            other.server(),
            format!(
                "the server's certificate is not from the CA in {}; give the file of the CA",
                trusted.text("ca.pem")
            ),
        ),
        (
            ca.issue(&loopback, (2001, 2002), Usage::Server),
            "the server's certificate has expired; renew it there".to_owned(),
        ),
        (
            ca.issue(&loopback, (2101, 2102), Usage::Server),
            "the server's certificate is not valid yet; compare the clocks".to_owned(),
        ),
        (
            ca.issue(&["config.example"], NOW, Usage::Server),
            "the server's certificate is for config.example, and 127.0.0.1 was dialled; use a name"
                .to_owned(),
        ),
        (
            ca.issue(&loopback, NOW, Usage::Client),
            "the server's certificate is not meant for servers".to_owned(),
        ),
    ] {
        let files = Folder::with(&ca, &pair);
        let server = server(&etcd, &files);
        let said = refusal(trusting(&server.url(), &trusted.path("ca.pem"))).await;
        assert!(said.contains(&format!("{}: ", server.url())), "{said}");
        assert!(said.contains(&expected), "{said}");
        let log = server.stop().stderr;
        let expired = "the server's certificate has expired; clients refuse it";
        let is_expired = expected.contains("has expired");
        assert_eq!(
            log.matches(expired).count(),
            usize::from(is_expired),
            "{log}"
        );
    }
    // Trusted or not: a CA's certificate is none for a server.
    let pair = self_signed();
    let files = Folder::with(&ca, &pair);
    let server = server(&etcd, &files);
    let said = refusal(trusting(&server.url(), &files.path("cert.pem"))).await;
    assert!(
        said.contains("the server's certificate is that of a CA"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_name_may_differ_from_the_host() {
    let (etcd, ca) = (etcd(), Ca::new("ca"));
    let pair = ca.issue(&["config.example"], NOW, Usage::Server);
    let files = Folder::with(&ca, &pair);
    let server = server(&etcd, &files);
    let client = trusting(&server.url(), &files.path("ca.pem")).tls_server_name("config.example");
    assert_eq!(value(&client.build().unwrap()).await.unwrap(), "1");

    // Over a connector of one's own, the name is the endpoint's.
    let address = server.addr();
    let connect = move |_: &Endpoint| -> Connecting {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    };
    let client = trusting("https://config.example", &files.path("ca.pem")).connector(connect);
    assert_eq!(value(&client.build().unwrap()).await.unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_on_one_end_only_is_explained() {
    let (etcd, ca) = (etcd(), Ca::new("ca"));
    let files = Folder::with(&ca, &ca.server());
    let secure = server(&etcd, &files);
    let plain = DRIFTLESS.serve(&etcd, &[PREFIX]);
    let url = secure.url().replace("https://", "http://");
    let said = refusal(Client::builder().endpoint(&url)).await;
    let expected = format!("{url}: the server speaks TLS; write https:// in place of http://");
    assert!(said.ends_with(&expected), "{said}");

    let url = plain.url().replace("http://", "https://");
    let said = refusal(trusting(&url, &files.path("ca.pem"))).await;
    let expected = "the server does not speak TLS; write http:// in place of https://";
    assert!(said.contains(expected), "{said}");

    // Of several endpoints, those that work are used.
    let both = trusting(&url, &files.path("ca.pem"))
        .endpoint(secure.url())
        .endpoint(plain.url());
    assert_eq!(value(&both.build().unwrap()).await.unwrap(), "1");
    until("the server lets go of what was no client", async || {
        counter(&secure, "tls_handshakes_failed") > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_http2_is_explained() {
    let ca = Ca::new("ca");
    let pair = ca.server();
    let files = Folder::with(&ca, &pair);
    for protocols in [vec![], vec![b"http/1.1".to_vec()]] {
        let chain = vec![CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = protocols;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut open = Vec::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                open.push(acceptor.accept(stream).await);
            }
        });
        let said = refusal(trusting(&url, &files.path("ca.pem"))).await;
        assert!(
            said.contains("does not offer HTTP/2 in it (ALPN h2)"),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusable_files_are_named() {
    let ca = Ca::new("ca");
    let files = Folder::with(&ca, &ca.client());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    for (name, text, expected) in [
        ("ca.pem", "CANARY", "the CA file"),
        ("cert.pem", "CANARY", "the client's certificate file"),
        ("key.pem", "CANARY", "the client's key file"),
        ("key.pem", &*ca.client().key, "the client's key"),
    ] {
        let before = std::fs::read_to_string(files.path(name)).unwrap();
        files.write(name, text);
        let said = refusal(known(&url, &files)).await;
        let expected = format!("{url}: {expected} {}", files.text(name));
        assert!(said.contains(&expected), "{said}");
        assert!(!said.contains("CANARY"), "{said}");
        files.write(name, &before);
    }
    std::fs::remove_file(files.path("ca.pem")).unwrap();
    let said = refusal(known(&url, &files)).await;
    assert!(
        said.contains("ca.pem: it cannot be read: No such file"),
        "{said}"
    );
}
