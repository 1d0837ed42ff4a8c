//! Checks the READMEs: every command runs, every setting and log line is explained, every path exists.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use driftless_server::metrics::{DESCRIPTIONS, Description};
use driftless_server::settings::Setting;
use driftless_test_support::{
    Driftless, Etcd, Process, ServerProcess, find_on_path, run, wait_until,
};
use rustix::process::Signal;

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

/// Commands that end only when they are stopped.
const ENDLESS: [&str; 3] = ["driftless dev", "driftless serve", "driftless watch"];

/// Commands that the pipeline runs itself.
const ELSEWHERE: [&str; 2] = ["make ", "cargo build "];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The fenced blocks of a page that are written in `language`.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => {
                let (wanted, text) = open.take().unwrap();
                blocks.extend(wanted.then_some(text));
            }
            (Some((_, text)), None) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, Some(info)) => open = Some((info == language, String::new())),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// Runs a page's commands, with an etcd and a server of its own instead of those at the default ports.
struct Shell {
    etcd: Etcd,
    server: ServerProcess,
    dir: tempfile::TempDir,
}

impl Shell {
    fn start() -> Self {
        let etcd = Etcd::started_blocking();
        let server = DRIFTLESS.serve(&etcd, &["/config/"]);
        Self {
            etcd,
            server,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// Runs a block as if typed line by line.
    fn run(&self, block: &str) {
        let block = block.replace("http://127.0.0.1:2379", &self.etcd.url());
        let mut script = String::new();
        for line in block.lines() {
            if ELSEWHERE.iter().any(|start| line.starts_with(start)) {
                continue;
            }
            if ENDLESS.iter().any(|start| line.starts_with(start)) {
                self.run_to_end(&std::mem::take(&mut script));
                self.run_until_it_speaks(line);
                continue;
            }
            script.push_str(line);
            script.push('\n');
        }
        self.run_to_end(&script);
    }

    fn bash(&self, script: &str) -> Command {
        let mut command = driftless_in_bash(self.dir.path());
        command
            .arg(script)
            .current_dir(self.dir.path())
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_ENDPOINTS", self.etcd.url())
            .env("DRIFTLESS_SERVER", self.server.url());
        command
    }

    fn run_to_end(&self, script: &str) {
        let finished = run(&mut self.bash(&format!("set -euo pipefail\n{script}")));
        assert!(
            finished.status.success(),
            "{script}\n{}{}",
            finished.stdout,
            finished.stderr
        );
    }

    fn run_until_it_speaks(&self, line: &str) {
        let mut command = line.split('#').next().unwrap().trim_end().to_owned();
        if command.starts_with("driftless serve") {
            command.push_str(" --listen 127.0.0.1:0 --admin 127.0.0.1:0");
        }
        let mut process = Process::spawn(&mut self.bash(&format!("exec {command}")));
        assert!(!process.line().is_empty(), "{command}");
        process.signal(Signal::TERM);
        process.wait();
    }
}

/// A `bash -c` that finds the binary under test as `driftless`.
fn driftless_in_bash(dir: &Path) -> Command {
    let bin = dir.join("bin");
    if !bin.exists() {
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(DRIFTLESS.path(), bin.join("driftless")).unwrap();
    }
    let path = std::env::var_os("PATH").unwrap();
    let path = std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&path))).unwrap();
    let mut command = Command::new(find_on_path("bash").expect("bash is on PATH"));
    command
        .env("PATH", path)
        .env_remove("DRIFTLESS_ETCD")
        .env_remove(REGENERATE)
        .arg("-c");
    command
}

fn run_page(path: &str, at_least: usize) {
    let shell = Shell::start();
    let blocks = blocks(&read(path), "sh");
    assert!(
        blocks.len() >= at_least,
        "{path} has only {} blocks",
        blocks.len()
    );
    blocks.iter().for_each(|block| shell.run(block));
}

#[test]
fn readme_commands_run() {
    run_page("README.md", 4);
}

#[test]
fn server_readme_commands_run() {
    run_page("server/README.md", 7);
}

/// For services that test against an etcd of their own.
#[test]
fn leak_tests_readme_server_starts() {
    let page = read("leak-tests/README.md");
    let (_, rest) = page.split_once("`driftless serve ").unwrap();
    let (arguments, _) = rest.split_once('`').unwrap();
    Shell::start().run(&format!("driftless serve {arguments}"));
}

#[test]
fn tls_recipe_works() {
    // openssl makes the certificates; nothing else needs it.
    if find_on_path("openssl").is_none() {
        return;
    }
    let blocks = blocks(&read("server/README.md"), "bash");
    let [make, serve, get] = &blocks[..] else {
        panic!("not three blocks")
    };
    let shell = Shell::start();
    shell.etcd.put("/config/a", "1");
    shell.run_to_end(make);
    let serve = serve
        .trim_end()
        .replace("http://127.0.0.1:2379", &shell.etcd.url());
    let serve = format!("exec {serve} --listen 127.0.0.1:0 --admin 127.0.0.1:0");
    let mut server = Process::spawn(&mut shell.bash(&serve));
    let line = server.line();
    let url = line
        .split_once(" on https://127.0.0.1:")
        .expect("it speaks TLS")
        .1;
    let port = url.split(',').next().unwrap();
    wait_until("the key is served", || {
        let get = get.replace(":7400", &format!(":{port}"));
        let got = run(&mut shell.bash(&get));
        got.status.success() && got.stdout == "/config/a\n1\n"
    });
    server.signal(Signal::TERM);
    server.wait();
}

#[test]
fn readme_dependencies_match_its_program() {
    let page = read("README.md");
    let [file] = &blocks(&page, "toml")[..] else {
        panic!("not one file")
    };
    let table = |text: &str| text.parse::<toml::Table>().unwrap();
    let named = &table(file)["dependencies"];
    let named = named.as_table().unwrap();
    let workspace = table(&read("Cargo.toml"));
    let examples = table(&read("examples/Cargo.toml"));
    for (name, wanted) in named {
        assert!(
            examples["dependencies"].get(name).is_some(),
            "the program of the README is built without {name}"
        );
        if let Some(path) = wanted.get("path") {
            let path = path
                .as_str()
                .unwrap()
                .strip_prefix("../driftless/")
                .unwrap();
            let manifest = table(&read(&format!("{path}/Cargo.toml")));
            assert_eq!(manifest["package"]["name"].as_str(), Some(name.as_str()));
            continue;
        }
        let version = |spec: &toml::Value| {
            let version = spec.get("version").unwrap_or(spec).as_str().unwrap();
            version.split('.').next().unwrap().to_owned()
        };
        let ours = &workspace["workspace"]["dependencies"][name];
        assert_eq!(version(wanted), version(ours), "{name}");
    }
    // All dependencies are used by the program.
    let program = read("examples/src/bin/readme.rs").replace('-', "_");
    for name in named.keys() {
        assert!(program.contains(&name.replace('-', "_")), "{name}");
    }
}

#[test]
fn server_readme_settings_file_is_valid() {
    let page = read("server/README.md");
    let [file] = &blocks(&page, "toml")[..] else {
        panic!("not one file")
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("driftless.toml");
    fs::write(&path, file).unwrap();
    let settings = driftless_server::Settings::builder()
        .file(&path)
        .unwrap()
        .build()
        .unwrap();
    assert_eq!(settings.etcd().len(), 3);
    assert_eq!(settings.log_bytes(), 128 * 1024 * 1024);
}

#[test]
fn server_readme_settings_table_matches() {
    let rows = Setting::ALL.map(Setting::readme_row);
    check_table(
        "Settings",
        "| in the file | flag | variable | default | what it does |\n| --- | --- | --- | --- | --- |",
        &rows,
    );
}

#[test]
fn help_lists_every_setting_with_its_default() {
    let help = run(DRIFTLESS.command().args(["serve", "--help"])).stdout;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for setting in Setting::ALL {
        let mut expected = format!("{} <{}>", setting.flag(), setting.placeholder());
        if setting.is_list() {
            expected.push_str("...");
        }
        expected.push_str(&format!(" {}", setting.summary()));
        if let Some(default) = setting.default_text() {
            expected.push_str(&format!(" [default: {default}]"));
        }
        assert!(help.contains(&expected), "--help lacks: {expected}");
    }
}

#[test]
fn server_readme_metrics_table_matches() {
    let rows: Vec<_> = DESCRIPTIONS.iter().map(Description::readme_row).collect();
    check_table(
        "Metrics",
        "| metric | type | what it counts |\n| --- | --- | --- |",
        &rows,
    );
}

/// Set to write the tables of the server's README anew.
const REGENERATE: &str = "DRIFTLESS_REGENERATE";

/// Compares the table of a section of the server's README with these rows; writes it when asked to.
#[track_caller]
fn check_table(section: &str, header: &str, rows: &[String]) {
    /// Tests of one process run side by side.
    static PAGE: Mutex<()> = Mutex::new(());
    let _page = PAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let page = read("server/README.md");
    let (above, rest) = page
        .split_once(&format!("## {section}\n"))
        .unwrap_or_else(|| panic!("no section {section:?}"));
    let start = page.len() - rest.len() + rest.find("\n|").expect("the section has a table") + 1;
    assert!(start > above.len());
    let end = page[start..]
        .find("\n\n")
        .map_or(page.len(), |end| start + end);
    let expected = format!("{header}\n{}", rows.join("\n"));
    if std::env::var_os(REGENERATE).is_some() {
        let page = format!("{}{expected}{}", &page[..start], &page[end..]);
        fs::write(root().join("server/README.md"), page).unwrap();
        return;
    }
    let written: Vec<_> = page[start..end].lines().collect();
    for row in expected.lines() {
        assert!(
            written.contains(&row),
            "server/README.md, {section}: {REGENERATE}=1 writes the missing row:\n{row}"
        );
    }
    assert_eq!(
        page[start..end].trim_end(),
        expected,
        "server/README.md, {section}: too many rows or another order; {REGENERATE}=1 writes it anew"
    );
}

#[test]
fn server_readme_explains_every_warning_and_error() {
    let page = read("server/README.md");
    let mut messages = 0;
    for file in sources(&["server/src", "server/cli/src"]) {
        let source = fs::read_to_string(&file).unwrap();
        for (start, _) in source
            .match_indices("tracing::warn!(")
            .chain(source.match_indices("tracing::error!("))
        {
            let message = last_literal(&source[start..]);
            // A message that is only a placeholder has its text elsewhere.
            if message.starts_with('{') {
                continue;
            }
            messages += 1;
            assert!(
                page.contains(message),
                "{}: the README does not explain: {message}",
                file.display()
            );
        }
    }
    assert!(messages > 5, "the sources were not searched as they should");
}

/// The last string literal of the call that `source` starts with: the message of a log line.
fn last_literal(source: &str) -> &str {
    let (mut depth, mut open, mut last) = (0, None, "");
    for (at, c) in source.char_indices() {
        match (c, open) {
            ('"', None) => open = Some(at + 1),
            ('"', Some(start)) => (open, last) = (None, &source[start..at]),
            ('(', None) => depth += 1,
            (')', None) => depth -= 1,
            _ => {}
        }
        if c == ')' && depth == 0 {
            break;
        }
    }
    last
}

/// All Rust files below these folders.
fn sources(folders: &[&str]) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The folders at the root that pages name files in.
const FOLDERS: [&str; 7] = [
    ".ci/",
    ".github/",
    "client/",
    "examples/",
    "leak-tests/",
    "proto/",
    "server/",
];

/// What a page at the root names: the targets of its links, and paths in backticks.
fn named_paths(page: &str) -> Vec<&str> {
    let links = page.split("](").skip(1).filter_map(|rest| {
        let (target, _) = rest.split_once(')')?;
        let target = target.split('#').next()?;
        (!target.is_empty() && !target.contains("://")).then_some(target)
    });
    let quoted = page.split('`').skip(1).step_by(2);
    let quoted = quoted.filter(|text| FOLDERS.iter().any(|folder| text.starts_with(folder)));
    links.chain(quoted).collect()
}

#[test]
fn paths_named_in_root_pages_exist() {
    let pages = [
        ("README.md", 10),
        ("ARCHITECTURE.md", 40),
        ("CONTRIBUTING.md", 15),
        ("SECURITY.md", 2),
    ];
    for (page, at_least) in pages {
        let text = read(page);
        let paths = named_paths(&text);
        assert!(
            paths.len() >= at_least,
            "{page} names only {} paths",
            paths.len()
        );
        for path in paths {
            assert!(
                root().join(path).exists(),
                "{page} names {path}, which does not exist"
            );
        }
    }
}
