//! The properties of the fuzz targets in `proto/fuzz`, checked in a few seconds: on the seed inputs, on
//! the inputs that fuzzing has found, and on some thousands of mutations of both.
//!
//! Run with `DRIFTLESS_REGENERATE=1` to write the seed inputs again.

#[path = "../frames/mod.rs"]
mod frames;
mod properties;
mod seeds;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;

/// How many mutations are tried for each target.
const MUTATIONS: u32 = 4096;

/// Checks one property at a time: the allocations are counted for the whole process.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target)
}

/// The inputs that are checked in, with their names.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(folder(target)).expect("there are inputs");
    let mut inputs: Vec<_> = files
        .map(|file| {
            let path = file.expect("is listed").path();
            let input = fs::read(&path).expect("is readable");
            (path.display().to_string(), input)
        })
        .collect();
    inputs.sort();
    inputs
}

#[test]
fn seed_files_are_current() {
    for seed in seeds::all() {
        let file = folder(seed.target).join(seed.name);
        if std::env::var_os("DRIFTLESS_REGENERATE").is_some() {
            fs::create_dir_all(folder(seed.target)).expect("is writable");
            fs::write(&file, &seed.input).expect("is writable");
        }
        assert!(
            fs::read(&file).unwrap_or_default() == seed.input,
            "{} is not what tests/fuzz/seeds.rs says; run: \
             DRIFTLESS_REGENERATE=1 cargo test -p driftless-proto --test fuzz seed_files_are_current",
            file.display()
        );
    }
}

/// A mutation of an input.
#[derive(Clone, Debug)]
enum Mutation {
    /// One byte is another.
    Byte(Index, u8),
    /// Bytes are put in between.
    Insert(Index, Vec<u8>),
    /// Bytes are lost.
    Remove(Index, usize),
    /// Bytes come from elsewhere in this input, or in another.
    Splice(Index, Index, Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    // Lengths and offsets near what overflows, as protobuf writes them.
    let varint = prop_oneof![
        Just(u64::MAX),
        Just(1 << 63),
        Just(1 << 32),
        Just(1 << 24),
        0..300_u64
    ];
    let varint = varint.prop_map(|number| {
        let mut bytes = Vec::new();
        prost::encoding::encode_varint(number, &mut bytes);
        bytes
    });
    let bytes = prop_oneof![varint, prop::collection::vec(any::<u8>(), 1..4)];
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Byte(at, byte)),
        2 => (any::<Index>(), bytes).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        1 => (any::<Index>(), 1..32_usize).prop_map(|(at, len)| Mutation::Remove(at, len)),
        2 => (any::<Index>(), any::<Index>(), any::<Index>(), 1..128_usize)
            .prop_map(|(at, other, from, len)| Mutation::Splice(at, other, from, len)),
    ]
}

fn mutate(input: &mut Vec<u8>, mutation: Mutation, others: &[(String, Vec<u8>)]) {
    let end = |start: usize, len: usize, bytes: &[u8]| bytes.len().min(start + len);
    match mutation {
        Mutation::Byte(at, byte) if !input.is_empty() => {
            let at = at.index(input.len());
            input[at] = byte;
        }
        Mutation::Byte(_, byte) => input.push(byte),
        Mutation::Insert(at, bytes) => {
            let at = at.index(input.len() + 1);
            input.splice(at..at, bytes);
        }
        Mutation::Remove(at, len) => {
            let at = at.index(input.len() + 1);
            input.drain(at..end(at, len, input));
        }
        Mutation::Splice(at, other, from, len) => {
            let (_, other) = &others[other.index(others.len())];
            let from = from.index(other.len() + 1);
            let at = at.index(input.len() + 1);
            input.splice(at..at, other[from..end(from, len, other)].iter().copied());
        }
    }
}

fn holds(target: &str, property: fn(&[u8])) {
    let _turn = turn();
    let check = |input: &[u8], name: &str| {
        catch_unwind(|| property(input)).map_err(|_| {
            let input = input.escape_ascii();
            TestCaseError::fail(format!(
                "{name} breaks a property of {target}: b\"{input}\""
            ))
        })
    };
    let inputs = inputs(target);
    for (name, input) in &inputs {
        check(input, name).expect("no property is broken");
    }
    let config = ProptestConfig {
        cases: MUTATIONS,
        // A failing input is kept, to be checked in.
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mutated = (any::<Index>(), prop::collection::vec(mutation(), 1..6));
    let run = TestRunner::new(config).run(&mutated, |(which, mutations)| {
        let (name, mut input) = inputs[which.index(inputs.len())].clone();
        for mutation in mutations {
            mutate(&mut input, mutation, &inputs);
        }
        check(&input, &format!("what was made of {name}"))
    });
    if let Err(error) = run {
        panic!("{error}");
    }
}

#[test]
fn deltas_keep_their_properties() {
    holds("delta", properties::delta);
}

#[test]
fn frames_keep_their_properties() {
    holds("frames", properties::frames);
}

/// A message as long as any that a server sends, filled with what is smallest on the wire and largest in
/// memory: empty elements of each list that a frame has.
#[test]
fn decoding_allocates_within_its_bound() {
    let _turn = turn();
    const LONGEST: usize = 1024 * 1024;
    // Field numbers of the lists, from the outside in.
    let lists: [&[u8]; 4] = [&[1, 6], &[2, 2], &[3, 3], &[3, 3, 2, 7]];
    for path in lists {
        let (element, messages) = path.split_last().expect("is not empty");
        let mut bytes = [element << 3 | 2, 0].repeat(LONGEST / 2);
        for field in messages.iter().rev() {
            let mut outer = vec![field << 3 | 2];
            prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
            outer.append(&mut bytes);
            bytes = outer;
        }
        // After a request of length 0.
        let mut input = vec![0];
        prost::encoding::encode_varint(bytes.len() as u64, &mut input);
        input.append(&mut bytes);
        properties::frames(&input);
    }
}

/// A claimed length without the bytes is rejected before anything is allocated for it.
#[test]
fn claimed_length_allocates_nothing() {
    let _turn = turn();
    for claim in [1 << 20, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX] {
        for tags in [
            &[0x12, 0x12, 0x12][..],
            &[0x1a, 0x1a, 0x0a, 0x12],
            &[0x1a, 0x2a],
        ] {
            let mut message = Vec::new();
            for tag in tags {
                message.push(*tag);
                prost::encoding::encode_varint(claim, &mut message);
            }
            let mut input = vec![0, message.len() as u8];
            input.append(&mut message);
            properties::frames(&input);
            input[1] = 0xff;
            properties::frames(&input);
        }
    }
}

#[test]
fn ranges_keep_their_properties() {
    holds("ranges", properties::ranges);
}
