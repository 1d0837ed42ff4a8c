use crate::world::World;
use driftless_test_support::{Process, guarded};

/// The only difference between the program in the README and the one that is run here.
const IN_THE_README: &str = r#""http://127.0.0.1:7400""#;
const HERE: &str = r#"std::env::args().nth(1).ok_or("which server?")?"#;

#[test]
fn readme_program_is_the_one_that_runs() {
    let readme = include_str!("../../../README.md");
    let (_, rest) = readme
        .split_once("```rust,no_run\n")
        .expect("there is a program");
    let (in_the_readme, _) = rest.split_once("```").expect("it ends");
    let here = include_str!("../../src/bin/readme.rs");
    let (_, here) = here
        .split_once("#![allow(clippy::print_stdout)]\n\n")
        .unwrap();
    assert_eq!(in_the_readme.replace(IN_THE_README, HERE), here);
}

#[tokio::test(flavor = "multi_thread")]
async fn struct_is_printed_for_each_changed_key() {
    let world = World::holding(&[]).await;
    let mut program = Process::spawn(guarded(env!("CARGO_BIN_EXE_readme")).arg(world.url()));
    program.out.expect(&["at most 10 a second, 20 at once"]);
    world.put("/config/limits/rps", "250");
    program.out.expect(&["at most 250 a second, 20 at once"]);
    world.delete("/config/limits/rps");
    program.out.expect(&["at most 10 a second, 20 at once"]);
}
