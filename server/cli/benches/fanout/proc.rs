//! What the kernel says that a process costs.

use std::fs;

use crate::Failure;

/// Ticks of the kernel's accounting of CPU, in milliseconds: it tells user space hundredths of a
/// second, whatever it counts with itself.
const TICK_MS: f64 = 10.0;

/// What a process has cost so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu_ms: f64,
    /// What is resident now.
    pub(crate) rss_kib: f64,
    /// The most that was resident since [`forget_peak`].
    pub(crate) peak_kib: f64,
    /// How often a thread waited, or was made to.
    pub(crate) switches: f64,
}

/// Of the process with this id.
pub(crate) fn usage(pid: i32) -> Result<Usage, Failure> {
    Ok(Usage {
        cpu_ms: cpu_ms(pid)?,
        rss_kib: field(pid, "smaps_rollup", "Rss:")?,
        peak_kib: field(pid, "status", "VmHWM:")?,
        switches: switches(pid)?,
    })
}

/// User and system time so far.
pub(crate) fn cpu_ms(pid: i32) -> Result<f64, Failure> {
    let stat = read(pid, "stat")?;
    // "pid (name) state …", and the name may hold anything.
    let (_, after_name) = stat.rsplit_once(')').ok_or("a stat without a name")?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |index: usize| -> Result<f64, Failure> {
        let text = fields.get(index).ok_or("a stat that is too short")?;
        Ok(text.parse()?)
    };
    // Fields 14 and 15 of the whole line.
    Ok((ticks(11)? + ticks(12)?) * TICK_MS)
}

/// Begins to look for the peak of resident memory anew.
pub(crate) fn forget_peak(pid: i32) -> Result<(), Failure> {
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
