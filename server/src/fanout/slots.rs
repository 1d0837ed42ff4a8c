//! The streams of a scope: which of them take patches, and how to wake those that wait.

use std::task::{Context, Waker};

use slab::Slab;

use crate::encode::Variant;

/// One slot a stream.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Slab<Slot>,
    /// How many of the streams take patches.
    patched: usize,
}

#[derive(Debug)]
struct Slot {
    variant: Variant,
    /// Set while the stream has nothing to send.
    waker: Option<Waker>,
}

impl Slots {
    /// Adds a stream, and returns the number of its slot.
    pub(super) fn insert(&mut self) -> usize {
        self.slots.insert(Slot {
            variant: Variant::Whole,
            waker: None,
        })
    }

    /// Removes a stream. Returns its waker, to be dropped outside of locks.
    pub(super) fn remove(&mut self, slot: usize) -> Option<Waker> {
        let slot = self.slots.try_remove(slot)?;
        if slot.variant == Variant::Patched {
            self.patched -= 1;
        }
        slot.waker
    }

    /// The stream in this slot takes patches.
    pub(super) fn take_patches(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot)
            && slot.variant == Variant::Whole
        {
            slot.variant = Variant::Patched;
            self.patched += 1;
        }
    }

    /// Whether any stream takes patches.
    pub(super) const fn take_any_patches(&self) -> bool {
        self.patched > 0
    }

    /// How changes are encoded for the stream in this slot.
    pub(super) fn variant(&self, slot: usize) -> Variant {
        self.slots
            .get(slot)
            .map_or(Variant::Whole, |slot| slot.variant)
    }

    /// The stream in this slot waits.
    pub(super) fn wait(&mut self, slot: usize, cx: &Context<'_>) {
        if let Some(slot) = self.slots.get_mut(slot) {
            match &mut slot.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => slot.waker = Some(cx.waker().clone()),
            }
        }
    }

    /// The wakers of all streams that wait.
    pub(super) fn take_waiting(&mut self) -> Vec<Waker> {
        self.slots
            .iter_mut()
            .filter_map(|(_, slot)| slot.waker.take())
            .collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}
