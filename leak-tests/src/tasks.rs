//! The tasks of a tokio runtime, by its own count.

use tokio::runtime::Handle;

use crate::witness::{Reading, Witness, counted};

/// The number of a runtime's unfinished tasks, by tokio's own count. It does not include the future that
/// the runtime blocks on, nor jobs of its blocking pool.
#[derive(Clone, Debug)]
pub struct Tasks(Handle);

impl Tasks {
    /// Those of the runtime that this is called in.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn here() -> Self {
        Self::of(Handle::current())
    }

    /// Those of a runtime.
    pub const fn of(runtime: Handle) -> Self {
        Self(runtime)
    }
}

impl Witness for Tasks {
    fn name(&self) -> &str {
        "tasks"
    }

    fn read(&self) -> Reading<'_> {
        let alive = self.0.metrics().num_alive_tasks();
        counted(Ok(i64::try_from(alive).unwrap_or(i64::MAX)))
    }
}
