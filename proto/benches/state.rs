//! What applying a change costs both ends: value deltas, and hashes for the digest.
//!
//! `cargo bench -p driftless-proto --bench state`, or with `-- delta` a part of it.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use driftless_proto::digest::Digest;
use driftless_proto::v1::{Copy, DeltaOp, delta_op::Op};
use driftless_proto::{Entry, Key, Revision, delta};

const MIB: usize = 1024 * 1024;

fn copy(offset: usize, length: usize) -> DeltaOp {
    DeltaOp {
        op: Some(Op::Copy(Copy {
            offset: offset as u64,
            length: length as u64,
        })),
    }
}

fn insert(bytes: &'static [u8]) -> DeltaOp {
    DeltaOp {
        op: Some(Op::Insert(Bytes::from_static(bytes))),
    }
}

/// Deltas that make a value of 1 MiB.
fn delta(c: &mut Criterion) {
    let base = vec![b'x'; MIB];
    let line = b"burst = 250 # ..";
    let middle = MIB / 2;
    let one_line = vec![
        copy(0, middle),
        insert(line),
        copy(middle + line.len(), MIB - middle - line.len()),
    ];
    // Every other piece of 64 bytes is another one.
    let scattered: Vec<DeltaOp> = (0..MIB)
        .step_by(64)
        .flat_map(|at| [copy(at, 48), insert(line)])
        .collect();
    let mut group = c.benchmark_group("delta");
    group.throughput(Throughput::Bytes(MIB as u64));
    for (name, ops) in [("one line", one_line), ("scattered", scattered)] {
        group.bench_function(name, |b| {
            b.iter(|| delta::apply(&base, black_box(&ops), MIB as u64).expect("applies"));
        });
    }
    // What it is to be measured against.
    group.bench_function("copying the bytes", |b| {
        b.iter(|| Bytes::copy_from_slice(black_box(&base)));
    });
    group.finish();
}

/// The hash of one entry, by the length of its value.
fn digest(c: &mut Criterion) {
    let mut group = c.benchmark_group("digest");
    for length in [16, 1024, 64 * 1024, MIB] {
        let entry = Entry {
            key: Key::new("/config/shop/limits/rps").expect("is not empty"),
            value: vec![b'x'; length].into(),
            create_revision: Revision::new(7),
            mod_revision: Revision::new(9),
            version: 2,
        };
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(format!("{length} bytes"), |b| {
            b.iter(|| Digest::of(black_box(&entry)));
        });
    }
    group.finish();
}

criterion_group!(benches, delta, digest);
criterion_main!(benches);
