//! The server's clean-up code.

use crate::Removal;

pub(crate) const REMOVALS: &[Removal] = &[];
