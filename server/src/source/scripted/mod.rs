//! Sources that need no etcd, for tests. Deterministic, also on tokio's paused clock.
//!
//! A [`ScriptedSource`] returns the updates that a test sends. A [`ScriptedEtcd`] is a small model of
//! etcd: it counts revisions and versions as etcd does, and can be disconnected, compacted and
//! restored. Its sources return what an [`EtcdSource`](super::etcd::EtcdSource) would return.
//!
//! Only tests use it, through the feature `test-util`.

mod etcd;
mod etcd_source;
mod op;
mod script;
#[cfg(test)]
mod tests;

pub use etcd::{Link, ScriptedEtcd};
pub use etcd_source::ScriptedEtcdSource;
pub use op::Op;
pub use script::{Script, ScriptedSource};

use super::{SourceRequest, SourceRequests};

/// The next request; `None` once, when no more can follow.
async fn next_request(requests: &mut Option<SourceRequests>) -> Option<SourceRequest> {
    let Some(open) = requests else {
        return std::future::pending().await;
    };
    let request = open.recv().await;
    if request.is_none() {
        *requests = None;
    }
    request
}
