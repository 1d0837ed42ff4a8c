//! A client's randomness: how long it backs off, and which endpoint it dials first.
//!
//! It comes from the thread's generator, or from a seed so that a simulation can be repeated. Nothing that
//! must be unpredictable comes from here.

use std::hash::{DefaultHasher, Hash, Hasher};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Random numbers for one client, or for one of its subscriptions.
#[derive(Default)]
pub(crate) struct Jitter(
    /// Boxed: a generator is large, and only simulations have one.
    Option<Box<Seeded>>,
);

struct Seeded {
    seed: u64,
    rng: Mutex<StdRng>,
}

impl Jitter {
    /// Yields the same numbers in the same order each time.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(Some(Box::new(Seeded {
            seed,
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
        })))
    }

    /// A generator of its own for one of several users, so that the order of their calls does not matter.
    pub(crate) fn derive(&self, user: &impl Hash) -> Self {
        match &self.0 {
            Some(seeded) => {
                // Its keys are fixed, so the hash is the same in every process.
                let mut hasher = DefaultHasher::new();
                (seeded.seed, user).hash(&mut hasher);
                Self::seeded(hasher.finish())
            }
            None => Self::default(),
        }
    }

    /// At least 0 and below 1.
    pub(crate) fn fraction(&self) -> f64 {
        match &self.0 {
            Some(seeded) => seeded.rng.lock().random(),
            None => rand::random(),
        }
    }

    /// Puts the items in random order.
    pub(crate) fn shuffle<T>(&self, items: &mut [T]) {
        match &self.0 {
            Some(seeded) => items.shuffle(&mut *seeded.rng.lock()),
            None => items.shuffle(&mut rand::rng()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_same_numbers() {
        let draw = |jitter: &Jitter| {
            let mut order: Vec<u32> = (0..20).collect();
            jitter.shuffle(&mut order);
            (order, jitter.fraction())
        };
        assert_eq!(draw(&Jitter::seeded(1)), draw(&Jitter::seeded(1)));
        assert_ne!(draw(&Jitter::seeded(1)), draw(&Jitter::seeded(2)));
        assert_ne!(draw(&Jitter::default()), draw(&Jitter::default()));
    }

    #[test]
    fn derived_generators_are_independent() {
        let jitter = Jitter::seeded(1);
        let first = jitter.derive(&"a").fraction();
        jitter.derive(&"b").fraction();
        assert_eq!(jitter.derive(&"a").fraction(), first);
        assert_ne!(jitter.derive(&"b").fraction(), first);
        assert_ne!(Jitter::seeded(2).derive(&"a").fraction(), first);
    }

    #[test]
    fn fraction_is_below_one() {
        let jitter = Jitter::default();
        assert!((0..1000).all(|_| (0.0..1.0).contains(&jitter.fraction())));
    }
}
