//! `init`: asks six questions and writes a configuration that passes `check-config`, and the token
//! of a first client.
//!
//! Answers are checked as `check-config` checks a configuration: by the same code, on the text that
//! would be written.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64_simd::STANDARD;
use kms_proxy::auth::token;
use kms_proxy::config::{Config, Flags};
use kms_proxy::secret::SecretBytes;
use tokio::net::TcpSocket;
use zeroize::Zeroizing;

use super::output::Signals;
use super::stdio::print;
use super::{Failure, Result, check, client};

mod ask;
mod files;
mod plan;
mod summary;
mod text;

use files::{Locks, NewFiles};
use plan::Plan;

#[derive(clap::Args)]
#[command(after_help = "\
It writes the configuration; the token of a first client, of which the configuration has the \
SHA-256; and a passphrase, if the root is a passphrase whose file does not exist. These files have \
mode 0600, and an existing file is never replaced. Nothing is written before all answers are \
valid, and after a failure nothing is left.

Without a terminal, answers are read from stdin, one a line; an empty line takes the answer in \
brackets. An answer that is not valid is asked for again.

Examples:
  kms-proxy init
  kms-proxy init --non-interactive --root aws-kms:alias/kms-proxy \\
    --store etcd:https://etcd-0:2379,https://etcd-1:2379,https://etcd-2:2379 \\
    --archive s3://backups/kms-proxy \\
    --tls /etc/kms-proxy/tls.crt,/etc/kms-proxy/tls.key \\
    --identities token --audit /var/log/kms-proxy/audit.jsonl")]
pub(super) struct Args {
    /// The configuration to write
    #[arg(long, value_name = "FILE", default_value = "kms-proxy.toml")]
    output: PathBuf,
    /// The new file for the token [default: CLIENT.token beside the configuration]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Ask nothing: each question must have its flag
    #[arg(long)]
    non_interactive: bool,
    #[command(flatten)]
    answers: ask::Answers,
}

impl Args {
    /// The file for the token of `client`.
    fn token_path(&self, client: &str) -> PathBuf {
        let beside = || self.output.with_file_name(format!("{client}.token"));
        self.token_file.clone().unwrap_or_else(beside)
    }
}

/// Asks what the flags do not answer, and writes the files.
pub(super) fn run(args: &Args) -> Result {
    check_name("--output", &args.output)?;
    args.token_file.as_deref().map_or(Ok(()), |path| check_name("--token-file", path))?;
    let mut locks = Locks::default();
    locks.lock(&args.output)?;
    files::check_free(&args.output)?;
    args.token_file.as_deref().map_or(Ok(()), files::check_free)?;
    let mut plan = Plan::default();
    let session = ask::Session::new(&args.answers, args.non_interactive)?;
    session.complete(&mut plan, |plan| check_plan(plan, args))?;
    let token = plan.token_client().map(|client| args.token_path(client));
    let passphrase = plan.missing_passphrase().map(PathBuf::from);
    token.into_iter().chain(passphrase).try_for_each(|path| locks.lock(&path))?;
    // Another process may have finished before the locks were taken.
    check_plan(&plan, args).map_err(Failure::refused)?;
    let new_passphrase = plan.missing_passphrase().map(str::to_owned);
    let taken = client::block_on(async {
        write(&plan, new_passphrase.as_deref(), args)?;
        Ok(taken(&plan))
    })?;
    let token_path = |client: &str| args.token_path(client);
    let text = summary::summary(&plan, &args.output, token_path, new_passphrase.as_deref(), &taken);
    // The files are complete: it is no failure if nobody can read this.
    _ = print(text.as_bytes());
    Ok(())
}

/// The text of a path is shown, and is part of a comment.
fn check_name(flag: &str, path: &Path) -> Result {
    if path.to_string_lossy().contains(char::is_control) {
        return Err(Failure::Usage(format!("{flag}: {}", ask::CONTROL)));
    }
    Ok(())
}

/// The addresses at which something listens on this machine already, each with its setting. It
/// needs a runtime.
fn taken(plan: &Plan) -> Vec<(&'static str, SocketAddr)> {
    let is_taken = |address: SocketAddr| {
        // A socket that does not listen disturbs no other process.
        let bound = TcpSocket::new_v4().and_then(|socket| {
            socket.set_reuseaddr(true)?;
            socket.bind(address)
        });
        bound.is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
    };
    text::addresses(plan).into_iter().filter(|(_, address)| is_taken(*address)).collect()
}

/// Checks what is planned as `check-config` checks the file, and that it can be written.
fn check_plan(plan: &Plan, args: &Args) -> std::result::Result<(), String> {
    let why = |failure| match failure {
        Failure::Usage(why) | Failure::Refused(why) => why,
        Failure::Silent => String::new(),
    };
    let mut plan = plan.clone();
    if let Some(file) = plan.missing_passphrase() {
        files::check_free(Path::new(file)).map_err(why)?;
        // It does not exist yet, so a root is checked that needs no file.
        plan.root = plan::Root::Local;
    }
    let text = text::render(&plan, &"0".repeat(64), &args.output);
    let config = Config::from_sources(Some((&args.output, &text)), [], &Flags::default());
    let config = config.map_err(|error| error.to_string())?;
    check::verify(&config).map_err(why)?;
    let token = plan.token_client().map(|client| args.token_path(client));
    token.map_or(Ok(()), |token| files::check_free(&token)).map_err(why)
}

/// Writes all files, or none. It needs the runtime of a signal handler.
fn write(plan: &Plan, new_passphrase: Option<&str>, args: &Args) -> Result {
    // From here on these signals do not end the process: a part of the files would be left.
    let _signals = Signals::listen()
        .map_err(|error| Failure::refused(format!("can't handle signals: {error}")))?;
    let (token, digest) = token::generate()
        .map_err(|error| Failure::refused(format!("can't generate a token: {error}")))?;
    let mut files = NewFiles::default();
    if let Some(file) = new_passphrase {
        files.add(Path::new(file), &line(&passphrase()?))?;
    }
    if let Some(client) = plan.token_client() {
        files.add(&args.token_path(client), &line(&token))?;
    }
    let text = text::render(plan, &digest.to_string(), &args.output);
    files.add(&args.output, text.as_bytes())?;
    files.place()
}

/// 256 random bits in base64.
fn passphrase() -> Result<Zeroizing<String>> {
    let bits = SecretBytes::random(32)
        .map_err(|error| Failure::refused(format!("can't generate a passphrase: {error}")))?;
    let mut text = Zeroizing::new(String::with_capacity(64));
    STANDARD.encode_append(bits.expose(), &mut *text);
    Ok(text)
}

/// A secret and a newline.
fn line(secret: &str) -> Zeroizing<Vec<u8>> {
    let mut line = Zeroizing::new(Vec::with_capacity(secret.len() + 1));
    line.extend_from_slice(secret.as_bytes());
    line.push(b'\n');
    line
}
