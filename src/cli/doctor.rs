//! `doctor`: a plugin of Kubernetes asked as kube-apiserver asks it.

use std::fmt::Write as _;

use kms_proxy::kubernetes::{Address, doctor};

use super::stdio::print;
use super::{Failure, Result};

#[derive(clap::Args)]
#[command(after_help = "\
Status, Encrypt and Decrypt are called once each, and once more with a key_id that must be \
refused. Nothing is stored. It needs the right to connect: run it as kube-apiserver's user, or as \
root.

Example:
  kms-proxy doctor --socket unix:///run/kms-proxy/kms.sock

Exit codes:
  0  kube-apiserver can use the plugin
  1  it can't, or it would report the plugin as unhealthy
  2  wrong usage")]
pub(super) struct Args {
    /// The plugin's socket, as in the EncryptionConfiguration
    #[arg(long, value_name = "ADDRESS")]
    socket: Address,
}

/// Asks the plugin, and prints what is to be thought of it.
pub(super) async fn examine(args: Args) -> Result {
    let report = doctor::examine(&args.socket).await;
    let mut text = String::new();
    for finding in &report.findings {
        // A String takes all that is written.
        let _ = writeln!(text, "{finding}");
    }
    print(text.as_bytes())?;
    if report.is_good {
        print(format!("{}\n", report.verdict).as_bytes())
    } else {
        Err(Failure::refused(report.verdict))
    }
}
