//! The texts of I/O errors.

use std::error::Error;
use std::io::{self, ErrorKind};

/// The error at the root of a chain of sources.
pub(crate) fn innermost<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root
}

/// The text of the innermost error: those around it say less.
pub(crate) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let root = innermost(error);
    root.downcast_ref()
        .map_or_else(|| root.to_string(), explain)
}

/// The text of an I/O error. All kinds that mean a closed connection have one text, because which of them
/// occurs is a matter of timing.
pub(crate) fn explain(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::BrokenPipe
        | ErrorKind::ConnectionAborted
        | ErrorKind::ConnectionReset
        | ErrorKind::NotConnected
        | ErrorKind::UnexpectedEof => "the connection was closed".to_owned(),
        _ => error.to_string(),
    }
}
