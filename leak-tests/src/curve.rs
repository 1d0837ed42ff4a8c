//! The counts of a witness over many rounds, in bounded memory: for plots and for the growth test.

use crate::witness::Rule;

/// The most points of a curve: as many as a plot has room for. An even number, because they are merged
/// in pairs.
const POINTS: usize = 400;

/// The counts of a witness, round after round.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Curve {
    /// The name of the witness.
    pub witness: String,
    /// The rule for the count.
    pub rule: Rule,
    /// Neighbouring rounds share a point, so that there are at most 400.
    pub points: Vec<Point>,
    /// Its lowest values in the second and in the last fifth of the rounds, once all are over.
    pub compared: Option<(i64, i64)>,
    /// How many rounds share a point.
    each: u64,
}

/// What was counted after some rounds in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Point {
    /// The first of these rounds.
    pub round: u64,
    /// The lowest count.
    pub low: i64,
    /// The highest count.
    pub high: i64,
}

impl Point {
    fn and(self, next: Self) -> Self {
        Self {
            round: self.round,
            low: self.low.min(next.low),
            high: self.high.max(next.high),
        }
    }
}

impl Curve {
    /// An empty curve, with all the memory that any number of rounds needs: its own memory must not look
    /// like growth.
    pub(crate) fn new(witness: &str, rule: Rule) -> Self {
        Self {
            witness: witness.to_owned(),
            rule,
            points: Vec::with_capacity(POINTS),
            compared: None,
            each: 1,
        }
    }

    /// Adds the count of a round. Rounds come in order, from 0 on, and their number is not known: when
    /// there are too many points, pairs of neighbours are merged.
    pub(crate) fn add(&mut self, round: u64, count: i64) {
        if round >= self.each * POINTS as u64 {
            for pair in 0..POINTS / 2 {
                self.points[pair] = self.points[2 * pair].and(self.points[2 * pair + 1]);
            }
            self.points.truncate(POINTS / 2);
            self.each *= 2;
        }
        let point = Point {
            round,
            low: count,
            high: count,
        };
        match self.points.last_mut() {
            Some(last) if round - last.round < self.each => *last = last.and(point),
            _ => self.points.push(point),
        }
    }

    /// Compares the fifths after the last round. Minima ignore what comes and goes. The first fifth, in
    /// which things are still set up, does not count. A point that holds several rounds belongs to one
    /// fifth as a whole.
    pub(crate) fn compare(&mut self, rounds: u64) {
        let fifth = rounds / 5;
        let lowest = |from: u64, to: u64| {
            let within = self.points.iter().filter(|p| (from..to).contains(&p.round));
            within.map(|point| point.low).min()
        };
        self.compared = lowest(fifth, 2 * fifth).zip(lowest(rounds - fifth, rounds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_keeps_the_extremes_in_bounded_room() {
        let mut curve = Curve::new("c", Rule::Returns);
        let room = curve.points.capacity();
        for round in 0..1_000_000 {
            curve.add(round, if round == 777_777 { 9 } else { 1 });
        }
        assert!((POINTS / 2..=POINTS).contains(&curve.points.len()));
        assert_eq!(curve.points.capacity(), room);
        let high: Vec<_> = curve.points.iter().filter(|p| p.high == 9).collect();
        assert_eq!(high.len(), 1);
        assert!((high[0].round..high[0].round + curve.each).contains(&777_777));
        assert!(curve.points.iter().all(|p| p.round % curve.each == 0));
    }

    #[test]
    fn few_rounds_have_a_point_each() {
        let mut curve = Curve::new("c", Rule::Returns);
        for round in 0..7 {
            curve.add(round, 1);
        }
        assert_eq!(curve.points.len(), 7);
    }

    #[test]
    fn the_second_fifth_is_compared_with_the_last() {
        let mut curve = Curve::new("c", Rule::Returns);
        for (round, count) in (0..).zip([0, 0, 5, 4, 1, 1, 1, 1, 8, 9]) {
            curve.add(round, count);
        }
        curve.compare(10);
        assert_eq!(curve.compared, Some((4, 8)));
    }

    #[test]
    fn joined_points_are_compared_as_their_rounds_would_be() {
        let mut curve = Curve::new("c", Rule::Returns);
        // No multiple of anything.
        const ROUNDS: u64 = 123_457;
        for round in 0..ROUNDS {
            curve.add(round, i64::try_from(round).unwrap());
        }
        curve.compare(ROUNDS);
        let (from, to) = curve.compared.unwrap();
        let each = i64::try_from(curve.each).unwrap();
        for (found, exact) in [(from, ROUNDS / 5), (to, ROUNDS - ROUNDS / 5)] {
            let off = found - i64::try_from(exact).unwrap();
            assert!((0..each).contains(&off), "{off} of {each}");
        }
    }
}
