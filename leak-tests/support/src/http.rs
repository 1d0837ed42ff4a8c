//! A GET over HTTP/1.0, for pages of metrics and of health.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::wait::PATIENCE;

/// The status and the body, or `None` when there is no answer. Blocks the thread.
#[must_use]
pub fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(request(address, path).as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    parse(&answer)
}

/// As [`get`], without blocking the thread. Gives up after [`PATIENCE`].
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn get_async(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let answered = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let request = request(address, path);
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        parse(&answer)
    };
    tokio::time::timeout(PATIENCE, answered).await.ok()?
}

/// The value of a metric on such a page: the line is its name, a space and the value.
#[must_use]
pub fn metric(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(' ')?;
        value.trim().parse().ok()
    })
}

fn request(address: SocketAddr, path: &str) -> String {
    format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
