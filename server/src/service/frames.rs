//! Reads the heads of HTTP/2 frames while their bytes go by: copies nothing but nine bytes, allocates
//! nothing, and does not mind where the bytes are cut.

/// How many bytes a client sends before its first frame. hyper checks what they are.
const PREFACE_BYTES: u32 = 24;

/// Length of a head.
const HEAD_BYTES: usize = 9;

/// HTTP/2's numbers of the frames that are told apart.
pub(super) mod kind {
    pub(in crate::service) const DATA: u8 = 0;
    pub(in crate::service) const HEADERS: u8 = 1;
    pub(in crate::service) const RST_STREAM: u8 = 3;
    pub(in crate::service) const SETTINGS: u8 = 4;
    pub(in crate::service) const PUSH_PROMISE: u8 = 5;
    pub(in crate::service) const PING: u8 = 6;
    pub(in crate::service) const GOAWAY: u8 = 7;
    pub(in crate::service) const WINDOW_UPDATE: u8 = 8;
    pub(in crate::service) const CONTINUATION: u8 = 9;
}

/// The flag of SETTINGS and PING that answer one.
const ACK: u8 = 1;

/// What is read of a frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: u8,
    flags: u8,
}

impl Head {
    /// Whether it answers the same frame of ours; only of SETTINGS and PING.
    pub(super) const fn is_ack(self) -> bool {
        self.flags & ACK != 0
    }
}

/// Finds the heads in what one client sends.
#[derive(Debug)]
pub(super) struct Heads {
    /// How many bytes come before the next head: of the preface, or of a frame's payload.
    skip: u32,
    /// The next head, as far as it has come.
    head: [u8; HEAD_BYTES],
    have: usize,
}

impl Heads {
    /// For a connection of which nothing was read yet.
    pub(super) const fn new() -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            have: 0,
        }
    }

    /// The next head, if `bytes` complete one; takes from `bytes` what it has seen. `None` takes all.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Option<Head> {
        let skipped = bytes
            .len()
            .min(usize::try_from(self.skip).unwrap_or(usize::MAX));
        // At most `skip`, which fits.
        self.skip -= skipped as u32;
        let rest = &bytes[skipped..];
        let taken = rest.len().min(HEAD_BYTES - self.have);
        self.head[self.have..self.have + taken].copy_from_slice(&rest[..taken]);
        self.have += taken;
        *bytes = &rest[taken..];
        if self.have < HEAD_BYTES {
            return None;
        }
        self.have = 0;
        let [a, b, c, kind, flags, ..] = self.head;
        self.skip = u32::from_be_bytes([0, a, b, c]);
        Some(Head { kind, flags })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent(frames: &[(u8, u8, usize)]) -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for (kind, flags, len) in frames {
            bytes.extend_from_slice(&u32::try_from(*len).unwrap().to_be_bytes()[1..]);
            bytes.extend_from_slice(&[*kind, *flags, 0x80, 0, 0, 1]);
            // Payloads that look like heads.
            bytes.extend([4_u8, 0, 6].iter().cycle().take(*len));
        }
        bytes
    }

    proptest! {
        #[test]
        fn heads_are_found_wherever_bytes_are_cut(
            frames in proptest::collection::vec((0_u8..12, any::<u8>(), 0_usize..70_000), 0..12),
            cuts in proptest::collection::vec(1_usize..40, 1..40),
        ) {
            let sent = sent(&frames);
            let mut heads = Heads::new();
            let mut found = Vec::new();
            let (mut rest, mut cuts) = (&sent[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                // Mostly small pieces, and now and then a large one.
                let cut = cuts.next().unwrap();
                let cut = if cut == 39 { 50_000 } else { cut };
                let (mut piece, after) = rest.split_at(cut.min(rest.len()));
                while let Some(head) = heads.next(&mut piece) {
                    found.push((head.kind, head.flags));
                }
                prop_assert!(piece.is_empty());
                rest = after;
            }
            let expected: Vec<_> = frames.iter().map(|(kind, flags, _)| (*kind, *flags)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
