//! `token`: generates bearer tokens. It does not call the service, which stores only digests.

use std::path::{Path, PathBuf};

use kms_proxy::auth::{aws, token};
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
  kms-proxy encrypt --token-file orders.token < secret

With --aws it makes an access key for the AWS KMS API: two lines for a credentials file of \
AWS. Its secret is derived from --secret-key-file, which is the service's \
aws_api.secret_key_file; without that file it is random, and the service needs it in \
aws_secret_access_key_file.")]
    New(New),
}

#[derive(clap::Args)]
pub(super) struct New {
    /// Make an AWS access key instead
    #[arg(long)]
    aws: bool,
    /// Derive the secret from this file, as the service does
    #[arg(long, value_name = "FILE", requires = "aws")]
    secret_key_file: Option<PathBuf>,
}

/// Runs `command`.
pub(super) fn run(command: &Command) -> Result {
    let Command::New(New { aws, secret_key_file }) = command;
    require_stdout()?;
    if *aws {
        return new_access_key(secret_key_file.as_deref());
    }
    let (token, digest) = token::generate()
        .map_err(|error| Failure::refused(format!("can't generate a token: {error}")))?;
    let mut line = Zeroizing::new(String::with_capacity(token.len() + 1));
    line.push_str(&token);
    line.push('\n');
    print(line.as_bytes())?;
    eprint(&format!("for the [[client]] in the configuration: token_sha256 = \"{digest}\""));
    Ok(())
}

/// Makes an access key: both lines go to stdout, what to configure to stderr.
fn new_access_key(secret_key_file: Option<&Path>) -> Result {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::refused(format!("can't make an access key: {error}"))
    };
    let id = aws::generate_id().map_err(|error| failed(&error))?;
    let secret = match secret_key_file {
        Some(path) => {
            let key = aws::read_secret_key(path).map_err(|error| failed(&error))?;
            aws::derive_secret(&key, &id)
        }
        None => aws::generate_secret().map_err(|error| failed(&error))?,
    };
    let mut lines = Zeroizing::new(String::with_capacity(128));
    for part in ["aws_access_key_id = ", &id, "\naws_secret_access_key = ", &secret, "\n"] {
        lines.push_str(part);
    }
    print(lines.as_bytes())?;
    let secret = match secret_key_file {
        Some(_) => "",
        None => ", and a file with the secret in aws_secret_access_key_file",
    };
    eprint(&format!(
        "for the [[client]] in the configuration: aws_access_key_id = \"{id}\"{secret}"
    ));
    Ok(())
}
