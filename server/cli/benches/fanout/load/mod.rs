//! The load generator, a process of its own: all subscribers on one thread, the putter on another.
//!
//! The subscribers of all contenders are the same h2 client with very little around it, one task a connection,
//! so that rows differ only by the contender. The putter is here too, so that one clock times a put and its
//! arrivals.

mod back;
mod board;
mod cold;
mod connection;
mod dialogue;
mod driftless;
mod etcd;
mod floor;
mod follow;
mod grpc;
mod library;
mod putter;
mod read;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::Failure;
use crate::plan::{Job, Plan, Said, Speaks};
use dialogue::Dialogue;

/// Runs the plan in this text, and reports the results.
pub(crate) fn run(plan: &str) -> Result<(), Failure> {
    let plan: Plan = serde_json::from_str(plan)?;
    raise_descriptors()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(async {
        let mut dialogue = Dialogue::start();
        let done = perform(plan, &mut dialogue).await;
        if let Err(error) = &done {
            dialogue.say(&Said::Failed(error.to_string()))?;
        }
        Ok::<_, Failure>(())
    });
    // Thousands of connections need not be closed one by one.
    runtime.shutdown_background();
    done
}

async fn perform(plan: Plan, dialogue: &mut Dialogue) -> Result<(), Failure> {
    match plan.job {
        Job::Follow { .. } if plan.speaks == Speaks::Library => library::run(plan, dialogue).await,
        Job::Follow { .. } => follow::run(plan, dialogue).await,
        Job::Cold => cold::run(plan, dialogue).await,
        Job::Return => back::run(plan, dialogue).await,
        Job::Read => read::run(plan, dialogue).await,
    }
}

/// Raises the soft limit on descriptors to the hard one: each connection costs one.
fn raise_descriptors() -> Result<(), Failure> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)
        .map_err(|error| format!("cannot raise the limit on descriptors: {error}").into())
}
