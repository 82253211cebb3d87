//! The frames of HTTP/2 (RFC 9113, section 4.1) in the bytes of one direction of a connection.
//!
//! A leaf: it finds where frames begin, however the bytes are cut. It knows neither sockets nor
//! what a frame does.

/// Bytes that a client sends before its first frame.
const PREFACE_LEN: usize = 24;
/// Bytes of a frame's head.
const HEAD_LEN: usize = 9;

/// What comes next in the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// A frame of this type begins.
    Head { kind: u8, flags: u8 },
    /// A piece of the payload of that frame, or of the preface; not empty.
    Payload(&'a [u8]),
}

/// The place in the frames of one direction.
#[derive(Default)]
pub(crate) struct Frames {
    /// What came of a frame's head.
    head: Vec<u8>,
    /// Bytes of the payload that are still to come.
    rest: usize,
}

impl Frames {
    /// What a client sends: the preface, then frames.
    pub(crate) fn of_client() -> Self {
        Self { rest: PREFACE_LEN, ..Self::default() }
    }

    /// Takes the next part from `bytes`; `None` when they end first.
    pub(crate) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Part<'a>> {
        if self.rest > 0 {
            let (payload, after) = bytes.split_at(self.rest.min(bytes.len()));
            *bytes = after;
            self.rest -= payload.len();
            return (!payload.is_empty()).then_some(Part::Payload(payload));
        }
        let missing = HEAD_LEN.saturating_sub(self.head.len());
        let (more, after) = bytes.split_at(missing.min(bytes.len()));
        *bytes = after;
        self.head.extend_from_slice(more);
        let [a, b, c, kind, flags, _, _, _, _] = *self.head.as_slice() else { return None };
        self.rest = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.head.clear();
        Some(Part::Head { kind, flags })
    }

    /// Whether all of the payload of the last frame came.
    pub(crate) fn is_whole(&self) -> bool {
        self.rest == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let frame = |kind: u8, flags: u8, payload: &[u8]| {
            let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
            [&len[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
        };
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let sent = [preface, frame(4, 0, &[]), frame(0, 1, &vec![9; 70_000]), frame(1, 4, b"head")];
        let sent = sent.concat();
        for step in [1, 2, 8, 9, 10, 4_096, usize::MAX] {
            let (mut frames, mut heads, mut payload) =
                (Frames::of_client(), Vec::new(), Vec::new());
            for mut bytes in sent.chunks(step.min(sent.len())) {
                while let Some(part) = frames.next(&mut bytes) {
                    match part {
                        Part::Head { kind, flags } => heads.push((kind, flags)),
                        Part::Payload(piece) => payload.push(piece),
                    }
                }
                assert!(bytes.is_empty());
            }
            assert_eq!(heads, [(4, 0), (0, 1), (1, 4)], "{step}");
            assert_eq!(payload.concat().len(), PREFACE_LEN + 70_000 + 4);
            assert!(payload.concat().ends_with(b"head") && frames.is_whole());
        }
    }
}
