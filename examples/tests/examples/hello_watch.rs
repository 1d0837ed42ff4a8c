use crate::world::World;
use driftless_test_support::{Process, guarded};

fn hello_watch(server: &str) -> Process {
    Process::spawn(guarded(env!("CARGO_BIN_EXE_hello_watch")).arg(server))
}

#[tokio::test(flavor = "multi_thread")]
async fn value_and_each_change_are_printed() {
    let mut world = World::holding(&[]).await;
    let mut program = hello_watch(&world.url());
    program.out.expect(&["hello, nobody yet"]);
    world.put("/config/hello", "world");
    program.out.expect(&["hello, world"]);
    world.put("/config/hello", "Jürgen");
    program.out.expect(&["hello, Jürgen"]);
    world.delete("/config/hello");
    program.out.expect(&["hello, nobody yet"]);

    world.stop_server().await;
    world.put("/config/hello", "again");
    world.start_server().await;
    program.out.expect(&["hello, again"]);
}

#[tokio::test]
async fn wrong_url_is_explained() {
    let mut program = hello_watch("127.0.0.1:7400");
    assert!(!program.end().success());
    let said = program.err.line();
    assert!(said.contains("127.0.0.1:7400"), "{said}");
}

#[tokio::test]
async fn missing_server_is_explained() {
    let mut program = hello_watch("http://127.0.0.1:9");
    assert!(!program.end().success());
    let said = program.err.line();
    assert!(said.contains("127.0.0.1:9"), "{said}");
}
