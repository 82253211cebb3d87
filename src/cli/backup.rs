//! `backup`: a backup of the store of a running service.

use std::path::PathBuf;

use kms_proxy::store::backup::{Check, Receiver, Summary};
use reqwest::Method;

use super::client::{self, Client};
use super::count::count;
use super::stdio::{eprint, print, require_stdout};
use super::{Failure, Result};

#[derive(clap::Args)]
#[command(after_help = "\
The service continues to encrypt and decrypt meanwhile, with every kind of store. The backup is \
that of `store copy --to backup:FILE`: it holds wrapped KEKs and no root key, and `store verify` \
and `store copy` read it. The file has mode 0600, gets its name when it is complete and checked, \
and never replaces another one. With `-` the backup goes to stdout: its last line is a checksum, \
which a truncated backup lacks.

A client needs the operation `manage` for all chains (`*`). --timeout is the longest time without \
data.

The exit code is 0 if the backup is complete; 1 if it failed, or if it lacks damaged records of \
the store; 2 for wrong arguments.

Examples:
  kms-proxy backup --to 2026-11-24.backup
  kms-proxy backup --to - | gzip > 2026-11-24.gz")]
pub(super) struct Args {
    /// The file to write, or `-` for stdout
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    #[command(flatten)]
    client: client::Args,
}

/// Runs the command.
pub(super) async fn run(args: Args) -> Result {
    let Args { to, client } = args;
    let is_stdout = to.as_os_str() == "-";
    let name = if is_stdout { "stdout".to_owned() } else { to.display().to_string() };
    let wrong = |error: &dyn std::fmt::Display| Failure::refused(format!("{name}: {error}"));
    let client = Client::new(client)?;
    let request = client.request(Method::GET, "/v1/backup");
    let Summary { chains, records, left_out } = if is_stdout {
        require_stdout()?;
        let mut check = Check::default();
        let received = client.stream(request, |part| {
            check.take(part).map_err(|error| wrong(&error))?;
            print(part)
        });
        received.await?;
        check.finish().map_err(|error| wrong(&error))?
    } else {
        let mut file = Receiver::create(&to).map_err(|error| wrong(&error))?;
        let received =
            client.stream(request, |part| file.write(part).map_err(|error| wrong(&error)));
        received.await?;
        file.finish().map_err(|error| wrong(&error))?
    };
    let done = format!("{name}: {}, {}", count(chains, "chain"), count(records, "record"));
    if is_stdout {
        eprint(&done);
    } else {
        print(format!("{done}\n").as_bytes())?;
    }
    if left_out == 0 {
        return Ok(());
    }
    let lacks = count(left_out, "damaged record");
    Err(Failure::refused(format!(
        "the backup lacks {lacks} of the store; the log of the service names the keys"
    )))
}
