//! `kek list`: the KEKs of a chain.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Result;
use super::chains::{table, typed};
use super::client::{self, ChainArgs, Client};
use super::stdio::print;

#[derive(clap::Args)]
#[command(after_help = "\
USES counts uses that are reserved in the store. EXPOSED shows whether a `local` root ever wrapped \
the KEK. ROOTS are those that have wrapped it.")]
pub(super) struct ListArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    client: client::Args,
}

/// The fields of a KEK that the table shows.
#[derive(Deserialize)]
struct Kek {
    kek_id: String,
    state: String,
    created_at: String,
    promoted_at: Option<String>,
    disabled_at: Option<String>,
    uses_reserved: u64,
    exposed: bool,
    roots: Vec<String>,
}

/// Lists the KEKs of a chain, read a page at a time.
pub(super) async fn list(args: ListArgs) -> Result {
    let client = Client::new(args.client)?;
    let chain = args.chain.name();
    let path = format!("/v1/chains/{chain}?limit=1000");
    let keks: Vec<Value> = client.items(&path, "items").await?;
    let text = if args.json {
        format!("{:#}\n", json!({ "chain": chain, "keks": keks }))
    } else {
        kek_table(typed(keks)?)
    };
    print(text.as_bytes())
}

fn kek_table(keks: Vec<Kek>) -> String {
    let titles = ["KEK", "STATE", "CREATED", "PROMOTED", "DISABLED", "USES", "EXPOSED", "ROOTS"];
    let or_dash = |time: Option<String>| time.unwrap_or_else(|| "-".to_owned());
    let rows = keks.into_iter().map(|kek| {
        [
            kek.kek_id,
            kek.state,
            kek.created_at,
            or_dash(kek.promoted_at),
            or_dash(kek.disabled_at),
            kek.uses_reserved.to_string(),
            if kek.exposed { "yes" } else { "no" }.to_owned(),
            kek.roots.join(","),
        ]
    });
    table(titles, rows)
}
