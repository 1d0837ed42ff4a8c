//! The whole state of the range, page by page, all of it at one revision.

use std::time::Duration;

use driftless_proto::digest::Digest;
use driftless_proto::{Entry, Revision};
use etcd_client::GetOptions;
use etcd_client::proto::PbKeyValue;

use super::connection::{Bounds, Connection, Error, entry, not_served, within};

/// To answer one page.
const PAGE_WITHIN: Duration = Duration::from_secs(10);

/// Keys in the first page. etcd bounds pages by keys only, and nothing is known of the sizes yet:
/// this many values of the largest size that etcd takes by default still make a legal message.
const FIRST_PAGE_KEYS: usize = 32;

/// Keys in a page at most. For every page etcd counts all that is left of the range, so a million
/// keys by the thousand cost it most of a minute (measured); and pages that are larger still would
/// be a risk where small values are followed by large ones, which nobody knows before.
const MAX_PAGE_KEYS: usize = 10_000;

/// Bytes that a page should have, going by those before it: etcd holds a page whole.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// To read all pages for a digest: the state of that moment is kept meanwhile.
const DIGEST_WITHIN: Duration = Duration::from_secs(300);

/// Times that a list starts anew because its revision was compacted under it.
const ATTEMPTS: usize = 3;

/// A state as it was read.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) revision: Revision,
    /// In ascending order of keys, those that can be served.
    pub(super) entries: Vec<Entry>,
    /// How many keys there are, those included that cannot be served.
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
        revision: Revision::NONE,
        entries: Vec::new(),
        keys: 0,
    };
    let each = |kv| {
        listed.keys += 1;
        match entry(kv) {
            Ok(entry) => listed.entries.push(entry),
            Err(kv) => not_served(&kv),
        }
    };
    listed.revision = pages(connection, bounds, Revision::NONE, each).await?;
    Ok(listed)
}

/// The digest of what could be served of the range at `revision`, by a list of which one page is
/// held at a time.
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
    within(DIGEST_WITHIN, "list", reading).await?;
    Ok(digest)
}

/// Reads the range page by page, at `at` or, without one, at the latest revision. Returns which.
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
        // The first page may be read at the latest revision, the others at the first one's.
        let options = GetOptions::new()
            .with_limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .with_revision(at.get());
        let options = match &bounds.end {
            Some(end) => options.with_range(end.as_slice()),
            None => options,
        };
        let read = connection.kv.get(start.as_slice(), Some(options));
        let mut page = match within(PAGE_WITHIN, "list", read).await {
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
            return Err(Error::Malformed(
                "a page is empty and says that more follow",
            ));
        }
        start.push(0);
        limit = next_limit(limit, keys, bytes);
    }
}

/// How many keys to ask for after a page of this many keys and bytes. Grows step by step, so that
/// small values at the beginning do not lead to a page of large ones.
fn next_limit(limit: usize, keys: usize, bytes: usize) -> usize {
    let fitting = PAGE_BYTES / (bytes / keys.max(1)).max(1);
    fitting.clamp(1, limit.saturating_mul(4).min(MAX_PAGE_KEYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_the_size_of_values() {
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
