//! `rewrap --lines`: any number of envelopes, one per line, in batches.
//!
//! The output has the lines in their order, and a line that fails unchanged, so that it can always
//! replace the input.

use std::io::{BufRead, Read};

use kms_proxy::envelope;
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::ciphertext::{Rewrapped, join, split, to_binary};
use super::client::{Client, Problem};
use super::progress;
use super::stdio::{eprint, print};
use super::{Failure, Result};

/// Lines in a batch; a service accepts at most 10,000.
const BATCH_LINES: usize = 1_000;

/// Bytes of headers in a batch; by default a service accepts a body of 4 MiB.
const BATCH_BYTES: usize = 256 * 1024;

/// Bytes of lines in a batch, which stay in memory until it is done.
const BATCH_HELD: usize = 16 << 20;

/// Rewraps each line of stdin under the primary KEK.
///
/// A line of more than `max_line` bytes is an error, since lines are held in memory.
pub(super) async fn rewrap(
    client: &Client,
    chain: Option<&str>,
    inline: bool,
    max_line: usize,
) -> Result {
    let limit = u64::try_from(max_line).unwrap_or(u64::MAX).saturating_add(1);
    let mut tally = Tally { lines: 0, failed: 0, progress: progress::Progress::new() };
    let mut batch = Batch::new(inline);
    let mut stdin = std::io::stdin().lock();
    loop {
        let mut line = Vec::new();
        let read = stdin.by_ref().take(limit).read_until(b'\n', &mut line);
        if read.map_err(|error| Failure::refused(format!("can't read stdin: {error}")))? == 0 {
            break;
        }
        if line.len() > max_line {
            tally.finish(batch, client, chain).await?;
            return Err(Failure::refused(format!(
                "stopped; the output ends before line {}: the line has more than {max_line} bytes \
                 (--max-size)",
                tally.lines + 1
            )));
        }
        batch.push(line);
        if batch.is_full() {
            let full = std::mem::replace(&mut batch, Batch::new(inline));
            tally.finish(full, client, chain).await?;
        }
    }
    tally.finish(batch, client, chain).await?;
    if tally.failed == 0 {
        return Ok(());
    }
    let Tally { lines, failed, .. } = tally;
    Err(Failure::refused(format!("{failed} of {lines} lines failed and are unchanged")))
}

/// What to do with a line. The line includes its end: `\n`, `\r\n`, or nothing at the end of the
/// input.
enum Line {
    /// Nothing: it is copied to the output.
    Keep(Vec<u8>),
    /// It is not an envelope.
    Bad(Vec<u8>, String),
    /// The header of its envelope is the next one of the batch.
    Send { line: Vec<u8>, payload: Vec<u8> },
}

/// Lines whose headers are sent in one request.
#[derive(Default)]
struct Batch {
    inline: bool,
    lines: Vec<Line>,
    items: Vec<Item>,
    bytes: usize,
    held: usize,
}

#[derive(Serialize)]
struct Request<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<&'a str>,
    items: &'a [Item],
}

/// A header as text.
#[derive(Serialize)]
struct Item {
    ciphertext: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    inline: bool,
}

#[derive(Deserialize)]
struct Response {
    results: Vec<Outcome>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Outcome {
    Failed { error: Problem },
    Done(Rewrapped),
}

impl Batch {
    fn new(inline: bool) -> Self {
        Self { inline, ..Self::default() }
    }

    fn push(&mut self, line: Vec<u8>) {
        self.held += line.len();
        if line.trim_ascii().is_empty() {
            return self.lines.push(Line::Keep(line));
        }
        let parsed = to_binary(line.clone()).and_then(|envelope| {
            split(&envelope).map(|(header, rest)| (envelope::to_text(header), rest.to_vec()))
        });
        self.lines.push(match parsed {
            Ok((ciphertext, payload)) => {
                self.bytes += ciphertext.len();
                self.items.push(Item { ciphertext, inline: self.inline });
                Line::Send { line, payload }
            }
            Err(Failure::Refused(reason) | Failure::Usage(reason)) => Line::Bad(line, reason),
            Err(Failure::Silent) => Line::Keep(line),
        });
    }

    fn is_full(&self) -> bool {
        self.lines.len() >= BATCH_LINES || self.bytes >= BATCH_BYTES || self.held >= BATCH_HELD
    }

    /// Sends the headers and returns the outcomes in their order.
    async fn call(&self, client: &Client, chain: Option<&str>) -> Result<Vec<Outcome>> {
        if self.items.is_empty() {
            return Ok(Vec::new());
        }
        let body = Request { chain, items: &self.items };
        let request = client.request(Method::POST, "/v1/batch/rewrap").json(&body);
        let Response { results } = client.call_json(request).await?;
        if results.len() == self.items.len() {
            Ok(results)
        } else {
            Err(Failure::refused("the response of the service has another number of results"))
        }
    }
}

/// Counts of lines, and where progress is shown.
struct Tally {
    lines: usize,
    failed: usize,
    progress: progress::Progress,
}

impl Tally {
    /// Rewraps `batch` and writes its lines.
    async fn finish(&mut self, batch: Batch, client: &Client, chain: Option<&str>) -> Result {
        let results = batch.call(client, chain).await.map_err(|failure| match failure {
            Failure::Refused(reason) => Failure::Refused(format!(
                "stopped; the output ends before line {}: {reason}",
                self.lines + 1
            )),
            other => other,
        })?;
        let mut results = results.into_iter();
        let mut out = Vec::new();
        for line in batch.lines {
            self.lines += 1;
            let line = match line {
                Line::Keep(line) => line,
                Line::Bad(line, reason) => self.fail(line, &reason),
                Line::Send { line, payload } => match results.next() {
                    Some(Outcome::Done(new)) => {
                        let text = envelope::to_text(&join(&new, &payload)?);
                        [text.as_bytes(), end(&line)].concat()
                    }
                    Some(Outcome::Failed { error }) => self.fail(line, &error.to_string()),
                    None => self.fail(line, "the service did not respond"),
                },
            };
            out.extend_from_slice(&line);
        }
        print(&out)?;
        let Self { lines, failed, progress } = self;
        progress.show(|| format!("{lines} lines done, {failed} of them failed"));
        Ok(())
    }

    /// Reports a line and returns it unchanged.
    fn fail(&mut self, line: Vec<u8>, reason: &str) -> Vec<u8> {
        self.failed += 1;
        eprint(&format!("line {}: {reason}", self.lines));
        line
    }
}

/// The end of a line.
fn end(line: &[u8]) -> &[u8] {
    let ends: [&[u8]; 2] = [b"\r\n", b"\n"];
    ends.into_iter().find(|end| line.ends_with(end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_headers_are_sent_and_bad_lines_keep_their_place() {
        let mut envelope = vec![1, 1];
        envelope.resize(62 + 20, 7);
        let text = envelope::to_text(&envelope);
        let mut batch = Batch::default();
        for line in [&*text, "\n", "  \r\n", "kp:AQ==", "plain", &format!("{text}\r\n")] {
            batch.push(line.as_bytes().to_vec());
        }
        let header = envelope::to_text(&envelope[..62]);
        assert!(batch.items.iter().all(|item| item.ciphertext == header));
        assert_eq!((batch.items.len(), batch.bytes), (2, 2 * header.len()));
        let kinds: Vec<_> = batch
            .lines
            .iter()
            .map(|line| match line {
                Line::Keep(_) => "keep",
                Line::Bad(..) => "bad",
                Line::Send { payload, .. } => {
                    assert_eq!(payload, &[7; 20]);
                    "send"
                }
            })
            .collect();
        assert_eq!(kinds, ["send", "keep", "keep", "bad", "bad", "send"]);
    }

    #[test]
    fn lines_keep_their_endings() {
        for (line, expected) in
            [("a\n", "\n"), ("a\r\n", "\r\n"), ("a", ""), ("a\r", ""), ("\n", "\n"), ("a \n", "\n")]
        {
            assert_eq!(end(line.as_bytes()), expected.as_bytes(), "{line:?}");
        }
    }

    #[test]
    fn headers_and_errors_are_distinguished() {
        let results = r#"{"results":[
            {"ciphertext":"kp:AQ==","chain":"a","kek_id":"x","previous_kek_id":"y"},
            {"error":{"code":"unknown_kek","detail":"no such KEK"}}]}"#;
        let Response { results } = serde_json::from_str(results).unwrap();
        match &results[..] {
            [Outcome::Done(done), Outcome::Failed { error }] => {
                assert_eq!(done.ciphertext, "kp:AQ==");
                assert_eq!(error.to_string(), "unknown_kek: no such KEK");
            }
            _ => panic!("not distinguished"),
        }
    }
}
