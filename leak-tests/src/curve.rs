//! What a witness counted over many rounds, in bounded room: for plots, and for the test for growth.

use std::ops::Range;

use crate::witness::Rule;

/// How many points a curve has at most: as many as a plot has room for.
const POINTS: u64 = 400;

/// What a witness counted, round after round.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Curve {
    /// Whose count.
    pub witness: String,
    /// What the count promises.
    pub rule: Rule,
    /// Neighbouring rounds share a point, so that there are at most 400.
    pub points: Vec<Point>,
    /// Its lowest values in the second and in the last fifth of the rounds, once all are over.
    pub compared: Option<(i64, i64)>,
    rounds: u64,
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

impl Curve {
    /// Empty, with room for all that so many rounds will need.
    pub(crate) fn new(witness: &str, rule: Rule, rounds: u64) -> Self {
        Self {
            witness: witness.to_owned(),
            rule,
            points: Vec::with_capacity(usize::try_from(POINTS.min(rounds)).unwrap_or(0)),
            compared: None,
            rounds,
        }
    }

    /// Rounds come in order.
    pub(crate) fn add(&mut self, round: u64, count: i64) {
        let points = POINTS.min(self.rounds);
        let slot = |round: u64| u128::from(round) * u128::from(points) / u128::from(self.rounds);
        match self.points.last_mut() {
            Some(point) if slot(point.round) == slot(round) => {
                point.low = point.low.min(count);
                point.high = point.high.max(count);
            }
            _ => self.points.push(Point {
                round,
                low: count,
                high: count,
            }),
        }
    }
}

/// The lowest counts of the two fifths that are compared. A lowest value is blind to what comes and
/// goes, and a whole fifth apart from the start, so to what is still being set up.
#[derive(Clone, Debug)]
pub(crate) struct Fifths {
    second: Range<u64>,
    last: Range<u64>,
    from: Option<i64>,
    to: Option<i64>,
}

impl Fifths {
    pub(crate) const fn of(rounds: u64) -> Self {
        let fifth = rounds / 5;
        Self {
            second: fifth..2 * fifth,
            last: rounds - fifth..rounds,
            from: None,
            to: None,
        }
    }

    pub(crate) fn add(&mut self, round: u64, count: i64) {
        for (fifth, lowest) in [(&self.second, &mut self.from), (&self.last, &mut self.to)] {
            if fifth.contains(&round) {
                *lowest = Some(lowest.map_or(count, |lowest| lowest.min(count)));
            }
        }
    }

    /// Of the second fifth, and of the last one.
    pub(crate) fn lowest(&self) -> Option<(i64, i64)> {
        self.from.zip(self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_keeps_the_extremes_in_bounded_room() {
        let mut curve = Curve::new("c", Rule::Returns, 1_000_000);
        let room = curve.points.capacity();
        for round in 0..1_000_000 {
            curve.add(round, if round == 777_777 { 9 } else { 1 });
        }
        assert_eq!(curve.points.len(), 400);
        assert_eq!(curve.points.capacity(), room);
        let high: Vec<_> = curve.points.iter().filter(|p| p.high == 9).collect();
        assert_eq!(high.len(), 1);
        assert!((775_000..=777_777).contains(&high[0].round));
    }

    #[test]
    fn few_rounds_have_a_point_each() {
        let mut curve = Curve::new("c", Rule::Returns, 7);
        for round in 0..7 {
            curve.add(round, 1);
        }
        assert_eq!(curve.points.len(), 7);
    }

    #[test]
    fn the_second_fifth_is_compared_with_the_last() {
        let mut fifths = Fifths::of(10);
        for (round, count) in (0..).zip([0, 0, 5, 4, 1, 1, 1, 1, 8, 9]) {
            fifths.add(round, count);
        }
        assert_eq!(fifths.lowest(), Some((4, 8)));
    }
}
