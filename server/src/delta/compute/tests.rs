//! A delta makes the new value from the old one, whatever they are, and the work is bounded.

use proptest::prelude::*;

use super::*;

const MIB: usize = 1024 * 1024;

/// No deadline: these tests are about what is found.
fn in_time() -> Option<Instant> {
    None
}

fn check(old: &Bytes, new: &Bytes) -> usize {
    let ops = search(old, new, in_time());
    assert_eq!(apply(old, &ops, new.len() as u64).as_ref(), Ok(new));
    let shortest = ops.iter().filter_map(|op| match &op.op {
        Some(Op::Copy(copy)) => Some(copy.length as usize),
        _ => None,
    });
    assert!(shortest.min().is_none_or(|copy| copy >= SHORTEST_COPY));
    assert!(
        bytes(&ops) <= new.len() + 16,
        "never much longer than the value"
    );
    bytes(&ops)
}

/// Lines as a person would write them, all different.
fn lines(count: usize) -> Vec<String> {
    let line = |n: usize| {
        format!(
            "    \"limit_{n}\": {{ \"rate\": {}, \"on\": true }},\n",
            n * n
        )
    };
    (0..count).map(line).collect()
}

fn value(lines: &[String]) -> Bytes {
    Bytes::from(lines.concat())
}

#[derive(Clone, Debug)]
enum Edit {
    Replace(prop::sample::Index, String),
    Insert(prop::sample::Index, String),
    Remove(prop::sample::Index, usize),
    Move(prop::sample::Index, prop::sample::Index),
}

fn line_edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = any::<prop::sample::Index>;
    let text = "[a-z0-9\" ,{]{0,40}";
    let edit = prop_oneof![
        4 => (at(), text).prop_map(|(at, text)| Edit::Replace(at, text)),
        4 => (at(), text).prop_map(|(at, text)| Edit::Insert(at, text)),
        2 => (at(), 1usize..20).prop_map(|(at, count)| Edit::Remove(at, count)),
        1 => (at(), at()).prop_map(|(from, to)| Edit::Move(from, to)),
    ];
    prop::collection::vec(edit, 0..8)
}

fn edited(mut lines: Vec<String>, edits: Vec<Edit>, separator: &str) -> Vec<String> {
    for edit in edits {
        if lines.is_empty() {
            break;
        }
        let len = lines.len();
        match edit {
            Edit::Replace(at, text) => lines[at.index(len)] = text + separator,
            Edit::Insert(at, text) => lines.insert(at.index(len), text + separator),
            Edit::Remove(at, count) => {
                let at = at.index(len);
                lines.drain(at..len.min(at + count));
            }
            Edit::Move(from, to) => {
                let line = lines.remove(from.index(len));
                lines.insert(to.index(len), line);
            }
        }
    }
    lines
}

/// Values that are hard on a search: few letters, long repetitions, no cuts or only cuts.
fn adversarial() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        (
            prop::collection::vec(prop::sample::select(b"ab\n,".to_vec()), 1..8),
            1usize..2000
        )
            .prop_map(|(unit, count)| unit.repeat(count)),
        prop::collection::vec(any::<u8>(), 0..3000),
        prop::collection::vec(prop::sample::select(b"ab\n".to_vec()), 0..3000),
        (any::<u8>(), 0usize..30_000).prop_map(|(byte, count)| vec![byte; count]),
    ];
    prop::collection::vec(part, 0..4).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn delta_makes_the_new_value_for_any_values(old in adversarial(), new in adversarial(), common in adversarial()) {
        let (old, new) = (Bytes::from(old), Bytes::from(new));
        check(&old, &new);
        check(&new, &new);
        // With much in common, too.
        let with = |value: &Bytes| Bytes::from([&common[..], value, &common[..], value].concat());
        check(&with(&old), &with(&new));
    }

    #[test]
    fn delta_size_follows_edit_size(count in 200usize..2000, edits in line_edits()) {
        let minified = |lines: &[String]| value(lines).iter().copied().filter(|b| *b != b'\n').collect::<Bytes>();
        let old = lines(count);
        let said = edits.iter().map(|edit| match edit {
            Edit::Replace(_, text) | Edit::Insert(_, text) => text.len(),
            Edit::Remove(..) => 0,
            Edit::Move(..) => 100,
        });
        // Each edit is an insertion between two copies at most.
        let cost = said.sum::<usize>() + 60 * (edits.len() + 1);
        let new = edited(old.clone(), edits.clone(), "\n");
        let delta = check(&value(&old), &value(&new));
        prop_assert!(delta <= cost, "{delta} bytes for {edits:?}");
        let new = edited(old.clone(), edits.clone(), ",");
        let delta = check(&minified(&old), &minified(&new));
        prop_assert!(delta <= cost, "{delta} bytes minified for {edits:?}");
    }

    /// Whatever the value, and however many places there are to cut it at.
    #[test]
    fn token_count_is_bounded(old in adversarial(), new in adversarial(), times in 1usize..12) {
        let (old, new) = (old.repeat(times), new.repeat(times));
        if let Some((old_ends, new_ends)) = cut_both(&old, &new, None) {
            for (ends, value) in [(old_ends, &old), (new_ends, &new)] {
                prop_assert!(ends.len() <= MOST_TOKENS);
                prop_assert!(ends.is_sorted_by(|a, b| a < b));
                prop_assert_eq!(ends.last(), Some(&value.len()));
            }
        }
    }
}

#[test]
fn edited_line_in_a_mebibyte() {
    let old = lines(MIB / 45);
    assert!(value(&old).len() > MIB);
    let mut new = old.clone();
    new[10_000] = new[10_000].replace("true", "false");
    let delta = check(&value(&old), &value(&new));
    assert!(delta <= 64, "{delta}");
    assert!(
        compute(&value(&old), &value(&new), Instant::now()).is_some(),
        "at once"
    );
}

#[test]
fn edited_lines_far_apart_in_a_mebibyte() {
    let old = lines(MIB / 45);
    let mut new = old.clone();
    for at in [3, 1000, 12_345, 20_000] {
        new[at] = new[at].replace("true", "false");
    }
    new.insert(5000, "one that is new\n".to_owned());
    new.remove(15_000);
    let delta = check(&value(&old), &value(&new));
    assert!(delta <= 300, "{delta}");
}

/// There are many more possible cuts than tokens. Which are chosen does not depend on what comes
/// before.
#[test]
fn edited_items_far_apart_on_one_long_line() {
    let item = |n: usize| format!("{{\"k{n}\":[{},{},{n}]}},", n % 7, n % 13);
    let mut items: Vec<String> = (0..4 * MIB / 24).map(item).collect();
    let old = value(&items);
    items[7].insert(5, 'x');
    items[100_000] = String::new();
    items[140_000].insert(5, 'y');
    let (old_ends, _) = cut_both(&old, &value(&items), None).unwrap();
    assert!(old_ends.len() > MOST_TOKENS / 4, "{}", old_ends.len());
    let delta = check(&old, &value(&items));
    assert!(delta <= 150, "{delta}");
}

#[test]
fn edited_binary_values() {
    let noise = |seed: u64| {
        let mut state = seed;
        let next = std::iter::repeat_with(move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        });
        next.take(200_000).collect::<Vec<u8>>()
    };
    let old = noise(1);
    let mut new = old.clone();
    new.splice(10_000..10_010, *b"something else");
    new[150_000] ^= 1;
    let delta = check(&old.clone().into(), &new.into());
    assert!(delta <= 100, "{delta}");
    let (old, new) = (Bytes::from(old), Bytes::from(noise(2)));
    assert!(check(&old, &new) > old.len() / 2);
    assert_eq!(compute(&old, &new, Instant::now()), None, "does not pay");
}

#[test]
fn million_identical_short_lines() {
    let old = Bytes::from("ab\n".repeat(MIB));
    let mut new = old.to_vec();
    new[1000] = b'x';
    new[3_000_000] = b'y';
    new.extend_from_slice(b"ab\n");
    let new = Bytes::from(new);
    let (old_ends, new_ends) = cut_both(&old, &new, None).unwrap_or_default();
    assert!(old_ends.len().max(new_ends.len()) <= MOST_TOKENS);
    check(&old, &new);
    check(&old, &Bytes::from("cd\n".repeat(MIB)));
    // Nothing in common but the lines' ends, in another rhythm.
    check(&old, &Bytes::from("abc\n".repeat(MIB)));
}

#[test]
fn delta_that_does_not_pay_is_dropped() {
    let until = Instant::now() + Duration::from_secs(60);
    let old = value(&lines(100));
    let half = |keep: usize| Bytes::from([&old[..keep], &vec![b'x'; old.len() - keep]].concat());
    assert!(compute(&old, &half(old.len() * 2 / 3), until).is_some());
    assert_eq!(compute(&old, &half(old.len() / 3), until), None);
    assert_eq!(compute(&old, &Bytes::from_static(b"short"), until), None);
    assert!(compute(&old, &old, until).is_some(), "the same again");
    assert!(!is_worth_it(SMALLEST, SMALLEST - 1) && is_worth_it(SMALLEST, SMALLEST));
    assert!(!is_worth_it(10, SMALLEST), "there is too little to copy");
    assert!(!is_worth_it(MAX_VALUE_BYTES + 1, SMALLEST));
    // A message holds so much.
    let large = Bytes::from(vec![1; 4 * MIB]);
    let mut more = large.to_vec();
    more.extend((0..3 * MIB / 2).map(|n| (n % 251) as u8));
    assert_eq!(compute(&large, &more.into(), until), None);
}

/// Whatever is wrong with a delta, it is not returned.
#[test]
fn wrong_ops_are_dropped() {
    let old = Bytes::from_static(b"rate = 10\nburst = 20\n");
    let new = Bytes::from_static(b"rate = 10\nburst = 25\n");
    let op = |op| DeltaOp { op: Some(op) };
    let copy = |offset, length| op(Op::Copy(Copy { offset, length }));
    let insert = |bytes: &'static [u8]| op(Op::Insert(Bytes::from_static(bytes)));
    let right = vec![copy(0, 19), insert(b"5"), copy(20, 1)];
    assert_eq!(verified(&old, &new, right.clone()), Some(right));
    for (what, wrong) in [
        ("a byte of the old value", vec![copy(0, 21)]),
        ("another byte", vec![copy(0, 19), insert(b"6"), copy(20, 1)]),
        (
            "copied from beside",
            vec![copy(0, 19), insert(b"5"), copy(19, 1)],
        ),
        ("too short", vec![copy(0, 19), insert(b"5")]),
        (
            "too long",
            vec![copy(0, 19), insert(b"5"), copy(20, 1), insert(b"\n")],
        ),
        (
            "beyond the old value",
            vec![copy(0, 19), insert(b"5"), copy(21, 1)],
        ),
        ("nothing", vec![]),
        ("an op that is none", vec![DeltaOp { op: None }]),
    ] {
        assert_eq!(verified(&old, &new, wrong), None, "{what}");
    }
}

/// The common ends are found in any case; everything else is skipped.
#[test]
fn expired_deadline_still_finds_common_ends() {
    let old = lines(2000);
    let mut new = old.clone();
    new[500] = new[500].replace("true", "false");
    new[600] = new[600].replace("true", "false");
    let (old, new) = (value(&old), value(&new));
    let over = Some(Instant::now());
    let ops = search(&old, &new, over);
    assert_eq!(apply(&old, &ops, new.len() as u64).as_ref(), Ok(&new));
    assert!(ops.len() == 3 && bytes(&ops) > 4000, "{}", bytes(&ops));
    assert!(check(&old, &new) < 100);
    assert_eq!(cut(&old, ends_line, 1, over), None);
    assert_eq!(count(&old, ends_line, over), None);
    assert_eq!(number(&old, &[old.len()], &mut HashMap::new(), over), None);
}
