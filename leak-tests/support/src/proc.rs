//! What the kernel says about a process, under `/proc`.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_until;

/// Why something could not be read.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A tick of the kernel's accounting of CPU time, in milliseconds: user space sees hundredths of a
/// second, whatever the kernel counts with.
const TICK_MS: f64 = 10.0;

/// What a process has cost so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time, in milliseconds.
    pub cpu_ms: f64,
    /// Resident memory now, in KiB.
    pub rss_kib: f64,
    /// The most resident memory since [`forget_peak`], in KiB.
    pub peak_kib: f64,
    /// How often a thread gave up the processor, by itself or not.
    pub switches: f64,
}

/// What the process with this id has cost so far.
///
/// # Errors
/// When there is no such process.
pub fn usage(pid: i32) -> Result<Usage, Failure> {
    Ok(Usage {
        cpu_ms: cpu_ms(pid)?,
        rss_kib: field(pid, "smaps_rollup", "Rss:")?,
        peak_kib: field(pid, "status", "VmHWM:")?,
        switches: switches(pid)?,
    })
}

/// User and system time so far, in milliseconds.
///
/// # Errors
/// When there is no such process.
pub fn cpu_ms(pid: i32) -> Result<f64, Failure> {
    let stat = read(pid, "stat")?;
    let fields = after_name(&stat).ok_or("a stat without a name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |index: usize| -> Result<f64, Failure> {
        let text = fields.get(index).ok_or("a stat that is too short")?;
        Ok(text.parse()?)
    };
    // Fields 14 and 15 of the whole line.
    Ok((ticks(11)? + ticks(12)?) * TICK_MS)
}

/// Starts the measurement of the peak of resident memory anew.
///
/// # Errors
/// When there is no such process.
pub fn forget_peak(pid: i32) -> Result<(), Failure> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

fn switches(pid: i32) -> Result<f64, Failure> {
    let mut sum = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else {
            continue;
        };
        for line in status.lines() {
            if let Some((name, count)) = line.split_once(':')
                && name.ends_with("ctxt_switches")
            {
                sum += count.trim().parse::<f64>()?;
            }
        }
    }
    Ok(sum)
}

/// A line "name number …" of one of the process's files.
fn field(pid: i32, file: &str, name: &str) -> Result<f64, Failure> {
    let text = read(pid, file)?;
    let found = text.lines().find_map(|line| line.strip_prefix(name));
    let number = found.and_then(|rest| rest.split_whitespace().next());
    let number = number.ok_or_else(|| format!("there is no {name} in {file} of {pid}"))?;
    Ok(number.parse()?)
}

fn read(pid: i32, file: &str) -> Result<String, Failure> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}").into())
}

/// Stops a process as a debugger would: from then on it reads and answers nothing. Blocks the thread
/// until that is so.
///
/// # Panics
/// When it does not stop.
#[track_caller]
pub fn pause(pid: i32) {
    signal(pid, Signal::STOP);
    // The signal is not yet the deed, and each thread stops by itself.
    wait_until("all of its threads stop", || {
        fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| {
            threads
                .flatten()
                .all(|thread| state(&thread.path().join("stat")) == Some('T'))
        })
    });
}

/// Sends a signal.
///
/// # Panics
/// When there is no such process.
#[track_caller]
pub fn signal(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("not zero");
    kill_process(pid, signal).expect("it is there until it was waited for");
}

/// Whether a process runs: it exists and is no zombie that nobody has waited for.
#[must_use]
pub fn is_running(pid: i32) -> bool {
    let state = state(Path::new(&format!("/proc/{pid}/stat")));
    !matches!(state, None | Some('Z' | 'X'))
}

/// The processes whose parent is `pid`.
///
/// # Panics
/// When `/proc` is not there.
#[must_use]
pub fn children_of(pid: i32) -> Vec<i32> {
    let parent = |candidate: &i32| -> Option<i32> {
        let stat = read(*candidate, "stat").ok()?;
        after_name(&stat)?.split_whitespace().nth(1)?.parse().ok()
    };
    fs::read_dir("/proc")
        .expect("it is Linux")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|candidate| parent(candidate) == Some(pid))
        .collect()
}

/// The state of a process or thread, as the kernel abbreviates it.
fn state(stat: &Path) -> Option<char> {
    let stat = fs::read_to_string(stat).ok()?;
    after_name(&stat)?.trim_start().chars().next()
}

/// What follows the name in "pid (name) state …". The name may hold anything.
fn after_name(stat: &str) -> Option<&str> {
    Some(stat.rsplit_once(')')?.1)
}
