//! `audit verify`, `audit find` and `audit key`: they read the files of an audit log, and need no
//! service.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use kms_proxy::audit::keys::{Keys, PublicKey};
use kms_proxy::audit::note::Signed;
use kms_proxy::audit::secret;
use kms_proxy::audit::verify::{self, Report, Source};

use super::client::block_on;
use super::count::count;
use super::progress::Progress;
use super::stdio::{print, read_file};
use super::store::open_roots;
use super::store::place::{load, open as open_store};
use super::{Failure, Result};

mod find;

use find::FindArgs;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Verify that nobody changed the files of an audit log
    Verify(VerifyArgs),
    /// Print the lines about a chain, an AAD or a client
    Find(FindArgs),
    /// Print the public key that verifies the audit log
    Key(KeyArgs),
}

const VERIFY: &str = "\
Give the files of one or more processes, in any order. It names the first line of each file \
that was changed, removed, moved, repeated or put there from elsewhere, and how many lines at the \
end no checkpoint proves yet.

Without --key it only proves that the files are consistent with the key that they contain: anyone \
who can replace whole files can sign them with another key. Without --from it can't know that \
the end was cut off.

CHECKPOINT is a file with one checkpoint: a line of the service's log with one, a line of the \
audit log, or a signed note. The service's log has one at least once a minute while lines are \
written.

Verify the files of each service separately if several run on one machine: by the name of the \
machine, it finds out which files belong together.

Exit codes: 0 if nothing is wrong, 1 if something is.

Examples:
  kms-proxy audit verify /var/log/kms-proxy/audit.jsonl* --key \"$(cat audit.pub)\"
  kms-proxy audit verify audit.jsonl --from last-checkpoint";

#[derive(clap::Args)]
#[command(after_help = VERIFY)]
pub(super) struct VerifyArgs {
    /// Files of the log; `-` is stdin
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The public key, as `kms-proxy audit key` prints it; may be given more than once
    #[arg(long, value_name = "KEY")]
    key: Vec<PublicKey>,
    /// A checkpoint that was kept elsewhere: the log must contain it; may be given more than once
    #[arg(long, value_name = "CHECKPOINT")]
    from: Vec<PathBuf>,
}

const KEY: &str = "\
The key is in the store, wrapped by the roots. A service with an audit log makes it when it \
starts; this command makes none. A running service holds a store of kind file: take the public key \
from `/readyz` then, or from the audit log, and write the file for `audit find` before the service \
starts.

Examples:
  kms-proxy audit key --config kms-proxy.toml > audit.pub
  kms-proxy audit key --aad-key-file audit-aad.key    # for `kms-proxy audit find`";

#[derive(clap::Args)]
#[command(after_help = KEY)]
pub(super) struct KeyArgs {
    /// The configuration, in TOML [default: none, and every setting at its default]
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_CONFIG")]
    config: Option<PathBuf>,
    /// Also write the secret key of the HMAC of AADs to this new file
    #[arg(long, value_name = "FILE")]
    aad_key_file: Option<PathBuf>,
}

pub(super) fn run(command: Command) -> Result {
    match command {
        Command::Verify(args) => verify(&args),
        Command::Find(args) => find::run(args, |config| block_on(keys(Some(config)))),
        Command::Key(args) => key(args),
    }
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::refused(format!("{}: {error}", path.display()))
}

/// Opens a file, and returns its size if it has one.
fn open(path: &Path) -> Result<(Box<dyn BufRead>, u64)> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(BufReader::new(std::io::stdin())), 0));
    }
    let file = File::open(path).map_err(failed(path))?;
    let size = file.metadata().map_err(failed(path))?.len();
    Ok((Box::new(BufReader::with_capacity(1 << 18, file)), size))
}

fn verify(args: &VerifyArgs) -> Result {
    let (mut sources, mut size) = (Vec::new(), 0);
    for path in &args.files {
        let (reader, of_file) = open(path)?;
        size += of_file;
        let source = Source::new(path.display().to_string(), reader);
        sources.push(source.map_err(failed(path))?);
    }
    let from = args.from.iter().map(|path| kept(path)).collect::<Result<Vec<_>>>()?;
    let mut progress = Bar::new(size);
    let report = verify::verify(sources, &args.key, &from, |read| progress.show(read));
    progress.end();
    let report = report.map_err(|error| Failure::refused(error.to_string()))?;
    print(text(&report, !args.key.is_empty()).as_bytes())?;
    if report.is_consistent() { Ok(()) } else { Err(Failure::Silent) }
}

/// Reads a checkpoint that was kept: a note, or JSON that contains one at `checkpoint`.
fn kept(path: &Path) -> Result<Signed> {
    let bytes = read_file(path).map_err(failed(path))?;
    let text = String::from_utf8_lossy(&bytes);
    let json = |text: &str| {
        let value: serde_json::Value = serde_json::from_str(text).ok()?;
        let found = ["/checkpoint", "/opening/checkpoint", "/fields/checkpoint"]
            .iter()
            .find_map(|at| value.pointer(at))
            .unwrap_or(&value);
        found.as_str()?.parse().ok()
    };
    let signed = text.parse().ok().or_else(|| json(text.trim()));
    signed.ok_or_else(|| {
        Failure::Usage(format!("{}: it is not the checkpoint of an audit log", path.display()))
    })
}

/// The result, for people.
fn text(report: &Report, has_key: bool) -> String {
    let mut text = String::new();
    for (file, line, detail) in &report.remarks {
        text.push_str(&format!("{file}:{line}: {detail}\n"));
    }
    for problem in &report.problems {
        match (&*problem.file, problem.line) {
            ("", _) => text.push_str(&format!("WRONG: {}\n", problem.detail)),
            (file, line) => text.push_str(&format!("WRONG: {file}:{line}: {}\n", problem.detail)),
        }
    }
    for log in &report.logs {
        text.push_str(&format!(
            "{}: lines {} to {}, {} not proved yet, last checkpoint {} at {}\n",
            log.origin,
            log.first,
            log.size.saturating_sub(1),
            count(log.unproved, "line"),
            log.last.checkpoint.size,
            log.last.checkpoint.time
        ));
    }
    let (lines, logs) = (count(report.lines, "line"), count(report.logs.len(), "log"));
    let unproved = report.logs.iter().map(|log| log.unproved).sum::<u64>();
    text.push_str(&match (report.problems.len(), has_key) {
        (0, _) if report.lines == 0 => "no lines: nothing is proved\n".to_owned(),
        (0, true) if unproved > 0 => format!(
            "{lines}, {logs}: nothing was changed before the last {}, which no checkpoint proves\n",
            count(unproved, "line")
        ),
        (0, true) => format!("{lines}, {logs}: nothing was changed\n"),
        (0, false) => {
            let mut keys: Vec<_> = report.logs.iter().map(|log| log.key.to_string()).collect();
            keys.sort();
            keys.dedup();
            format!(
                "{lines}, {logs}: consistent with the key in the log, which was not compared \
                 with a known one (--key): {}\n",
                keys.join(" ")
            )
        }
        (problems, _) => {
            let problems = count(problems, "problem");
            let rest = "the rest of a file with a problem was not verified";
            format!("{lines} read, {problems}; {rest}\n")
        }
    });
    text
}

/// Progress in bytes: a bar on a terminal, otherwise a message if it takes long.
struct Bar {
    size: u64,
    drawn: Option<u64>,
    progress: Progress,
}

impl Bar {
    fn new(size: u64) -> Self {
        let drawn = std::io::stderr().is_terminal().then_some(0);
        Self { size, drawn, progress: Progress::new() }
    }

    fn show(&mut self, read: u64) {
        let percent = (read * 100).checked_div(self.size).unwrap_or(0).min(100);
        match &mut self.drawn {
            Some(drawn) if self.size > 0 => {
                if *drawn != percent {
                    *drawn = percent;
                    let full = usize::try_from(percent / 2).unwrap_or(0);
                    eprint_bar(&format!("\r[{:50}] {percent:3} %", "#".repeat(full)));
                }
            }
            _ => self.progress.show(|| format!("{} MiB read", read >> 20)),
        }
    }

    fn end(&self) {
        if self.drawn.is_some_and(|drawn| drawn > 0) {
            eprint_bar(&format!("\r{:60}\r", ""));
        }
    }
}

fn eprint_bar(text: &str) {
    use std::io::Write as _;
    // Without stderr it is lost.
    _ = write!(std::io::stderr(), "{text}");
}

fn key(args: KeyArgs) -> Result {
    let keys = block_on(keys(args.config))?;
    if let Some(path) = &args.aad_key_file {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        let text = zeroize::Zeroizing::new(base16ct::lower::encode_string(keys.hmac.expose()));
        let public = keys.signing.public();
        let written = file.and_then(|mut file| writeln!(file, "{}\n{public}", *text));
        written.map_err(failed(path))?;
    }
    print(format!("{}\n", keys.signing.public()).as_bytes())
}

async fn keys(config: Option<PathBuf>) -> Result<Keys> {
    let config = load(config)?;
    let store = open_store(&config.store).await?;
    let roots = open_roots(&config).await?;
    secret::existing(&*store, &roots).await.map_err(|error| Failure::refused(error.to_string()))
}
