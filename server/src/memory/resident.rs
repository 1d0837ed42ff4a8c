//! The resident memory of this process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where Linux says it: in KiB, so that nothing needs to know the size of a page.
const STATUS: &str = "/proc/self/status";

/// How much of that is read, in bytes. It has about 1.5 KiB, and what is looked for is in its first
/// half; only masks of processors at its end may make it longer.
const READ: usize = 4096;

/// Reads the resident memory of this process.
///
/// It is compared with the limit, and not what the cgroup counts, since it is what this server can do
/// something about. The group's count includes files that the kernel drops by itself when it needs
/// room, and the other processes of the group: their growth must not cost our clients anything.
/// It lacks what the kernel holds for sockets, for which the [levels](super::Level) leave room.
///
/// What was freed is resident for some seconds more, until the allocator returns it; `driftless serve`
/// lets it do so by itself, also where nothing is allocated any more.
#[derive(Debug)]
pub(crate) struct Resident {
    /// Stays open, so that it can be read when the process has no descriptor left.
    status: File,
}

impl Resident {
    /// # Errors
    /// When the system does not say it: it is not Linux, or `/proc` is not there.
    pub(crate) fn open() -> io::Result<Self> {
        let resident = Self {
            status: File::open(STATUS)?,
        };
        resident.bytes()?;
        Ok(resident)
    }

    /// How many bytes are resident. It costs some 20 µs and never waits: the kernel makes the text when
    /// it is read.
    ///
    /// # Errors
    /// When it cannot be read, or does not say it.
    pub(crate) fn bytes(&self) -> io::Result<usize> {
        let mut text = [0; READ];
        let len = self.status.read_at(&mut text, 0)?;
        parse(&text[..len]).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("there is no VmRSS in {STATUS}"),
            )
        })
    }
}

fn parse(status: &[u8]) -> Option<usize> {
    let mut lines = status.split(|byte| *byte == b'\n');
    let line = lines.find_map(|line| line.strip_prefix(b"VmRSS:"))?;
    let line = std::str::from_utf8(line).ok()?;
    let kib: usize = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_found_among_the_lines() {
        let status =
            b"Name:\ta VmRSS: b\nVmHWM:\t  9000 kB\nVmRSS:\t    1234 kB\nRssAnon:\t 7 kB\n";
        assert_eq!(parse(status), Some(1234 * 1024));
        for status in [
            "",
            "VmRSS:",
            "VmRSS:\t12",
            "VmRSS:\tx kB\n",
            "VmSize:\t1 kB\n",
        ] {
            assert_eq!(parse(status.as_bytes()), None, "{status:?}");
        }
    }

    #[test]
    fn resident_memory_grows_with_what_is_touched() {
        const BYTES: usize = 64 * 1024 * 1024;
        let resident = Resident::open().unwrap();
        let before = resident.bytes().unwrap();
        let touched = std::hint::black_box(vec![1_u8; BYTES]);
        let grown = resident.bytes().unwrap().saturating_sub(before);
        // Other tests free and allocate meanwhile.
        assert!(grown > BYTES / 2, "{grown}");
        drop(touched);
    }
}
