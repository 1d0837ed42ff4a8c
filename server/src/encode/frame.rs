//! Encoded bytes in segments: small parts are copied together, large values are shared.

use bytes::{BufMut, Bytes, BytesMut};

use super::message::{SMALL, padded};

/// Values of at least this many bytes are not copied into the encoding but shared with the store.
/// Each shared slice costs bookkeeping on its way out, about as much as a system call, so small
/// values are cheaper to copy.
pub(super) const SHARE_FROM: usize = 4096;

/// Largest segment that a stream hands to its connection at a time, in bytes. A stalled stream pins
/// at most two of them.
pub(super) const SEGMENT: usize = 64 * 1024;

/// Upper bound of a message's header, in bytes: a few numbers, a digest, an epoch.
pub(super) const HEADER: usize = 256;

/// Shared bytes, ready for the wire: one or more whole gRPC messages.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    segments: Vec<Bytes>,
    len: usize,
    /// Set for a small frame: the same message, padded so that it can be sent alone.
    padded: Option<Bytes>,
}

impl Frame {
    /// The segments in order, each of at most 64 KiB.
    pub fn segments(&self) -> &[Bytes] {
        &self.segments
    }

    /// The segments of a frame that is sent by itself. A small frame is padded.
    pub fn alone(&self) -> &[Bytes] {
        match &self.padded {
            Some(padded) => std::slice::from_ref(padded),
            None => &self.segments,
        }
    }

    /// Bytes of all segments, without padding.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True if the frame has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Builds a frame: copies small parts, shares large ones.
#[derive(Default)]
pub(super) struct Segments {
    done: Vec<Bytes>,
    pub(super) open: BytesMut,
    len: usize,
}

impl Segments {
    fn close(&mut self) {
        if !self.open.is_empty() {
            self.done.push(self.open.split().freeze());
        }
    }

    /// Appends bytes, which are shared if there are enough of them.
    pub(super) fn share(&mut self, bytes: &Bytes) {
        self.len += bytes.len();
        if bytes.len() < SHARE_FROM {
            if self.open.len() + bytes.len() > SEGMENT {
                self.close();
            }
            self.open.put_slice(bytes);
            return;
        }
        self.close();
        for start in (0..bytes.len()).step_by(SEGMENT) {
            self.done
                .push(bytes.slice(start..bytes.len().min(start + SEGMENT)));
        }
    }

    /// Appends all segments of a frame.
    pub(super) fn append(&mut self, frame: &Frame) {
        frame
            .segments
            .iter()
            .for_each(|segment| self.share(segment));
    }

    /// Appends something short, such as a header: at most [`HEADER`] bytes.
    pub(super) fn write(&mut self, write: impl FnOnce(&mut BytesMut)) {
        if self.open.len() > SEGMENT - HEADER {
            self.close();
        }
        let before = self.open.len();
        write(&mut self.open);
        self.len += self.open.len() - before;
    }

    /// A frame of parts of a message.
    pub(super) fn finish(mut self) -> Frame {
        self.close();
        Frame {
            segments: self.done,
            len: self.len,
            padded: None,
        }
    }

    /// A frame of whole messages.
    pub(super) fn finish_messages(self) -> Frame {
        let mut frame = self.finish();
        if frame.len < SMALL
            && let [message] = &frame.segments[..]
        {
            frame.padded = Some(padded(message));
        }
        frame
    }
}
