//! Random faults on its streams: a client that is live holds what the server holds, and the changes that it
//! reported lead there.

use std::collections::BTreeMap;
use std::time::Duration;

use driftless_client::{EntriesWatcher, EntryChange, Key, KeyRange, WatchState};
use driftless_proto::v1::watch_response::Frame;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::Status;

use crate::etcd_model::EtcdModel;
use crate::server::{Call, Server, soon};

/// Edits in each random history.
const EDITS: usize = 300;

#[tokio::test(start_paused = true)]
async fn random_faults_lead_to_the_same_state() {
    for seed in 0..40 {
        println!("seed {seed}");
        history(StdRng::seed_from_u64(seed)).await;
    }
}

async fn history(mut rng: StdRng) {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/0", "start")]);
    let client = server.client();
    let watch = client.entries(KeyRange::prefix("/")).into_future();
    let (watcher, mut call) = tokio::join!(watch, async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    let mut watcher = watcher.unwrap();
    let mut told: BTreeMap<Key, Vec<u8>> = watcher
        .load()
        .iter()
        .map(|entry| (entry.key.clone(), entry.value.to_vec()))
        .collect();
    for _ in 0..EDITS {
        let key = format!("/{}", rng.random_range(0..20));
        let value = rng
            .random_bool(0.7)
            .then(|| rng.random::<u32>().to_string());
        let frame = etcd.edit(&[(&*key, value.as_deref())]);
        match rng.random_range(0..30) {
            // Lost on the way: the next frame reveals the gap.
            0 => {}
            1 => {
                call.fail(Status::unavailable("chaos")).await;
                call = resume(&mut server, &etcd, &mut rng).await;
            }
            2 => {
                drop(call);
                call = resume(&mut server, &etcd, &mut rng).await;
            }
            3 => {
                let Frame::Diff(mut wrong) = frame else {
                    unreachable!()
                };
                wrong.digest = EtcdModel::default().digest();
                let _ = call.try_send(Frame::Diff(wrong)).await;
                call.wait_until_ended().await;
                call = resume(&mut server, &etcd, &mut rng).await;
            }
            _ => {
                // A client that found a gap has left.
                if !call.try_send(frame).await {
                    call = resume(&mut server, &etcd, &mut rng).await;
                }
            }
        }
        if rng.random_bool(0.1) {
            let change = tokio::time::timeout(Duration::from_millis(1), watcher.changed()).await;
            if let Ok(change) = change {
                follow(&mut told, change.unwrap().changes);
            }
        }
    }
    drop(call);
    let _call = resume(&mut server, &etcd, &mut rng).await;
    soon(in_sync(&watcher, &etcd)).await;
    let last = tokio::time::timeout(Duration::from_millis(1), watcher.changed()).await;
    if let Ok(change) = last {
        follow(&mut told, change.unwrap().changes);
    }
    let held: BTreeMap<_, _> = watcher
        .load()
        .iter()
        .map(|entry| (entry.key.clone(), entry.value.to_vec()))
        .collect();
    assert_eq!(held, etcd.values());
    assert_eq!(told, held);
}

async fn in_sync(watcher: &EntriesWatcher, etcd: &EtcdModel) {
    loop {
        let status = watcher.status();
        if status.state == WatchState::Live && status.revision.get() == etcd.revision {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Answers the next call correctly, in one of the ways that a server may.
async fn resume(server: &mut Server, etcd: &EtcdModel, rng: &mut StdRng) -> Call {
    loop {
        let call = server.next_call().await;
        match call.resume_revision() {
            Some(have) if have == etcd.revision => {
                call.send(EtcdModel::hello()).await;
                call.send(etcd.current()).await;
            }
            _ if rng.random_bool(0.2) => {
                call.fail(Status::unavailable("chaos")).await;
                continue;
            }
            _ => call.send_state(etcd).await,
        }
        return call;
    }
}

/// Applies the changes, which must fit the state before.
fn follow(told: &mut BTreeMap<Key, Vec<u8>>, changes: Vec<EntryChange>) {
    assert!(!changes.is_empty());
    for change in changes {
        match change {
            EntryChange::Put { old, new } => {
                let before = told.insert(new.key, new.value.to_vec());
                assert_eq!(before, old.map(|old| old.value.to_vec()));
            }
            EntryChange::Delete { old, .. } => {
                assert_eq!(told.remove(&old.key), Some(old.value.to_vec()));
            }
            other => panic!("{other:?}"),
        }
    }
}
