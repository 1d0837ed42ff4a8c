//! The values that are put. Each contains its number, to tell arrivals apart.

use serde::{Deserialize, Serialize};

/// Digits of the number: more changes than any run makes.
const DIGITS: usize = 10;

/// Length of one line of the JSON value, in bytes: about what a line of configuration has.
const LINE: usize = 64;

/// What kind of values are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Payload {
    /// Another text each time, of so many bytes: no two values have much in common.
    Rewritten(usize),
    /// A JSON document of so many bytes, in which one line in the middle changes.
    EditedLine(usize),
}

/// A payload, ready to make values and to tell their numbers.
#[derive(Debug)]
pub(crate) struct Values {
    payload: Payload,
    template: Vec<u8>,
    /// Where the number is.
    at: usize,
}

impl Values {
    pub(crate) fn new(payload: Payload) -> Self {
        let (template, at) = match payload {
            Payload::Rewritten(bytes) => (vec![b'-'; bytes.max(DIGITS)], 0),
            Payload::EditedLine(bytes) => document(bytes),
        };
        Self {
            payload,
            template,
            at,
        }
    }

    /// Value number `n`; 0 is the one before the first change.
    pub(crate) fn value(&self, n: usize) -> Vec<u8> {
        let mut value = self.template.clone();
        if matches!(self.payload, Payload::Rewritten(_)) {
            // A linear congruential generator, for letters without a pattern.
            let mut state = n as u64;
            for byte in &mut value {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                *byte = b'a' + ((state >> 33) % 26) as u8;
            }
        }
        value[self.at..self.at + DIGITS].copy_from_slice(format!("{n:0DIGITS$}").as_bytes());
        value
    }

    /// The number of a value, or `None` if the generator did not make it.
    pub(crate) fn number(&self, value: &[u8]) -> Option<usize> {
        let digits = value.get(self.at..self.at + DIGITS)?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }
}

/// A JSON document of about so many bytes, and where in it the number is.
fn document(bytes: usize) -> (Vec<u8>, usize) {
    const NUMBERED: &str = "  \"edition\": \"";
    let lines = (bytes / LINE).max(1);
    let mut text = String::from("{\n");
    let mut at = 0;
    for line in 0..lines {
        if line == lines / 2 {
            at = text.len() + NUMBERED.len();
            text.push_str(NUMBERED);
            text.push_str(&"0".repeat(DIGITS));
            text.push_str("\",\n");
        }
        let name = format!("  \"setting-{line:05}\": \"");
        let end = if line + 1 == lines { "\"\n" } else { "\",\n" };
        let filled = LINE.saturating_sub(name.len() + end.len());
        text.push_str(&name);
        text.extend((0..filled).map(|place| char::from(b'a' + ((place * 7 + line) % 26) as u8)));
        text.push_str(end);
    }
    text.push('}');
    (text.into_bytes(), at)
}
