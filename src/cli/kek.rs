//! `kek`: lists, disables, enables and destroys KEKs, and lists missing ones.

use kms_proxy::id::{ChainName, KekId};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{self, ChainArgs, Client};
use super::stdio::{eprint, print};
use super::{Failure, Result, chains, keks};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List the KEKs of a chain
    List(keks::ListArgs),
    /// Refuse all decryption under a retired KEK until it is enabled again
    Disable(DisableArgs),
    /// Allow decryption under a disabled KEK again
    Enable(Args),
    /// Destroy a disabled KEK permanently, with everything that was encrypted under it
    Destroy(DestroyArgs),
    /// List KEKs that callers asked for and that do not exist, or that no root opens
    Missing(MissingArgs),
}

#[derive(clap::Args)]
#[command(after_help = "\
In a chain that serves Kubernetes this requires --force: kube-apiserver could not read the Secrets \
that it wrote under the KEK, and may not start. docs/kubernetes.md describes how to re-encrypt \
them first.")]
pub(super) struct DisableArgs {
    #[command(flatten)]
    of: Args,
    /// Disable it even though the chain serves Kubernetes
    #[arg(long)]
    force: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
REASON is `unknown` if the chain has no such KEK: it was lost with the store, or the ciphertext is \
forged. It is `unopenable` if the KEK is stored, but no configured root opens it. A process lists \
the KEKs that it was asked for since it started.")]
pub(super) struct MissingArgs {
    /// The key chain; may be given several times [default: all of them]
    #[arg(long, value_name = "NAME")]
    chain: Vec<ChainName>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: client::Args,
}

#[derive(clap::Args)]
pub(super) struct Args {
    /// The id of the KEK, as in `status`, `inspect` and the responses of the service
    #[arg(value_name = "ID")]
    id: KekId,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    client: client::Args,
}

#[derive(clap::Args)]
#[command(after_help = "\
Without --yes nothing is destroyed: the command prints when the KEK was last used, and exits with \
code 2. With --yes it prints that with the new state.

The KEK must have been disabled for chain.destroy_delay (24 h). Old copies of the store still \
contain it: delete these too. If an archive does not answer, its name is printed, and the exit \
code is 1: the service erases the wraps there later.

In a chain that serves Kubernetes this requires --force: Secrets that were written under the KEK \
would be lost, and kube-apiserver may not start. docs/kubernetes.md describes how to re-encrypt \
them first.")]
pub(super) struct DestroyArgs {
    #[command(flatten)]
    of: Args,
    /// Confirm that the KEK is destroyed permanently
    #[arg(long)]
    yes: bool,
    /// Destroy it even though the chain serves Kubernetes
    #[arg(long)]
    force: bool,
}

/// Runs the command: changes a KEK and prints its new state, or lists KEKs.
pub(super) async fn run(command: Command) -> Result {
    let (args, change, body) = match command {
        Command::List(args) => return keks::list(args).await,
        Command::Missing(args) => return missing(args).await,
        Command::Disable(DisableArgs { of, force }) => (of, "disable", json!({ "force": force })),
        Command::Enable(args) => (args, "enable", json!({})),
        Command::Destroy(DestroyArgs { of, yes: false, .. }) => return show(of).await,
        Command::Destroy(DestroyArgs { of, yes: true, force }) => {
            let body = json!({ "confirm": of.id.to_string(), "force": force });
            (of, "destroy", body)
        }
    };
    call(args, change, &body).await
}

/// Shows the KEK that would be destroyed.
async fn show(args: Args) -> Result {
    let client = Client::new(args.client)?;
    print(keks::describe(&client, args.chain.name(), args.id).await?.as_bytes())?;
    Err(Failure::Usage("nothing was destroyed: --yes destroys this KEK permanently".to_owned()))
}

async fn call(args: Args, change: &str, body: &Value) -> Result {
    #[derive(Deserialize)]
    struct Kek {
        state: String,
        #[serde(default)]
        created_at: String,
        #[serde(flatten)]
        used: keks::LastUsed,
        #[serde(default)]
        still_archived_in: Vec<String>,
    }
    let client = Client::new(args.client)?;
    let path = format!("/v1/chains/{}/keks/{}/{change}", args.chain.name(), args.id);
    let kek: Kek = client.call_json(client.request(Method::POST, &path).json(body)).await?;
    print(format!("{}\n", kek.state).as_bytes())?;
    if change == "destroy" && kek.used.is_reported() {
        let [encrypt, decrypt] = kek.used.texts(&kek.created_at);
        eprint(&format!("its last encrypt: {encrypt}; its last decrypt: {decrypt}"));
    }
    if kek.still_archived_in.is_empty() {
        return Ok(());
    }
    let archives = kek.still_archived_in.join(", ");
    Err(Failure::refused(format!(
        "these archives still have its wraps: {archives}; the service erases them when they answer"
    )))
}

async fn missing(args: MissingArgs) -> Result {
    #[derive(Deserialize, Serialize)]
    struct Page {
        chain: String,
        items: Vec<Kek>,
    }
    #[derive(Deserialize, Serialize)]
    struct Kek {
        kek_id: String,
        reason: String,
        first_seen: String,
        last_seen: String,
    }
    let client = Client::new(args.client)?;
    let mut pages: Vec<Page> = Vec::new();
    for chain in chains::names(&client, &args.chain).await? {
        let path = format!("/v1/chains/{chain}/missing");
        pages.push(client.call_json(client.request(Method::GET, &path)).await?);
    }
    pages.retain(|page| !page.items.is_empty());
    if args.json {
        return print(format!("{:#}\n", json!({ "chains": pages })).as_bytes());
    }
    let header = ["CHAIN", "KEK", "REASON", "FIRST SEEN", "LAST SEEN"];
    let rows = pages.into_iter().flat_map(|Page { chain, items }| {
        let row =
            move |kek: Kek| [chain.clone(), kek.kek_id, kek.reason, kek.first_seen, kek.last_seen];
        items.into_iter().map(row)
    });
    print(chains::table(header, rows).as_bytes())
}
