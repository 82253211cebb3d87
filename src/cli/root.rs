//! `root`. `init` uses the roots of a configuration; the other commands call a service.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Subcommand;
use kms_proxy::config::{Config, Flags};
use kms_proxy::id::ChainName;
use kms_proxy::root;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::{self, Client, block_on};
use super::count::count;
use super::progress::Progress;
use super::stdio::{eprint, print};
use super::{Failure, Result, chains};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create the key of a root in its HSM, or print how to create it
    Init(InitArgs),
    /// Show the health of the roots, and how many KEKs each of them has wrapped
    Status(StatusArgs),
    /// Have a root wrap every KEK that it has not wrapped, or whose wrap is outdated
    Rewrap(ChangeArgs),
    /// Erase the wraps of a root that is no longer configured
    Remove(RemoveArgs),
}

#[derive(clap::Args)]
#[command(after_help = "\
WRAPPED counts the KEKs that the root has wrapped, MISSING those that it has not, ONLY those that \
no other root has wrapped. Destroyed KEKs don't count.")]
struct StatusArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Address of health and metrics, if server.admin_listen is set
    #[arg(long, value_name = "URL", env = "KMS_PROXY_ADMIN", value_parser = client::server)]
    admin: Option<String>,
    #[command(flatten)]
    client: client::Args,
}

const CHANGE_HELP: &str = "\
It works on a running service, a part of the KEKs at a time, and changes no data. If it is \
interrupted, run it again: it continues with the rest. The exit code is 1 if a KEK could not be \
changed, or if there was no wrap to remove.

To move from one root to another:
  1. configure the new root beside the old one, on every replica
  2. kms-proxy root rewrap --root new
  3. take the old root out of the configuration of every replica
  4. kms-proxy root remove --root old";

#[derive(clap::Args)]
#[command(after_help = CHANGE_HELP)]
struct ChangeArgs {
    /// The root's name
    #[arg(long, value_name = "NAME")]
    root: String,
    /// The key chain; may be given several times [default: all of them]
    #[arg(long, value_name = "NAME")]
    chain: Vec<ChainName>,
    #[command(flatten)]
    client: client::Args,
}

#[derive(clap::Args)]
#[command(after_help = CHANGE_HELP)]
struct RemoveArgs {
    /// Do not wait, up to 60 s, until no replica that has lost the store can encrypt under a KEK
    /// that the root opens
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(clap::Args)]
#[command(after_help = "\
The key is AES-256, stays in the token, and can't be extracted. An existing key is not changed, \
and the exit code is 1.

Example:
  kms-proxy root init --config kms-proxy.toml --root hsm")]
struct InitArgs {
    /// The configuration of the service, in TOML
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_CONFIG")]
    config: Option<PathBuf>,
    /// The root's name [default: the only root of the configuration]
    #[arg(long, value_name = "NAME")]
    root: Option<String>,
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result {
    match args.command {
        Command::Init(args) => init(args),
        Command::Status(args) => block_on(status(args)),
        Command::Rewrap(args) => block_on(change(args, "rewrap", true)),
        Command::Remove(args) => block_on(change(args.change, "remove", args.no_wait)),
    }
}

/// The roots of a KEK.
#[derive(Deserialize)]
struct Kek {
    state: String,
    exposed: bool,
    roots: Vec<String>,
}

/// How many KEKs a root has wrapped.
#[derive(Clone, Default, Serialize)]
struct Count {
    wrapped: u64,
    missing: u64,
    only: u64,
}

async fn status(args: StatusArgs) -> Result {
    let client = Client::new(args.client)?;
    let admin = args.admin.map(|admin| client.at(admin));
    let (_, readiness) = chains::readiness(admin.as_ref().unwrap_or(&client)).await?;
    let mut keks = Vec::new();
    for chain in chains::names(&client, &[]).await? {
        let path = format!("/v1/chains/{chain}?limit=1000");
        let of_chain: Vec<Kek> = client.items(&path, "items").await?;
        keks.extend(of_chain.into_iter().filter(|kek| kek.state != "destroyed"));
    }
    let checks = readiness.checks.iter().filter_map(|check| {
        Some((check.name.strip_prefix("root:")?, &check.status, check.detail.as_deref()))
    });
    let configured: BTreeMap<_, _> =
        checks.map(|(name, status, detail)| (name, (status.as_str(), detail))).collect();
    let counts = tally(&keks, configured.keys().copied());
    let exposed = keks.iter().filter(|kek| kek.exposed).count();
    if args.json {
        let roots: Vec<_> = counts
            .iter()
            .map(|(name, count)| {
                let (status, detail) = root_status(&configured, name);
                json!({ "root": name, "status": status, "detail": detail, "wrapped": count.wrapped,
                    "missing": count.missing, "only": count.only })
            })
            .collect();
        let all = json!({ "keks": keks.len(), "exposed": exposed, "roots": roots });
        return print(format!("{all:#}\n").as_bytes());
    }
    let header = ["ROOT", "STATUS", "WRAPPED", "MISSING", "ONLY", "DETAIL"];
    let rows = counts.iter().map(|(name, count)| {
        let (status, detail) = root_status(&configured, name);
        let Count { wrapped, missing, only } = count;
        [
            name.clone(),
            status.to_owned(),
            wrapped.to_string(),
            missing.to_string(),
            only.to_string(),
            detail.to_owned(),
        ]
    });
    let (table, keks) = (chains::table(header, rows), count(keks.len(), "KEK"));
    print(format!("{table}\n{keks}, {exposed} of them exposed by a local root\n").as_bytes())
}

/// The status and detail of a root.
fn root_status<'a>(
    configured: &BTreeMap<&str, (&'a str, Option<&'a str>)>,
    name: &str,
) -> (&'a str, &'a str) {
    match configured.get(name) {
        Some((status, detail)) => (status, detail.unwrap_or_default()),
        None => ("-", "not configured"),
    }
}

/// Counts the KEKs of each root that is configured or has wrapped one.
fn tally<'a>(keks: &[Kek], configured: impl Iterator<Item = &'a str>) -> BTreeMap<String, Count> {
    let mut counts: BTreeMap<String, Count> =
        configured.map(|name| (name.to_owned(), Count::default())).collect();
    for root in keks.iter().flat_map(|kek| &kek.roots) {
        counts.entry(root.clone()).or_default();
    }
    for (name, count) in &mut counts {
        for kek in keks {
            let has = kek.roots.contains(name);
            count.wrapped += u64::from(has);
            count.missing += u64::from(!has);
            count.only += u64::from(has && kek.roots.len() == 1);
        }
    }
    counts
}

/// Applies `change` to all KEKs.
async fn change(args: ChangeArgs, change: &str, no_wait: bool) -> Result {
    #[derive(Deserialize)]
    struct Part {
        looked_at: u64,
        changed: u64,
        failed: Vec<Failed>,
        next: Option<String>,
        /// Servers before 0.2 do not send it.
        #[serde(default)]
        settles_in_seconds: u64,
    }
    #[derive(Deserialize)]
    struct Failed {
        kek_id: String,
        detail: String,
    }
    let ChangeArgs { root, chain, client } = args;
    let client = Client::new(client)?;
    let chains = chains::names(&client, &chain).await?;
    let (mut looked_at, mut changed, mut failed) = (0, 0, 0);
    let mut settled = Instant::now();
    let mut progress = Progress::new();
    for (index, chain) in chains.iter().enumerate() {
        let path = format!("/v1/chains/{chain}/roots/{root}/{change}");
        let mut after = None;
        loop {
            let body = json!({ "after": after, "limit": 100 });
            let part: Part =
                client.call_json(client.request(Method::POST, &path).json(&body)).await?;
            looked_at += part.looked_at;
            changed += part.changed;
            for Failed { kek_id, detail } in part.failed {
                failed += 1;
                eprint(&format!("chain {chain}, KEK {kek_id}: {detail}"));
            }
            progress.show(|| {
                let chains = chains.len();
                let keks = count(looked_at, "KEK");
                format!("{keks} done, {changed} changed, chain {index} of {chains}")
            });
            settled = settled.max(Instant::now() + Duration::from_secs(part.settles_in_seconds));
            match part.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
    }
    let keks = count(looked_at, "KEK");
    let left = settled.saturating_duration_since(Instant::now());
    if !left.is_zero() && !no_wait {
        eprint(&format!(
            "a replica that has lost the store may encrypt under an old KEK for {} s more: waiting",
            left.as_secs() + 1
        ));
        tokio::time::sleep(left).await;
    }
    print(format!("{keks}, {changed} changed, {failed} failed\n").as_bytes())?;
    match failed {
        // A mistyped name must not look like a root whose wraps are all erased.
        0 if changed == 0 && change == "remove" => Err(Failure::refused(format!(
            "no KEK has a wrap by a root {root}: either all are erased already, or the name is \
                wrong; kms-proxy root status lists the roots"
        ))),
        0 => Ok(()),
        _ => Err(Failure::Silent),
    }
}

fn init(args: InitArgs) -> Result {
    let config = Config::load(args.config.as_deref(), &Flags::default())
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let root = choose(&config.roots, args.root.as_deref()).map_err(Failure::Usage)?;
    let data_dir = config.store.data_dir();
    root.check(data_dir).map_err(|error| Failure::Usage(error.to_string()))?;
    block_on(async {
        let said = root::init(root, data_dir).await;
        let said = said.map_err(|error| Failure::refused(error.to_string()))?;
        print(format!("root {}: {said}\n", root.name()).as_bytes())
    })
}

/// The root named `name`; without a name, the only root.
fn choose<'a>(
    roots: &'a [root::Config],
    name: Option<&str>,
) -> std::result::Result<&'a root::Config, String> {
    let names = || roots.iter().map(root::Config::name).collect::<Vec<_>>().join(", ");
    match (name, roots) {
        (Some(name), _) => {
            let found = roots.iter().find(|root| root.name() == name);
            found.ok_or_else(|| format!("no root has this name; there are: {}", names()))
        }
        (None, [root]) => Ok(root),
        (None, _) => Err(format!("which root? Name one with --root: {}", names())),
    }
}
