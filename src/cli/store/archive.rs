//! `store recover`, `store compare`, and the archive that `store verify` reads.

use std::path::PathBuf;
use std::sync::Arc;

use kms_proxy::archive::{self, Named, compare as comparison, recover as recovery};
use kms_proxy::config::Config;
use kms_proxy::store::{Problem, Store, memory};

use crate::cli::count::count;
use crate::cli::progress::Progress;
use crate::cli::stdio::{eprint, print};
use crate::cli::{Failure, Result};

use super::place;
use super::problems;

const RECOVER: &str = "\
Every KEK of every [[archive]] is written to the [store], which is created if it is missing. All \
of them only decrypt: the service that starts there makes new ones. A KEK that one archive has as \
destroyed stays destroyed. An archive that is not available or has damaged objects is reported, \
and the exit code is 1; what the others have is recovered.

Repeat a recovery that was interrupted. Records that the store has stay as they are. Start the \
services when it has ended.

Example:
  kms-proxy store recover --config kms-proxy.toml";

const COMPARE: &str = "\
Reads the store and every [[archive]], prints one line for each difference on stderr, and changes \
nothing. The exit code is 1 if there is a difference. While services run, a KEK that was just made \
can be reported.

Example:
  kms-proxy store compare --config kms-proxy.toml";

#[derive(clap::Args)]
#[command(after_help = RECOVER)]
pub(in crate::cli) struct RecoverArgs {
    /// The configuration, in TOML [default: none, and every setting at its default]
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(clap::Args)]
#[command(after_help = COMPARE)]
pub(in crate::cli) struct CompareArgs {
    /// The configuration, in TOML [default: none, and every setting at its default]
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_CONFIG")]
    config: Option<PathBuf>,
}

pub(super) async fn recover(args: RecoverArgs) -> Result {
    let config = place::load(args.config)?;
    let archives = open(&config)?;
    let store = place::open_or_create(&config.store).await?;
    let mut progress = Progress::new();
    let report = recovery::recover(&archives, &*store, |report| {
        progress.show(|| {
            let (keks, restored) = (count(report.keks, "KEK"), count(report.restored, "KEK"));
            format!("{keks} read, {restored} restored")
        });
    });
    let report = report.await.map_err(|error| {
        Failure::refused(format!(
            "{error}; what was recovered so far is valid: repeat the command to continue"
        ))
    })?;
    let recovery::Report { chains, keks, restored, same, destroyed, audit_key, problems: bad } =
        report;
    let (chains, keks) = (count(chains, "chain"), count(keks, "KEK"));
    print(
        format!(
            "{chains} whole, {keks}: {restored} restored, {same} the same, {destroyed} destroyed \
             here as in an archive\n"
        )
        .as_bytes(),
    )?;
    if audit_key {
        print(b"the key of the audit log: restored\n")?;
    }
    problems(&bad, "these could not be recovered from the archive that is named")
}

pub(super) async fn compare(args: CompareArgs) -> Result {
    let config = place::load(args.config)?;
    let archives = open(&config)?;
    let store = place::open(&config.store).await?;
    let mut differences = 0;
    for named in &archives {
        let mut progress = Progress::new();
        let report = comparison::compare(&*store, named, |report| {
            progress.show(|| count(report.keks, "KEK"));
        });
        let name = &named.name;
        let report =
            report.await.map_err(|error| Failure::refused(format!("archive {name}: {error}")))?;
        for difference in &report.differences {
            eprint(&format!("archive {name}: {difference}"));
        }
        differences += report.differences.len();
        let (chains, keks) = (count(report.chains, "chain"), count(report.keks, "KEK"));
        let wrong = count(report.differences.len(), "difference");
        print(format!("archive {name}: {chains}, {keks}, {wrong}\n").as_bytes())?;
    }
    if differences == 0 { Ok(()) } else { Err(Failure::Silent) }
}

/// The contents of an archive as a store, and what could not be read.
pub(super) async fn read(config: &Config, name: &str) -> Result<(Arc<dyn Store>, Vec<Problem>)> {
    let archives = open(config)?;
    let Some(named) = archives.iter().find(|named| *named.name == *name) else {
        let names: Vec<_> = archives.iter().map(|named| &*named.name).collect();
        let names = names.join(", ");
        return Err(Failure::Usage(format!(
            "the configuration has no archive of this name; it has {names}"
        )));
    };
    let store = memory::Store::new();
    let mut progress = Progress::new();
    let report = recovery::recover(std::slice::from_ref(named), &store, |report| {
        progress.show(|| format!("{} read", count(report.keks, "KEK")));
    });
    let report = report.await.map_err(|error| Failure::refused(error.to_string()))?;
    Ok((Arc::new(store), report.problems))
}

/// The archives of the configuration; at least one.
fn open(config: &Config) -> Result<Vec<Named>> {
    if config.archives.is_empty() {
        return Err(Failure::Usage("the configuration has no [[archive]]".to_owned()));
    }
    let opened = config.archives.iter().map(archive::open).collect::<std::result::Result<_, _>>();
    opened.map_err(|error| Failure::Usage(error.to_string()))
}
