//! Checks a backup that arrives in parts, with one line of it in memory: that it is complete and
//! undamaged. Whether its records fit together is checked when the file is read.

use sha2::{Digest as _, Sha256};

use crate::id::ChainName;

use super::parse::{counts, format, json, record};
use super::{Counts, FORMAT, Footer, Header, ReadError};

/// The longest line in bytes; a record has some hundred.
const MAX_LINE: usize = 4 << 20;

/// What a complete backup contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The number of chains.
    pub chains: u64,
    /// The number of records.
    pub records: u64,
    /// The number of damaged records of the store that it lacks.
    pub left_out: u64,
}

/// A check in progress, of a backup in the current format.
#[derive(Default)]
pub struct Check {
    /// The line whose end has not arrived.
    partial: Vec<u8>,
    /// The lines that arrived.
    lines: usize,
    digest: Sha256,
    chain: Option<ChainName>,
    chains: u64,
    records: u64,
    counts: Option<Counts>,
    is_complete: bool,
}

impl Check {
    /// Takes the next part.
    ///
    /// # Errors
    /// [`ReadError`] if this is no backup, or a damaged one.
    pub fn take(&mut self, part: &[u8]) -> Result<(), ReadError> {
        for piece in part.split_inclusive(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if self.partial.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.partial);
                self.line(&line)?;
            } else if self.partial.len() > MAX_LINE {
                return Err(self.wrong(format!("it has more than {MAX_LINE} bytes")));
            }
        }
        Ok(())
    }

    /// Ends the check: nothing is missing.
    ///
    /// # Errors
    /// [`ReadError::NoBackup`], [`ReadError::CutOff`].
    pub fn finish(self) -> Result<Summary, ReadError> {
        match self.counts {
            Some(Counts { chains, records, left_out })
                if self.is_complete && self.partial.is_empty() =>
            {
                Ok(Summary { chains, records, left_out })
            }
            _ if self.lines == 0 => Err(ReadError::NoBackup),
            _ => Err(ReadError::CutOff(self.lines)),
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), ReadError> {
        self.lines += 1;
        if self.is_complete {
            return Err(self.wrong("it follows the checksum".to_owned()));
        }
        if self.lines == 1 {
            let format = format(line)?;
            if format != FORMAT {
                return Err(self.wrong(format!("its format is {format}, and not {FORMAT}")));
            }
            json::<Header>(line).map_err(|detail| self.wrong(detail))?;
        } else if self.counts.is_some() {
            let footer: Footer = json(line).map_err(|detail| self.wrong(detail))?;
            let sha256 = base16ct::lower::encode_string(&self.digest.finalize_reset());
            self.is_complete = footer.sha256 == sha256;
            return if self.is_complete { Ok(()) } else { Err(ReadError::Checksum(None)) };
        } else if let Ok(stated) = counts(line) {
            if (stated.chains, stated.records) != (self.chains, self.records) {
                return Err(self.wrong("it states other counts than those of the lines".to_owned()));
            }
            self.counts = Some(stated);
        } else {
            let (chain, _) = record(line).map_err(|detail| self.wrong(detail))?;
            self.records += 1;
            // The records of a chain follow each other.
            if chain.is_some() && self.chain != chain {
                self.chains += 1;
                self.chain = chain;
            }
        }
        self.digest.update(line);
        Ok(())
    }

    fn wrong(&self, detail: String) -> ReadError {
        ReadError::Line { line: self.lines.max(1), detail }
    }
}
