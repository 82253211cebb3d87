//! `chain`: lists, creates and changes key chains.

use std::time::Duration;

use kms_proxy::id::{ChainName, Suite};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use super::chains::{all_chains, chain_table, typed};
use super::client::{self, Client};
use super::stdio::{eprint, print};
use super::{Failure, Result};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List the chains that the caller may read
    List(ListArgs),
    /// Create a chain; omitted settings take the defaults of the service
    Create(CreateArgs),
    /// Change the settings of a chain; omitted ones stay
    Set(SetArgs),
}

#[derive(clap::Args)]
pub(super) struct ListArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: client::Args,
}

#[derive(clap::Args)]
#[command(after_help = "\
The exit code is 1 if the chain exists: `kms-proxy chain set` changes it. A client needs the \
operations `read` and `manage` on the chain.

With --inline, envelopes embed the wrapped KEK: they open without the store, with the roots and a \
chain of this name.

Examples:
  kms-proxy chain create orders --suite aes-256-gcm --rotate-after-age 30d
  kms-proxy chain create orders --inline")]
pub(super) struct CreateArgs {
    /// The chain's name
    #[arg(value_name = "NAME")]
    chain: ChainName,
    /// aes-128-gcm or aes-256-gcm; it can't be changed later
    #[arg(long)]
    suite: Option<Suite>,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    client: client::Args,
}

#[derive(clap::Args)]
#[command(after_help = "\
The exit code is 1 if the chain does not exist. A client needs the operations `read` and `manage` \
on the chain.

Envelopes that exist do not change with --inline: `kms-proxy rewrap` gives them the new form.

Examples:
  kms-proxy chain set orders --rotate-after-uses 1000000
  kms-proxy chain set orders --inline=false")]
pub(super) struct SetArgs {
    /// The chain's name
    #[arg(value_name = "NAME")]
    chain: ChainName,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    client: client::Args,
}

/// The settings of a chain that can change.
#[derive(clap::Args, Serialize)]
struct SettingArgs {
    /// Uses of a KEK after which it is rotated
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    rotate_after_uses: Option<u64>,
    /// The most uses of a KEK, never exceeded
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_uses: Option<u64>,
    /// Age of a KEK at which it is rotated, such as 90d
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    #[serde(serialize_with = "seconds", skip_serializing_if = "Option::is_none")]
    rotate_after_age: Option<Duration>,
    /// Whether new envelopes embed the wrapped KEK, which the store has as well
    #[arg(
        long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    inline: Option<bool>,
}

impl SettingArgs {
    fn is_empty(&self) -> bool {
        let Self { rotate_after_uses, max_uses, rotate_after_age, inline } = self;
        let no_limit = rotate_after_uses.is_none() && max_uses.is_none();
        no_limit && rotate_after_age.is_none() && inline.is_none()
    }
}

fn seconds<S: serde::Serializer>(
    age: &Option<Duration>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    age.map(|age| age.as_secs()).serialize(serializer)
}

/// The body of the request that creates or changes a chain.
#[derive(Serialize)]
struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    suite: Option<&'static str>,
    #[serde(flatten)]
    others: SettingArgs,
}

/// Runs `command`.
pub(super) async fn run(command: Command) -> Result {
    match command {
        Command::List(args) => list(args).await,
        Command::Create(CreateArgs { chain, suite, settings, client }) => {
            let client = Client::new(client)?;
            if is_there(&client, &chain).await? {
                return Err(Failure::refused(format!(
                    "the chain {chain} exists already; `kms-proxy chain set` changes its settings"
                )));
            }
            let settings = Settings { suite: suite.map(Suite::as_str), others: settings };
            if put(&client, &chain, &settings).await? != StatusCode::CREATED {
                eprint(
                    "another caller created the chain first; its settings were changed to these",
                );
            }
            Ok(())
        }
        Command::Set(SetArgs { chain, settings, client }) => {
            if settings.is_empty() {
                let wanted = "give --rotate-after-uses, --max-uses, --rotate-after-age or --inline";
                return Err(Failure::Usage(wanted.to_owned()));
            }
            let client = Client::new(client)?;
            // The request would create a missing chain.
            if !is_there(&client, &chain).await? {
                return Err(Failure::refused(format!(
                    "the chain {chain} does not exist; `kms-proxy chain create` creates it"
                )));
            }
            put(&client, &chain, &Settings { suite: None, others: settings }).await.map(drop)
        }
    }
}

async fn list(args: ListArgs) -> Result {
    let chains = all_chains(&Client::new(args.client)?).await?;
    let text = if args.json {
        format!("{:#}\n", json!({ "chains": chains }))
    } else {
        chain_table(&typed(chains)?)
    };
    print(text.as_bytes())
}

async fn is_there(client: &Client, chain: &ChainName) -> Result<bool> {
    let path = format!("/v1/chains/{chain}?limit=1");
    let (status, body) = client.exchange(client.request(Method::GET, &path)).await?;
    match status {
        StatusCode::OK => Ok(true),
        StatusCode::NOT_FOUND if has_code(&body, "unknown_chain") => Ok(false),
        _ => Err(client.refusal(status, &body)),
    }
}

fn has_code(body: &[u8], code: &str) -> bool {
    serde_json::from_slice::<Value>(body)
        .is_ok_and(|problem| problem.get("code").is_some_and(|found| found == code))
}

/// Creates or changes the chain, and prints it.
async fn put(client: &Client, chain: &ChainName, settings: &Settings) -> Result<StatusCode> {
    let request = client.request(Method::PUT, &format!("/v1/chains/{chain}")).json(settings);
    let (status, body) = client.exchange(request).await?;
    if !status.is_success() {
        return Err(client.refusal(status, &body));
    }
    print(chain_table(&[client.parse(&body)?]).as_bytes())?;
    Ok(status)
}
