//! Verifies the files of an audit log: reads them line by line, in memory that does not depend on
//! their size, and reports the first line of each file that is not as it was written.
//!
//! This file owns the report and the reading of files. It knows no secret and no configuration.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Read};

use super::keys::PublicKey;
use super::line::{Kind, Proof, seq};
use super::note::Signed;

mod log;
mod section;

use log::Log;
use section::Section;

/// The longest line in bytes: an AAD in plain text may be large.
const MAX_LINE: u64 = 64 << 20;

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is not as it was written.
    Changed,
    /// Lines before it are missing.
    Missing,
    /// It is not where it was written.
    Moved,
    /// It is there twice.
    Repeated,
    /// It belongs to the log of another process, or is signed by another key.
    Foreign,
    /// A checkpoint that was kept elsewhere proves more than the files contain.
    CutOff,
}

/// A line that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The name of the file.
    pub file: String,
    /// The line, from 1 on; 0 if the problem is not at a line.
    pub line: u64,
    /// What is wrong.
    pub wrong: Wrong,
    /// The same for the user.
    pub detail: String,
}

/// What is known about the log of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its name.
    pub origin: String,
    /// The key that signs it.
    pub key: PublicKey,
    /// The first line that the files contain.
    pub first: u64,
    /// The number of its lines, including those that no file contains.
    pub size: u64,
    /// How many lines at the end no checkpoint proves.
    pub unproved: u64,
    /// Its last checkpoint.
    pub last: Signed,
}

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong: at most one line for each file.
    pub problems: Vec<Problem>,
    /// What is not wrong and should be known, such as an unclean end: file, line and text.
    pub remarks: Vec<(String, u64, String)>,
    /// The logs, in the order of their first lines.
    pub logs: Vec<Summary>,
    /// The number of lines that were read.
    pub lines: u64,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.problems.is_empty()
    }
}

/// A file whose beginning was read.
pub struct Source {
    name: String,
    reader: Box<dyn BufRead>,
    first: Vec<u8>,
}

impl Source {
    /// Reads the beginning of a file.
    ///
    /// # Errors
    /// Those of reading.
    pub fn new(name: String, mut reader: Box<dyn BufRead>) -> io::Result<Self> {
        let mut first = Vec::new();
        next_line(&mut reader, &mut first)?;
        Ok(Self { name, reader, first })
    }

    /// The log, the time and the size at which the file begins.
    fn begin(&self) -> Option<(String, String, u64)> {
        let line = self.first.strip_suffix(b"\n")?;
        match Kind::of(line, seq(line)?) {
            Kind::Proof(Proof::Opening(it)) => {
                let it = it.signed.checkpoint;
                Some((it.origin, it.time, it.size))
            }
            _ => None,
        }
    }
}

/// Puts files in the order in which they were written. Those of one log are together.
fn in_order(sources: &mut [Source]) {
    let begins: Vec<_> =
        sources.iter().map(|source| (source.name.clone(), source.begin())).collect();
    let key = |source: &Source| {
        let (origin, _, size) = source.begin()?;
        let times = begins.iter().filter_map(|(_, begin)| begin.as_ref());
        let start = times.filter(|(other, _, _)| *other == origin).map(|(_, time, _)| time).min();
        Some((start.cloned(), origin, size))
    };
    sources.sort_by_cached_key(key);
}

/// Verifies files, in any order. `keys` are the keys that may have signed them: without any, the
/// keys in the files are taken. `from` are checkpoints that were kept elsewhere. Calls `progress`
/// with the number of bytes that were read.
///
/// # Errors
/// Those of reading.
pub fn verify(
    mut sources: Vec<Source>,
    keys: &[PublicKey],
    from: &[Signed],
    mut progress: impl FnMut(u64),
) -> io::Result<Report> {
    in_order(&mut sources);
    let mut all = Logs { keys: keys.to_vec(), from: from.to_vec(), ..Logs::default() };
    let mut bytes = 0;
    for mut source in sources {
        let mut section = Section::new(source.name);
        let mut line = source.first;
        while !line.is_empty() {
            bytes += line.len() as u64;
            all.report.lines += 1;
            let read = section.line(&mut all, &mut line);
            if all.report.lines.is_multiple_of(4096) {
                progress(bytes);
            }
            if let Err(problem) = read {
                section.fail(&mut all, problem);
                break;
            }
            next_line(&mut source.reader, &mut line)?;
        }
        if let Err(problem) = section.end(&mut all) {
            section.fail(&mut all, problem);
        }
    }
    all.finish();
    Ok(all.report)
}

/// Reads the next line with its newline; nothing at the end.
fn next_line(reader: &mut Box<dyn BufRead>, line: &mut Vec<u8>) -> io::Result<()> {
    line.clear();
    let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', line)?;
    if read as u64 == MAX_LINE && line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is longer than 64 MiB"));
    }
    Ok(())
}

/// Everything that is known across files.
#[derive(Default)]
struct Logs {
    keys: Vec<PublicKey>,
    from: Vec<Signed>,
    logs: HashMap<String, Log>,
    /// The nodes whose files were read.
    nodes: HashSet<String>,
    order: Vec<String>,
    report: Report,
}

impl Logs {
    fn finish(&mut self) {
        let whole = |wrong, detail| Problem { file: String::new(), line: 0, wrong, detail };
        for kept in &self.from {
            let (origin, size) = (&kept.checkpoint.origin, kept.checkpoint.size);
            let problem = match self.logs.get(origin) {
                None => format!("no file contains the log {origin}, which had {size} lines"),
                // A problem of this log is reported already.
                Some(log) if log.broken || log.met.contains(kept) => continue,
                Some(log) if log.tree.size() < size => format!(
                    "the log {origin} ends after {} lines, and a checkpoint that was kept proves \
                     that it had {size}: the end is cut off",
                    log.tree.size()
                ),
                Some(_) => format!("no file contains line {size} of the log {origin}"),
            };
            self.report.problems.push(whole(Wrong::CutOff, problem));
        }
        for origin in &self.order {
            let Some(log) = self.logs.get(origin) else { continue };
            self.report.logs.push(Summary {
                origin: origin.clone(),
                key: log.key,
                first: log.first,
                size: log.tree.size(),
                unproved: log.unproved(),
                last: log.last.clone(),
            });
        }
    }
}

#[cfg(test)]
mod tests;
