//! The inline record of a header of version 2 or 4: parsing and writing.

use std::borrow::Cow;

use super::{Malformed, Reader};

/// The inline record of a header of version 2 or 4: the wraps of the KEK, one for each root.
///
/// A format byte (1), then for each wrap: the length of the root's name (u8), the name, the length
/// of the wrapped KEK (u16), the wrapped KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineRecord<'a> {
    /// Root name and wrapped KEK, in the writer's order. Never empty when parsed.
    pub wraps: Vec<(Cow<'a, str>, Cow<'a, [u8]>)>,
}

impl<'a> InlineRecord<'a> {
    /// Parses a record that fills `bytes`.
    ///
    /// # Errors
    /// [`Malformed::Record`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        Self::read(bytes).ok_or(Malformed::Record)
    }

    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.byte().ok()? != 1 {
            return None;
        }
        let mut wraps = Vec::new();
        while !reader.0.is_empty() {
            let len = reader.byte().ok()?;
            let root = str::from_utf8(reader.take(usize::from(len)).ok()?).ok()?;
            let len = u16::from_be_bytes(*reader.array().ok()?);
            let wrap = reader.take(usize::from(len)).ok()?;
            if root.is_empty() || wrap.is_empty() {
                return None;
            }
            wraps.push((root.into(), wrap.into()));
        }
        (!wraps.is_empty()).then_some(Self { wraps })
    }

    /// The bytes of the record. `None` if it has no wrap, or if a part is empty or too long for its
    /// length field.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut out = vec![1];
        for (root, wrap) in &self.wraps {
            out.push(u8::try_from(root.len()).ok().filter(|&len| len > 0)?);
            out.extend_from_slice(root.as_bytes());
            out.extend_from_slice(
                &u16::try_from(wrap.len()).ok().filter(|&len| len > 0)?.to_be_bytes(),
            );
            out.extend_from_slice(wrap);
        }
        (!self.wraps.is_empty() && u16::try_from(out.len()).is_ok()).then_some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    #[test]
    fn malformed_records_are_refused() {
        let good = record();
        for len in 0..good.len() {
            // A cut between two wraps leaves a shorter well-formed record.
            assert_eq!(
                InlineRecord::parse(&good[..len]).is_ok(),
                len == 1 + 1 + 4 + 2 + 3,
                "{len}"
            );
        }
        assert!(InlineRecord::parse(&[2, 1, b'a', 0, 1, 7]).is_err(), "unknown format");
        assert!(InlineRecord::parse(&[1, 1, 0xff, 0, 1, 7]).is_err(), "root name is not UTF-8");
        assert!(InlineRecord::parse(&[1, 0, 0, 1, 7]).is_err(), "empty root name");
        assert!(InlineRecord::parse(&[1, 1, b'a', 0, 0]).is_err(), "empty wrap");
    }
}
