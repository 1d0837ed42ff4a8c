//! Programs that show how a service uses driftless. They live in `src/bin`; this
//! library is empty.
