//! Every wrong input of `server/WRONG_INPUTS.md`, done for real: the page says what happens, and
//! nothing else does.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod ending;
mod lasting;
mod place;

use driftless_test_support::{Driftless, wrong_inputs};

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

/// The page's tables, in its order. The last is held by a test of the examples.
const SECTIONS: [&str; 7] = [
    "driftless, any command",
    "driftless get",
    "driftless watch",
    "driftless serve: settings",
    "driftless serve: while it runs",
    "driftless dev",
    "In a service",
];

#[test]
fn every_table_of_the_page_is_tested() {
    assert_eq!(wrong_inputs::sections(), SECTIONS);
}
