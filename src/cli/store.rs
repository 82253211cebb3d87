//! `store copy`, `store verify`, `store restored`, `store recover` and `store compare`. They open a
//! store directly: while its service
//! is stopped, or beside running services if it can be shared.

use std::path::PathBuf;

use clap::Subcommand;
use kms_proxy::clock::{Clock, SystemClock};
use kms_proxy::config::{Config, Flags};
use kms_proxy::id::ChainName;
use kms_proxy::root;
use kms_proxy::service::{offline, verify};
use kms_proxy::store::copy::{self, CopyReport, Primaries};
use kms_proxy::store::{Problem, Store, backup};

use super::count::count;
use super::progress::Progress;
use super::stdio::{eprint, print, require_stdout};
use super::{Failure, Result};

mod archive;
pub(super) mod place;

use place::Place;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Copy chains between stores, to a backup, or from a backup
    Copy(CopyArgs),
    /// Open every KEK with the configured roots, and check that the records are consistent
    Verify(VerifyArgs),
    /// Retire every primary and standby, after an old copy of a store was restored
    Restored(RestoredArgs),
    /// Fill an empty store from the archives of the configuration
    Recover(archive::RecoverArgs),
    /// List the differences between the store and its archives
    Compare(archive::CompareArgs),
}

const COPY: &str = "\
WHERE is one of
  config:FILE   the [store] of a configuration; `config:` alone takes it from the environment
  dir:DIR       the data directory of a file store, which no running service may hold
  backup:FILE   a backup: one file, which is never replaced. It holds wrapped KEKs and no root key
  backup:-      with --to, a backup on stdout. Its last line is a checksum, which a truncated \
  copy lacks

A chain that is newer at the target, or a different chain of the same name, is not overwritten: \
it is reported, and the exit code is 1. Repeat a copy that was interrupted. Without --chain the \
key of the audit log is copied too; another one at the target is not overwritten.

In the copy of a chain the primary and the standby KEK are retired: they only decrypt, and the \
service that starts there makes a new KEK. So source and copy never count the uses of one KEK \
twice. A backup contains the records unchanged.

A complete backup of all chains also records its time in the store that it is made of: services \
on that store show it in `kms-proxy status` and as a metric.

Examples:
  kms-proxy store copy --from dir:/var/lib/kms-proxy --to backup:/backups/2026-11-24
  kms-proxy store copy --from config:kms-proxy.toml --to backup:- | gzip > 2026-11-24.gz
  kms-proxy store copy --from backup:/backups/2026-11-24 --to dir:/var/lib/kms-proxy-new
  kms-proxy store copy --from config:old.toml --to config:new.toml --chain orders";

const VERIFY: &str = "\
WHERE is config:FILE, dir:DIR or backup:FILE, as for `store copy`, or archive:NAME, an archive of \
the configuration; by default it is the store of the configuration. The roots are always those of \
the configuration: --config, else that of config:FILE, else the environment. The key of a `local` \
root is its key_file; if that is not set, root.key in the data directory of the configuration, or \
in DIR for `dir:DIR` without a configuration.

It makes one root call per wrap, and changes nothing. A KEK that a configured root has not wrapped \
is not a problem as long as another root opens it: `kms-proxy root status` counts those.

Examples:
  kms-proxy store verify --config kms-proxy.toml
  kms-proxy store verify backup:/backups/2026-11-24 --config kms-proxy.toml
  kms-proxy store verify archive:nas --config kms-proxy.toml";

const RESTORED: &str = "\
The counts of uses in an old copy of a store are too low. After it was restored, and before any \
service starts, this command retires the KEKs that encrypt: they only decrypt from then on, and \
services make new ones. It is not needed after `store copy`. Running it twice is harmless.

KEKs that were disabled or destroyed after the copy was made must be disabled or destroyed again. \
KEKs that were made after it are lost with all data under them.

Example:
  kms-proxy store restored --config kms-proxy.toml";

#[derive(clap::Args)]
#[command(after_help = COPY)]
pub(super) struct CopyArgs {
    /// What to copy
    #[arg(long, value_name = "WHERE")]
    from: Place,
    /// Where to copy it; a missing directory is created
    #[arg(long, value_name = "WHERE")]
    to: Place,
    /// Only this chain; may be given more than once
    #[arg(long, value_name = "NAME")]
    chain: Vec<ChainName>,
    /// Let the primary continue to encrypt at the target; only if the source was stopped before
    /// the copy, and will never run again
    #[arg(long)]
    keep_primary: bool,
}

#[derive(clap::Args)]
#[command(after_help = VERIFY)]
pub(super) struct VerifyArgs {
    /// What to verify [default: the store of the configuration]
    #[arg(value_name = "WHERE")]
    place: Option<Place>,
    /// The configuration, in TOML [default: none, and every setting at its default]
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(clap::Args)]
#[command(after_help = RESTORED)]
pub(super) struct RestoredArgs {
    /// The configuration, in TOML [default: none, and every setting at its default]
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_CONFIG")]
    config: Option<PathBuf>,
    /// Confirm that no service uses this store; required if it can be shared
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(command: Command) -> Result {
    match command {
        Command::Copy(args) => copy(args).await,
        Command::Verify(args) => verify(args).await,
        Command::Restored(args) => restored(args).await,
        Command::Recover(args) => archive::recover(args).await,
        Command::Compare(args) => archive::compare(args).await,
    }
}

async fn copy(args: CopyArgs) -> Result {
    let CopyArgs { from, to, chain, keep_primary } = args;
    let target = to.config()?;
    if from == to || (target.is_some() && target == from.config()?) {
        return Err(Failure::Usage("--from and --to are the same".to_owned()));
    }
    let mut progress = Progress::new();
    let mut shown = |report: &CopyReport| {
        progress.show(|| {
            let records = count(report.added + report.moved, "record");
            format!("{}, {records} written", count(report.chains, "chain"))
        });
    };
    let Some(target) = target else {
        if keep_primary {
            let why = "a backup contains the records unchanged: --keep-primary is only for stores";
            return Err(Failure::Usage(why.to_owned()));
        }
        let name = match &to {
            Place::Backup(path) => path.display().to_string(),
            _ => "stdout".to_owned(),
        };
        let wrong = |error: backup::WriteError| Failure::refused(format!("{name}: {error}"));
        let to_stdout = to == Place::Stream;
        if to_stdout {
            require_stdout()?;
        }
        let source = from.open().await?;
        let now = SystemClock::new().unix_now();
        let report = if let Place::Backup(path) = &to {
            backup::write(&*source, path, &chain, now, &mut shown).await.map_err(wrong)?
        } else {
            let stream = backup::Stream::begin(&*source, &chain, now).await;
            let mut stream = stream.map_err(|error| wrong(error.into()))?;
            while let Some(part) = stream.next().await.map_err(wrong)? {
                print(&part)?;
                shown(stream.report());
            }
            stream.report().clone()
        };
        if chain.is_empty() && report.problems.is_empty() {
            // The backup is complete even if, for example, the user of etcd may not write.
            if let Err(error) = backup::note(&*source, now).await {
                eprint(&format!("the time of this backup was not recorded in the store: {error}"));
            }
        }
        let (chains, records) = (count(report.chains, "chain"), count(report.added, "record"));
        let done = format!("{name}: {chains}, {records}");
        if to_stdout {
            eprint(&done);
        } else {
            print(format!("{done}\n").as_bytes())?;
        }
        return problems(&report.problems, "the records above are not in the backup");
    };
    let source = from.open().await?;
    let target = place::open_or_create(&target).await?;
    let primaries = if keep_primary { Primaries::Keep } else { Primaries::Retire };
    let report = copy::copy(&*source, &*target, &chain, primaries, &mut shown).await;
    let report = report.map_err(|error| {
        Failure::refused(format!(
            "{error}; the records copied so far are valid: repeat the command to continue"
        ))
    })?;
    let CopyReport { chains, added, moved, same, retired, problems: bad } = report;
    print(
        format!(
            "{} copied: {} new, {moved} moved forward, {same} the same; {} only decrypt there\n",
            count(chains, "chain"),
            count(added, "record"),
            count(retired, "KEK"),
        )
        .as_bytes(),
    )?;
    problems(&bad, "what is named above was not copied")
}

async fn verify(args: VerifyArgs) -> Result {
    let VerifyArgs { place, config } = args;
    let mut damaged = Vec::new();
    let (config, store) = match place {
        Some(Place::Archive(name)) => {
            let config = place::load(config)?;
            let (store, problems) = archive::read(&config, &name).await?;
            damaged = problems;
            (config, store)
        }
        None => {
            let config = place::load(config)?;
            let store = place::open(&config.store).await?;
            (config, store)
        }
        // By default the key of a `local` root is beside the store.
        Some(Place::Dir(dir)) if config.is_none() => {
            let flags = Flags { data_dir: Some(dir), ..Flags::default() };
            let config = place::load_with(None, flags)?;
            let store = place::open(&config.store).await?;
            (config, store)
        }
        Some(Place::Config(file)) => {
            let store = place::open(&place::load(file.clone())?.store).await?;
            (place::load(config.or(file))?, store)
        }
        Some(place) => (place::load(config)?, place.open().await?),
    };
    let roots = open_roots(&config).await?;
    let mut progress = Progress::new();
    let report = verify::verify(&*store, &roots, |report| {
        progress
            .show(|| format!("{}, {}", count(report.chains, "chain"), count(report.keks, "KEK")));
    });
    let report = report.await.map_err(|error| Failure::refused(error.to_string()))?;
    let verify::Report { chains, keks, opened, problems } = report;
    let all =
        damaged.iter().map(Problem::to_string).chain(problems.iter().map(ToString::to_string));
    let wrong = all.inspect(|problem| eprint(problem)).count();
    let (chains, keks) = (count(chains, "chain"), count(keks, "KEK"));
    let (opened, problems) = (count(opened, "wrap"), count(wrong, "problem"));
    print(format!("{chains}, {keks}, {opened} opened, {problems}\n").as_bytes())?;
    if wrong == 0 { Ok(()) } else { Err(Failure::Silent) }
}

/// The configured roots. No key is created: with a new key nothing could be verified.
pub(super) async fn open_roots(config: &Config) -> Result<Vec<root::Named>> {
    let data_dir = config.store.data_dir();
    let mut roots = Vec::new();
    for config in &config.roots {
        if config.is_new(data_dir) {
            let file = match config {
                root::Config::Local(local) => local.path(data_dir).display().to_string(),
                _ => "its key".to_owned(),
            };
            return Err(Failure::Usage(format!(
                "root {}: {file} does not exist, and a new key would open nothing; set key_file of \
                    this root, or the data directory",
                config.name()
            )));
        }
        let opened = root::open(config, data_dir).await;
        roots.push(opened.map_err(|error| Failure::Usage(error.to_string()))?);
    }
    Ok(roots)
}

async fn restored(args: RestoredArgs) -> Result {
    let config = place::load(args.config)?;
    let store = place::open(&config.store).await?;
    if is_shared(&*store) && !args.yes {
        return Err(Failure::Usage(format!(
            "a store of kind {} can be in use: stop every service on it, then confirm with --yes",
            store.kind()
        )));
    }
    let mut progress = Progress::new();
    let report = offline::retire_chains(&*store, |report| {
        progress.show(|| count(report.chains, "chain"));
    });
    let report = report.await.map_err(|error| Failure::refused(error.to_string()))?;
    let offline::Report { chains, retired, problems: bad } = report;
    let mut text = String::new();
    for (chain, id) in &retired {
        text.push_str(&format!("{chain}: {id} only decrypts now\n"));
    }
    let (chains, keks) = (count(chains, "chain"), count(retired.len(), "KEK"));
    text.push_str(&format!("{chains}, {keks} retired\n"));
    print(text.as_bytes())?;
    problems(&bad, "the records above were not changed")
}

/// Whether other processes can write to the store while it is open here.
fn is_shared(store: &dyn Store) -> bool {
    store.watch().is_some()
}

/// Prints the problems. Fails if there are any.
fn problems(problems: &[Problem], what: &str) -> Result {
    for problem in problems {
        eprint(&problem.to_string());
    }
    if problems.is_empty() {
        return Ok(());
    }
    let problems = count(problems.len(), "problem");
    Err(Failure::refused(format!("{problems}: {what}")))
}

#[cfg(test)]
mod tests {
    use kms_proxy::store::{file, memory};

    use super::*;

    #[tokio::test]
    async fn only_a_store_that_can_be_shared_needs_yes() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_shared(&file::Store::open(dir.path()).await.unwrap()));
        assert!(is_shared(&memory::Store::new()));
    }
}
