//! A client's chances: how long it backs off, and whom it dials first.
//!
//! Drawn from the thread's generator, or from a seed where a simulation is to go the same way again.
//! Nothing that has to be unpredictable comes from here.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Throws for one client, or for one of its subscriptions.
#[derive(Default)]
pub(crate) struct Dice(
    /// Boxed: a generator is large, and hardly anybody has one.
    Option<Box<Seeded>>,
);

struct Seeded {
    seed: u64,
    rng: Mutex<StdRng>,
}

impl Dice {
    /// Throws the same in the same order.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(Some(Box::new(Seeded {
            seed,
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
        })))
    }

    /// Throws of their own for one user of several, so that it does not matter who throws first.
    pub(crate) fn apart(&self, user: &impl Hash) -> Self {
        match &self.0 {
            Some(seeded) => {
                // Of fixed keys.
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
            Some(seeded) => seeded.lock().random(),
            None => rand::random(),
        }
    }

    /// Puts them in any order.
    pub(crate) fn shuffle<T>(&self, items: &mut [T]) {
        match &self.0 {
            Some(seeded) => items.shuffle(&mut *seeded.lock()),
            None => items.shuffle(&mut rand::rng()),
        }
    }
}

impl Seeded {
    fn lock(&self) -> MutexGuard<'_, StdRng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_again() {
        let throw = |dice: &Dice| {
            let mut order: Vec<u32> = (0..20).collect();
            dice.shuffle(&mut order);
            (order, dice.fraction())
        };
        assert_eq!(throw(&Dice::seeded(1)), throw(&Dice::seeded(1)));
        assert_ne!(throw(&Dice::seeded(1)), throw(&Dice::seeded(2)));
        assert_ne!(throw(&Dice::default()), throw(&Dice::default()));
    }

    #[test]
    fn users_do_not_depend_on_each_other() {
        let dice = Dice::seeded(1);
        let first = dice.apart(&"a").fraction();
        dice.apart(&"b").fraction();
        assert_eq!(dice.apart(&"a").fraction(), first);
        assert_ne!(dice.apart(&"b").fraction(), first);
        assert_ne!(Dice::seeded(2).apart(&"a").fraction(), first);
    }

    #[test]
    fn a_fraction_is_below_one() {
        let dice = Dice::default();
        assert!((0..1000).all(|_| (0.0..1.0).contains(&dice.fraction())));
    }
}
