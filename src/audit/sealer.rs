//! Makes the lines that prove an audit log: it hashes each line into the tree of the process, and
//! signs checkpoints and openings.
//!
//! It knows the end of the file that it continues, and does not write.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::keys::{PublicKey, SigningKey};
use super::line::{Before, CheckpointLine, End, Kind, OpeningLine, Proof, SHORT, seq};
use super::note::{Checkpoint, Signed};
use super::tree::{Tree, leaf_hash};

/// A checkpoint must follow after this many lines.
pub const MAX_UNSEALED: u64 = 4096;

/// Builds the Merkle tree over the lines of one process's log, and signs its checkpoints.
///
/// Each line of the log is a leaf, also those that this type makes. The `seq` of each line must be
/// the [`size`](Self::size) before it is appended.
pub struct Sealer {
    key: SigningKey,
    origin: String,
    tree: Tree,
    /// The last checkpoint or opening.
    last: Option<Signed>,
    /// The [`SHORT`] hashes of the lines since then.
    leaves: Vec<u8>,
}

impl Sealer {
    /// An empty tree. `origin` must be unique for each start of a process; white space, control
    /// characters and `+` in it are replaced.
    #[must_use]
    pub fn new(key: SigningKey, origin: &str) -> Self {
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '+';
        let origin = if origin.is_empty() { "-".to_owned() } else { origin.replace(bad, "-") };
        Self { key, origin, tree: Tree::default(), last: None, leaves: Vec::new() }
    }

    /// Appends a line, without its newline, as it is written.
    pub fn append(&mut self, line: &[u8]) {
        let hash = leaf_hash(line);
        self.leaves.extend_from_slice(hash.first_chunk::<SHORT>().map_or(&[], |short| &short[..]));
        self.tree.append(hash);
    }

    /// The number of lines, and the `seq` of the next one.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// The number of lines after the last checkpoint or opening. At [`MAX_UNSEALED`] the next line
    /// must be a checkpoint; at 0 a checkpoint would prove nothing more.
    #[must_use]
    pub fn unsealed(&self) -> u64 {
        // The line of the last checkpoint is itself after it.
        let sealed = self.last.as_ref().map_or(0, |last| last.checkpoint.size + 1);
        self.tree.size().saturating_sub(sealed)
    }

    /// Makes a checkpoint line, without a newline, and appends it.
    pub fn checkpoint(&mut self, now: SystemTime) -> Vec<u8> {
        let signed = self.sign(now);
        let leaves = std::mem::take(&mut self.leaves);
        self.keep(signed.clone(), &Proof::Checkpoint(CheckpointLine { signed, leaves }))
    }

    /// Makes an opening line, without a newline, and appends it: the first line of a process, and
    /// the first that it writes to each file. Before it leaves a file it should write a checkpoint
    /// to it.
    pub fn opening(&mut self, before: Before, now: SystemTime) -> Vec<u8> {
        let signed = self.sign(now);
        self.leaves.clear();
        let opening = OpeningLine {
            signed: signed.clone(),
            key: self.public_key(),
            tree: self.tree.clone(),
            before,
        };
        self.keep(signed, &Proof::Opening(Box::new(opening)))
    }

    /// The last checkpoint, also that of an opening, to be kept elsewhere.
    #[must_use]
    pub fn last(&self) -> Option<&Signed> {
        self.last.as_ref()
    }

    /// The key that verifies the checkpoints.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    fn sign(&self, now: SystemTime) -> Signed {
        let (size, root) = (self.tree.size(), self.tree.root());
        Checkpoint { origin: self.origin.clone(), size, root, time: rfc3339_millis(now) }
            .sign(&self.key)
    }

    fn keep(&mut self, signed: Signed, proof: &Proof) -> Vec<u8> {
        self.last = Some(signed);
        let line = proof.to_line();
        self.append(&line);
        line
    }
}

/// A time as lines contain it: RFC 3339 in UTC, with milliseconds.
#[must_use]
pub fn rfc3339_millis(time: SystemTime) -> String {
    // 9999-12-31T23:59:59.999Z is the last time that this form can write.
    let last = SystemTime::UNIX_EPOCH + Duration::from_millis(253_402_300_799_999);
    let time = time.clamp(SystemTime::UNIX_EPOCH, last);
    humantime::format_rfc3339_millis(time).to_string()
}

/// How much of a file is searched for its last checkpoint: more than 4,096 lines of 16 KiB.
const MAX_SEARCH: u64 = 256 << 20;
/// How much is read at a time.
const BLOCK: u64 = 1 << 20;

impl Before {
    /// Finds out what a file contains, for the opening that is to be appended to it. If the file
    /// does not end with a newline, its writer was interrupted: the second result is true, and a
    /// newline must be written before the opening. That newline is included here.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn of_file(file: &File) -> io::Result<(Self, bool)> {
        let size = file.metadata()?.len();
        let (mut tail, mut start) = (Vec::new(), size);
        let mut found = None;
        while start > 0 && found.is_none() && size - start < MAX_SEARCH {
            let from = start.saturating_sub(BLOCK);
            let mut block = vec![0; usize::try_from(start - from).unwrap_or(0)];
            file.read_exact_at(&mut block, from)?;
            // A line that begins in this block may end in the last one.
            let searched = block.len();
            block.append(&mut tail);
            tail = block;
            start = from;
            found = last_checkpoint(&tail, searched, start == 0);
        }
        if size == 0 {
            return Ok((Self::Nothing, false));
        }
        if start > 0 && found.is_none() {
            return Ok((Self::Unknown, tail.last() != Some(&b'\n')));
        }
        let cut = tail.last() != Some(&b'\n');
        if cut {
            tail.push(b'\n');
        }
        let (signed, end) = found.map_or((None, 0), |(signed, end)| (Some(signed), end));
        let after = tail.get(end..).unwrap_or_default();
        let end = End {
            signed,
            bytes: u64::try_from(after.len()).unwrap_or(u64::MAX),
            sha256: Sha256::digest(after).into(),
        };
        Ok((Self::Log(Box::new(end)), cut))
    }
}

/// The last checkpoint or opening among the complete lines of `text` that begin in its first
/// `searched` bytes, and where its line ends. The first line counts only if `whole` is set.
fn last_checkpoint(text: &[u8], searched: usize, whole: bool) -> Option<(Signed, usize)> {
    let newlines = text.iter().take(searched).enumerate().rev();
    let starts = newlines.filter(|&(_, &byte)| byte == b'\n').map(|(at, _)| at + 1);
    starts.chain(whole.then_some(0)).find_map(|start| {
        let rest = text.get(start..)?;
        let line = rest.get(..rest.iter().position(|&byte| byte == b'\n')?)?;
        match Kind::of(line, seq(line)?) {
            Kind::Proof(Proof::Checkpoint(it)) => Some((it.signed, start + line.len() + 1)),
            Kind::Proof(Proof::Opening(it)) => Some((it.signed, start + line.len() + 1)),
            Kind::Event | Kind::Damaged => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn sealer(origin: &str) -> Sealer {
        Sealer::new(SigningKey::from_seed(&[1; 32]).unwrap(), origin)
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_123)
    }

    fn event(sealer: &mut Sealer) -> Vec<u8> {
        let line = format!("{}\"chain\":\"orders\"}}", super::super::line::prefix(sealer.size()));
        sealer.append(line.as_bytes());
        line.into_bytes()
    }

    #[test]
    fn a_checkpoint_covers_all_lines_before_it_and_is_one_itself() {
        let mut sealer = sealer("node 1+2/3");
        assert_eq!((sealer.size(), sealer.unsealed()), (0, 0));
        let mut tree = Tree::default();
        let opening = sealer.opening(Before::Nothing, now());
        tree.append(leaf_hash(&opening));
        assert_eq!((sealer.size(), sealer.unsealed()), (1, 0));
        for _ in 0..3 {
            tree.append(leaf_hash(&event(&mut sealer)));
        }
        assert_eq!((sealer.size(), sealer.unsealed()), (4, 3));
        let line = sealer.checkpoint(now());
        assert_eq!((sealer.size(), sealer.unsealed()), (5, 0));
        assert!(line.starts_with(b"{\"v\":1,\"seq\":4,\"time\":\"2026-01-01T00:00:00.123Z\","));
        let Kind::Proof(Proof::Checkpoint(read)) = Kind::of(&line, 4) else {
            panic!("a checkpoint")
        };
        assert!(read.signed.is_signed_by(&sealer.public_key()));
        assert_eq!(read.signed.checkpoint.origin, "node-1-2/3");
        assert_eq!((read.signed.checkpoint.size, read.signed.checkpoint.root), (4, tree.root()));
        assert_eq!(read.leaves.len(), 4 * SHORT);
        assert_eq!(sealer.last(), Some(&read.signed));
    }

    #[test]
    fn an_opening_contains_the_tree_before_it() {
        let mut sealer = sealer("a");
        sealer.opening(Before::Unknown, now());
        for _ in 0..6 {
            event(&mut sealer);
        }
        let tree = sealer.tree.clone();
        let line = sealer.opening(Before::Nothing, now());
        let Kind::Proof(Proof::Opening(read)) = Kind::of(&line, 7) else { panic!("an opening") };
        assert_eq!((&read.tree, read.before), (&tree, Before::Nothing));
        assert_eq!(read.signed.checkpoint.root, tree.root());
        assert_eq!(read.key, sealer.public_key());
    }

    #[test]
    fn the_end_of_a_file_is_found_whatever_follows_its_last_checkpoint() {
        for (lines, tail) in [(1, ""), (3, "{\"v\":1,\"se"), (9000, "\n"), (9000, "x\ny\n")] {
            let mut sealer = sealer("a");
            let mut file = tempfile::tempfile().unwrap();
            let mut write = |line: &[u8]| file.write_all(&[line, b"\n"].concat()).unwrap();
            write(&sealer.opening(Before::Nothing, now()));
            for _ in 0..lines {
                write(&event(&mut sealer));
            }
            write(&sealer.checkpoint(now()));
            let mut after = Vec::new();
            for _ in 0..lines {
                let line = event(&mut sealer);
                write(&line);
                after.extend([&line[..], b"\n"].concat());
            }
            file.write_all(tail.as_bytes()).unwrap();
            after.extend(tail.as_bytes());
            let cut = tail.starts_with('{');
            after.extend(cut.then_some(b'\n'));
            let end = End {
                signed: sealer.last().cloned(),
                bytes: after.len() as u64,
                sha256: Sha256::digest(&after).into(),
            };
            assert_eq!(Before::of_file(&file).unwrap(), (Before::Log(Box::new(end)), cut));
        }
        let empty = tempfile::tempfile().unwrap();
        assert_eq!(Before::of_file(&empty).unwrap(), (Before::Nothing, false));
        let mut other = tempfile::tempfile().unwrap();
        other.write_all(b"something else").unwrap();
        let Before::Log(end) = Before::of_file(&other).unwrap().0 else { panic!("a log") };
        assert_eq!((end.signed, end.bytes), (None, 15));
    }

    #[test]
    fn times_are_limited_to_what_rfc_3339_can_write() {
        let late = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(rfc3339_millis(late), "9999-12-31T23:59:59.999Z");
        assert_eq!(rfc3339_millis(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
    }
}
