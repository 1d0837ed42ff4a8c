//! Fills etcd before a run starts.

use std::sync::Arc;

use etcd_client::{Client, Txn, TxnOp};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Failure;
use crate::payload::{Payload, Values};
use crate::plan::{HOT, PREFIX};

/// Puts in one transaction: the most that etcd takes by default.
const IN_ONE: usize = 128;

/// Transactions at a time: enough to keep etcd busy.
const AT_ONCE: usize = 16;

/// Keys besides the one that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filler {
    pub(crate) keys: usize,
    /// Length of each value.
    pub(crate) bytes: usize,
}

/// Puts the first value, and the filler.
pub(crate) fn seed(url: &str, payload: Payload, filler: Filler) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut client = Client::connect([url], None).await?;
        client.put(HOT, Values::new(payload).value(0), None).await?;
        let value = Values::new(Payload::Rewritten(filler.bytes));
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut puts: JoinSet<Result<(), Failure>> = JoinSet::new();
        for start in (0..filler.keys).step_by(IN_ONE) {
            let end = filler.keys.min(start + IN_ONE);
            let ops: Vec<TxnOp> = (start..end)
                .map(|n| TxnOp::put(format!("{PREFIX}key/{n:08}"), value.value(n), None))
                .collect();
            let place = Arc::clone(&places).acquire_owned().await?;
            let mut client = client.clone();
            puts.spawn(async move {
                client.txn(Txn::new().and_then(ops)).await?;
                drop(place);
                Ok(())
            });
            while let Some(done) = puts.try_join_next() {
                done??;
            }
        }
        while let Some(done) = puts.join_next().await {
            done??;
        }
        Ok(())
    })
}
