//! The process's limit on open descriptors, and what of it is for connections of clients.
//!
//! Here and not in the library: it belongs to the whole process, which is ours only here.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::exit::Failure;

/// Descriptors that are not for connections of clients: 64 for the admin endpoint; the rest for
/// listeners, the runtime, standard streams, TLS files, and one connection that waits for a place.
/// Without them, clients could keep the server from connecting to etcd again.
const RESERVED: u64 = 96;

/// The same for each prefix: its connection to etcd, and the next one before the last has gone.
const RESERVED_FOR_PREFIX: u64 = 4;

/// Raises the soft limit to the hard one and returns it; `None` is no limit. The soft one is commonly
/// 1,024, for programs that use `select`; each connection costs one.
pub(crate) fn raise_descriptors() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current;
    }
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => {
            tracing::debug!(?before, after = ?limit.current, "raised the limit on open descriptors");
            limit.current
        }
        Err(error) => {
            tracing::warn!(
                limit = ?before,
                %error,
                "cannot raise the limit on open descriptors, which limits the connections"
            );
            before
        }
    }
}

/// How many connections of clients `descriptors` allow beside all else.
///
/// # Errors
/// When they allow none.
pub(crate) fn connections(descriptors: Option<u64>, prefixes: usize) -> Result<usize, Failure> {
    let Some(descriptors) = descriptors else {
        return Ok(usize::MAX);
    };
    let prefixes = u64::try_from(prefixes).unwrap_or(u64::MAX);
    let reserved = RESERVED.saturating_add(prefixes.saturating_mul(RESERVED_FOR_PREFIX));
    match descriptors.checked_sub(reserved) {
        None | Some(0) => Err(Failure::failed(format_args!(
            "the limit on open descriptors is {descriptors}, and connections of clients need more than {reserved}; raise it with \"ulimit -n\" or LimitNOFILE="
        ))),
        Some(left) => Ok(usize::try_from(left).unwrap_or(usize::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_etcd_and_admin() {
        let connections = |descriptors, prefixes| connections(descriptors, prefixes).ok();
        assert_eq!(connections(Some(128), 1), Some(28));
        assert_eq!(connections(Some(1024), 10), Some(1024 - 96 - 40));
        assert_eq!(connections(Some(100), 1), None);
        assert_eq!(connections(Some(20), 1), None);
        assert_eq!(connections(None, 1), Some(usize::MAX));
    }
}
