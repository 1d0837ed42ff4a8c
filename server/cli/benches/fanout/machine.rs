//! Describes the machine, so that a reader knows whether figures can be compared.

use std::fs;
use std::process::Command;

use rustix::process::{Resource, getrlimit};

/// The machine and the versions, one line each.
pub(crate) fn describe() -> Vec<String> {
    let cpu = first_line_of("/proc/cpuinfo", "model name").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = first_line_of("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    vec![
        format!("{cores} cores, {cpu}; {memory} of memory; Linux {kernel}"),
        format!(
            "driftless {} at {}; {}; {}",
            env!("CARGO_PKG_VERSION"),
            output("git", &["rev-parse", "--short", "HEAD"]),
            output("etcd", &["--version"]),
            output("rustc", &["--version"]),
        ),
    ]
}

/// The load average.
pub(crate) fn load() -> String {
    let text = read("/proc/loadavg");
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Connections that one process may have open, beside the few descriptors that it needs itself.
pub(crate) fn most_connections() -> usize {
    /// Standard streams, files, event queues, the connection to etcd.
    const OTHERS: u64 = 64;
    let limit = getrlimit(Resource::Nofile).maximum;
    let limit = limit.map_or(usize::MAX as u64, |limit| limit.saturating_sub(OTHERS));
    usize::try_from(limit).unwrap_or(usize::MAX)
}

fn first_line_of(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// The first line that a program prints.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    match text.ok().as_deref().and_then(|text| text.lines().next()) {
        Some(line) => line.to_owned(),
        None => format!("{program}: unknown"),
    }
}
