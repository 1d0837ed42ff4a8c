//! What the delta between two values costs, for values that are easy for the search and for hard ones.
//! The search ends at a deadline for any values, so none of them may take much longer than that.
//!
//! `cargo bench -p driftless-server --bench delta`, or with `-- noise` a part of it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use driftless_server::internals::delta::compute;

const MIB: usize = 1024 * 1024;

/// Later than the deadline that the values' sizes set.
const FAR: Duration = Duration::from_secs(60);

/// A configuration of some 1 MiB as a person would write it, every line different.
fn lines(rate: usize) -> Vec<String> {
    let line = |n: usize| {
        format!(
            "    \"limit_{n}\": {{ \"rate\": {}, \"on\": true }},\n",
            n * rate
        )
    };
    (0..MIB / 45).map(line).collect()
}

/// 1 MiB without repetitions.
fn noise(seed: u64) -> Bytes {
    let mut state = seed;
    let next = std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    });
    next.take(MIB).collect()
}

fn delta(c: &mut Criterion) {
    let old = lines(3);
    let mut one_line = old.clone();
    one_line[10_000] = one_line[10_000].replace("true", "false");
    let old = Bytes::from(old.concat());
    let equal = "ab\n".repeat(MIB);
    let mut edited = equal.clone();
    edited.replace_range(1000..1001, "x");
    edited.replace_range(3_000_000..3_000_001, "y");
    let values = [
        ("one line of 1 MiB", old.clone(), one_line.concat().into()),
        ("1 MiB rewritten", old.clone(), lines(7).concat().into()),
        ("a million equal short lines", equal.into(), edited.into()),
        ("1 MiB of noise", noise(1), noise(2)),
    ];
    let mut group = c.benchmark_group("delta");
    for (name, old, new) in &values {
        group.throughput(Throughput::Bytes(new.len() as u64));
        group.bench_function(*name, |b| {
            b.iter(|| compute(black_box(old), black_box(new), Instant::now() + FAR));
        });
    }
    // The baseline: no delta is found without reading each byte.
    let same = Bytes::copy_from_slice(&old);
    group.throughput(Throughput::Bytes(old.len() as u64));
    group.bench_function("comparing the bytes of 1 MiB", |b| {
        b.iter(|| black_box(&old) == black_box(&same));
    });
    group.finish();
}

criterion_group!(benches, delta);
criterion_main!(benches);
