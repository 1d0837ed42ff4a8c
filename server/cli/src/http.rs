//! Asks a process on this machine over HTTP whether it is ready.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an answer may take. It comes from this machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How much of an answer is read: more than its first line.
const STATUS_LINE_BYTES: u64 = 64;

/// True if `GET path` returns status 200.
///
/// # Cancel safety
/// Cancel-safe: dropping it closes the connection.
pub(crate) async fn is_ok(address: SocketAddr, path: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream
            .take(STATUS_LINE_BYTES)
            .read_to_end(&mut answer)
            .await?;
        Ok::<_, std::io::Error>(answer)
    };
    match tokio::time::timeout(ANSWER_WITHIN, ask).await {
        Ok(Ok(answer)) => {
            answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200")
        }
        Ok(Err(_)) | Err(_) => false,
    }
}
