//! The laws of value deltas: applying one is total, exact and bounded.

use bytes::Bytes;
use driftless_proto::MAX_VALUE_BYTES;
use driftless_proto::delta::{DeltaError, apply};
use driftless_proto::v1::{Copy, DeltaOp, delta_op::Op};
use proptest::prelude::*;

fn copy(offset: u64, length: u64) -> DeltaOp {
    DeltaOp {
        op: Some(Op::Copy(Copy { offset, length })),
    }
}

fn insert(bytes: impl Into<Bytes>) -> DeltaOp {
    DeltaOp {
        op: Some(Op::Insert(bytes.into())),
    }
}

/// A length or an offset: mostly near the base's, sometimes absurd.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..40_u64,
        1 => prop::sample::select(vec![u64::MAX, u64::MAX - 1, 1 << 63, MAX_VALUE_BYTES as u64]),
        1 => any::<u64>(),
    ]
}

fn ops() -> impl Strategy<Value = Vec<DeltaOp>> {
    let op = prop_oneof![
        4 => (number(), number()).prop_map(|(offset, length)| copy(offset, length)),
        4 => prop::collection::vec(any::<u8>(), 0..8).prop_map(insert),
        1 => Just(DeltaOp { op: None }),
    ];
    prop::collection::vec(op, 0..6)
}

proptest! {
    /// Any ops make exactly the claimed length, or a true error.
    #[test]
    fn apply_never_panics(
        base in prop::collection::vec(any::<u8>(), 0..32),
        ops in ops(),
        said in number(),
    ) {
        match apply(&base, &ops, said) {
            Ok(value) => prop_assert_eq!(value.len() as u64, said),
            Err(DeltaError::TooLong { said: length }) => {
                prop_assert!(length == said && said > MAX_VALUE_BYTES as u64);
            }
            Err(DeltaError::UnknownOp { op }) => prop_assert_eq!(&ops[op].op, &None),
            Err(DeltaError::OutOfBounds { op, base: length }) => {
                prop_assert_eq!(length, base.len());
                let Some(Op::Copy(copy)) = &ops[op].op else {
                    return Err(TestCaseError::fail("only a copy can be out of bounds"));
                };
                let end = u128::from(copy.offset) + u128::from(copy.length);
                prop_assert!(end > base.len() as u128);
            }
            Err(DeltaError::WrongLength { said: length, made }) => {
                prop_assert!(length == said && made != said);
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        }
    }

    /// Ops within bounds make the concatenation of the bytes that they name.
    #[test]
    fn ops_make_the_named_value(
        base in prop::collection::vec(any::<u8>(), 1..64),
        parts in prop::collection::vec(
            prop_oneof![
                (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(Ok),
                prop::collection::vec(any::<u8>(), 0..16).prop_map(Err),
            ],
            0..8,
        ),
    ) {
        let mut expected = Vec::new();
        let mut ops = Vec::new();
        for part in parts {
            match part {
                Ok((a, b)) => {
                    let (a, b) = (a.index(base.len() + 1), b.index(base.len() + 1));
                    let (start, end) = (a.min(b), a.max(b));
                    expected.extend_from_slice(&base[start..end]);
                    ops.push(copy(start as u64, (end - start) as u64));
                }
                Err(bytes) => {
                    expected.extend_from_slice(&bytes);
                    ops.push(insert(bytes));
                }
            }
        }
        let length = expected.len() as u64;
        prop_assert_eq!(&apply(&base, &ops, length).expect("is valid")[..], &expected[..]);
        prop_assert_eq!(
            apply(&base, &ops, length + 1),
            Err(DeltaError::WrongLength { said: length + 1, made: length })
        );
    }
}

#[test]
fn empty_delta_makes_empty_value() {
    assert_eq!(apply(b"", &[], 0), Ok(Bytes::new()));
    assert_eq!(
        apply(b"abc", &[copy(3, 0), insert("")], 0),
        Ok(Bytes::new())
    );
}

#[test]
fn delta_errors_name_the_cause() {
    let base = b"0123456789";
    let cases = [
        (
            vec![copy(5, 6)],
            6,
            DeltaError::OutOfBounds { op: 0, base: 10 },
        ),
        (
            vec![copy(11, 0)],
            0,
            DeltaError::OutOfBounds { op: 0, base: 10 },
        ),
        (
            vec![insert("a"), copy(u64::MAX, 2)],
            3,
            DeltaError::OutOfBounds { op: 1, base: 10 },
        ),
        (
            vec![copy(0, 10)],
            9,
            DeltaError::WrongLength { said: 9, made: 10 },
        ),
        (vec![], 1, DeltaError::WrongLength { said: 1, made: 0 }),
        (
            vec![DeltaOp { op: None }],
            0,
            DeltaError::UnknownOp { op: 0 },
        ),
    ];
    for (ops, length, error) in cases {
        assert_eq!(apply(base, &ops, length), Err(error));
    }
}

/// A few bytes of ops can claim any length. The claim is checked against the bound, and the result is
/// counted before it is made: neither of these lengths could be allocated.
#[test]
fn rejected_claim_allocates_nothing() {
    for said in [MAX_VALUE_BYTES as u64 + 1, u64::MAX] {
        assert_eq!(apply(b"x", &[], said), Err(DeltaError::TooLong { said }));
    }
    let base = vec![0; 1 << 20];
    let ops = vec![copy(0, 1 << 20); 1 << 20];
    assert_eq!(
        apply(&base, &ops, 1),
        Err(DeltaError::WrongLength {
            said: 1,
            made: 1 << 40
        })
    );
}

#[test]
fn longest_value_is_allowed() {
    let base = vec![7; MAX_VALUE_BYTES / 2];
    let half = MAX_VALUE_BYTES as u64 / 2;
    let made = apply(&base, &[copy(0, half), copy(0, half)], half * 2).expect("is allowed");
    assert_eq!(made.len(), MAX_VALUE_BYTES);
}
