//! Coalesces small writes to a connection's socket.
//!
//! An HTTP/2 frame comes as two slices, its header of nine bytes and its payload. A vectored write of
//! two slices costs the kernel more than a plain write of their sum, when that is small.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Vectored writes of up to this many bytes become one plain write: one change of a usual value. Copying
/// that much costs less than the vectored write.
const COALESCED_BYTES: usize = 1024;

/// A socket that coalesces small vectored writes.
#[derive(Debug)]
pub(crate) struct Coalesce<S>(pub(crate) S);

impl<S: AsyncRead + Unpin> AsyncRead for Coalesce<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesce<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let io = Pin::new(&mut self.get_mut().0);
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        if let [buf] = bufs {
            return io.poll_write(cx, buf);
        }
        if len > COALESCED_BYTES {
            return io.poll_write_vectored(cx, bufs);
        }
        let mut buffer = [0; COALESCED_BYTES];
        let mut end = 0;
        for buf in bufs {
            buffer[end..end + buf.len()].copy_from_slice(buf);
            end += buf.len();
        }
        io.poll_write(cx, &buffer[..end])
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Takes so many bytes a write, and notes how each came.
    struct Sink {
        room: usize,
        plain: usize,
        gathered: usize,
        written: Vec<u8>,
    }

    impl AsyncWrite for Sink {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let len = buf.len().min(self.room);
            self.plain += 1;
            self.written.extend_from_slice(&buf[..len]);
            Poll::Ready(Ok(len))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.gathered += 1;
            let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            let len = bytes.len().min(self.room);
            self.written.extend_from_slice(&bytes[..len]);
            Poll::Ready(Ok(len))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn small_slices_are_written_at_once_and_in_order() {
        for room in [1, 7, 100, 5000] {
            let sink = Sink {
                room,
                plain: 0,
                gathered: 0,
                written: Vec::new(),
            };
            let mut io = Coalesce(sink);
            let mut expected = Vec::new();
            for sizes in [
                &[9, 256][..],
                &[9],
                &[],
                &[0, 5],
                &[9, 500, 9, 506],
                &[9, 4000],
            ] {
                let mut left: Vec<u8> = Vec::new();
                for (at, size) in sizes.iter().enumerate() {
                    left.extend((0..*size).map(|byte| (byte + at) as u8));
                }
                expected.extend_from_slice(&left);
                let mut cuts = sizes.to_vec();
                while !left.is_empty() {
                    let mut rest = &left[..];
                    let slices: Vec<IoSlice<'_>> = cuts
                        .iter()
                        .map(|size| {
                            let (slice, after) = rest.split_at(*size);
                            rest = after;
                            IoSlice::new(slice)
                        })
                        .collect();
                    let pinned =
                        |cx: &mut Context<'_>| Pin::new(&mut io).poll_write_vectored(cx, &slices);
                    let mut pinned = pinned;
                    let written = poll_fn(&mut pinned).await.unwrap();
                    assert!(written > 0);
                    left.drain(..written);
                    let mut gone = written;
                    for cut in &mut cuts {
                        let taken = gone.min(*cut);
                        *cut -= taken;
                        gone -= taken;
                    }
                }
            }
            assert_eq!(io.0.written, expected);
            assert!(io.0.gathered > 0 && io.0.plain > 0);
        }
    }
}
