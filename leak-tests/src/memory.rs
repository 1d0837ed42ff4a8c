//! The bytes that are allocated, by jemalloc's own count: exact to the byte.
//!
//! The one place with `unsafe`: an allocator reads its configuration from a symbol.

use tikv_jemalloc_ctl::{epoch, epoch_mib, opt, stats, thread};

use crate::witness::{Reading, Rule, Unreadable, Witness, counted};

#[doc(hidden)]
pub use jemallocator::Jemalloc;

/// The growth that is allowed, in bytes: 2 KiB. It leaves room for a few objects that come and go with
/// time and not with rounds: a timer, a buffer kept for its next use.
pub const GROWTH_SLACK: i64 = 2 * 1024;

/// jemalloc's configuration: no thread caches and one arena. With more, freed memory is counted as
/// freed later, or elsewhere.
#[doc(hidden)]
pub type Configuration = &'static [u8; 23];

/// Read by jemalloc before `main`.
#[doc(hidden)]
#[allow(
    unsafe_code,
    reason = "the allocator finds its configuration by this name: a pointer to text that ends with a zero"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static JEMALLOC_CONFIGURATION: Configuration = b"tcache:false,narenas:1\0";

/// Makes jemalloc the allocator of this program, with a configuration that counts exactly. It goes
/// into the root of a test target, and belongs into no service: exact counts cost speed.
///
/// ```
/// leak_tests::use_jemalloc!();
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// leak_tests::Allocated::by_jemalloc()?;
/// # Ok(())
/// # }
/// ```
#[macro_export]
macro_rules! use_jemalloc {
    () => {
        #[global_allocator]
        static LEAK_TESTS_ALLOCATOR: $crate::memory::Jemalloc = $crate::memory::Jemalloc;

        // Named so that the linker takes it: the allocator's own default would do for it.
        #[used]
        static LEAK_TESTS_CONFIGURATION: &$crate::memory::Configuration =
            &$crate::memory::JEMALLOC_CONFIGURATION;
    };
}

/// How many bytes the program has allocated and not freed, by jemalloc's own count.
///
/// It may grow by [`GROWTH_SLACK`], or by [another slack](Allocated::with_slack): tables keep the room
/// that they once needed, so the count does not return to the byte.
#[derive(Clone, Copy)]
pub struct Allocated {
    epoch: epoch_mib,
    allocated: stats::allocated_mib,
    slack: i64,
}

impl std::fmt::Debug for Allocated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Allocated").finish_non_exhaustive()
    }
}

const NAME: &str = "allocated bytes";

impl Allocated {
    /// As jemalloc counts it.
    ///
    /// # Errors
    /// When jemalloc is not this program's allocator, or not told to count exactly:
    /// [`use_jemalloc!`](crate::use_jemalloc) is missing.
    pub fn by_jemalloc() -> Result<Self, Unreadable> {
        let unreadable = |error: tikv_jemalloc_ctl::Error| Unreadable::new(NAME, error.to_string());
        let counter = Self {
            epoch: epoch::mib().map_err(unreadable)?,
            allocated: stats::allocated::mib().map_err(unreadable)?,
            slack: GROWTH_SLACK,
        };
        if opt::tcache::read().map_err(unreadable)? {
            return Err(Unreadable::new(
                NAME,
                "jemalloc does not count exactly here; put `leak_tests::use_jemalloc!();` into the \
                 root of the test target",
            ));
        }
        // Of this thread alone: others may free much meanwhile.
        let by_this_thread = thread::allocatedp::read().map_err(unreadable)?;
        let before = by_this_thread.get();
        drop(std::hint::black_box(vec![1_u8; 64]));
        if by_this_thread.get() == before {
            return Err(Unreadable::new(
                NAME,
                "jemalloc is not the allocator of this program; put `leak_tests::use_jemalloc!();` \
                 into the root of the test target",
            ));
        }
        Ok(counter)
    }

    /// The growth that is allowed, in bytes. Default: [`GROWTH_SLACK`]. For rounds in which chance decides
    /// how much room tables need. Use it with [`Rounds::without_bytes`](crate::Rounds::without_bytes), which
    /// takes the default witness out.
    #[must_use = "it allows more, and does nothing else"]
    pub const fn with_slack(mut self, bytes: i64) -> Self {
        self.slack = bytes;
        self
    }

    fn count(&self) -> Result<i64, Unreadable> {
        let read = || {
            self.epoch.advance()?;
            self.allocated.read()
        };
        match read() {
            Ok(bytes) => Ok(i64::try_from(bytes).unwrap_or(i64::MAX)),
            Err(error) => Err(Unreadable::new(NAME, error.to_string())),
        }
    }
}

impl Witness for Allocated {
    fn name(&self) -> &str {
        NAME
    }

    fn rule(&self) -> Rule {
        Rule::MayNotGrow { slack: self.slack }
    }

    fn read(&self) -> Reading<'_> {
        // Counted before the reading itself is allocated.
        let count = self.count();
        counted(count)
    }
}
