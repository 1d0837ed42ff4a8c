//! Runs every wrong input of `server/WRONG_INPUTS.md` and compares the result with the page.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod ending;
mod lasting;
mod place;

use driftless_test_support::{Driftless, wrong_inputs};

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

/// The page's tables, in its order. A test of the examples checks the last.
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
