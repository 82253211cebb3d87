//! `doctor`: tests a KMS plugin with the calls of kube-apiserver.

use std::fmt::Write as _;

use kms_proxy::kubernetes::{Address, doctor};

use super::stdio::print;
use super::{Failure, Result};

#[derive(clap::Args)]
#[command(after_help = "\
It calls Status, Encrypt and Decrypt once each, and Decrypt once more with a key_id that must be \
refused. It stores nothing. It must be allowed to connect: run it as root or as the user of \
kube-apiserver.

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

/// Tests the plugin and prints the findings.
pub(super) async fn run(args: Args) -> Result {
    let report = doctor::examine(&args.socket).await;
    let mut text = String::new();
    for finding in &report.findings {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{finding}");
    }
    print(text.as_bytes())?;
    if report.is_good {
        print(format!("{}\n", report.verdict).as_bytes())
    } else {
        Err(Failure::refused(report.verdict))
    }
}
