//! A bearer token in a file that somebody else rotates.
//!
//! It is read for each call and kept nowhere, so the token in the file is the one that is sent. It appears in
//! no log, error or `Debug`.

use std::path::PathBuf;
use std::sync::Arc;

use tonic::metadata::{Ascii, MetadataValue};

use crate::net::Files;

/// The longest token, in bytes: what servers commonly accept as one header.
const MAX_TOKEN: usize = 16 * 1024;

/// What errors call the file.
const WHAT: &str = "the token file";

/// Where the token is. Cheap to clone.
#[derive(Clone)]
pub(crate) struct TokenFile {
    path: Arc<PathBuf>,
    files: Files,
}

impl TokenFile {
    pub(crate) fn new(path: PathBuf, files: Files) -> Self {
        Self {
            path: Arc::new(path),
            files,
        }
    }

    /// The value of the header `authorization`, as the file is now.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn authorization(&self) -> Result<MetadataValue<Ascii>, String> {
        // Two bytes more, for a line break at the end.
        let file = self.files.read(WHAT, &self.path, MAX_TOKEN + 2).await?;
        let bad = |problem| format!("{WHAT} {}: {problem}", self.path.display());
        let token = file.trim_ascii();
        if token.is_empty() {
            return Err(bad("it is empty; write a token into it"));
        }
        if token.len() > MAX_TOKEN {
            return Err(bad("it holds more than 16384 bytes, which is no token"));
        }
        // The characters that a header may hold, without blanks.
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err(bad("it must hold one token of printable ASCII characters"));
        }
        let text = [b"Bearer ", token].concat();
        let mut value = MetadataValue::try_from(text)
            .map_err(|_| bad("its token does not fit into a header"))?;
        // So that others do not print it, and header compression does not index it.
        value.set_sensitive(true);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::ResourceTracker;

    #[tokio::test]
    async fn token_is_checked_and_never_revealed() {
        let path = std::env::temp_dir().join(format!("driftless-{:032x}", rand::random::<u128>()));
        let token = TokenFile::new(path.clone(), Files::new(ResourceTracker::new()));
        for (text, expected) in [
            ("  CANARY.1-2_3~+/=\r\n", "Bearer CANARY.1-2_3~+/="),
            (
                &*"a".repeat(MAX_TOKEN),
                &*format!("Bearer {}", "a".repeat(MAX_TOKEN)),
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let value = token.authorization().await.unwrap();
            assert_eq!(value.to_str().unwrap(), expected);
            assert!(value.is_sensitive() && !format!("{value:?}").contains("CANARY"));
        }
        for (text, problem) in [
            (&b""[..], "it is empty"),
            (b" \n", "it is empty"),
            (b"CANARY CANARY", "it must hold one token"),
            (b"CANARY\nCANARY", "it must hold one token"),
            ("CANARY\u{fc}".as_bytes(), "it must hold one token"),
            (b"CANARY\0", "it must hold one token"),
            (&[b'a'; MAX_TOKEN + 1], "more than 16384 bytes"),
            (&[b'a'; MAX_TOKEN + 3], "longer than 16386 bytes"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = token.authorization().await.unwrap_err();
            let start = format!("the token file {}: ", path.display());
            assert!(
                error.starts_with(&start) && error.contains(problem),
                "{error}"
            );
            assert!(!error.contains("CANARY"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        let error = token.authorization().await.unwrap_err();
        assert!(error.contains("cannot be read: No such file"), "{error}");
    }
}
