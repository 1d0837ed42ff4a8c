//! What a stream sends next, and how small frames are coalesced for it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use driftless_proto::Revision;

use super::shared::Ending;
use crate::encode::{self, Frame};

/// A stream that is behind gets its pending changes coalesced until a piece has this many bytes: a
/// quarter of the segment that it may pin, and far above what HTTP/2 peers take for an attack.
const COALESCE: usize = 16 * 1024;

/// What a stream has to send next.
#[derive(Debug)]
pub enum Next {
    /// One change.
    Frame {
        /// Shared with the scope's other streams.
        frame: Arc<Frame>,
        /// The stream's revision after it.
        to: Revision,
    },
    /// Several changes in one piece, for this stream only.
    Coalesced {
        /// Whole messages.
        bytes: Bytes,
        /// The stream's revision after it.
        to: Revision,
    },
    /// A progress message.
    Progress {
        /// The message. Empty for a stream that is ahead of it.
        bytes: Bytes,
        /// Its number.
        number: u64,
        /// The stream's revision after it.
        to: Revision,
    },
    /// The stream is too far behind for single changes: it needs a sync response.
    Behind,
    /// The stream has to end.
    Ending(Ending),
    /// Nothing; the waker will be called.
    Nothing,
}

/// Coalesces frames into one piece, the first of them always. Each comes with the revision that it
/// leads to.
pub(super) fn coalesce(
    first: (Arc<Frame>, Revision),
    rest: impl Iterator<Item = (Arc<Frame>, Revision)>,
) -> Next {
    let (frame, mut to) = first;
    if frame.len() >= COALESCE {
        return Next::Frame { frame, to };
    }
    let (mut before, mut last) = (Vec::new(), frame);
    let mut len = last.len();
    for (frame, next) in rest {
        if len + frame.len() > COALESCE {
            break;
        }
        len += frame.len();
        to = next;
        before.push(std::mem::replace(&mut last, frame));
    }
    match before.is_empty() {
        // Shared as it is, and not copied for each stream.
        true => Next::Frame { frame: last, to },
        false => Next::Coalesced {
            bytes: concat(&before, &last, len),
            to,
        },
    }
}

/// Frames in one piece of `len` bytes, and some more if that is too small.
fn concat(before: &[Arc<Frame>], last: &Frame, len: usize) -> Bytes {
    let mut joined = BytesMut::with_capacity(len);
    let before = before.iter().flat_map(|frame| frame.segments());
    before.for_each(|segment| joined.extend_from_slice(segment));
    let end = joined.len();
    let last_segments = last.segments().iter();
    last_segments.for_each(|segment| joined.extend_from_slice(segment));
    if encode::is_small(&joined) {
        // The last one is padded then.
        joined.truncate(end);
        let padded = last.alone().iter();
        padded.for_each(|segment| joined.extend_from_slice(segment));
    }
    joined.freeze()
}
