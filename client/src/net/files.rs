//! Small files, read whenever they are needed, so that a replaced file is noticed.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::blocking::Jobs;
use crate::resources::{Resource, ResourceTracker};

/// How long reading a file may take, including the wait for a thread of the runtime. A local file takes
/// milliseconds. Less than the default timeouts of connecting, of a `get` and of a watch's first value, so that
/// the error names the file that hangs, and not a server that was never asked.
const READ_WITHIN: Duration = Duration::from_secs(3);

/// Reads small files. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Files(Jobs<Result<Arc<[u8]>, String>>);

impl Files {
    pub(crate) fn new(tracker: ResourceTracker) -> Self {
        Self(Jobs::new(tracker))
    }

    /// The content of the file at `path`, which errors call `what`. More than `limit` bytes is an error, as is
    /// a file that takes longer than [`READ_WITHIN`]. Errors name the file and reveal nothing of its content.
    ///
    /// # Cancel safety
    /// The read goes on, for the next caller.
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
            Ok(None) => failed("reading it failed"),
            Err(_) => failed(&format!("it was not read within {READ_WITHIN:?}")),
        }
    }
}

fn read_small(path: &Path, limit: usize) -> Result<Arc<[u8]>, String> {
    let cannot = |error: io::Error| format!("it cannot be read: {error}");
    let file = File::open(path).map_err(cannot)?;
    let mut bytes = Vec::new();
    // One byte more than allowed, to notice a longer file.
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
    async fn file_is_read_each_time_up_to_its_limit() {
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
