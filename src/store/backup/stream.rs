//! Writes a backup a part at a time, with the records of a page in memory. It knows no file.

use sha2::{Digest, Sha256};

use crate::id::{ChainName, KekId};
use crate::store::copy::{CopyReport, choose};
use crate::store::record::{self, Head, Kek, Record as _, State};
use crate::store::{
    Error, Found, Ids, Pair, Problem, Read, Revision, Store, audit_key, head, head_and_pairs, pairs,
};
use crate::timestamp::rfc3339;

use super::{Counts, FORMAT, Footer, Header, Line, WriteError, to_line};

/// How often a head is read again if it changes in the meantime.
const TRIES: usize = 8;

/// A backup that is being written.
pub struct Stream<'a> {
    store: &'a dyn Store,
    now: u64,
    step: Step<'a>,
    chains: std::vec::IntoIter<ChainName>,
    has_all_chains: bool,
    report: CopyReport,
    digest: Sha256,
}

/// What comes next.
enum Step<'a> {
    Header,
    NextChain,
    Keks(Chain<'a>),
    AuditKey,
    Footer,
    End,
}

/// The chain that is being written.
struct Chain<'a> {
    name: ChainName,
    ids: Ids<'a>,
    /// The KEKs that its head named, which are written. `None` if the head could not be read.
    named: Option<Vec<KekId>>,
    /// Whether it has no head. It is a chain that was deleted meanwhile, unless it has KEKs.
    lacks_head: bool,
    is_empty: bool,
}

impl<'a> Stream<'a> {
    /// A backup of the chains of `store`: all of them, and the key of the audit log, if `only` is
    /// empty. `now` is in seconds since the Unix epoch.
    ///
    /// # Errors
    /// [`Error`] if the store can't be listed.
    pub async fn begin(store: &'a dyn Store, only: &[ChainName], now: u64) -> Result<Self, Error> {
        let mut report = CopyReport::default();
        let chains = choose(store, only, &mut report.problems).await?.into_iter();
        let (step, has_all_chains, digest) = (Step::Header, only.is_empty(), Sha256::new());
        Ok(Self { store, now, step, chains, has_all_chains, report, digest })
    }

    /// What was written until now.
    #[must_use]
    pub fn report(&self) -> &CopyReport {
        &self.report
    }

    /// The next part of the file; `None` at its end. After an error the backup is incomplete.
    ///
    /// # Errors
    /// [`WriteError::Store`].
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, WriteError> {
        loop {
            let part = match &mut self.step {
                Step::Header => {
                    self.step = Step::NextChain;
                    to_line(&Header { kms_proxy_backup: FORMAT, created_at: rfc3339(self.now) })?
                }
                Step::NextChain => match self.chains.next() {
                    Some(name) => {
                        let (chain, lines) =
                            begin_chain(self.store, name, &mut self.report.problems).await?;
                        self.step = Step::Keks(chain);
                        self.written(&lines)?
                    }
                    None => {
                        self.step = Step::AuditKey;
                        continue;
                    }
                },
                Step::Keks(chain) => {
                    let page = next_page(self.store, chain, &mut self.report.problems).await?;
                    match page {
                        Some(lines) => self.written(&lines)?,
                        None => {
                            self.report.chains += u64::from(!chain.is_empty);
                            if chain.lacks_head && !chain.is_empty {
                                let key = record::head_key(&chain.name);
                                self.report.problems.push(Problem::new(key, "it is missing"));
                            }
                            self.step = Step::NextChain;
                            continue;
                        }
                    }
                }
                // After the chains, so that the backup has a key that is made meanwhile.
                Step::AuditKey => {
                    self.step = Step::Footer;
                    let mut lines = Vec::new();
                    if self.has_all_chains {
                        let found = audit_key(self.store).await?;
                        keep(found, None, &mut lines, &mut self.report.problems);
                    }
                    self.written(&lines)?
                }
                Step::Footer => {
                    self.step = Step::End;
                    return Ok(Some(self.footer()?));
                }
                Step::End => return Ok(None),
            };
            if !part.is_empty() {
                self.digest.update(&part);
                return Ok(Some(part));
            }
        }
    }

    /// The last two lines.
    fn footer(&mut self) -> Result<Vec<u8>, WriteError> {
        let CopyReport { chains, added: records, problems, .. } = &self.report;
        let (chains, records, left_out) = (*chains, *records, problems.len() as u64);
        let mut bytes = to_line(&Counts { chains, records, left_out })?;
        self.digest.update(&bytes);
        let sha256 = base16ct::lower::encode_string(&self.digest.finalize_reset());
        bytes.extend(to_line(&Footer { sha256 })?);
        Ok(bytes)
    }

    /// The bytes of lines, which are counted.
    fn written(&mut self, lines: &[Line]) -> Result<Vec<u8>, WriteError> {
        let mut bytes = Vec::new();
        for line in lines {
            bytes.extend(to_line(line)?);
        }
        self.report.added += lines.len() as u64;
        if let Step::Keks(chain) = &mut self.step {
            chain.is_empty &= lines.is_empty();
        }
        Ok(bytes)
    }
}

/// The head of a chain with the KEKs that it names, as of one moment.
async fn begin_chain<'a>(
    store: &'a dyn Store,
    name: ChainName,
    problems: &mut Vec<Problem>,
) -> Result<(Chain<'a>, Vec<Line>), Error> {
    for _ in 0..TRIES {
        let before = head(store, &name).await?;
        let named = names(&before);
        let ids: Vec<KekId> = named.iter().flatten().copied().collect();
        let (found, pairs) = head_and_pairs(store, &name, &ids).await?;
        // Not every store reads several records as of one moment. The states of the KEKs that a
        // head names change with the head alone.
        let after = head(store, &name).await?;
        if revision(&found) != revision(&before) || revision(&after) != revision(&before) {
            continue;
        }
        let mut lines = Vec::new();
        let lacks_head = matches!(found, Ok(None));
        keep(found, None, &mut lines, problems);
        for pair in pairs {
            keep_pair(&name, pair, &mut lines, problems);
        }
        let (ids, is_empty) = (Ids::of_keks(store, &name), lines.is_empty());
        return Ok((Chain { name, ids, named, lacks_head, is_empty }, lines));
    }
    let detail = format!("{name}: other processes keep changing this chain; repeat the backup");
    Err(Error::Unavailable { detail, maybe_applied: false })
}

/// The revision of a head, if it could be read.
fn revision(head: &Found<Head>) -> Option<Revision> {
    Some(head.as_ref().ok()?.as_ref()?.entry.revision)
}

/// The KEKs that a head names; `None` without a head.
fn names(head: &Found<Head>) -> Option<Vec<KekId>> {
    let head = &head.as_ref().ok()?.as_ref()?.record;
    Some(head.primary.into_iter().chain(head.standby).collect())
}

/// The next KEKs of a chain and their uses; `None` at the end.
async fn next_page(
    store: &dyn Store,
    chain: &mut Chain<'_>,
    problems: &mut Vec<Problem>,
) -> Result<Option<Vec<Line>>, Error> {
    let Some((mut page, strays)) = chain.ids.next().await? else { return Ok(None) };
    problems.extend(strays);
    if let Some(named) = &chain.named {
        page.retain(|id| !named.contains(id));
    }
    let mut lines = Vec::new();
    for mut pair in pairs(store, &chain.name, &page).await? {
        if chain.named.is_some() {
            pair.kek = retired(pair.kek)?;
        }
        keep_pair(&chain.name, pair, &mut lines, problems);
    }
    Ok(Some(lines))
}

/// A KEK that the head does not name. One that encrypts was made after the head was read: it only
/// decrypts in the backup, so that the chain is as it was at one moment and no KEK is lost.
fn retired(kek: Found<Kek>) -> Result<Found<Kek>, Error> {
    Ok(match kek {
        Ok(Some(mut read)) if matches!(read.record.state, State::Standby | State::Primary) => {
            read.record.state = State::Retired;
            read.entry.value = read.record.encode()?;
            Ok(Some(read))
        }
        other => other,
    })
}

fn keep_pair(chain: &ChainName, pair: Pair, lines: &mut Vec<Line>, problems: &mut Vec<Problem>) {
    let missing = |key: String| Some(Problem::new(key, "it is missing"));
    keep(pair.kek, missing(record::kek_key(chain, pair.id)), lines, problems);
    keep(pair.uses, missing(record::uses_key(chain, pair.id)), lines, problems);
}

fn keep<R>(
    found: Found<R>,
    missing: Option<Problem>,
    lines: &mut Vec<Line>,
    problems: &mut Vec<Problem>,
) {
    match found {
        Ok(Some(Read { entry, .. })) => match String::from_utf8(entry.value) {
            Ok(value) => lines.push(Line { key: entry.key, value }),
            Err(_) => problems.push(Problem::new(entry.key, "it is damaged: it is not UTF-8")),
        },
        Ok(None) => problems.extend(missing),
        Err(problem) => problems.push(problem),
    }
}
