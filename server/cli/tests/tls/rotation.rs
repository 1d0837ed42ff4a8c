//! Certificate files that are replaced at run time.

use driftless_client::WatchState;
use driftless_test_support::certificates::{Ca, Folder};
use driftless_test_support::wait_until;

use super::place::{etcd, known, strict_server, trusting, until, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotated_certificates_drop_no_stream() {
    let (etcd, old, new) = (etcd(), Ca::new("old"), Ca::new("new"));
    let files = Folder::with(&old, &old.server());
    let server = strict_server(&etcd, &files);
    let mine = Folder::with(&old, &old.client());
    let client = known(&server.url(), &mine).build().unwrap();
    let mut watcher = client.watch::<u32>("/c/a").await.unwrap();

    // Everything at once: no certificate of the old CA is good for anything any more.
    let stays = Folder::with(&old, &old.client());
    for (folder, pair) in [(&files, new.server()), (&mine, new.client())] {
        folder.write("ca.pem", &new.pem);
        folder.put(&pair);
    }
    let newcomer = known(&server.url(), &mine).build().unwrap();
    until("the new certificate is used", async || {
        value(&newcomer).await.is_ok()
    })
    .await;
    let late = known(&server.url(), &stays).build().unwrap();
    let said = value(&late).await.unwrap_err().to_string();
    assert!(said.contains("not from the CA in"), "{said}");

    // The stream went on.
    etcd.put("/c/a", "2");
    watcher.changed().await.unwrap();
    assert_eq!(*watcher.load(), 2);
    let status = watcher.status();
    assert_eq!((status.reconnects, status.state), (0, WatchState::Live));
    // And the client's next connection, which is a new one, has the new files.
    drop(watcher);
    until("it connects anew", async || value(&client).await.is_ok()).await;
    let log = server.stop().stderr;
    let read = "the certificate was reloaded; new connections get it";
    assert_eq!(log.matches(read).count(), 1, "{log}");
    assert!(log.contains("not_after=2060-01-01T00:00:00Z"), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusable_certificate_is_logged_once_and_ignored() {
    const BAD: &str = "the TLS files cannot be used; the last good ones stay in use";
    let (etcd, ca) = (etcd(), Ca::new("ca"));
    let files = Folder::with(&ca, &ca.server());
    let server = strict_server(&etcd, &files);
    let mine = Folder::with(&ca, &ca.client());
    // A key without its certificate, as after a rotation that broke off.
    let next = ca.server();
    files.write("key.pem", &next.key);
    let log = || server.process.stderr();
    wait_until("it is said", || log().contains(BAD));
    let problem = format!(
        "tls_key: {}: it is not the key of the certificate in {}",
        files.text("key.pem"),
        files.text("cert.pem")
    );
    assert!(log().contains(&problem), "{}", log());
    // New connections get the old certificate.
    let client = known(&server.url(), &mine).build().unwrap();
    assert_eq!(value(&client).await.unwrap(), "1");
    files.write("cert.pem", &next.cert);
    let read = "the certificate was reloaded; new connections get it";
    wait_until("the rest of it is there", || log().contains(read));
    let client = known(&server.url(), &mine).build().unwrap();
    assert_eq!(value(&client).await.unwrap(), "1");
    let log = server.stop().stderr;
    assert_eq!(log.matches(BAD).count(), 1, "{log}");
    assert!(!log.contains("PRIVATE"), "{log}");
    for line in next.key.lines().filter(|line| !line.starts_with('-')) {
        assert!(!log.contains(line), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_client_connects_after_its_files_are_fixed() {
    let (etcd, ca, other) = (etcd(), Ca::new("ca"), Ca::new("other"));
    let files = Folder::with(&ca, &ca.server());
    let server = strict_server(&etcd, &files);
    // First it does not trust the server; then the server does not trust it.
    let mine = Folder::with(&other, &other.client());
    let client = known(&server.url(), &mine).build().unwrap();
    let watching = client.watch::<u32>("/c/a").into_future();
    let mend = async {
        let status = || async {
            let watch = client.entries("/c/a");
            let watch = watch.first_state_within(std::time::Duration::from_millis(100));
            watch.await.err().map(|error| error.to_string())
        };
        let says = async |text: &str| {
            until(text, async || {
                status().await.is_some_and(|said| said.contains(text))
            })
            .await;
        };
        says("the server's certificate is not from the CA in").await;
        mine.write("ca.pem", &ca.pem);
        says("the server rejected this client's certificate").await;
        mine.put(&ca.client());
    };
    let (watcher, ()) = tokio::join!(watching, mend);
    assert_eq!(*watcher.unwrap().load(), 1);
    // And one that needs no certificate of its own trusts no less.
    let nobody = trusting(&server.url(), &mine.path("ca.pem"))
        .build()
        .unwrap();
    assert!(value(&nobody).await.is_err());
}
