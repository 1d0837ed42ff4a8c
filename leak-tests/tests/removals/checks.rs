//! That the list can be done, forgets nothing, and is what the README shows.

use std::fmt::Write as _;
use std::fs;
use std::process::ExitCode;

use crate::server::DOUBLED;
use crate::targets::{Target, read};
use crate::{Removal, removals, workspace};

/// Where clean-up code is looked for.
const SOURCES: [&str; 2] = ["client/src", "server/src"];

/// What is in there for tests only.
const FOR_TESTS: [&str; 4] = ["/tests/", "/tests.rs", "/scripted.rs", "/testing.rs"];

/// What clean-up code looks like, at the least.
const CLEANS_UP: [&str; 6] = [
    " Drop for ",
    "AbortOnDropHandle::new(",
    ".abort()",
    "run_until_cancelled(",
    "downgrade(",
    "timeout_at(",
];

/// In a line of a `Drop`, what takes something out, whatever becomes of it.
const TAKES_OUT: [&str; 7] = [
    "remove(", "take(", "drain(", "pop", "leave(", "forget(", "clear(",
];

/// Looks like clean-up code, and no removal takes it out: the file, a part of the line, what it is, and
/// why.
type Exempt = (&'static str, &'static str, &'static str, &'static str);

const EXEMPT: &[Exempt] = &[
    (
        "client/src/registry.rs",
        "Arc::downgrade(self)",
        "a subscription refers to the registry weakly",
        "a strong reference would go with the subscription, which the registry does not keep",
    ),
    (
        "server/src/service/admission.rs",
        "state.turn = Some(",
        "how long a turn took is noted as it ends",
        "nothing is let go of: who comes next is told how long to wait by that",
    ),
    (
        "server/src/source/etcd/earlier.rs",
        "timeout_at(quiet, ",
        "what etcd tells of the past is waited for a while at a time",
        "it ends nothing: what was not heard by then is waited for again",
    ),
];

/// A name, and what finds all that is wrong.
type Check = (&'static str, fn() -> Vec<String>);

const CHECKS: &[Check] = &[
    ("each_piece_of_code_is_there_exactly_once", each_is_there),
    ("what_should_notice_exists", what_notices_exists),
    ("no_clean_up_code_escapes_the_list", nothing_escapes),
    ("only_tests_at_the_end_are_left_out", leaves_out_tests),
    ("the_table_in_the_readme_is_the_list", readme_has_the_table),
    ("the_commands_in_the_readme_are_taken", commands_are_taken),
];

/// Prints as libtest does.
pub(crate) fn all(only_list: bool, wanted: impl Fn(&str) -> bool) -> ExitCode {
    let checks: Vec<&Check> = CHECKS.iter().filter(|(name, _)| wanted(name)).collect();
    if only_list {
        for (name, _) in &checks {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", checks.len());
    let mut failed = Vec::new();
    for (name, check) in &checks {
        let problems = check();
        let verdict = if problems.is_empty() { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict}");
        if !problems.is_empty() {
            failed.push((name, problems));
        }
    }
    if !failed.is_empty() {
        println!("\nfailures:");
        for (name, problems) in &failed {
            println!("\n---- {name} ----\n{}", problems.join("\n"));
        }
        println!("\nfailures:");
        for (name, _) in &failed {
            println!("    {name}");
        }
    }
    let passed = checks.len() - failed.len();
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {} failed; 0 ignored; 0 measured; {} filtered out\n",
        failed.len(),
        CHECKS.len() - checks.len(),
    );
    match failed.is_empty() {
        true => ExitCode::SUCCESS,
        // As other test programs do.
        false => ExitCode::from(101),
    }
}

fn each_is_there() -> Vec<String> {
    let mut problems = Vec::new();
    for (index, removal) in removals().enumerate() {
        let text = fs::read_to_string(workspace().join(removal.file)).unwrap_or_default();
        let times = text.matches(removal.code).count();
        if times != 1 {
            let (file, code) = (removal.file, removal.code);
            problems.push(format!(
                "\"{}\": {file} has this code {times} times, and not once: {code}",
                removal.what
            ));
        }
        if removal.code == removal.instead {
            problems.push(format!("\"{}\" takes nothing out", removal.what));
        }
        if removals()
            .take(index)
            .any(|other| other.what == removal.what)
        {
            problems.push(format!("\"{}\" is there twice", removal.what));
        }
    }
    problems
}

fn what_notices_exists() -> Vec<String> {
    let missing = removals().filter(|removal| {
        let (target, test) = removal.caught_by;
        !Target::named(target).is_some_and(|target| target.has(test))
    });
    missing
        .map(|removal| {
            let (target, test) = removal.caught_by;
            format!("\"{}\": {target} has no test \"{test}\"", removal.what)
        })
        .collect()
}

/// Each line that looks like clean-up code has a removal whose code touches it, and so has each
/// statement of a `Drop`.
fn nothing_escapes() -> Vec<String> {
    let mut problems = Vec::new();
    let mut unused: Vec<_> = EXEMPT.iter().collect();
    let mut sources = Vec::new();
    for folder in SOURCES {
        read(&workspace().join(folder), &mut sources);
    }
    sources.retain(|(file, _)| !FOR_TESTS.iter().any(|part| file.contains(part)));
    assert!(!sources.is_empty(), "there are no sources");
    for (file, text) in &sources {
        let code = without_tests(text);
        let mut at = 0;
        let mut drops_until = 0;
        for line in code.split_inclusive('\n') {
            let start = at;
            at += line.len();
            let mut end = at;
            let cleans_up = CLEANS_UP.iter().any(|sign| line.contains(sign));
            if line.trim_start().starts_with("//")
                || !(cleans_up || (start < drops_until && does_something(line)))
            {
                continue;
            }
            if line.contains(CLEANS_UP[0]) {
                // An implementation ends at the margin.
                end = code[start..].find("\n}").map_or(end, |end| start + end);
                drops_until = end;
            }
            let is_exempt = |exempt: &&Exempt| exempt.0 == file.as_str() && line.contains(exempt.1);
            let exempt = EXEMPT.iter().any(|exempt| is_exempt(&exempt));
            unused.retain(|exempt| !is_exempt(exempt));
            let taken_out = removals().any(|removal| {
                let found = text.find(removal.code).filter(|_| removal.file == file);
                found.is_some_and(|found| found < end && start < found + removal.code.len())
            });
            if !taken_out && !exempt {
                problems.push(format!(
                    "{file}:{}: nobody takes this out: {}; add a removal to leak-tests/tests/removals, \
                     or a reason to EXEMPT there",
                    code[..start].matches('\n').count() + 1,
                    line.trim(),
                ));
            }
        }
    }
    let unused = unused.iter();
    problems
        .extend(unused.map(|(file, line, ..)| format!("EXEMPT has {line} in {file}: not there")));
    problems
}

/// A source without the tests at its end. Those in a file of their own are mentioned, often at its
/// beginning.
fn without_tests(text: &str) -> &str {
    let end = text.find("#[cfg(test)]\nmod tests {");
    &text[..end.unwrap_or(text.len())]
}

fn leaves_out_tests() -> Vec<String> {
    let elsewhere = "mod a;\n#[cfg(test)]\nmod tests;\nimpl Drop for A {\n";
    let here = "impl Drop for A {\n}\n\n#[cfg(test)]\nmod tests {\nimpl Drop for B {\n";
    let looked_at = [without_tests(elsewhere), without_tests(here)];
    match looked_at == [elsewhere, "impl Drop for A {\n}\n\n"] {
        true => Vec::new(),
        false => vec![format!("what is looked at: {looked_at:?}")],
    }
}

/// Whether this line of a `Drop` takes something out, or is a statement that neither looks for something
/// nor is the end of what was taken out above.
fn does_something(line: &str) -> bool {
    let line = line.trim();
    let takes_out = TAKES_OUT.iter().any(|sign| line.contains(sign));
    let looks = ["let ", "drop("].iter().any(|it| line.starts_with(it));
    takes_out || (line.ends_with(';') && !looks)
}

/// What the README has to show.
pub(crate) fn table() -> String {
    let mut table = "| what is taken out | where | caught by |\n| --- | --- | --- |\n".to_owned();
    for removal in removals() {
        writeln!(table, "{}", row(removal)).unwrap();
    }
    table += "\n| what is not taken out | what else does it, or why it need not be done |\n| --- | --- |\n";
    for (what, else_by) in DOUBLED {
        writeln!(table, "| {what} | {else_by} |").unwrap();
    }
    for (file, _, what, why) in EXEMPT {
        let (_, file) = file.split_once("/src/").unwrap();
        writeln!(table, "| {what} ({file}) | {why} |").unwrap();
    }
    table
}

/// Its row there.
pub(crate) fn row(removal: &Removal) -> String {
    let (target, test) = removal.caught_by;
    let (what, file) = (removal.what, removal.file);
    format!("| {what} | `{file}` | {target}: {test} |")
}

fn readme_has_the_table() -> Vec<String> {
    let readme = readme();
    // With an empty line behind it: nothing follows in the same table.
    match readme.contains(&format!("{}\n", table())) {
        true => Vec::new(),
        false => vec![
            "paste what `cargo test -p driftless-leak-tests --test removals -- --table` prints into \
             leak-tests/README.md"
                .to_owned(),
        ],
    }
}

/// The page's commands take too long to be run here: that there is what they name is looked at. How
/// stacks are told is run by `tests/service`, and `driftless serve` by the tests of `driftless`.
fn commands_are_taken() -> Vec<String> {
    let file = |path: &str| fs::read_to_string(workspace().join(path)).unwrap();
    let (makefile, manifest) = (file("Makefile"), file("leak-tests/Cargo.toml"));
    let mut suite = Vec::new();
    read(&workspace().join("leak-tests/tests/suite"), &mut suite);
    let is_scenario = |part: &str| {
        let mut lines = suite.iter().flat_map(|(_, text)| text.lines());
        lines.any(|line| line.trim_start().starts_with("name: \"") && line.contains(part))
    };
    let mut problems = Vec::new();
    let mut found = 0;
    let page = readme();
    let blocks = page.split("\n```sh\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("\n```").next().unwrap().lines());
    for line in lines {
        let command = line.split(" #").next().unwrap().trim_end();
        let is_taken = if let Some(arguments) = command.strip_prefix("make ") {
            let target = arguments.split(' ').next().unwrap();
            makefile.contains(&format!("\n{target}:"))
        } else if let Some(arguments) =
            command.strip_prefix("cargo test -p driftless-leak-tests --test ")
        {
            let (target, arguments) = arguments.split_once(" -- ").unwrap_or((arguments, ""));
            let takes = file(match target {
                "suite" => "leak-tests/tests/suite/options.rs",
                _ => "leak-tests/tests/removals/main.rs",
            });
            // Every other part is quoted: a part of a scenario's name.
            let words: Vec<&str> = arguments.split('"').collect();
            let flags = words.iter().step_by(2).flat_map(|part| part.split(' '));
            let mut flags = flags.filter(|word| word.starts_with("--"));
            manifest.contains(&format!("\nname = \"{target}\"\n"))
                && flags.all(|flag| takes.contains(&format!("\"{flag}\" =>")))
                && (target != "suite"
                    || words
                        .iter()
                        .skip(1)
                        .step_by(2)
                        .all(|part| is_scenario(part)))
        } else {
            continue;
        };
        found += 1;
        if !is_taken {
            problems.push(format!("leak-tests/README.md: nothing takes `{command}`"));
        }
    }
    assert!(found >= 7, "only {found} commands were found");
    problems
}

fn readme() -> String {
    fs::read_to_string(workspace().join("leak-tests/README.md")).unwrap()
}
