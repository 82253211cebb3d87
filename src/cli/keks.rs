//! `kek list`: the KEKs of a chain, and what an operator reads about one of them.

use kms_proxy::id::KekId;
use kms_proxy::status::last_used;
use serde::Deserialize;
use serde_json::{Value, json};

use super::chains::{table, typed};
use super::client::{self, ChainArgs, Client};
use super::stdio::print;
use super::{Failure, Result};

#[derive(clap::Args)]
#[command(after_help = "\
USES counts uses that are reserved in the store. LAST ENCRYPT and LAST DECRYPT are days in UTC, of \
all replicas; `none since` gives the day from which on they are noted, and `never` stands for a \
KEK that was made later. EXPOSED shows whether a `local` root ever wrapped the KEK. ROOTS are \
those that have wrapped it.")]
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
    #[serde(flatten)]
    used: LastUsed,
    exposed: bool,
    roots: Vec<String>,
}

/// When a KEK was last used. A service of an earlier version does not report it.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct LastUsed {
    last_encrypt: Option<String>,
    last_decrypt: Option<String>,
    usage_known_since: Option<String>,
}

impl LastUsed {
    /// Whether the service reports it.
    pub(super) fn is_reported(&self) -> bool {
        self.usage_known_since.is_some()
            || self.last_encrypt.is_some()
            || self.last_decrypt.is_some()
    }

    /// The last encrypt and the last decrypt as text.
    pub(super) fn texts(&self, created_at: &str) -> [String; 2] {
        [&self.last_encrypt, &self.last_decrypt]
            .map(|day| last_used(day.as_deref(), self.usage_known_since.as_deref(), created_at))
    }
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

/// What an operator reads before the KEK `id` is destroyed.
pub(super) async fn describe(client: &Client, chain: &str, id: KekId) -> Result<String> {
    #[derive(Deserialize)]
    struct Page {
        items: Vec<Kek>,
    }
    // The list begins after an id, so the one before it is given.
    let before = u128::from_be_bytes(*id.as_bytes()).checked_sub(1);
    let before = before.map(|before| format!("&after={}", KekId::from_bytes(before.to_be_bytes())));
    let path = format!("/v1/chains/{chain}?limit=1{}", before.unwrap_or_default());
    let page: Page = client.call_json(client.request(reqwest::Method::GET, &path)).await?;
    let kek = page.items.into_iter().find(|kek| kek.kek_id == id.to_string());
    let kek = kek.ok_or_else(|| Failure::refused(format!("chain {chain} has no KEK {id}")))?;
    let [encrypt, decrypt] = kek.used.texts(&kek.created_at);
    let or_dash = |time: Option<String>| time.unwrap_or_else(|| "-".to_owned());
    Ok(format!(
        "KEK           {id}\nchain         {chain}\nstate         {}\ncreated       {}\n\
         disabled      {}\nlast encrypt  {encrypt}\nlast decrypt  {decrypt}\n",
        kek.state,
        kek.created_at,
        or_dash(kek.disabled_at),
    ))
}

fn kek_table(keks: Vec<Kek>) -> String {
    let titles = [
        "KEK",
        "STATE",
        "CREATED",
        "PROMOTED",
        "DISABLED",
        "USES",
        "LAST ENCRYPT",
        "LAST DECRYPT",
        "EXPOSED",
        "ROOTS",
    ];
    let or_dash = |time: Option<String>| time.unwrap_or_else(|| "-".to_owned());
    let rows = keks.into_iter().map(|kek| {
        let [encrypt, decrypt] = kek.used.texts(&kek.created_at);
        [
            kek.kek_id,
            kek.state,
            kek.created_at,
            or_dash(kek.promoted_at),
            or_dash(kek.disabled_at),
            kek.uses_reserved.to_string(),
            encrypt,
            decrypt,
            if kek.exposed { "yes" } else { "no" }.to_owned(),
            kek.roots.join(","),
        ]
    });
    table(titles, rows)
}
