//! The lines of an audit log that prove the others: checkpoints and openings.
//!
//! Each line of the log is a JSON object that begins with `v` and `seq`. It knows the form of these
//! lines, and not how many there are.

use base64_simd::STANDARD;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::keys::PublicKey;
use super::note::Signed;
use super::tree::{Hash, Tree};

/// The version of the format, `v` in each line.
pub const VERSION: u32 = 1;

/// The bytes of a leaf's hash in `leaves`.
pub const SHORT: usize = 4;

/// How each line begins: `{"v":1,"seq":N,`. N is the number of lines before it in the log of the
/// process.
#[must_use]
pub fn prefix(seq: u64) -> String {
    format!("{{\"v\":{VERSION},\"seq\":{seq},")
}

/// The `seq` of a line; `None` if it does not begin as [`prefix`] says.
#[must_use]
pub fn seq(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(b"{\"v\":1,\"seq\":")?;
    let end = rest.iter().take(21).position(|&byte| byte == b',')?;
    let digits = std::str::from_utf8(rest.get(..end)?).ok()?;
    let plain =
        digits == "0" || digits.bytes().all(|it| it.is_ascii_digit()) && !digits.starts_with('0');
    digits.parse().ok().filter(|_| plain)
}

/// A checkpoint line: a signed checkpoint over all lines before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointLine {
    /// The checkpoint.
    pub signed: Signed,
    /// The first [`SHORT`] bytes of the hash of each line since the checkpoint before, one after
    /// another. With them a reader can name the line that was changed.
    pub leaves: Vec<u8>,
}

/// An opening line: the first line of a process, and of each new file. With it a file can be
/// verified on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpeningLine {
    /// A checkpoint over all lines of the process before this line.
    pub signed: Signed,
    /// The key that signs the checkpoints.
    pub key: PublicKey,
    /// The tree of the checkpoint.
    pub tree: Tree,
    /// What the file contained before this line.
    pub before: Before,
}

/// What a file contained before an opening line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// It is not known: the log is not written to a file.
    Unknown,
    /// The end of another log.
    Log(Box<End>),
}

/// The end of a log that was found in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Its last checkpoint; `None` if there was none.
    pub signed: Option<Signed>,
    /// The number of bytes after the line of that checkpoint.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: Hash,
}

/// A line that proves others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A checkpoint.
    Checkpoint(CheckpointLine),
    /// An opening.
    Opening(Box<OpeningLine>),
}

/// What a line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It describes an event.
    Event,
    /// It proves other lines.
    Proof(Proof),
    /// It begins like a line that proves others, and has another form.
    Damaged,
}

/// The time in a line, from `"time":"` to `",`, has this size.
const TIME: usize = "\"time\":\"2026-11-28T23:02:34.123Z\",".len();

impl Kind {
    /// What the line with this `seq` is.
    #[must_use]
    pub fn of(line: &[u8], seq: u64) -> Self {
        let rest = line.get(prefix(seq).len() + TIME..).unwrap_or_default();
        let proof = if rest.starts_with(b"\"checkpoint\":") {
            read(line).and_then(CheckpointJson::parse).map(Proof::Checkpoint)
        } else if rest.starts_with(b"\"opening\":") {
            read(line).and_then(OpeningJson::parse).map(|it| Proof::Opening(Box::new(it)))
        } else {
            return Self::Event;
        };
        // There is one text for each of these lines, so that no byte of it can change.
        match proof.filter(|proof| proof.to_line() == line) {
            Some(proof) => Self::Proof(proof),
            None => Self::Damaged,
        }
    }
}

impl Proof {
    /// The line, without a newline.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        match self {
            Self::Checkpoint(line) => write(&CheckpointJson::new(line)),
            Self::Opening(line) => write(&OpeningJson::new(line)),
        }
    }
}

fn read<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    serde_json::from_slice(line).ok()
}

fn write(json: &impl Serialize) -> Vec<u8> {
    // These types have nothing that JSON can't contain.
    serde_json::to_vec(json).unwrap_or_default()
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointJson {
    v: u32,
    seq: u64,
    time: String,
    checkpoint: String,
    leaves: String,
}

impl CheckpointJson {
    fn new(line: &CheckpointLine) -> Self {
        let checkpoint = &line.signed.checkpoint;
        Self {
            v: VERSION,
            seq: checkpoint.size,
            time: checkpoint.time.clone(),
            checkpoint: line.signed.to_string(),
            leaves: STANDARD.encode_to_string(&line.leaves),
        }
    }

    fn parse(self) -> Option<CheckpointLine> {
        Some(CheckpointLine {
            signed: self.checkpoint.parse().ok()?,
            leaves: STANDARD.decode_to_vec(self.leaves).ok()?,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OpeningJson {
    v: u32,
    seq: u64,
    time: String,
    opening: OpeningBody,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OpeningBody {
    checkpoint: String,
    key: String,
    range: Vec<String>,
    before: Option<BeforeJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum BeforeJson {
    Unknown(Unknown),
    Log(EndJson),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Unknown {
    Unknown,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndJson {
    checkpoint: Option<String>,
    bytes: u64,
    sha256: String,
}

impl OpeningJson {
    fn new(line: &OpeningLine) -> Self {
        let checkpoint = &line.signed.checkpoint;
        let before = match &line.before {
            Before::Nothing => None,
            Before::Unknown => Some(BeforeJson::Unknown(Unknown::Unknown)),
            Before::Log(end) => Some(BeforeJson::Log(EndJson {
                checkpoint: end.signed.as_ref().map(Signed::to_string),
                bytes: end.bytes,
                sha256: base16ct::lower::encode_string(&end.sha256),
            })),
        };
        Self {
            v: VERSION,
            seq: checkpoint.size,
            time: checkpoint.time.clone(),
            opening: OpeningBody {
                checkpoint: line.signed.to_string(),
                key: line.key.to_string(),
                range: line.tree.range().iter().map(|it| STANDARD.encode_to_string(it)).collect(),
                before,
            },
        }
    }

    fn parse(self) -> Option<OpeningLine> {
        let hash = |text: String| STANDARD.decode_to_vec(text).ok()?.try_into().ok();
        let range = self.opening.range.into_iter().map(hash).collect::<Option<Vec<Hash>>>()?;
        let before = match self.opening.before {
            None => Before::Nothing,
            Some(BeforeJson::Unknown(_)) => Before::Unknown,
            Some(BeforeJson::Log(end)) => Before::Log(Box::new(End {
                signed: end.checkpoint.map(|text| text.parse()).transpose().ok()?,
                bytes: end.bytes,
                sha256: base16ct::lower::decode_vec(end.sha256).ok()?.try_into().ok()?,
            })),
        };
        let signed: Signed = self.opening.checkpoint.parse().ok()?;
        Some(OpeningLine {
            tree: Tree::from_parts(signed.checkpoint.size, range)?,
            signed,
            key: self.opening.key.parse().ok()?,
            before,
        })
    }
}
