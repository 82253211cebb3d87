//! The reading of one file: which log its lines belong to, and whether they are all there, in their
//! order.

use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};

use crate::audit::line::{Before, End, Kind, OpeningLine, Proof, seq};
use crate::audit::note::Signed;

use super::log::{Fault, Log};
use super::{Logs, Problem, Wrong};

/// How many lines are read to find out whether a line was moved or removed.
const LOOK_AHEAD: u64 = 8192;

/// A file that is being read.
pub(super) struct Section {
    file: String,
    /// The line that is read.
    line: u64,
    /// The log of the lines.
    origin: Option<String>,
    /// The line of the file that is line 0 of the log, which may be before the file.
    base: i128,
    /// The last checkpoint of the file.
    last: Option<Signed>,
    /// The bytes since then.
    after: Sha256,
    after_bytes: u64,
    /// A line that is not of a log: a writer was interrupted in it, or it was changed.
    cut: Option<u64>,
    /// A line with another number than expected.
    strange: Option<Strange>,
    /// The line of the last event.
    event: Vec<u8>,
    /// Whether the line that is read is an event.
    is_event: bool,
}

struct Strange {
    line: u64,
    found: u64,
    expected: u64,
    seen: u64,
}

impl Section {
    pub(super) fn new(file: String) -> Self {
        Self {
            file,
            line: 0,
            origin: None,
            base: 0,
            last: None,
            after: Sha256::new(),
            after_bytes: 0,
            cut: None,
            strange: None,
            event: Vec::new(),
            is_event: false,
        }
    }

    /// Adds a problem to the report. The rest of the file is not read.
    pub(super) fn fail(&mut self, all: &mut Logs, problem: Problem) {
        if let Some(log) = self.origin.as_ref().and_then(|origin| all.logs.get_mut(origin)) {
            log.broken = true;
        }
        self.cut = None;
        self.strange = None;
        all.report.problems.push(problem);
    }

    /// Reads a line with its newline. It may keep the buffer and leave another one.
    pub(super) fn line(&mut self, all: &mut Logs, text: &mut Vec<u8>) -> Result<(), Problem> {
        self.line += 1;
        self.is_event = false;
        let read = self.read(all, text);
        self.after.update(&*text);
        self.after_bytes += text.len() as u64;
        let is_proof = read.map_err(|fault| self.problem(fault))?;
        if let Some(signed) = is_proof {
            self.last = Some(signed);
            self.after = Sha256::new();
            self.after_bytes = 0;
        }
        if self.is_event {
            std::mem::swap(&mut self.event, text);
        }
        Ok(())
    }

    /// Reads a line. Returns the checkpoint in it.
    fn read(&mut self, all: &mut Logs, text: &[u8]) -> Result<Option<Signed>, Fault> {
        let Some(line) = text.strip_suffix(b"\n") else {
            // Only the last line of a file has no newline.
            let detail = "the last line is not complete: its writer was interrupted";
            all.report.remarks.push((self.file.clone(), self.line, detail.to_owned()));
            return Ok(None);
        };
        let number = seq(line);
        if let Some(strange) = &mut self.strange {
            strange.seen += 1;
            // Another log may have lines of the same numbers.
            if number.is_some_and(|number| is_opening(line, number)) {
                return Err(strange.at_end());
            }
            let done = strange.verdict(number);
            return done.map_or(Ok(None), Err);
        }
        let kind = number.map_or(Kind::Damaged, |number| Kind::of(line, number));
        let is_whole = match kind {
            Kind::Event => serde_json::from_slice::<IgnoredAny>(line).is_ok(),
            Kind::Proof(_) => true,
            Kind::Damaged => false,
        };
        if let Kind::Proof(Proof::Opening(opening)) = kind {
            self.open(all, &opening)?;
            self.log(all)?.append(line)?;
            self.compare(all)?;
            return Ok(Some(opening.signed));
        }
        if let Some(cut) = self.cut {
            return Err(Fault::At(cut, Wrong::Changed, NO_LINE.to_owned()));
        }
        let log = self.log(all)?;
        let Some(number) = number.filter(|_| is_whole) else {
            // The next line must be an opening.
            self.cut = Some(self.line);
            return Ok(None);
        };
        let expected = log.tree.size();
        if number != expected {
            let (line, found) = (self.line, number);
            self.strange = Some(Strange { line, found, expected, seen: 0 });
            return Ok(None);
        }
        let signed = match kind {
            Kind::Proof(Proof::Checkpoint(checkpoint)) => {
                let signed = checkpoint.signed.clone();
                let origin = self.origin.clone().unwrap_or_default();
                let base = self.base;
                self.log(all)?.checkpoint(&origin, checkpoint).map_err(|fault| match fault {
                    Fault::At(number, wrong, detail) => {
                        let line = u64::try_from(base + i128::from(number)).unwrap_or(0);
                        Fault::At(line, wrong, detail)
                    }
                    here => here,
                })?;
                Some(signed)
            }
            Kind::Event | Kind::Damaged | Kind::Proof(Proof::Opening(_)) => None,
        };
        self.log(all)?.append(line)?;
        self.is_event = signed.is_none();
        self.compare(all)?;
        Ok(signed)
    }

    /// The log of the current line.
    fn log<'a>(&self, all: &'a mut Logs) -> Result<&'a mut Log, Fault> {
        let log = self.origin.as_ref().and_then(|origin| all.logs.get_mut(origin));
        log.ok_or_else(|| {
            let detail = "the file does not begin with an opening: its first lines are missing, or \
                          it is no audit log";
            Fault::Here(Wrong::Missing, detail.to_owned())
        })
    }

    fn compare(&self, all: &mut Logs) -> Result<(), Fault> {
        if all.from.is_empty() {
            return Ok(());
        }
        let from = std::mem::take(&mut all.from);
        let origin = self.origin.clone().unwrap_or_default();
        let compared = self.log(all).and_then(|log| log.compare(&origin, &from));
        all.from = from;
        compared
    }

    /// Begins or continues the log of an opening.
    fn open(&mut self, all: &mut Logs, opening: &OpeningLine) -> Result<(), Fault> {
        let here = |wrong, detail: &str| Err(Fault::Here(wrong, detail.to_owned()));
        let (checkpoint, key) = (&opening.signed.checkpoint, &opening.key);
        if checkpoint.root != opening.tree.root() || !opening.signed.is_signed_by(key) {
            return here(Wrong::Changed, "the opening was changed: its signature is wrong");
        }
        if !all.keys.is_empty() && !all.keys.contains(key) {
            return here(Wrong::Foreign, "the log is signed by a key that was not given");
        }
        self.check_before(all, &opening.before)?;
        match all.logs.get_mut(&checkpoint.origin) {
            Some(log) => log.reopen(opening)?,
            None => {
                let is_gap = checkpoint.size > 0 && all.nodes.contains(node(&checkpoint.origin));
                all.order.push(checkpoint.origin.clone());
                let mut log = Log::new(opening);
                log.broken = is_gap;
                all.logs.insert(checkpoint.origin.clone(), log);
                let size = checkpoint.size;
                if is_gap {
                    // Only the oldest file of a node may begin in the middle of a log.
                    let detail = format!(
                        "the first {size} lines of this log are in no file that was given, and an \
                         earlier file of its node was given: the one between them is missing"
                    );
                    return here(Wrong::Missing, &detail);
                }
                if size > 0 {
                    let detail = format!(
                        "the {size} lines of the log before this one are in no file that was given"
                    );
                    all.report.remarks.push((self.file.clone(), self.line, detail));
                }
            }
        }
        all.nodes.insert(node(&checkpoint.origin).to_owned());
        self.origin = Some(checkpoint.origin.clone());
        self.base = i128::from(self.line) - i128::from(checkpoint.size);
        self.compare(all)
    }

    /// Checks that the file contains what the writer of an opening found in it.
    fn check_before(&mut self, all: &mut Logs, before: &Before) -> Result<(), Fault> {
        let here = |wrong, detail: &str| Err(Fault::Here(wrong, detail.to_owned()));
        match before {
            Before::Nothing if self.line == 1 => {}
            Before::Nothing => {
                return here(
                    Wrong::Foreign,
                    "this log began at the start of a file: its lines were put into another file",
                );
            }
            Before::Unknown => {
                if let Some(cut) = self.cut {
                    return Err(Fault::At(cut, Wrong::Changed, NO_LINE.to_owned()));
                }
                if self.line > 1 {
                    let detail = "a log begins that does not prove what is before it";
                    all.report.remarks.push((self.file.clone(), self.line, detail.to_owned()));
                }
            }
            Before::Log(_) if self.line == 1 => {
                return here(
                    Wrong::Missing,
                    "the lines before this one are missing: its writer found others in the file",
                );
            }
            Before::Log(end) => {
                let sha256 = self.after.clone().finalize().into();
                let found = End { signed: self.last.clone(), bytes: self.after_bytes, sha256 };
                if **end != found {
                    let line = self.cut.unwrap_or(self.line);
                    let detail = "the end of the log before this line is not the one that the \
                                  writer of this line found";
                    return Err(Fault::At(line, Wrong::Changed, detail.to_owned()));
                }
                if self.after_bytes > 0 || self.cut.is_some() {
                    let detail = "the log before this line has no clean end: its writer was \
                                  interrupted. This line proves its last lines";
                    all.report.remarks.push((self.file.clone(), self.line, detail.to_owned()));
                } else if !self.event.windows(STOP.len()).any(|it| it == STOP) {
                    let detail = "the log before this line does not end with `stop`: its process \
                                  was killed, or its last lines were removed before this line was \
                                  written";
                    all.report.remarks.push((self.file.clone(), self.line, detail.to_owned()));
                }
                self.event.clear();
                if let Ok(log) = self.log(all) {
                    log.closed = true;
                }
            }
        }
        self.cut = None;
        Ok(())
    }

    /// The end of the file.
    pub(super) fn end(&mut self, all: &mut Logs) -> Result<(), Problem> {
        if let Some(strange) = self.strange.take() {
            return Err(self.problem(strange.at_end()));
        }
        if let Some(line) = self.cut.take() {
            return Err(self.problem(Fault::At(line, Wrong::Changed, NO_LINE.to_owned())));
        }
        if self.line == 0 {
            all.report.remarks.push((self.file.clone(), 0, "the file is empty".to_owned()));
        }
        Ok(())
    }

    fn problem(&self, fault: Fault) -> Problem {
        let (line, wrong, detail) = match fault {
            Fault::Here(wrong, detail) => (self.line, wrong, detail),
            Fault::At(line, wrong, detail) => (line, wrong, detail),
        };
        Problem { file: self.file.clone(), line, wrong, detail }
    }
}

fn is_opening(line: &[u8], number: u64) -> bool {
    matches!(Kind::of(line, number), Kind::Proof(Proof::Opening(_)))
}

/// The node in the name of a log: the name is `kms-proxy/NODE/START`.
fn node(origin: &str) -> &str {
    origin.rsplit_once('/').map_or(origin, |(node, _)| node)
}

/// In the last event of a process that ended by itself. No text of a line contains these bytes,
/// since its quotes are escaped.
const STOP: &[u8] = b",\"operation\":\"stop\"";

const NO_LINE: &str = "it is not a line of an audit log: it was changed";

impl Strange {
    /// What is wrong with the line, as far as the line after it shows it. `number` is the number of
    /// that line.
    fn verdict(&self, number: Option<u64>) -> Option<Fault> {
        if self.seen == 1 && number == self.expected.checked_add(1) {
            let detail = "the line was changed: its number is wrong";
            return Some(Fault::At(self.line, Wrong::Changed, detail.to_owned()));
        }
        if self.found > self.expected && number == Some(self.expected) {
            let detail = format!("line {} of the log is here, and was written later", self.found);
            return Some(Fault::At(self.line, Wrong::Moved, detail));
        }
        let is_done = self.found < self.expected || self.seen >= LOOK_AHEAD;
        is_done.then(|| self.at_end())
    }

    fn at_end(&self) -> Fault {
        let Self { line, found, expected, .. } = *self;
        if found < expected {
            let detail = format!("line {found} of the log is here again");
            return Fault::At(line, Wrong::Repeated, detail);
        }
        let detail = match found - expected {
            1 => format!("line {expected} of the log is missing before this line"),
            _ => format!("lines {expected} to {} of the log are missing here", found - 1),
        };
        Fault::At(line, Wrong::Missing, detail)
    }
}
