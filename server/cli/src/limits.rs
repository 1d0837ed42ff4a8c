//! The process's limit on open descriptors.
//!
//! Raised here and not in the library: it belongs to the whole process, which is ours only here.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. The soft one is commonly 1,024, for programs that use
/// `select`; each connection costs one.
pub(crate) fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => {
            tracing::debug!(?before, after = ?limit.current, "raised the limit on open descriptors")
        }
        Err(error) => tracing::warn!(
            limit = ?before,
            %error,
            "cannot raise the limit on open descriptors, which limits the connections"
        ),
    }
}
