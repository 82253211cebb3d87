//! Checkpoints: the head of a Merkle tree as a C2SP tlog-checkpoint, which is a C2SP signed note.
//!
//! One extension line has the time of the checkpoint. It knows no lines and no files.

use base64_simd::STANDARD;

use super::keys::{KEY_NAME, PublicKey, SigningKey};
use super::tree::Hash;

/// The head of the tree of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The name of the tree: unique for each start of a process.
    pub origin: String,
    /// The number of leaves.
    pub size: u64,
    /// The root hash.
    pub root: Hash,
    /// When it was made: RFC 3339 in UTC, with milliseconds.
    pub time: String,
}

/// A checkpoint with its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    key_id: [u8; 4],
    signature: Vec<u8>,
}

/// A text that is not a signed checkpoint of an audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a signed checkpoint of an audit log")]
pub struct InvalidNote;

impl Checkpoint {
    /// Signs it.
    #[must_use]
    pub fn sign(self, key: &SigningKey) -> Signed {
        let signature = key.sign(self.body().as_bytes());
        Signed { checkpoint: self, key_id: key.public().id(), signature }
    }

    /// The text that is signed.
    fn body(&self) -> String {
        let Self { origin, size, root, time } = self;
        format!("{origin}\n{size}\n{}\ntime {time}\n", STANDARD.encode_to_string(root))
    }
}

impl Signed {
    /// Whether `key` signed it.
    #[must_use]
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        self.key_id == key.id() && key.verifies(self.checkpoint.body().as_bytes(), &self.signature)
    }
}

impl std::fmt::Display for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let signature = [&self.key_id, &self.signature[..]].concat();
        let signature = STANDARD.encode_to_string(signature);
        write!(f, "{}\n\u{2014} {KEY_NAME} {signature}\n", self.checkpoint.body())
    }
}

impl std::str::FromStr for Signed {
    type Err = InvalidNote;

    /// Reads what [`Display`](std::fmt::Display) writes, and nothing else: there is one text for
    /// each checkpoint and signature.
    fn from_str(text: &str) -> Result<Self, InvalidNote> {
        let parse = || {
            let (body, signature) = text.strip_suffix('\n')?.split_once("\n\n\u{2014} ")?;
            let mut lines = body.split('\n');
            let (origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
            let time = lines.next()?.strip_prefix("time ")?;
            let checkpoint = Checkpoint {
                origin: origin.to_owned(),
                size: size.parse().ok()?,
                root: STANDARD.decode_to_vec(root).ok()?.try_into().ok()?,
                time: time.to_owned(),
            };
            let signature = signature.strip_prefix(KEY_NAME)?.strip_prefix(' ')?;
            let signature = STANDARD.decode_to_vec(signature).ok()?;
            let (key_id, signature) = signature.split_first_chunk()?;
            Some(Self { checkpoint, key_id: *key_id, signature: signature.to_vec() })
        };
        let signed = parse().filter(|_| !text.starts_with('\n')).ok_or(InvalidNote)?;
        if signed.to_string() == text { Ok(signed) } else { Err(InvalidNote) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(key: &SigningKey) -> Signed {
        Checkpoint {
            origin: "node-1/0123".to_owned(),
            size: 4097,
            root: [7; 32],
            time: "2026-11-28T23:02:34.123Z".to_owned(),
        }
        .sign(key)
    }

    #[test]
    fn every_changed_byte_of_a_checkpoint_is_found() {
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        let text = signed(&key).to_string();
        let read: Signed = text.parse().unwrap();
        assert_eq!(read, signed(&key));
        assert!(read.is_signed_by(&key.public()));
        assert!(!read.is_signed_by(&SigningKey::from_seed(&[2; 32]).unwrap().public()));
        for at in 0..text.len() {
            for bit in [1, 4, 0x20] {
                let mut bad = text.clone().into_bytes();
                bad[at] ^= bit;
                let Ok(bad) = String::from_utf8(bad) else { continue };
                let read = bad.parse::<Signed>();
                assert!(!read.is_ok_and(|it| it.is_signed_by(&key.public())), "byte {at}");
            }
            assert!(text.get(..at).is_none_or(|cut| cut.parse::<Signed>().is_err()));
        }
        assert!(format!("{text}\n").parse::<Signed>().is_err());
    }

    #[test]
    fn a_checkpoint_has_the_published_form() {
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        let text = signed(&key).to_string();
        let lines: Vec<_> = text.split('\n').collect();
        let root = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
        assert_eq!(lines[..3], ["node-1/0123", "4097", root]);
        assert_eq!(lines[3..5], ["time 2026-11-28T23:02:34.123Z", ""]);
        assert!(lines[5].starts_with("\u{2014} kms-proxy/audit "));
        assert_eq!(lines[6..], [""]);
    }
}
