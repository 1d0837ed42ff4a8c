//! The counts that all subscribers of a run share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::payload::{Payload, Values};
use crate::plan::Outcome;

/// Counts of one run.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) values: Values,
    /// The number of the last value.
    pub(super) last: usize,
    last_value: Vec<u8>,
    /// TCP payload that arrived.
    pub(super) received: AtomicU64,
    start: Instant,
    /// When each change was put, in nanoseconds after `start`.
    put: Vec<AtomicU64>,
    /// From a put to each arrival, in microseconds.
    latencies: Mutex<Vec<u32>>,
    /// How many subscribers have their first state.
    pub(super) live: watch::Sender<usize>,
    /// How many have the last value, and it is right.
    pub(super) finished: watch::Sender<usize>,
    /// Whether those that are to stall do.
    pub(super) stall: watch::Sender<bool>,
}

impl Board {
    pub(super) fn new(payload: Payload, changes: usize) -> Self {
        let values = Values::new(payload);
        let last_value = values.value(changes);
        Self {
            values,
            last: changes,
            last_value,
            received: AtomicU64::new(0),
            start: Instant::now(),
            put: (0..=changes).map(|_| AtomicU64::new(0)).collect(),
            latencies: Mutex::default(),
            live: watch::Sender::new(0),
            finished: watch::Sender::new(0),
            stall: watch::Sender::new(false),
        }
    }

    /// Change `n` is put now.
    pub(super) fn put(&self, n: usize) {
        let nanos = self.start.elapsed().as_nanos();
        self.put[n].store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// One subscriber has its first state.
    pub(super) fn is_live(&self) {
        self.live.send_modify(|live| *live += 1);
    }

    /// A value arrived at one subscriber. Returns whether it was the last, or an error if it is not the value
    /// that was put.
    pub(super) fn arrived(&self, value: &[u8], at: Instant) -> Result<bool, &'static str> {
        let number = self.values.number(value).ok_or("a value without number")?;
        if number == 0 {
            return Ok(false);
        }
        let put = self.put.get(number).ok_or("a number that was not put")?;
        let put = self.start + Duration::from_nanos(put.load(Ordering::Relaxed));
        self.took(at.saturating_duration_since(put));
        if number < self.last {
            return Ok(false);
        }
        if value != self.last_value {
            return Err("the last value is not what was put last");
        }
        self.finish();
        Ok(true)
    }

    /// Notes how long something took.
    pub(super) fn took(&self, time: Duration) {
        self.latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
    }

    /// One subscriber holds the final state.
    pub(super) fn finish(&self) {
        self.finished.send_modify(|finished| *finished += 1);
    }

    /// What came so far.
    pub(super) fn outcome(&self, wall: Duration, generator_cpu_ms: f64) -> Outcome {
        let mut latencies = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        latencies.sort_unstable();
        let quantile = |q: f64| {
            let rank = (latencies.len() as f64 * q).ceil() as usize;
            let micros = latencies.get(rank.saturating_sub(1)).copied();
            f64::from(micros.unwrap_or(0)) / 1000.0
        };
        Outcome {
            delivered: latencies.len() as u64,
            bytes: self.received.load(Ordering::Relaxed),
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            max_ms: quantile(1.0),
            wall_ms: wall.as_secs_f64() * 1000.0,
            generator_cpu_ms,
            more: Vec::new(),
        }
    }
}
