//! `token`: bearer tokens of clients. The service is not asked: it knows a token by its digest.

use kms_proxy::auth::token;
use zeroize::Zeroizing;

use super::stdio::{print, require_stdout, tell};
use super::{Failure, Result};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Make a token: it goes to stdout, what to configure to stderr
    #[command(after_help = "\
The token is 256 random bits behind `kpt_`. Anyone who has it can act as the client; the \
service needs only its SHA-256, which is not secret.

Example:
  (umask 077; kms-proxy token new > orders.token)
  kms-proxy encrypt --token-file orders.token < secret")]
    New,
}

/// Does what `command` asks for.
pub(super) fn run(command: &Command) -> Result {
    let Command::New = command;
    require_stdout()?;
    let (token, digest) =
        token::generate().map_err(|error| Failure::refused(format!("no token: {error}")))?;
    let mut line = Zeroizing::new(String::with_capacity(token.len() + 1));
    line.push_str(&token);
    line.push('\n');
    print(line.as_bytes())?;
    tell(&format!("for the [[client]] in the configuration: token_sha256 = \"{digest}\""));
    Ok(())
}
