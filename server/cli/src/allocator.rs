//! The process's allocator, which is ours only here and not in the library.

use tikv_jemalloc_ctl::{background_thread, max_background_threads};

/// Lets the allocator return freed memory to the system by a thread of its own, ten seconds after it was
/// freed. By itself it does so only while others allocate: after a burst, an idle server would keep the
/// memory of the burst.
pub(crate) fn return_freed_memory() {
    // One for each processor by default, which is meant for far more memory.
    let started = max_background_threads::write(1).and_then(|()| background_thread::write(true));
    if let Err(error) = started {
        tracing::warn!(
            %error,
            "the allocator cannot start its thread; freed memory is returned late"
        );
    }
}
