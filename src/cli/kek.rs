//! `kek`: KEKs listed, disabled, enabled or destroyed, and those that are missing.

use kms_proxy::id::{ChainName, KekId};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{self, ChainArgs, Client};
use super::stdio::print;
use super::{Result, chains, keks};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List the KEKs of a chain
    List(keks::ListArgs),
    /// Let a retired KEK decrypt nothing until it is enabled again
    Disable(DisableArgs),
    /// Let a disabled KEK decrypt again
    Enable(Args),
    /// Destroy a disabled KEK permanently, with everything that was encrypted under it
    Destroy(DestroyArgs),
    /// List KEKs that callers asked for and that are not there, or that no root opens
    Missing(MissingArgs),
}

#[derive(clap::Args)]
#[command(after_help = "\
In a chain that a Kubernetes cluster encrypts with it is refused without --force: kube-apiserver \
could not read the Secrets that it wrote under the KEK, and may not start. docs/kubernetes.md \
says how to re-encrypt them first.")]
pub(super) struct DisableArgs {
    #[command(flatten)]
    of: Args,
    /// Even though a Kubernetes cluster encrypts with this chain
    #[arg(long)]
    force: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
REASON is `unknown` where the chain has no such KEK: it was lost with the store, or the \
ciphertext is forged. It is `unopenable` where the KEK is stored and no configured root opens it. \
A process lists what it was asked for since it started.")]
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
    /// The KEK, as `status`, `inspect` and the answers of the service name it
    #[arg(value_name = "ID")]
    id: KekId,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    client: client::Args,
}

#[derive(clap::Args)]
#[command(after_help = "\
A KEK must have been disabled for chain.destroy_delay (24 h). Old copies of the store still \
contain it: delete these too.

In a chain that a Kubernetes cluster encrypts with it is refused without --force: Secrets that \
were written under the KEK would be lost, and kube-apiserver may not start. docs/kubernetes.md \
says how to re-encrypt them first.")]
pub(super) struct DestroyArgs {
    #[command(flatten)]
    of: Args,
    /// Confirm that this KEK is destroyed permanently
    #[arg(long, required = true)]
    yes: bool,
    /// Even though a Kubernetes cluster encrypts with this chain
    #[arg(long)]
    force: bool,
}

/// Does what is asked for: changes a KEK and prints its state then, or lists KEKs.
pub(super) async fn run(command: Command) -> Result {
    let (args, change, body) = match command {
        Command::List(args) => return keks::list(args).await,
        Command::Missing(args) => return missing(args).await,
        Command::Disable(DisableArgs { of, force }) => (of, "disable", json!({ "force": force })),
        Command::Enable(args) => (args, "enable", json!({})),
        Command::Destroy(DestroyArgs { of, yes: _, force }) => {
            let body = json!({ "confirm": of.id.to_string(), "force": force });
            (of, "destroy", body)
        }
    };
    call(args, change, &body).await
}

async fn call(args: Args, change: &str, body: &Value) -> Result {
    #[derive(Deserialize)]
    struct Kek {
        state: String,
    }
    let client = Client::new(args.client)?;
    let path = format!("/v1/chains/{}/keks/{}/{change}", args.chain.name(), args.id);
    let kek: Kek = client.call_json(client.request(Method::POST, &path).json(body)).await?;
    print(format!("{}\n", kek.state).as_bytes())
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
