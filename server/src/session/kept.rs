//! What streams keep of their requests: shared where it is the same, and bounded for a connection.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use driftless_proto::v1;
use parking_lot::Mutex;

use crate::auth::BearerToken;

/// What all streams of one connection may keep of the tokens and client infos in their requests, in
/// bytes: those of some hundred clients that share a connection. A client that sends the same with each
/// of its streams, as all do that speak for one process, needs it once.
const MAX_BYTES: usize = 512 * 1024;

/// What the allocator and a map take for each label, in bytes.
const LABEL_OVERHEAD: usize = 64;

/// A value that streams of one connection share. It counts among the connection's bytes until the last
/// of them drops it.
#[derive(Debug)]
pub(super) struct Kept<T> {
    value: T,
    bytes: usize,
    total: Arc<AtomicUsize>,
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What one connection's streams keep.
#[derive(Debug, Default)]
pub(super) struct KeptByStreams {
    total: Arc<AtomicUsize>,
    /// The latest of each, for streams that come with the same.
    client: Mutex<Weak<Kept<v1::ClientInfo>>>,
    token: Mutex<Weak<Kept<BearerToken>>>,
}

impl KeptByStreams {
    /// `None` when the connection's streams keep too much already.
    pub(super) fn client(&self, client: &v1::ClientInfo) -> Option<Arc<Kept<v1::ClientInfo>>> {
        let labels = client.labels.iter();
        let labels = labels.map(|(name, value)| name.len() + value.len() + LABEL_OVERHEAD);
        let bytes = client.instance.len() + client.library.len() + labels.sum::<usize>();
        self.keep(&self.client, client, bytes)
    }

    /// `None` when the connection's streams keep too much already.
    pub(super) fn token(&self, token: &BearerToken) -> Option<Arc<Kept<BearerToken>>> {
        let bytes = token.expose().len();
        self.keep(&self.token, token, bytes)
    }

    /// Copies the value only if it is kept.
    fn keep<T: PartialEq + Clone>(
        &self,
        latest: &Mutex<Weak<Kept<T>>>,
        value: &T,
        bytes: usize,
    ) -> Option<Arc<Kept<T>>> {
        let mut latest = latest.lock();
        if let Some(same) = latest.upgrade().filter(|latest| latest.value == *value) {
            return Some(same);
        }
        let fits = |total: usize| (total + bytes <= MAX_BYTES).then(|| total + bytes);
        let total = &self.total;
        let added = total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        added.ok()?;
        let kept = Arc::new(Kept {
            value: value.clone(),
            bytes,
            total: Arc::clone(total),
        });
        *latest = Arc::downgrade(&kept);
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> BearerToken {
        BearerToken::from_authorization(format!("Bearer {text}").as_bytes()).unwrap()
    }

    #[test]
    fn streams_with_the_same_token_share_it() {
        let kept = KeptByStreams::default();
        let total = || kept.total.load(Ordering::Relaxed);
        let first = kept.token(&token("same")).unwrap();
        let second = kept.token(&token("same")).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(total(), 4);
        let other = kept.token(&token("another")).unwrap();
        assert_eq!(total(), 11);
        drop((first, other));
        assert_eq!(total(), 4, "one stream still has it");
        drop(second);
        assert_eq!(total(), 0);
    }

    /// Counts how often it is copied.
    #[derive(Debug, Default)]
    struct Copied(Arc<AtomicUsize>);

    impl PartialEq for Copied {
        fn eq(&self, other: &Self) -> bool {
            Arc::ptr_eq(&self.0, &other.0)
        }
    }

    impl Clone for Copied {
        fn clone(&self) -> Self {
            self.0.fetch_add(1, Ordering::Relaxed);
            Self(Arc::clone(&self.0))
        }
    }

    #[test]
    fn values_are_copied_only_if_they_are_kept() {
        let (kept, latest) = (KeptByStreams::default(), Mutex::default());
        let (first, second) = (Copied::default(), Copied::default());
        let copies = |value: &Copied| value.0.load(Ordering::Relaxed);
        let _first = kept.keep(&latest, &first, MAX_BYTES).unwrap();
        assert!(kept.keep(&latest, &first, MAX_BYTES).is_some(), "the same");
        assert!(kept.keep(&latest, &second, 1).is_none(), "too much");
        assert_eq!((copies(&first), copies(&second)), (1, 0));
    }

    #[test]
    fn a_connection_keeps_no_more_than_its_bound() {
        let kept = KeptByStreams::default();
        let long = |n: usize| token(&format!("{n:08000}"));
        let tokens: Vec<_> = (0..1000).map_while(|n| kept.token(&long(n))).collect();
        assert_eq!(tokens.len(), MAX_BYTES / 8000);
        assert!(kept.token(&token("short")).is_some());
        drop(tokens);
        assert!(kept.token(&long(0)).is_some());
    }
}
