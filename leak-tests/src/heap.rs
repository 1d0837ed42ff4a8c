//! Where memory was allocated that is not freed: jemalloc's heap profiles before and after.
//!
//! Profiles exist only when the program was started with the variable in [`HEAP_PROFILE`]. Then every
//! allocation is recorded, which is slow. Otherwise nothing here does anything.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use tikv_jemalloc_ctl::raw;

/// The name and the value of the environment variable with which a program that
/// [`use_jemalloc!`](crate::use_jemalloc) is in records where it allocates. Its
/// [`Outcome`](crate::Outcome)s then say which stacks grew.
pub const HEAP_PROFILE: (&str, &str) = (
    "_RJEM_MALLOC_CONF",
    "prof:true,prof_active:true,lg_prof_sample:0",
);

/// How many stacks are reported: the first ones hold nearly all of a leak.
const MOST_STACKS: usize = 5;

/// How many frames of a stack are reported.
const MOST_FRAMES: usize = 24;

/// Where the sources of the standard library, of the allocator and of the runtime are: their frames are
/// in every stack, and say nothing.
const EVERYWHERE: [&str; 5] = [
    "/rustc/",
    "/library/",
    "jemalloc",
    "/tokio-1",
    "/backtrace-",
];

/// How many folders of a file's path are reported: enough to name its crate.
const FOLDERS: usize = 4;

/// What is allocated, by where that was done.
#[derive(Debug)]
pub(crate) struct Heap(HashMap<Vec<usize>, i64>);

impl Heap {
    /// The profile now; `None` when allocations are not recorded.
    pub(crate) fn now() -> Option<Self> {
        if !matches!(tikv_jemalloc_ctl::profiling::prof::read(), Ok(true)) {
            return None;
        }
        let file = std::env::temp_dir().join(format!("leak-tests-{}.heap", std::process::id()));
        let dumped = dump(&file);
        let text = fs::read_to_string(&file);
        // It may not be there.
        let _ = fs::remove_file(&file);
        dumped.then(|| Self(parsed(&text.unwrap_or_default())))
    }

    /// Describes the stacks that hold more here than before, the largest first.
    pub(crate) fn grown_since(&self, before: &Self) -> Vec<String> {
        let grown = self.0.iter().filter_map(|(stack, bytes)| {
            let more = bytes - before.0.get(stack).copied().unwrap_or(0);
            (more > 0).then_some((more, stack))
        });
        let mut grown: Vec<_> = grown.collect();
        grown.sort_unstable_by(|a, b| b.cmp(a));
        let stacks = grown.into_iter().map(|(more, stack)| (more, frames(stack)));
        let told = stacks.filter(|(_, frames)| !are_ours(frames));
        let told = told.take(MOST_STACKS).map(|(more, frames)| {
            let mut text = format!("{more} bytes more, allocated in\n");
            for frame in frames {
                // Writing to a string does not fail.
                let _ = writeln!(text, "    {frame}");
            }
            text
        });
        told.collect()
    }
}

/// Whether jemalloc has written its profile.
fn dump(file: &Path) -> bool {
    let Ok(path) = CString::new(file.as_os_str().as_bytes()) else {
        return false;
    };
    #[allow(
        unsafe_code,
        reason = "the option takes a pointer to text that ends with a zero, which lives longer than the call"
    )]
    let written = unsafe { raw::write(b"prof.dump\0", path.as_ptr()) };
    written.is_ok()
}

/// Reads jemalloc's text: a line of addresses, then one of counts for all threads together.
fn parsed(text: &str) -> HashMap<Vec<usize>, i64> {
    let mut heap = HashMap::new();
    let mut stack = None;
    for line in text.lines() {
        if let Some(addresses) = line.strip_prefix("@ ") {
            let addresses = addresses.split(' ').map(|address| {
                usize::from_str_radix(address.trim_start_matches("0x"), 16).unwrap_or(0)
            });
            stack = Some(addresses.collect::<Vec<_>>());
        } else if let Some(counts) = line.trim_start().strip_prefix("t*: ")
            && let Some(stack) = stack.take()
        {
            // Objects, bytes, and in brackets all there ever were.
            let bytes = counts
                .split(' ')
                .nth(1)
                .and_then(|bytes| bytes.parse().ok());
            *heap.entry(stack).or_insert(0) += bytes.unwrap_or(0);
        }
    }
    heap
}

/// Whether this crate allocated it, to compare and plot.
fn are_ours(frames: &[String]) -> bool {
    let ours = ["leak-tests/src/heap.rs:", "leak-tests/src/curve.rs:"];
    let is_ours = |frame: &String| ours.iter().any(|module| frame.contains(module));
    frames.iter().any(is_ours)
}

/// The functions of a stack whose sources are known, innermost first, with file and line.
fn frames(stack: &[usize]) -> Vec<String> {
    let mut frames = Vec::new();
    for address in stack {
        // The call, and not where it returns to.
        let call = address.saturating_sub(1) as *mut std::ffi::c_void;
        backtrace::resolve(call, |symbol| {
            let (Some(name), Some(file)) = (symbol.name(), symbol.filename()) else {
                return;
            };
            let path = file.to_string_lossy();
            if frames.len() >= MOST_FRAMES || EVERYWHERE.iter().any(|part| path.contains(part)) {
                return;
            }
            let parts = path.rsplit('/').take(FOLDERS).collect::<Vec<_>>();
            let file = parts.into_iter().rev().collect::<Vec<_>>().join("/");
            frames.push(format!("{file}:{} {name:#}", symbol.lineno().unwrap_or(0)));
        });
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_and_compared() {
        let before = parsed(
            "heap_v2/1\n  t*: 3: 96 [0: 0]\n@ 0x1 0x2\n  t*: 1: 32 [0: 0]\n  t0: 1: 32 [0: 0]\n",
        );
        let after = parsed(
            "heap_v2/1\n  t*: 3: 96 [0: 0]\n@ 0x1 0x2\n  t*: 3: 96 [0: 0]\n  t0: 1: 32 [0: 0]\n\
             @ 0x3\n  t*: 1: 8 [1: 8]\nMAPPED_LIBRARIES:\n",
        );
        assert_eq!(before, HashMap::from([(vec![1, 2], 32)]));
        let grown = Heap(after).grown_since(&Heap(before));
        assert_eq!(grown.len(), 2);
        assert!(grown[0].starts_with("64 bytes more") && grown[1].starts_with("8 bytes more"));
    }
}
