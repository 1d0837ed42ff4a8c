use crate::world::World;
use driftless_test_support::{Process, guarded};

fn hello_watch(server: &str) -> Process {
    Process::spawn(guarded(env!("CARGO_BIN_EXE_hello_watch")).arg(server))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_prints_the_value_and_each_change() {
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
async fn a_wrong_url_is_told() {
    let mut program = hello_watch("127.0.0.1:7400");
    assert!(!program.end().success());
    let said = program.err.line();
    assert!(said.contains("127.0.0.1:7400"), "{said}");
}

#[tokio::test]
async fn no_server_is_told() {
    let mut program = hello_watch("http://127.0.0.1:9");
    assert!(!program.end().success());
    let said = program.err.line();
    assert!(said.contains("127.0.0.1:9"), "{said}");
}
