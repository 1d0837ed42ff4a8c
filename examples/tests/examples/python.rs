//! A Python that has what `in_any_language` needs, wherever it comes from.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long packages may take to come and be unpacked.
const INSTALL_WITHIN: Duration = Duration::from_secs(180);

/// How often a command is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Where the example is.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("in_any_language")
}

/// The interpreter; or `None`, after saying why the test is skipped. Blocks while it installs what
/// is missing into the target folder.
pub(crate) fn interpreter(test: &str) -> Option<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match FOUND.get_or_init(find) {
        Ok(python) => Some(python),
        Err(why) => {
            // Not through `eprintln`, which is shown for failed tests only. Skipping has no status
            // of its own, and is not to be overlooked.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
            None
        }
    }
}

fn find() -> Result<PathBuf, String> {
    let python = PathBuf::from("python3");
    let has_venv = "import sys, venv, ensurepip; assert sys.version_info >= (3, 9)";
    run(&python, &["-c", ""]).map_err(|_| "there is no python3")?;
    if is_equipped(&python) {
        return Ok(python);
    }
    run(&python, &["-c", has_venv])
        .map_err(|_| "python3 lacks grpcio, grpcio-tools or xxhash, and cannot make a venv")?;
    equip(&python).map_err(|why| format!("python3 lacks packages, and pip got none: {why}"))
}

fn is_equipped(python: &Path) -> bool {
    run(python, &["-c", "import grpc, grpc.aio, grpc_tools, xxhash"]).is_ok()
}

/// Makes a virtual environment in the target folder, or takes the one that is there.
fn equip(python: &Path) -> Result<PathBuf, String> {
    let text = |error: std::io::Error| error.to_string();
    let requirements = folder().join("requirements.txt");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(target).map_err(text)?;
    // Other test runs may want the same. It is unlocked when it is closed.
    let lock = std::fs::File::create(target.join("python.lock")).map_err(text)?;
    lock.lock().map_err(text)?;
    let venv = target.join("python");
    let equipped = venv.join("bin/python3");
    if is_equipped(&equipped) {
        return Ok(equipped);
    }
    let venv = venv.to_string_lossy();
    run(python, &["-m", "venv", "--clear", &venv])?;
    let install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--only-binary=:all:",
        "--timeout=15",
        "--retries=1",
        "--requirement",
        &requirements.to_string_lossy(),
    ];
    run(&equipped, &install)?;
    Ok(equipped)
}

/// Runs to the end, which is not to be far; what it said last when it fails.
fn run(program: &Path, arguments: &[&str]) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let log = dir.path().join("log");
    let errors = std::fs::File::create(&log).map_err(|error| error.to_string())?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .map_err(|error| error.to_string())?;
    let deadline = Instant::now() + INSTALL_WITHIN;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(_)) => {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(log.lines().last().unwrap_or_default().to_owned());
            }
            Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("not done within {INSTALL_WITHIN:?}"));
            }
        }
    }
}
