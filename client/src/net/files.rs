//! Small files that are read anew whenever they are needed, so that one that was replaced is found.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::blocking::Jobs;
use crate::resources::{Resource, ResourceTracker};

/// How long a file may take, the wait for one of the runtime's threads included. A local one takes
/// milliseconds. Less than an attempt to connect, a read or the beginning of a watch may take by default,
/// so that a file that hangs is named, and not a server that was never asked.
const READ_WITHIN: Duration = Duration::from_secs(3);

/// Small files that are read anew whenever they are needed, so that one that was replaced is found.
#[derive(Clone)]
pub(crate) struct Files(Jobs<Result<Arc<[u8]>, String>>);

impl Files {
    pub(crate) fn new(tracker: ResourceTracker) -> Self {
        Self(Jobs::new(tracker))
    }

    /// What is in the file at `path`, which is `what` for people. At most `limit` bytes; more is an
    /// error, as is a file that takes longer than [`READ_WITHIN`]. Errors name the file and say nothing
    /// of its content.
    ///
    /// # Cancel safety
    /// The reading goes on, for whoever asks next.
    pub(crate) async fn read(
        &self,
        what: &'static str,
        path: &Path,
        limit: usize,
    ) -> Result<Arc<[u8]>, String> {
        let file = path.to_owned();
        let name = Resource::File(path.display().to_string());
        let read = self.0.run(name, move || {
            read_small(&file, limit).map_err(|why| format!("{what} {}: {why}", file.display()))
        });
        let failed = |why: &str| Err(format!("{what} {}: {why}", path.display()));
        match tokio::time::timeout(READ_WITHIN, read).await {
            Ok(Some(found)) => found,
            Ok(None) => failed("it was not read to its end"),
            Err(_) => failed(&format!("it was not read within {READ_WITHIN:?}")),
        }
    }
}

fn read_small(path: &Path, limit: usize) -> Result<Arc<[u8]>, String> {
    let cannot = |error: io::Error| format!("it cannot be read: {error}");
    let file = File::open(path).map_err(cannot)?;
    let mut bytes = Vec::new();
    // One more than is allowed, so that too much is noticed.
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() > limit {
        return Err(format!(
            "it is longer than {limit} bytes; name another file"
        ));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_read_anew_and_only_up_to_their_limit() {
        let files = Files::new(ResourceTracker::new());
        let path = std::env::temp_dir().join(format!("driftless-{:032x}", rand::random::<u128>()));
        for text in ["one", "two"] {
            std::fs::write(&path, text).unwrap();
            let read = files.read("the file", &path, 3).await.unwrap();
            assert_eq!(&read[..], text.as_bytes());
        }
        std::fs::write(&path, "CANARY").unwrap();
        let error = files.read("the file", &path, 3).await.unwrap_err();
        assert!(error.ends_with("longer than 3 bytes; name another file"));
        assert!(error.starts_with("the file /") && !error.contains("CANARY"));
        std::fs::remove_file(&path).unwrap();
        let error = files.read("the file", &path, 3).await.unwrap_err();
        assert!(error.contains("it cannot be read: No such file"), "{error}");
    }
}
