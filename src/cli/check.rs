//! `check-config`: whether a service could start with the configuration, and with `--production`
//! what the configuration lacks.

use kms_proxy::clock::{Clock, SystemClock};
use kms_proxy::config::Config;

use super::stdio::{eprint, print};
use super::{Failure, Result, certificates, production, serve};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    serve: serve::Args,
    /// Print what the configuration lacks for production, in place of the settings
    #[arg(long)]
    production: bool,
    /// Accept that the configuration lacks this
    #[arg(long, value_name = "NAME", requires = "production", value_delimiter = ',')]
    accept: Vec<production::Check>,
}

/// What follows the help.
pub(super) fn help() -> String {
    let settings = serve::SETTINGS;
    format!(
        "{settings}

With --production each line names what is missing and what to do about it; the items are those of \
docs/production.md. --accept leaves one out. Run it as the user of the service: it looks at the \
permissions of files. It reads files and writes none, and calls no root, no store and no bucket.

Exit codes:
  0  a service can use the configuration; with --production nothing is missing
  1  with --production: something is missing
  2  wrong usage, or a configuration that can't be used"
    )
}

/// Prints the effective configuration, if a service could use it, or what it lacks for production.
pub(super) fn run(args: &Args) -> Result {
    let config = args.serve.load()?;
    verify(&config)?;
    let now = SystemClock::new().unix_now();
    if args.production {
        let mut findings = production::findings(&config, now);
        findings.retain(|finding| !args.accept.contains(&finding.check));
        return report(&findings);
    }
    for warning in certificates::warnings(&config, now) {
        eprint(&format!("warning: {warning}"));
    }
    print(config.to_string().as_bytes())
}

/// Fails if a service could not start with `config`, as far as files of this machine tell.
pub(super) fn verify(config: &Config) -> Result {
    if let Some(tls) = &config.server.tls {
        tls.check().map_err(|error| Failure::Usage(error.to_string()))?;
    }
    let clients = config.auth.check_files();
    clients.map_err(|(key, why)| Failure::Usage(format!("{key}: {why}")))?;
    config.store.check().map_err(|error| Failure::Usage(error.to_string()))?;
    if let Some(kubernetes) = &config.kubernetes {
        let checked = kms_proxy::kubernetes::check(kubernetes);
        checked.map_err(|error| Failure::Usage(error.to_string()))?;
    }
    for root in &config.roots {
        let checked = root.check(config.store.data_dir());
        checked.map_err(|error| Failure::Usage(error.to_string()))?;
    }
    Ok(())
}

fn report(findings: &[production::Finding]) -> Result {
    if findings.is_empty() {
        return print(b"nothing is missing\n");
    }
    let lines: String = findings.iter().map(ToString::to_string).collect();
    print(lines.as_bytes())?;
    let count = findings.len();
    let things = if count == 1 { "thing is" } else { "things are" };
    Err(Failure::refused(format!("{count} {things} missing for production")))
}
