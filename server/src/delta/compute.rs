//! Computes the delta between an old and a new value.
//!
//! Pure, and bounded for any values: the common ends are found at the speed of memory, the rest is
//! cut into a bounded number of tokens, and the search among those has a deadline. A delta is applied
//! and compared with the new value before it is returned.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use driftless_proto::delta::apply;
use driftless_proto::v1::{Copy, DeltaOp, delta_op::Op};
use driftless_proto::{MAX_CHUNK_BYTES, MAX_VALUE_BYTES};
use similar::algorithms::{Algorithm, DiffHook, diff_slices_deadline};

/// Values below this size, in bytes, are always sent whole: such a change fits into one packet either
/// way, and would have to wait for its delta.
const SMALLEST: usize = 1024;

/// If the new value has at most this many bytes between the common ends, they are not searched: a
/// message is padded to twice that anyway.
const ENOUGH: usize = 128;

/// Common runs shorter than this, in bytes, are inserted and not copied: a copy costs up to 14 bytes
/// itself, and splits one insertion into two.
const SHORTEST_COPY: usize = 16;

/// How many tokens each of two values is cut into at most. It bounds the memory of the search, some
/// MiB, and the time before its deadline is first checked.
const MOST_TOKENS: usize = 16 * 1024;

/// Lines are the tokens if they are no longer than this on average, in bytes. If they are longer, as
/// in minified JSON, items are.
const LINE: usize = 256;

/// How many bytes before a possible cut decide whether it is made, if there are too many cuts: enough
/// that similar lines differ in them, and few, so that the cuts after an edit stay the same.
const CUT_BY: usize = 32;

/// After how many bytes the deadline is checked: some 100 µs.
const BLOCK: usize = 64 * 1024;

/// After how many tokens the deadline is checked while they are numbered: some 10 µs, unless they are
/// long.
const CHECK_EVERY: usize = 64;

/// How long the search may take for the smallest values: far above what it takes for any edit that a
/// person makes, even if the cores are busy.
const TIME: Duration = Duration::from_millis(10);

/// How much longer it may take for each MiB of both values together.
const TIME_PER_MIB: Duration = Duration::from_millis(8);

/// Whether a delta between values of these lengths, in bytes, could pay.
pub fn is_worth_it(old: usize, new: usize) -> bool {
    new >= SMALLEST && old >= new / 2 && old.max(new) <= MAX_VALUE_BYTES
}

/// The ops that make `new` from `old`, if they take at most half the bytes of `new` and fit into one
/// message. The time limit depends on the sizes of the values, and `until` may shorten it.
pub fn compute(old: &Bytes, new: &Bytes, until: Instant) -> Option<Vec<DeltaOp>> {
    if !is_worth_it(old.len(), new.len()) {
        return None;
    }
    let size = old.len() + new.len();
    let time = TIME + TIME_PER_MIB.mul_f64(size as f64 / (1024.0 * 1024.0));
    let ops = search(old, new, Some(until.min(Instant::now() + time)));
    if bytes(&ops) > (new.len() / 2).min(MAX_CHUNK_BYTES) {
        return None;
    }
    verified(old, new, ops)
}

/// The ops, if they make `new` from `old`. A wrong delta must never be sent.
fn verified(old: &[u8], new: &[u8], ops: Vec<DeltaOp>) -> Option<Vec<DeltaOp>> {
    match apply(old, &ops, new.len() as u64) {
        Ok(made) if made == new => Some(ops),
        // Values are never logged.
        _ => {
            let (old, new) = (old.len(), new.len());
            tracing::error!(
                old,
                new,
                "a computed delta does not make the new value; sending the value whole"
            );
            None
        }
    }
}

/// Bytes of the ops in a message.
fn bytes(ops: &[DeltaOp]) -> usize {
    prost::encoding::message::encoded_len_repeated(7, ops)
}

/// A run of bytes that both values have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    old: usize,
    new: usize,
    len: usize,
}

/// The best delta found before the deadline. It may not pay.
fn search(old: &Bytes, new: &Bytes, deadline: Option<Instant>) -> Vec<DeltaOp> {
    let start = common_start(old, new);
    let end = common_end(&old[start..], &new[start..]);
    let (old_middle, new_middle) = (&old[start..old.len() - end], &new[start..new.len() - end]);
    let mut runs = vec![Run {
        old: 0,
        new: 0,
        len: start,
    }];
    if new_middle.len() > ENOUGH {
        let inner = common_runs(old_middle, new_middle, deadline).into_iter();
        runs.extend(inner.map(|run| Run {
            old: start + run.old,
            new: start + run.new,
            len: run.len,
        }));
    }
    runs.push(Run {
        old: old.len() - end,
        new: new.len() - end,
        len: end,
    });
    widen(old, new, &mut runs);
    ops(new, &runs)
}

/// The runs of tokens that two values have in common, in order. None if the deadline is over before
/// they are cut.
fn common_runs(old: &[u8], new: &[u8], deadline: Option<Instant>) -> Vec<Run> {
    let Some((old_ends, new_ends)) = cut_both(old, new, deadline) else {
        return Vec::new();
    };
    let mut numbers = HashMap::with_capacity(old_ends.len());
    let old_tokens = number(old, &old_ends, &mut numbers, deadline);
    let new_tokens = number(new, &new_ends, &mut numbers, deadline);
    let (Some(old_tokens), Some(new_tokens)) = (old_tokens, new_tokens) else {
        return Vec::new();
    };
    let mut found = Found(Vec::new());
    let Ok(()) = diff_slices_deadline(
        Algorithm::Myers,
        &mut found,
        &old_tokens,
        &new_tokens,
        deadline,
    );
    let start_of = |ends: &[usize], token: usize| match token {
        0 => 0,
        token => ends[token - 1],
    };
    let runs = found.0.into_iter().map(|run| {
        let new_start = start_of(&new_ends, run.new);
        Run {
            old: start_of(&old_ends, run.old),
            new: new_start,
            len: start_of(&new_ends, run.new + run.len) - new_start,
        }
    });
    runs.collect()
}

/// Collects the equal runs of a search. The rest follows from them.
struct Found(Vec<Run>);

impl DiffHook for Found {
    type Error = Infallible;

    fn equal(&mut self, old: usize, new: usize, len: usize) -> Result<(), Infallible> {
        self.0.push(Run { old, new, len });
        Ok(())
    }
}

/// Where the tokens of each value end. `None` if the deadline is over, or a value is one token.
fn cut_both(old: &[u8], new: &[u8], deadline: Option<Instant>) -> Option<(Vec<usize>, Vec<usize>)> {
    let lines = |value| count(value, ends_line, deadline);
    let (old_lines, new_lines) = (lines(old)?, lines(new)?);
    let (old_ends, new_ends) = if old_lines + new_lines >= (old.len() + new.len()) / LINE {
        let spread = spread(old_lines.max(new_lines));
        let cut = |value| cut(value, ends_line, spread, deadline);
        (cut(old)?, cut(new)?)
    } else {
        let items = |value| count(value, ends_item, deadline);
        let spread = spread(items(old)?.max(items(new)?));
        let cut = |value| cut(value, ends_item, spread, deadline);
        (cut(old)?, cut(new)?)
    };
    (old_ends.len() > 1 && new_ends.len() > 1).then_some((old_ends, new_ends))
}

const fn ends_line(byte: u8) -> bool {
    byte == b'\n'
}

/// True for what ends a line or an item of minified JSON. Of other data, one byte in 36 is such a byte.
const fn ends_item(byte: u8) -> bool {
    matches!(byte, b'\n' | b',' | b';' | b'{' | b'}' | b'[' | b']')
}

/// Of so many possible cuts, one in how many is made: a power of two. If there are too many, half as
/// many as allowed are aimed at, since the number that is left varies.
const fn spread(possible: usize) -> u64 {
    match possible {
        0..=MOST_TOKENS => 1,
        _ => (2 * possible).div_ceil(MOST_TOKENS).next_power_of_two() as u64,
    }
}

/// How many possible cuts there are. `None` if the deadline is over.
fn count(value: &[u8], ends: impl Fn(u8) -> bool, deadline: Option<Instant>) -> Option<usize> {
    let mut count = 0;
    for block in value.chunks(BLOCK) {
        if is_over(deadline) {
            return None;
        }
        count += block.iter().filter(|byte| ends(**byte)).count();
    }
    Some(count)
}

/// Where the tokens of a value end, the last at its end: at most [`MOST_TOKENS`]. About one in
/// `spread` of the possible cuts is made, chosen by the bytes just before it, so that an edit moves
/// only the cuts beside it. `None` if the deadline is over.
fn cut(
    value: &[u8],
    ends: impl Fn(u8) -> bool,
    spread: u64,
    deadline: Option<Instant>,
) -> Option<Vec<usize>> {
    let mut cuts = Vec::new();
    'value: for (block, start) in value.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        if is_over(deadline) {
            return None;
        }
        for (at, _) in block.iter().enumerate().filter(|(_, byte)| ends(**byte)) {
            let end = start + at + 1;
            let before = value[..end].last_chunk::<CUT_BY>();
            if spread > 1 && before.is_some_and(|before| hash(before) & (spread - 1) != 0) {
                continue;
            }
            cuts.push(end);
            if cuts.len() == MOST_TOKENS - 1 {
                break 'value;
            }
        }
    }
    if cuts.last() != Some(&value.len()) {
        cuts.push(value.len());
    }
    Some(cuts)
}

/// A hash that tells similar lines apart well enough to choose among them.
fn hash(bytes: &[u8; CUT_BY]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    let mixed = words.iter().fold(0_u64, |hash, word| {
        (hash ^ u64::from_le_bytes(*word))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    });
    mixed >> 16
}

/// Numbers the tokens, equal tokens with equal numbers. `None` if the deadline is over.
fn number<'a>(
    value: &'a [u8],
    ends: &[usize],
    numbers: &mut HashMap<&'a [u8], u32>,
    deadline: Option<Instant>,
) -> Option<Vec<u32>> {
    let mut tokens = Vec::with_capacity(ends.len());
    let mut start = 0;
    for (count, end) in ends.iter().enumerate() {
        if count % CHECK_EVERY == 0 && is_over(deadline) {
            return None;
        }
        // As many as there are tokens at most.
        let next = numbers.len() as u32;
        tokens.push(*numbers.entry(&value[start..*end]).or_insert(next));
        start = *end;
    }
    Some(tokens)
}

fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

/// Extends each run into the gaps beside it for as long as the values agree.
fn widen(old: &[u8], new: &[u8], runs: &mut [Run]) {
    for at in 1..runs.len() {
        let (left, right) = (runs[at - 1], runs[at]);
        let old_gap = &old[left.old + left.len..right.old];
        let new_gap = &new[left.new + left.len..right.new];
        let start = common_start(old_gap, new_gap);
        let end = common_end(&old_gap[start..], &new_gap[start..]);
        runs[at - 1].len += start;
        runs[at] = Run {
            old: right.old - end,
            new: right.new - end,
            len: right.len + end,
        };
    }
}

/// Copies of the runs that are long enough, and insertions of everything between them.
fn ops(new: &Bytes, runs: &[Run]) -> Vec<DeltaOp> {
    let mut copies: Vec<Run> = Vec::new();
    for run in runs {
        match copies.last_mut() {
            Some(last) if (last.old + last.len, last.new + last.len) == (run.old, run.new) => {
                last.len += run.len;
            }
            _ => copies.push(*run),
        }
    }
    let op = |op| DeltaOp { op: Some(op) };
    let mut ops = Vec::new();
    let mut made = 0;
    for copy in copies.iter().filter(|copy| copy.len >= SHORTEST_COPY) {
        if made < copy.new {
            ops.push(op(Op::Insert(new.slice(made..copy.new))));
        }
        ops.push(op(Op::Copy(Copy {
            offset: copy.old as u64,
            length: copy.len as u64,
        })));
        made = copy.new + copy.len;
    }
    if made < new.len() {
        ops.push(op(Op::Insert(new.slice(made..))));
    }
    ops
}

/// How many bytes two values have in common at their start.
fn common_start(a: &[u8], b: &[u8]) -> usize {
    const STEP: usize = 256;
    let steps = a.chunks_exact(STEP).zip(b.chunks_exact(STEP));
    let whole = STEP * steps.take_while(|(a, b)| a == b).count();
    let rest = a[whole..].iter().zip(&b[whole..]);
    whole + rest.take_while(|(a, b)| a == b).count()
}

/// As [`common_start`], at the end.
fn common_end(a: &[u8], b: &[u8]) -> usize {
    const STEP: usize = 256;
    let steps = a.rchunks_exact(STEP).zip(b.rchunks_exact(STEP));
    let whole = STEP * steps.take_while(|(a, b)| a == b).count();
    let rest = a[..a.len() - whole].iter().rev();
    let rest = rest.zip(b[..b.len() - whole].iter().rev());
    whole + rest.take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests;
