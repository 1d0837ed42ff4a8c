//! A bare HTTP/2 client: it writes any frame, in any order, and reads what comes back.
//!
//! It keeps no state and obeys no limit: no windows, no count of streams, and nothing is answered that
//! the test does not answer. That is what a client needs that is broken or hostile. For a client that
//! reads statuses and messages, use the crate `h2`: header blocks that come back are not decoded here.
//!
//! ```
//! use driftless_test_support::frames::{Frame, connect, message, types};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! # let (io, mut server) = tokio::io::duplex(1024);
//! # tokio::io::AsyncWriteExt::write_all(&mut server, &Frame::settings(&[]).to_bytes()).await?;
//! let (mut writer, mut reader) = connect(io, &[]).await?;
//! // A call whose message of 4 MiB never comes.
//! let head = Frame::call(1, "/grpc.health.v1.Health/Check");
//! let half = Frame::data(1, message(4 * 1024 * 1024, b""));
//! writer.write(&[head, half]).await?;
//! # drop(server);
//! // Whatever the server answers, until it closes the connection.
//! while let Some(frame) = reader.next().await? {
//!     assert_ne!(frame.kind, types::GOAWAY);
//! }
//! # Ok(())
//! # }
//! ```

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};

/// What a client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length, type, flags and stream.
const HEAD: usize = 9;

/// The types of frames.
#[allow(missing_docs, reason = "RFC 9113, section 6, describes them")]
pub mod types {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
#[allow(missing_docs, reason = "RFC 9113, section 6, describes them")]
pub mod flags {
    /// Of DATA and HEADERS.
    pub const END_STREAM: u8 = 1;
    /// Of SETTINGS and PING.
    pub const ACK: u8 = 1;
    /// Of HEADERS and CONTINUATION.
    pub const END_HEADERS: u8 = 4;
}

/// Names of settings.
#[allow(missing_docs, reason = "RFC 9113, section 6.5.2, describes them")]
pub mod settings {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// One frame, valid or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// One of [`types`], or anything.
    pub kind: u8,
    /// Some of [`flags`], or any.
    pub flags: u8,
    /// The stream. 0: the connection.
    pub stream: u32,
    /// What follows its first nine bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Any frame, without flags.
    #[must_use]
    pub fn new(kind: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            kind,
            flags: 0,
            stream,
            payload: payload.into(),
        }
    }

    /// Data.
    #[must_use]
    pub fn data(stream: u32, data: impl Into<Vec<u8>>) -> Self {
        Self::new(types::DATA, stream, data)
    }

    /// A whole header block of these fields, none of them compressed.
    #[must_use]
    pub fn headers(stream: u32, fields: &[(&str, &str)]) -> Self {
        Self::new(types::HEADERS, stream, header_block(fields)).with(flags::END_HEADERS)
    }

    /// The headers of a gRPC call.
    #[must_use]
    pub fn call(stream: u32, path: &str) -> Self {
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "server"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        Self::headers(stream, &fields)
    }

    /// Settings and their values.
    #[must_use]
    pub fn settings(settings: &[(u16, u32)]) -> Self {
        let settings = settings.iter().flat_map(|(name, value)| {
            let (name, value) = (name.to_be_bytes(), value.to_be_bytes());
            name.into_iter().chain(value)
        });
        Self::new(types::SETTINGS, 0, settings.collect::<Vec<u8>>())
    }

    /// The acknowledgement of the other end's settings.
    #[must_use]
    pub fn settings_ack() -> Self {
        Self::settings(&[]).with(flags::ACK)
    }

    /// More room in the window of a stream, or of the connection.
    #[must_use]
    pub fn window_update(stream: u32, by: u32) -> Self {
        Self::new(types::WINDOW_UPDATE, stream, by.to_be_bytes())
    }

    /// The end of a stream with this error. 8 is CANCEL.
    #[must_use]
    pub fn rst_stream(stream: u32, code: u32) -> Self {
        Self::new(types::RST_STREAM, stream, code.to_be_bytes())
    }

    /// A ping.
    #[must_use]
    pub fn ping(content: [u8; 8]) -> Self {
        Self::new(types::PING, 0, content)
    }

    /// The answer to a ping, asked for or not.
    #[must_use]
    pub fn ping_ack(content: [u8; 8]) -> Self {
        Self::ping(content).with(flags::ACK)
    }

    /// The same with these flags too.
    #[must_use]
    pub fn with(mut self, flags: u8) -> Self {
        self.flags |= flags;
        self
    }

    /// The same as the last frame of its stream.
    #[must_use]
    pub fn end(self) -> Self {
        self.with(flags::END_STREAM)
    }

    /// Whether it is the last frame of its stream.
    #[must_use]
    pub fn is_end(&self) -> bool {
        match self.kind {
            types::RST_STREAM => true,
            types::DATA | types::HEADERS => self.flags & flags::END_STREAM != 0,
            _ => false,
        }
    }

    /// As it is on the wire.
    ///
    /// # Panics
    /// When the payload is 16 MiB or longer, for which a frame has no length.
    #[must_use]
    #[track_caller]
    pub fn to_bytes(&self) -> Vec<u8> {
        let len = u32::try_from(self.payload.len()).unwrap();
        assert!(len < 1 << 24, "{len} bytes fit into no frame");
        let mut bytes = Vec::with_capacity(HEAD + self.payload.len());
        bytes.extend_from_slice(&len.to_be_bytes()[1..]);
        bytes.extend_from_slice(&[self.kind, self.flags]);
        bytes.extend_from_slice(&self.stream.to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// A gRPC message that announces `announced` bytes and holds `content`.
///
/// # Panics
/// When it announces 4 GiB or more.
#[must_use]
#[track_caller]
pub fn message(announced: usize, content: &[u8]) -> Vec<u8> {
    let announced = u32::try_from(announced).unwrap();
    [&[0], &announced.to_be_bytes()[..], content].concat()
}

/// Fields as literals that enter no table (RFC 7541, section 6.2.2).
#[must_use]
pub fn header_block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            push_length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The length of a text that is not in Huffman's code: an integer with a prefix of 7 bits.
fn push_length(block: &mut Vec<u8>, length: usize) {
    const PREFIX: usize = 0x7f;
    let low = |value: usize| u8::try_from(value & 0x7f).unwrap();
    if length < PREFIX {
        block.push(low(length));
        return;
    }
    block.push(low(PREFIX));
    let mut rest = length - PREFIX;
    while rest > 0x7f {
        block.push(low(rest) | 0x80);
        rest >>= 7;
    }
    block.push(low(rest));
}

/// Writes the preface and these settings, waits for the server's and acknowledges them.
///
/// # Errors
/// When the server closes the connection instead.
///
/// # Cancel safety
/// Dropping the future closes the connection.
#[allow(clippy::type_complexity)]
pub async fn connect<S: AsyncRead + AsyncWrite>(
    io: S,
    settings: &[(u16, u32)],
) -> io::Result<(FrameWriter<WriteHalf<S>>, FrameReader<ReadHalf<S>>)> {
    let (read, write) = split(io);
    let (mut writer, mut reader) = (FrameWriter::new(write), FrameReader::new(read));
    writer.write_bytes(PREFACE).await?;
    writer.write(&[Frame::settings(settings)]).await?;
    while let Some(frame) = reader.next().await? {
        if frame.kind == types::SETTINGS && frame.flags & flags::ACK == 0 {
            writer.write(&[Frame::settings_ack()]).await?;
            return Ok((writer, reader));
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Writes frames.
#[derive(Debug)]
pub struct FrameWriter<W>(W);

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Onto this.
    pub const fn new(io: W) -> Self {
        Self(io)
    }

    /// Writes frames, all in one piece.
    ///
    /// # Errors
    /// When the connection is closed.
    ///
    /// # Cancel safety
    /// A part of them may have been written.
    pub async fn write(&mut self, frames: &[Frame]) -> io::Result<()> {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        self.write_bytes(&bytes).await
    }

    /// Writes bytes, whatever they mean.
    ///
    /// # Errors
    /// When the connection is closed.
    ///
    /// # Cancel safety
    /// A part of them may have been written.
    pub async fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }
}

/// Reads frames.
#[derive(Debug)]
pub struct FrameReader<R> {
    io: R,
    /// What was read and is not taken yet.
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// From this.
    pub const fn new(io: R) -> Self {
        Self {
            io,
            buffer: Vec::new(),
        }
    }

    /// The next frame. `None` when the connection was closed.
    ///
    /// # Errors
    /// When the connection was reset.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take() {
                return Ok(Some(frame));
            }
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// A whole frame, where there is one.
    fn take(&mut self) -> Option<Frame> {
        let head: [u8; HEAD] = self.buffer.get(..HEAD)?.try_into().ok()?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head;
        let end = HEAD + u32::from_be_bytes([0, l0, l1, l2]) as usize;
        let payload = self.buffer.get(HEAD..end)?.to_vec();
        self.buffer.drain(..end);
        Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_are_read_as_they_were_written() {
        let sent = [
            Frame::settings(&[(settings::INITIAL_WINDOW_SIZE, 65_536)]),
            Frame::data(3, vec![7; 70_000]).end(),
            Frame::ping_ack([1; 8]),
            Frame::rst_stream((1 << 31) - 1, 8),
        ];
        let (one, other) = tokio::io::duplex(100);
        let (mut writer, mut reader) = (FrameWriter::new(one), FrameReader::new(other));
        let written = sent.clone();
        let write = async move { writer.write(&written).await.unwrap() };
        let read = async {
            let mut read = Vec::new();
            while let Some(frame) = reader.next().await.unwrap() {
                read.push(frame);
            }
            read
        };
        let ((), read) = tokio::join!(write, read);
        assert_eq!(read, sent);
        assert_eq!(read[0].payload, [0, 4, 0, 1, 0, 0]);
        assert!(read[1].is_end() && !read[2].is_end() && read[3].is_end());
    }

    /// The examples of RFC 7541, appendix C.1, with the wider prefix.
    #[test]
    fn lengths_of_literals_are_encoded() {
        for (length, encoded) in [
            (10, &[10][..]),
            (126, &[126]),
            (127, &[127, 0]),
            (1337 + 96, &[127, 0x9a, 10]),
        ] {
            let mut block = Vec::new();
            push_length(&mut block, length);
            assert_eq!(block, encoded, "{length}");
        }
        let block = header_block(&[("te", "trailers")]);
        assert_eq!(block, b"\0\x02te\x08trailers");
    }
}
