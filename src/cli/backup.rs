//! `backup`: a backup of the store of a running service.

use std::path::PathBuf;

use kms_proxy::store::backup::{Backup, Receiver};
use reqwest::Method;

use super::client::{self, Client};
use super::count::count;
use super::stdio::{eprint, print};
use super::{Failure, Result};

#[derive(clap::Args)]
#[command(after_help = "\
The service goes on meanwhile, with every kind of store. The file is the same as that of `store \
copy --to backup:FILE`: it holds wrapped KEKs and no root key, and `store verify` and `store copy` \
read it. It gets its name when it is complete and checked; an existing file is never replaced. A \
client needs the operation `manage` with all chains (`*`). --timeout is the longest time without \
data.

The exit code is 1 if the store has damaged records, which the file lacks.

Example:
  kms-proxy backup --output 2026-11-24.backup")]
pub(super) struct Args {
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    client: client::Args,
}

/// Runs the command.
pub(super) async fn run(args: Args) -> Result {
    let name = args.output.display().to_string();
    let wrong = |error: &dyn std::fmt::Display| Failure::refused(format!("{name}: {error}"));
    let client = Client::new(args.client)?;
    let mut file = Receiver::create(&args.output).map_err(|error| wrong(&error))?;
    let request = client.request(Method::GET, "/v1/backup");
    let received = client.stream(request, |part| file.write(part).map_err(|error| wrong(&error)));
    received.await?;
    let backup = file.finish().map_err(|error| wrong(&error))?;
    let Backup { chains, records, left_out, .. } = backup;
    let (chains, records) = (count(chains, "chain"), count(records, "record"));
    print(format!("{name}: {chains}, {records}\n").as_bytes())?;
    if left_out == 0 {
        return Ok(());
    }
    let lacks = count(left_out, "damaged record");
    eprint(&format!("the backup lacks {lacks}; the log of the service names the keys"));
    Err(Failure::Silent)
}
