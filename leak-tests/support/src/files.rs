//! Temporary files and folders.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder that goes with its guard.
///
/// # Panics
/// When the system has no place for temporary files.
#[must_use]
pub fn folder() -> TempDir {
    tempfile::tempdir().expect("there is a folder for temporary files")
}

/// A file with this text, in a folder that goes with the guard.
///
/// # Panics
/// When it cannot be written.
#[must_use]
pub fn file(name: &str, text: &str) -> (TempDir, PathBuf) {
    let folder = folder();
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("it can be written to");
    (folder, path)
}

/// Whether a folder holds nothing.
#[must_use]
pub fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Copies a folder and everything in it to a path that does not exist yet.
///
/// # Panics
/// When a file cannot be read or written.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
