//! A subscriber of the floor: a length, a value, and again.

use std::sync::Arc;
use std::time::Instant;

use tokio::io::AsyncReadExt;

use super::board::Board;
use super::connection::{Counted, Place};
use crate::Failure;
use crate::floor::{GREETING, LENGTH};

/// Sees every change arrive.
pub(super) async fn follow(
    mut io: Counted,
    board: Arc<Board>,
    place: Place,
) -> Result<(), Failure> {
    if io.read_u8().await? != GREETING {
        return Err("the floor did not greet".into());
    }
    board.is_live();
    drop(place);
    let mut buffer = Vec::new();
    loop {
        let wanted = match buffer.first_chunk::<LENGTH>() {
            Some(length) => LENGTH + u32::from_be_bytes(*length) as usize,
            None => LENGTH,
        };
        if wanted > LENGTH && buffer.len() >= wanted {
            board.arrived(&buffer[LENGTH..wanted], Instant::now())?;
            buffer.drain(..wanted);
        } else if io.read_buf(&mut buffer).await? == 0 {
            return Err("the floor closed the connection".into());
        }
    }
}
