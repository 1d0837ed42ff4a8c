use std::path::Path;

use driftless_client::{Client, KeyRange};
use driftless_proto::digest::Digest;
use rustix::process::Signal;
use serde_json::Value;

use crate::python;
use crate::world::World;
use driftless_test_support::{Process, Proxy, eventually, guarded};
use std::process::Command;

/// Larger than one message may be, and so in pieces; etcd takes up to 1.5 MiB.
const LARGE: usize = 1_400_000;

fn python(interpreter: &Path) -> Command {
    let mut command = guarded(interpreter);
    command
        .current_dir(python::folder())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    // gRPC would send even loopback through it.
    for proxy in ["http_proxy", "https_proxy", "grpc_proxy"] {
        command.env_remove(proxy);
        command.env_remove(proxy.to_uppercase());
    }
    command
}

#[tokio::test]
async fn python_follows_the_rule_of_application() {
    let Some(interpreter) = python::interpreter("python_follows_the_rule_of_application") else {
        return;
    };
    let mut program = Process::spawn(python(interpreter).args(["-m", "unittest"]));
    let status = program.end();
    assert!(status.success(), "{}", program.printed());
    let ran = program.err.skip_to("Ran ");
    assert!(!ran.starts_with("Ran 0 "), "{}", program.printed());
}

#[tokio::test(flavor = "multi_thread")]
async fn python_client_holds_the_server_state() {
    let name = "python_client_holds_the_server_state";
    let Some(interpreter) = python::interpreter(name) else {
        return;
    };
    let mut world = World::holding(&[("/config/a", "one"), ("/config/b", "zwölf")]).await;
    let proxy = Proxy::to(world.port()).await;
    let watch = |range: &[&str]| {
        let server = proxy.url().replace("http://", "");
        let mut command = python(interpreter);
        command.args(["watch.py", "--dump", "--server", &server]);
        Process::spawn(command.args(range))
    };
    let mut program = watch(&["--prefix", "/config/"]);
    program.err.skip_to("# snapshot: 2 keys");
    let first = ["put /config/a one", "put /config/b zwölf"];
    program.out.expect(&first);

    world.put("/config/a", "two");
    program.out.expect(&["put /config/a two"]);
    world.delete("/config/b");
    program.out.expect(&["delete /config/b "]);
    let together = [("/config/c", "1"), ("/config/d", "2"), ("/config/a", "3")];
    world.put_all(&together);
    let in_order = ["put /config/a 3", "put /config/c 1", "put /config/d 2"];
    program.out.expect(&in_order);
    let pattern: Vec<u8> = (0..LARGE).map(|n| (n % 251) as u8).collect();
    world.put_bytes("/config/large", &pattern);
    let pieces = format!("put /config/large <{LARGE} bytes>");
    program.out.expect(&[&pieces]);
    world.put("/config/empty", "");

    // Nothing happened while the server was away: nothing is sent.
    program.out.skip_to("put /config/empty");
    world.stop_server().await;
    program.err.skip_to("# goodbye: REASON_DRAIN");
    world.start_server().await;
    let answer = resumed(&mut program).await;
    assert!(answer.starts_with("# current: 5 keys"), "{answer}");

    // Something did: the new server asks etcd what that was.
    world.stop_server().await;
    program.err.skip_to("# goodbye");
    world.put("/config/a", "4");
    world.delete("/config/c");
    world.start_server().await;
    let missed = ["put /config/a 4", "delete /config/c "];
    program.out.expect(&missed);
    let answer = resumed(&mut program).await;
    assert!(
        answer.starts_with("# diff: 5 keys"),
        "the first of two: {answer}"
    );

    // The server was there all the time: it knows what the client missed, and sends that.
    proxy.cut();
    program.err.skip_to("# UNAVAILABLE");
    world.put("/config/a", "5");
    until_served(&world, "/config/a", Some("5")).await;
    proxy.heal();
    let answer = resumed(&mut program).await;
    assert!(answer.starts_with("# diff: 4 keys"), "{answer}");
    program.out.expect(&["put /config/a 5"]);

    // A connection that is there and says nothing is given up.
    proxy.stall();
    program.err.skip_to("# the server went silent");
    world.delete("/config/d");
    until_served(&world, "/config/d", None).await;
    proxy.heal();
    let answer = resumed(&mut program).await;
    assert!(answer.starts_with("# diff: 3 keys"), "{answer}");
    program.out.expect(&["delete /config/d "]);

    // A large value in a snapshot, too.
    let mut other = watch(&["/config/large"]);
    other.out.expect(&[&pieces]);

    for (program, range) in [
        (&mut program, KeyRange::prefix("/config/")),
        (&mut other, KeyRange::key("/config/large")),
    ] {
        program.signal(Signal::TERM);
        assert!(program.end().success(), "{}", program.printed());
        let dump = program.out.line();
        let held: Value = serde_json::from_str(&dump).unwrap();
        // Not with `assert_eq`: there are megabytes of it.
        assert!(held == served(&world, range).await, "what is held differs");
    }
}

/// The first answer of the next stream.
async fn resumed(program: &mut Process) -> String {
    loop {
        let line = program.err.line();
        if ["# current", "# diff", "# snapshot"]
            .iter()
            .any(|answer| line.starts_with(answer))
        {
            return line;
        }
    }
}

/// Waits until the server has heard of it from etcd.
async fn until_served(world: &World, key: &str, value: Option<&str>) {
    let client = Client::connect(world.url()).unwrap();
    eventually("the server has the edit", || async {
        let entries = client.get(key).await.unwrap();
        let entry = entries.get(key.as_bytes());
        entry.map(|entry| &*entry.value) == value.map(str::as_bytes)
    })
    .await;
}

/// What the server holds, in the way that the script says what it holds.
async fn served(world: &World, range: Result<KeyRange, driftless_client::RangeError>) -> Value {
    let client = Client::connect(world.url()).unwrap();
    let entries = client.get(range).await.unwrap();
    let digest: Digest = entries.iter().collect();
    let listed: Vec<Value> = entries
        .iter()
        .map(|entry| {
            serde_json::json!([
                hex(entry.key.as_ref()),
                hex(&entry.value),
                entry.create_revision.get(),
                entry.mod_revision.get(),
                entry.version,
            ])
        })
        .collect();
    serde_json::json!({
        "revision": entries.revision().get(),
        "digest": hex(&digest.to_bytes()),
        "entries": listed,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
