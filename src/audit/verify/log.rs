//! What a reader knows about the log of one process: its tree, and what proves it.

use crate::audit::keys::PublicKey;
use crate::audit::line::{CheckpointLine, OpeningLine, SHORT};
use crate::audit::note::Signed;
use crate::audit::sealer::MAX_UNSEALED;
use crate::audit::tree::{Tree, leaf_hash};

use super::Wrong;

/// The log of one process.
pub(super) struct Log {
    pub(super) key: PublicKey,
    pub(super) tree: Tree,
    /// The first line that was read.
    pub(super) first: u64,
    /// The last checkpoint.
    pub(super) last: Signed,
    /// The short hashes of the lines since then.
    leaves: Vec<u8>,
    /// Whether the opening of another log proves the lines after the last checkpoint.
    pub(super) closed: bool,
    /// Whether a problem was found: what follows can't be verified.
    pub(super) broken: bool,
    /// Those of the checkpoints that were kept elsewhere that the log agrees with.
    pub(super) met: Vec<Signed>,
}

/// What is wrong with a log, where, and what to say.
pub(super) enum Fault {
    /// At the line that is read.
    Here(Wrong, String),
    /// At an earlier line.
    At(u64, Wrong, String),
}

impl Log {
    pub(super) fn new(opening: &OpeningLine) -> Self {
        let first = opening.tree.size();
        let (key, tree, last) = (opening.key, opening.tree.clone(), opening.signed.clone());
        let (leaves, met) = (Vec::new(), Vec::new());
        Self { key, tree, first, last, leaves, closed: false, broken: false, met }
    }

    /// The lines after the last checkpoint.
    pub(super) fn unproved(&self) -> u64 {
        if self.closed {
            return 0;
        }
        self.tree.size().saturating_sub(self.last.checkpoint.size + 1)
    }

    /// Appends a line. More lines than a process writes without a checkpoint are a fault: someone
    /// who removed checkpoints could have changed them.
    pub(super) fn append(&mut self, line: &[u8]) -> Result<(), Fault> {
        let hash = leaf_hash(line);
        self.tree.append(hash);
        self.leaves.extend_from_slice(hash.first_chunk::<SHORT>().map_or(&[], |it| &it[..]));
        if self.unproved() > MAX_UNSEALED {
            let detail = format!(
                "a checkpoint is missing before this line: a process writes at most {MAX_UNSEALED} \
                 lines without one"
            );
            return Err(Fault::Here(Wrong::Missing, detail));
        }
        Ok(())
    }

    /// Compares the log with a checkpoint that was kept elsewhere, if it is due.
    pub(super) fn compare(&mut self, origin: &str, kept: &[Signed]) -> Result<(), Fault> {
        for kept in kept {
            let other = &kept.checkpoint;
            if other.origin != origin || other.size != self.tree.size() || self.met.contains(kept) {
                continue;
            }
            let same = other.root == self.tree.root() && kept.is_signed_by(&self.key);
            if !same {
                let detail = "the lines up to here are not those that the kept checkpoint proves";
                return Err(Fault::Here(Wrong::Changed, detail.to_owned()));
            }
            self.met.push(kept.clone());
        }
        Ok(())
    }

    /// Checks a checkpoint, before its line is appended.
    pub(super) fn checkpoint(&mut self, origin: &str, line: CheckpointLine) -> Result<(), Fault> {
        let CheckpointLine { signed, leaves } = line;
        let here = |wrong, detail: &str| Err(Fault::Here(wrong, detail.to_owned()));
        if signed.checkpoint.origin != origin {
            return here(Wrong::Foreign, "the checkpoint belongs to the log of another process");
        }
        let is_signed = signed.is_signed_by(&self.key);
        let is_root = signed.checkpoint.root == self.tree.root();
        // If the line of a checkpoint was changed, it may not look like one: the list of the next
        // checkpoint begins with that line.
        let skipped = self.leaves.len().saturating_sub(leaves.len()) / SHORT;
        let found = self.leaves.chunks(SHORT).skip(skipped);
        let other = leaves.chunks(SHORT).zip(found).position(|(listed, found)| listed != found);
        let first = self.last.checkpoint.size + skipped as u64;
        match (is_signed, is_root) {
            (true, true) if leaves == self.leaves => {}
            (true, true) => return here(Wrong::Changed, "the checkpoint was changed"),
            (_, is_root) => {
                if let Some(at) = other {
                    let detail = "the line was changed: its hash is not the one that its \
                                  checkpoint lists";
                    let detail = detail.to_owned();
                    return Err(Fault::At(first + at as u64, Wrong::Changed, detail));
                }
                if !is_signed {
                    let detail = "the signature of the checkpoint is wrong";
                    return here(Wrong::Changed, detail);
                }
                debug_assert!(!is_root, "else it is one of the cases above");
                return here(
                    Wrong::Changed,
                    "a line since the last checkpoint was changed, and the list in this checkpoint \
                     with it: the signed root hash is another one",
                );
            }
        }
        self.last = signed;
        self.leaves.clear();
        Ok(())
    }

    /// Checks the opening of a file that continues this log, before its line is appended.
    pub(super) fn reopen(&mut self, opening: &OpeningLine) -> Result<(), Fault> {
        let here = |wrong, detail: String| Err(Fault::Here(wrong, detail));
        let (size, found) = (opening.tree.size(), self.tree.size());
        if opening.key != self.key {
            return here(Wrong::Foreign, "the log continues with another key".to_owned());
        }
        if size < found {
            return here(
                Wrong::Repeated,
                format!("the log continues from line {size} on, which was read before"),
            );
        }
        if self.broken {
            // What is wrong with the lines before is reported already.
            *self = Self::new(opening);
            return Ok(());
        }
        if size > found {
            return here(
                Wrong::Missing,
                format!(
                    "the log continues from line {size} on: {} lines are missing",
                    size - found
                ),
            );
        }
        if opening.tree != self.tree {
            return here(
                Wrong::Changed,
                "the lines since the last checkpoint are not those that this opening proves"
                    .to_owned(),
            );
        }
        self.last = opening.signed.clone();
        self.leaves.clear();
        Ok(())
    }
}
