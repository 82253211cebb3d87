//! `kek`: KEKs listed, disabled, enabled or destroyed.

use kms_proxy::id::KekId;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{self, ChainArgs, Client};
use super::stdio::print;
use super::{Result, keks};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List the KEKs of a chain
    List(keks::ListArgs),
    /// Let a retired KEK decrypt nothing until it is enabled again
    Disable(Args),
    /// Let a disabled KEK decrypt again
    Enable(Args),
    /// Destroy a disabled KEK for ever, with everything that was encrypted under it
    Destroy(DestroyArgs),
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
A KEK must have been disabled for chain.destroy_delay (24 h). Old copies of the store still hold it: what was \
encrypted is as gone as they are.

In a chain that a Kubernetes cluster encrypts with it is refused without --force: Secrets that were \
written under the KEK would be lost, and kube-apiserver may not start. docs/kubernetes.md says how \
to write them anew first.")]
pub(super) struct DestroyArgs {
    #[command(flatten)]
    of: Args,
    /// Yes, this KEK, for ever
    #[arg(long, required = true)]
    yes: bool,
    /// Even though a Kubernetes cluster encrypts with this chain
    #[arg(long)]
    force: bool,
}

/// Changes the KEK, and prints the state that it is in then.
pub(super) async fn run(command: Command) -> Result {
    let (args, change, body) = match command {
        Command::List(args) => return keks::list(args).await,
        Command::Disable(args) => (args, "disable", json!({})),
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
    let chain = args.chain.chain.map_or_else(|| "default".to_owned(), |chain| chain.to_string());
    let path = format!("/v1/chains/{chain}/keks/{}/{change}", args.id);
    let kek: Kek = client.call_json(client.request(Method::POST, &path).json(body)).await?;
    print(format!("{}\n", kek.state).as_bytes())
}
