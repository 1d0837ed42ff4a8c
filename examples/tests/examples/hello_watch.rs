use tokio::process::Command;

use crate::program::Program;
use crate::world::World;

fn hello_watch(server: &str) -> Program {
    Program::start(Command::new(env!("CARGO_BIN_EXE_hello_watch")).arg(server))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_prints_the_value_and_each_change() {
    let mut world = World::holding(&[]).await;
    let mut program = hello_watch(&world.url());
    program.out.expect(&["hello, nobody yet"]).await;
    world.put("/config/hello", "world").await;
    program.out.expect(&["hello, world"]).await;
    world.put("/config/hello", "Jürgen").await;
    program.out.expect(&["hello, Jürgen"]).await;
    world.delete("/config/hello").await;
    program.out.expect(&["hello, nobody yet"]).await;

    world.stop_server().await;
    world.put("/config/hello", "again").await;
    world.start_server().await;
    program.out.expect(&["hello, again"]).await;
}

#[tokio::test]
async fn a_wrong_url_is_told() {
    let mut program = hello_watch("127.0.0.1:7400");
    assert!(!program.end().await.success());
    let said = program.err.line().await;
    assert!(said.contains("127.0.0.1:7400"), "{said}");
}

#[tokio::test]
async fn no_server_is_told() {
    let mut program = hello_watch("http://127.0.0.1:9");
    assert!(!program.end().await.success());
    let said = program.err.line().await;
    assert!(said.contains("127.0.0.1:9"), "{said}");
}
