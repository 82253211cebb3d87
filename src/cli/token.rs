//! `token`: generates bearer tokens. It does not call the service, which stores only digests.

use kms_proxy::auth::token;
use zeroize::Zeroizing;

use super::stdio::{eprint, print, require_stdout};
use super::{Failure, Result};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Generate a token: prints it to stdout, and its configuration to stderr
    #[command(after_help = "\
The token is `kpt_` followed by 256 random bits. Anyone who has it can act as the client; the \
service needs only its SHA-256, which is not secret.

Example:
  (umask 077; kms-proxy token new > orders.token)
  kms-proxy encrypt --token-file orders.token < secret")]
    New,
}

/// Runs `command`.
pub(super) fn run(command: &Command) -> Result {
    let Command::New = command;
    require_stdout()?;
    let (token, digest) = token::generate()
        .map_err(|error| Failure::refused(format!("can't generate a token: {error}")))?;
    let mut line = Zeroizing::new(String::with_capacity(token.len() + 1));
    line.push_str(&token);
    line.push('\n');
    print(line.as_bytes())?;
    eprint(&format!("for the [[client]] in the configuration: token_sha256 = \"{digest}\""));
    Ok(())
}
