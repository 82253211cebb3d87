//! `audit verify`, `audit find` and `audit key`: they read the files of an audit log, and need no
//! service.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use kms_proxy::audit::find::Query;
use kms_proxy::audit::keys::{HmacKey, Keys, PublicKey, plain_field};
use kms_proxy::audit::note::Signed;
use kms_proxy::audit::sealer::rfc3339_millis;
use kms_proxy::audit::secret;
use kms_proxy::audit::verify::{self, Report, Source};
use kms_proxy::clock::{Clock, SystemClock};

use super::chains::table;
use super::client::block_on;
use super::count::count;
use super::progress::Progress;
use super::stdio::{eprint, print, read_file};
use super::store::open_roots;
use super::store::place::{load, open as open_store};
use super::{Failure, Result};

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
audit log, or a signed note. The service's log has one at least once a minute while lines are written.

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

const FIND: &str = "\
With `aad = \"hmac\"`, the default, lines contain an HMAC of the AAD. To search for an AAD, the \
key of the HMAC is needed: from the store, with --config, or from a file that `kms-proxy audit key \
--aad-key-file` wrote. It does not verify the lines.

TIME is like 2026-11-28, 2026-11-28T23:00:00Z, or 24h for the time before now.

Examples:
  kms-proxy audit find --chain orders --aad 'row 7' --config kms-proxy.toml audit.jsonl
  kms-proxy audit find --client billing --operation decrypt --since 24h --json audit.jsonl";

#[derive(clap::Args)]
#[command(after_help = FIND)]
pub(super) struct FindArgs {
    /// Files of the log; `-` is stdin
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The chain
    #[arg(long, value_name = "NAME")]
    chain: Option<String>,
    /// The AAD
    #[arg(long, value_name = "TEXT")]
    aad: Option<String>,
    /// The name of the client
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// The operation, such as decrypt
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,
    /// The first time
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// The first time that is too late
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<SystemTime>,
    /// Print the lines as they are instead of a table
    #[arg(long)]
    json: bool,
    /// The file with the key of the HMAC
    #[arg(long, value_name = "FILE", requires = "aad")]
    aad_key_file: Option<PathBuf>,
    /// The configuration, in TOML, to read the key of the HMAC from the store
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_CONFIG", conflicts_with = "aad_key_file")]
    config: Option<PathBuf>,
}

const KEY: &str = "\
The key is in the store, wrapped by the roots, and is created if it is missing. A running service \
holds a store of kind file: take the key from `/readyz` then, or from the audit log.

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

fn time(text: &str) -> std::result::Result<SystemTime, &'static str> {
    let long = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    if let Ok(time) = humantime::parse_rfc3339_weak(&long) {
        return Ok(time);
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(SystemClock::new().unix_now());
    let before = humantime::parse_duration(text).ok().and_then(|before| now.checked_sub(before));
    before.ok_or("must be like 2026-11-28, 2026-11-28T23:00:00Z or 24h")
}

pub(super) fn run(command: Command) -> Result {
    match command {
        Command::Verify(args) => verify(&args),
        Command::Find(args) => find(args),
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

fn find(args: FindArgs) -> Result {
    let aad = match &args.aad {
        None => None,
        Some(aad) => {
            let mut any = vec![plain_field(aad.as_bytes())];
            any.extend(hmac_key(&args)?.map(|key| key.field(aad.as_bytes())));
            Some(any)
        }
    };
    let FindArgs { chain, client, operation, since, until, json, files, .. } = args;
    let (since, until) = (since.map(rfc3339_millis), until.map(rfc3339_millis));
    let query = Query { chain, aad, client, operation, since, until };
    let titles = ["TIME", "NODE", "CLIENT", "OPERATION", "COUNT", "CHAIN", "KEK", "OUTCOME"];
    let (mut rows, mut printed) = (Vec::new(), false);
    for path in &files {
        let (mut reader, _) = open(path)?;
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).map_err(failed(path))? > 0 {
            if let Some(event) = query.find(&line) {
                if json {
                    print(&line)?;
                } else {
                    let text = |it: Option<kms_proxy::audit::find::Text<'_>>| {
                        it.map_or_else(|| "-".to_owned(), |it| clean(&it.0))
                    };
                    rows.push([
                        clean(&event.time.0),
                        text(event.node),
                        text(event.client),
                        text(event.operation),
                        event.count.map_or_else(|| "1".to_owned(), |count| count.to_string()),
                        text(event.chain),
                        text(event.kek_id),
                        text(event.outcome),
                    ]);
                    if rows.len() == MAX_ROWS {
                        print(table(titles, rows.drain(..)).as_bytes())?;
                        printed = true;
                    }
                }
            }
            line.clear();
        }
    }
    if json || rows.is_empty() && printed {
        return Ok(());
    }
    print(table(titles, rows.into_iter()).as_bytes())
}

/// Lines of a table. More are in the next table, so that memory is bounded.
const MAX_ROWS: usize = 10_000;

/// A text of a log on a terminal: without control characters.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The key of the HMAC, if one is named.
fn hmac_key(args: &FindArgs) -> Result<Option<HmacKey>> {
    if let Some(path) = &args.aad_key_file {
        let bytes = read_file(path).map_err(failed(path))?;
        let text = String::from_utf8_lossy(&bytes);
        let key = base16ct::lower::decode_vec(text.trim()).ok().map(zeroize::Zeroizing::new);
        let key = key.and_then(|key| HmacKey::from_slice(&key));
        return key.map(Some).ok_or_else(|| {
            Failure::Usage(format!("{}: it must be 64 hexadecimal digits", path.display()))
        });
    }
    match &args.config {
        Some(config) => Ok(Some(block_on(keys(Some(config.clone())))?.hmac)),
        None => {
            eprint(
                "without --config or --aad-key-file only AADs in plain text are found, not those \
                 that `aad = \"hmac\"` replaced",
            );
            Ok(None)
        }
    }
}

fn key(args: KeyArgs) -> Result {
    let keys = block_on(keys(args.config))?;
    if let Some(path) = &args.aad_key_file {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        let text = zeroize::Zeroizing::new(base16ct::lower::encode_string(keys.hmac.expose()));
        file.and_then(|mut file| writeln!(file, "{}", *text)).map_err(failed(path))?;
    }
    print(format!("{}\n", keys.signing.public()).as_bytes())
}

async fn keys(config: Option<PathBuf>) -> Result<Keys> {
    let config = load(config)?;
    let store = open_store(&config.store).await?;
    let roots = open_roots(&config).await?;
    secret::keys(&*store, &roots).await.map_err(|error| Failure::refused(error.to_string()))
}
