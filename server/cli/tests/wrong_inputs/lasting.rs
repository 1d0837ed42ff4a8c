//! Commands that keep running: each change of state is logged once, not once for each attempt.

use driftless_test_support::wrong_inputs::{Row, check_output, check_table};
use driftless_test_support::{Process, wait_for, wait_until};
use rustix::process::Signal;

use super::SECTIONS;
use super::ending;
use super::place::Place;
use crate::DRIFTLESS;

/// How many attempts to wait for.
const ATTEMPTS: u64 = 6;

/// How often to poll while the command backs off.
const POLLS: u64 = 50;

/// The most attempts during those polls. A loop without backoff makes thousands.
const MOST_ATTEMPTS: u64 = 40;

const RUNS: &str = "runs on";

/// Waits for several attempts, then checks that few come during many polls.
#[track_caller]
fn backs_off(mut attempts: impl FnMut() -> u64) {
    let before = attempts();
    wait_until("it tries again and again", || {
        attempts() >= before + ATTEMPTS
    });
    for _ in 0..POLLS {
        std::thread::sleep(std::time::Duration::from_millis(10));
        assert!(attempts() <= before + MOST_ATTEMPTS, "it does not wait");
    }
}

#[test]
fn watch_messages_match_the_page() {
    let mut place = Place::start();
    let mut rows = ending::watch(&place);
    place.lasting_watches(&mut rows);
    check_table(SECTIONS[2], &rows);
}

impl Place {
    fn lasting_watches(&mut self, rows: &mut Vec<Row>) {
        let command = "driftless watch /config/a --server http://127.0.0.1:9";
        let process = self.start_command(command);
        backs_off(|| attempts(&process));
        wait_until("it says why", || !self.said(&process).is_empty());
        rows.push(Row::new(
            "nothing listens at the server's address",
            command,
            RUNS,
            self.said(&process),
        ));
        drop(process);

        let unready = DRIFTLESS.serve_at("http://127.0.0.1:9", &["/config/"], 0, &[]);
        let ready = std::mem::replace(&mut self.server, unready);
        let command = "driftless watch /config/a";
        let process = self.start_command(command);
        wait_until("it says why", || !self.said(&process).is_empty());
        let wrong = "the server has not read its state from etcd yet";
        rows.push(Row::new(wrong, command, RUNS, self.said(&process)));
        drop(process);
        rows.push(self.row("the same, with `get`", "driftless get /config/a"));
        self.server = ready;

        let mut process = self.start_command(command);
        process.lines_to("watching");
        let port = self.server.addr().port();
        self.server.process.signal(Signal::KILL);
        self.server.process.wait();
        backs_off(|| attempts(&process));
        let wrong = "the server is killed, and started again";
        self.server = DRIFTLESS.serve_at(&self.etcd.url(), &["/config/"], port, &[]);
        wait_until("it says so", || process.stderr().contains("connected to"));
        rows.push(Row::new(wrong, command, RUNS, self.said(&process)));
        drop(process);

        let mut process = self.start_command(command);
        process.lines_to("watching");
        self.server.process.signal(Signal::TERM);
        self.server.process.wait();
        backs_off(|| attempts(&process));
        let wrong = "the server is stopped";
        let said = self.said(&process);
        // What follows depends on when the server closes its listener.
        assert!(said.len() <= 3, "{said:#?}");
        rows.push(Row::new(wrong, command, RUNS, said.into_iter().take(1)));
    }

    /// The messages of a watch, without its log.
    fn said(&self, process: &Process) -> Vec<String> {
        let stderr = process.stderr();
        check_output(&stderr);
        let lines = stderr
            .lines()
            .filter(|line| line.starts_with("driftless: "));
        lines.map(|line| self.shown(line)).collect()
    }
}

/// How often a watch tried to connect, from its log.
fn attempts(process: &Process) -> u64 {
    process.stderr().matches("cannot connect").count() as u64
}

#[test]
fn serve_messages_match_the_page() {
    let command = "driftless serve --etcd http://127.0.0.1:2379 --prefix /config/";
    let mut place = Place::start();
    let mut rows = Vec::new();
    place.etcd.kill();
    place.server = DRIFTLESS.serve_at(&place.etcd.url(), &["/config/"], 0, &[]);
    let metric = "driftless_etcd_attempts_total";
    // How many lines of the log were read, and a way to read on up to a line. There may be others
    // before it: how an etcd that starts or ends is noticed depends on timing.
    let mut told = 0;
    let mut news = |place: &Place, text: &str| {
        wait_for("the log says so", || {
            let log = place.log(&place.server.process.stderr());
            let at = log.iter().skip(told).position(|line| line.contains(text))?;
            told += at + 1;
            Some([log[told - 1].clone()])
        })
    };

    place.wait_for_status("/readyz", 503, "refused");
    backs_off(|| place.counter(metric));
    rows.push(Row::new(
        "etcd cannot be reached at the start",
        command,
        RUNS,
        news(&place, "refused"),
    ));
    rows.push(place.ask("readiness meanwhile", "/readyz"));
    place.etcd.start_blocking();
    place.server.wait_ready();
    rows.push(Row::new(
        "etcd starts later",
        command,
        RUNS,
        news(&place, "connected"),
    ));

    place.etcd.kill();
    place.wait_for_status("/readyz", 200, "refused");
    backs_off(|| place.counter(metric));
    rows.push(Row::new(
        "etcd is killed later",
        command,
        RUNS,
        news(&place, "was closed"),
    ));
    rows.push(place.ask("readiness meanwhile: the state stays good", "/readyz"));
    place.etcd.start_blocking();
    place.wait_for_status("/readyz", 200, "in sync");
    rows.push(Row::new(
        "etcd is back",
        command,
        RUNS,
        news(&place, "connected"),
    ));

    let elsewhere = place.server.admin();
    let server = DRIFTLESS.serve_at(&format!("http://{elsewhere}"), &["/config/"], 0, &[]);
    wait_until("the log says so", || {
        !place.log(&server.process.stderr()).is_empty()
    });
    let command = "driftless serve --etcd http://127.0.0.1:7401 --prefix /config/";
    let log = place.log(&server.process.stderr());
    rows.push(Row::new(
        "another service at etcd's address",
        command,
        RUNS,
        log,
    ));
    check_table(SECTIONS[4], &rows);
}
