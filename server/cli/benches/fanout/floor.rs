//! The floor: writes the same bytes to every subscriber's socket and does nothing else.
//!
//! No protocol except a length before each value, and no state: one blocking write per subscriber and
//! change. Nothing with one socket per subscriber can need fewer system calls.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Failure;
use crate::report;

/// The hidden first argument that makes this program the floor.
pub(crate) const COMMAND: &str = "__floor";

/// Bytes of the length before a value, big-endian.
pub(crate) const LENGTH: usize = 4;

/// What a subscriber receives first, so that it knows that it was accepted.
pub(crate) const GREETING: u8 = b'.';

/// How many connections may wait to be accepted; the other contenders have as many.
const BACKLOG: u32 = 4096;

/// Prints where it listens for subscribers and for the source of changes, and broadcasts until it is killed:
/// subscribers may still read when the source has gone.
pub(crate) fn run() -> Result<(), Failure> {
    let subscribers = listen()?;
    let source = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    report::say(&format!(
        "floor on http://{}, source on http://{}",
        subscribers.local_addr()?,
        source.local_addr()?
    ));
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&accepted);
    std::thread::spawn(move || accept(&subscribers, &all));
    let (mut changes, _) = source.accept()?;
    changes.set_nodelay(true)?;
    let mut frame = Vec::new();
    loop {
        let mut length = [0; LENGTH];
        if changes.read_exact(&mut length).is_err() {
            loop {
                std::thread::park();
            }
        }
        frame.clear();
        frame.extend_from_slice(&length);
        frame.resize(LENGTH + u32::from_be_bytes(length) as usize, 0);
        changes.read_exact(&mut frame[LENGTH..])?;
        let mut all = accepted.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain_mut(|stream: &mut TcpStream| stream.write_all(&frame).is_ok());
    }
}

fn listen() -> Result<TcpListener, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    // Tokio's can be told a backlog, the standard library's cannot.
    let _entered = runtime.enter();
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let listener = socket.listen(BACKLOG)?.into_std()?;
    listener.set_nonblocking(false)?;
    Ok(listener)
}

fn accept(listener: &TcpListener, all: &Mutex<Vec<TcpStream>>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        if stream.set_nodelay(true).is_ok() && stream.write_all(&[GREETING]).is_ok() {
            all.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(stream);
        }
    }
}
