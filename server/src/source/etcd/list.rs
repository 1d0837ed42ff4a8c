//! The whole state of the range, page by page, all of it at one revision.

use std::time::Duration;

use driftless_proto::digest::Digest;
use driftless_proto::{Entry, Revision};
use etcd_client::GetOptions;
use etcd_client::proto::PbKeyValue;
use tokio::time::Instant;

use super::connection::{Bounds, Connection, Error, entry, log_not_served, within};

/// How long one page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Keys in the first page. etcd limits pages by keys only, and the sizes are not known yet: this many
/// values of the largest size that etcd accepts by default still fit in a message.
const FIRST_PAGE_KEYS: usize = 32;

/// The most keys in a page. For every page etcd counts the rest of the range, so a million keys in
/// pages of a thousand take most of a minute (measured). Larger pages would be a risk: large values may
/// follow small ones.
const MAX_PAGE_KEYS: usize = 10_000;

/// Bytes that a page should have, estimated from the page before: etcd holds a whole page in memory.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// How long reading all pages for a digest may take: ingest keeps the state of that revision meanwhile.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(300);

/// How often a list is tried: it starts again when its revision is compacted meanwhile.
const ATTEMPTS: usize = 3;

/// A whole state of the range.
#[derive(Debug)]
pub(super) struct Listed {
    /// When the first page was asked for: a linearizable read, as a [`Proof`](crate::source::Proof) is.
    pub(super) asked_at: Instant,
    pub(super) revision: Revision,
    /// The entries that can be served, in ascending order of keys.
    pub(super) entries: Vec<Entry>,
    /// The number of keys, including those that cannot be served.
    pub(super) keys: i64,
}

/// Reads the whole range.
pub(super) async fn list(connection: &mut Connection, bounds: &Bounds) -> Result<Listed, Error> {
    for _ in 1..ATTEMPTS {
        match list_once(connection, bounds).await {
            Err(Error::Compacted { .. }) => {}
            done => return done,
        }
    }
    list_once(connection, bounds).await
}

async fn list_once(connection: &mut Connection, bounds: &Bounds) -> Result<Listed, Error> {
    let mut listed = Listed {
        asked_at: Instant::now(),
        revision: Revision::NONE,
        entries: Vec::new(),
        keys: 0,
    };
    let each = |kv| {
        listed.keys += 1;
        match entry(kv) {
            Ok(entry) => listed.entries.push(entry),
            Err(kv) => log_not_served(&kv),
        }
    };
    listed.revision = pages(connection, bounds, Revision::NONE, each).await?;
    Ok(listed)
}

/// The digest of the range's servable entries at `revision`. Holds one page at a time.
pub(super) async fn digest(
    mut connection: Connection,
    bounds: Bounds,
    revision: Revision,
) -> Result<Digest, Error> {
    let mut digest = Digest::EMPTY;
    let each = |kv| {
        if let Ok(entry) = entry(kv) {
            digest += Digest::of(&entry);
        }
    };
    let reading = pages(&mut connection, &bounds, revision, each);
    within(DIGEST_TIMEOUT, "list", reading).await?;
    Ok(digest)
}

/// Reads the range page by page, at revision `at`, or at the latest one if `at` is
/// [`Revision::NONE`]. Returns the revision.
async fn pages(
    connection: &mut Connection,
    bounds: &Bounds,
    at: Revision,
    mut each: impl FnMut(PbKeyValue),
) -> Result<Revision, Error> {
    let mut at = at;
    let mut start = bounds.start.clone();
    let mut limit = FIRST_PAGE_KEYS;
    loop {
        // Only the first page may be read at the latest revision; the others use its revision.
        let options = GetOptions::new()
            .with_limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .with_revision(at.get());
        let options = match &bounds.end {
            Some(end) => options.with_range(end.as_slice()),
            None => options,
        };
        let read = connection.kv.get(start.as_slice(), Some(options));
        let mut page = match within(PAGE_TIMEOUT, "list", read).await {
            Err(Error::TooLarge) if limit > 1 => {
                limit /= 2;
                continue;
            }
            page => page?,
        };
        let revision = connection.header(page.header())?;
        if at == Revision::NONE {
            at = revision;
        }
        let more = page.more();
        let kvs = page.take_kvs();
        let (mut keys, mut bytes) = (0_usize, 0_usize);
        for kv in kvs {
            let kv = kv.0;
            keys += 1;
            bytes = bytes.saturating_add(kv.key.len() + kv.value.len());
            start.clear();
            start.extend_from_slice(&kv.key);
            each(kv);
        }
        if !more {
            return Ok(at);
        }
        if keys == 0 {
            return Err(Error::Malformed("a page is empty, but more should follow"));
        }
        start.push(0);
        limit = next_limit(limit, keys, bytes);
    }
}

/// The limit of the next page after a page of this many keys and bytes. Grows step by step, so that
/// small values at the beginning do not lead to a page of large ones.
fn next_limit(limit: usize, keys: usize, bytes: usize) -> usize {
    let fitting = PAGE_BYTES / (bytes / keys.max(1)).max(1);
    fitting.clamp(1, limit.saturating_mul(4).min(MAX_PAGE_KEYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_limit_follows_value_sizes() {
        assert_eq!(
            next_limit(32, 32, 3_200),
            128,
            "small ones: four times as many"
        );
        assert_eq!(next_limit(8_192, 8_192, 819_200), MAX_PAGE_KEYS);
        assert_eq!(next_limit(8_192, 8_192, 8_192 << 10), 4_096, "1 KiB each");
        assert_eq!(next_limit(32, 32, 32 << 20), 4, "1 MiB each");
        assert_eq!(next_limit(4, 4, 64 << 20), 1, "16 MiB each");
        assert_eq!(next_limit(1, 1, 1), 4);
        assert_eq!(next_limit(1, 1, 0), 4);
    }
}
