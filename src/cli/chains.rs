//! `rotate` and `healthcheck`, and the tables of checks and chains.

use kms_proxy::id::ChainName;
use kms_proxy::status;
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{self, ChainArgs, Client};
use super::stdio::{print, printable};
use super::{Failure, Result};

#[derive(clap::Args)]
#[command(after_help = "\
Older KEKs continue to decrypt. The id of the new primary KEK is printed.

A service that can't open the primary KEK refuses: its roots may be misconfigured, and other \
replicas could not open the new KEK. --force rotates anyway, with the roots that the service has. \
It is for a root whose key is permanently lost, and needs the permission `manage`.

With --new-key-id the new Kubernetes key id is printed on a second line. kube-apiserver then makes \
a new seed within a minute, and a storage migration re-encrypts every object: docs/kubernetes.md \
has the procedure.

Examples:
  kms-proxy rotate --chain orders
  kms-proxy rotate --chain kubernetes --new-key-id")]
pub(super) struct RotateArgs {
    /// Rotate even though no root opens the KEKs of the chain
    #[arg(long, conflicts_with = "new_key_id")]
    force: bool,
    #[command(flatten)]
    chain: ChainArgs,
    /// Also give the chain a new Kubernetes key id
    #[arg(long)]
    new_key_id: bool,
    #[command(flatten)]
    client: client::Args,
}

#[derive(clap::Args)]
#[command(after_help = "The exit code is 1 if the service can neither encrypt nor decrypt.")]
pub(super) struct HealthArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Address of health, metrics and the status, if server.admin_listen is set
    #[arg(long, value_name = "URL", env = "KMS_PROXY_ADMIN", value_parser = client::server)]
    admin: Option<String>,
    #[command(flatten)]
    client: client::Args,
}

impl HealthArgs {
    /// The service, and the address of health and metrics if one was given.
    pub(super) fn clients(self) -> Result<(Client, Option<Client>)> {
        let client = Client::new(self.client)?;
        let admin = self.admin.map(|admin| client.at(admin));
        Ok((client, admin))
    }
}

/// The response of `/readyz`.
#[derive(Deserialize, Serialize)]
pub(super) struct Readiness {
    pub(super) status: String,
    pub(super) checks: Vec<Check>,
}

#[derive(Deserialize, Serialize)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) status: String,
    #[serde(default)]
    pub(super) detail: Option<String>,
}

/// The fields of a chain that the table shows.
#[derive(Deserialize)]
pub(super) struct Chain {
    chain: String,
    suite: String,
    primary: Option<String>,
    standby: Option<String>,
    /// The service may not have counted them yet.
    keks: Option<u64>,
    rotate_after_uses: u64,
    max_uses: u64,
    rotate_after_age: u64,
    /// A service of an earlier version does not report it.
    #[serde(default)]
    inline: bool,
}

impl From<&status::Chain> for Chain {
    fn from(chain: &status::Chain) -> Self {
        Self {
            chain: chain.chain.clone(),
            suite: chain.suite.clone(),
            primary: chain.primary.clone(),
            standby: chain.standby.clone(),
            keks: chain.keks,
            rotate_after_uses: chain.rotate_after_uses,
            max_uses: chain.max_uses,
            rotate_after_age: chain.rotate_after_age,
            inline: chain.inline,
        }
    }
}

/// Makes a new primary KEK.
pub(super) async fn rotate(args: RotateArgs) -> Result {
    #[derive(Deserialize)]
    struct Rotated {
        primary: String,
        key_id: Option<String>,
    }
    let client = Client::new(args.client)?;
    let mut body = args.chain.chain.map_or_else(|| json!({}), |chain| json!({ "chain": chain }));
    for (flag, is_set) in [("force", args.force), ("new_key_id", args.new_key_id)] {
        if let (true, Value::Object(fields)) = (is_set, &mut body) {
            fields.insert(flag.to_owned(), true.into());
        }
    }
    let rotated: Rotated =
        client.call_json(client.request(Method::POST, "/v1/rotate").json(&body)).await?;
    let key_id = rotated.key_id.map(|key_id| format!("{key_id}\n")).unwrap_or_default();
    print(format!("{}\n{key_id}", rotated.primary).as_bytes())
}

/// Succeeds if the service is ready.
pub(super) async fn healthcheck(args: HealthArgs) -> Result {
    let is_json = args.json;
    let (client, admin) = args.clients()?;
    let (code, readiness) = readiness(admin.as_ref().unwrap_or(&client)).await?;
    if is_json {
        print(format!("{:#}\n", json!(readiness)).as_bytes())?;
        return if code == StatusCode::OK { Ok(()) } else { Err(Failure::Silent) };
    }
    match (code, readiness) {
        (StatusCode::OK, _) => Ok(()),
        (_, readiness) => Err(Failure::refused(format!("not ready\n{}", check_table(&readiness)))),
    }
}

/// The response of `/readyz`, which is 503 if the service is not ready.
pub(super) async fn readiness(client: &Client) -> Result<(StatusCode, Readiness)> {
    let (status, body) = client.exchange(client.request(Method::GET, "/readyz")).await?;
    match status {
        StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => Ok((status, client.parse(&body)?)),
        StatusCode::NOT_FOUND => Err(Failure::refused(
            "health is served at another address, server.admin_listen of the service: set it with \
                --admin or KMS_PROXY_ADMIN",
        )),
        _ => Err(client.refusal(status, &body)),
    }
}

/// All chains, read a page at a time, in the form of the service.
pub(super) async fn all_chains(client: &Client) -> Result<Vec<Value>> {
    client.items("/v1/chains?limit=100", "chains").await
}

/// The items of a list, with the fields that a table shows.
pub(super) fn typed<T: DeserializeOwned>(items: Vec<Value>) -> Result<Vec<T>> {
    let items = items.into_iter().map(serde_json::from_value);
    items.collect::<std::result::Result<_, _>>().map_err(|_| {
        Failure::refused("the response has an item in a form that this version does not know")
    })
}

/// The names in `chosen`, or of all chains if it is empty.
pub(super) async fn names(client: &Client, chosen: &[ChainName]) -> Result<Vec<String>> {
    if !chosen.is_empty() {
        return Ok(chosen.iter().map(ToString::to_string).collect());
    }
    let chains = all_chains(client).await?;
    let name = |chain: &Value| chain["chain"].as_str().map(str::to_owned);
    Ok(chains.iter().filter_map(name).collect())
}

pub(super) fn check_table(readiness: &Readiness) -> String {
    let all = ["all".to_owned(), readiness.status.clone(), String::new()];
    let checks = readiness.checks.iter().map(|check| {
        [check.name.clone(), check.status.clone(), check.detail.clone().unwrap_or_default()]
    });
    table(["CHECK", "STATUS", "DETAIL"], std::iter::once(all).chain(checks))
}

pub(super) fn chain_table(chains: &[Chain]) -> String {
    let header = [
        "CHAIN",
        "SUITE",
        "KEKS",
        "ROTATE AT",
        "MAX USES",
        "MAX AGE",
        "INLINE",
        "PRIMARY",
        "STANDBY",
    ];
    let rows = chains.iter().map(|chain| {
        let or_dash = |id: &Option<String>| id.clone().unwrap_or_else(|| "-".to_owned());
        let age = std::time::Duration::from_secs(chain.rotate_after_age);
        [
            chain.chain.clone(),
            chain.suite.clone(),
            chain.keks.map_or_else(|| "-".to_owned(), |keks| keks.to_string()),
            chain.rotate_after_uses.to_string(),
            chain.max_uses.to_string(),
            kms_proxy::human_units::duration::format(age),
            if chain.inline { "yes" } else { "no" }.to_owned(),
            or_dash(&chain.primary),
            or_dash(&chain.standby),
        ]
    });
    table(header, rows)
}

/// Columns as wide as their widest cell, two spaces between them. No cell has control characters.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let rows = rows.map(|row| row.map(|cell| printable(&cell)));
    let rows: Vec<_> = std::iter::once(header.map(str::to_owned)).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for row in rows {
        let cells: Vec<_> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let checks = r#"{"status":"degraded","checks":[{"name":"store","status":"ok"},
            {"name":"root:main","status":"degraded","detail":"away"}]}"#;
        let expected = "\
CHECK      STATUS    DETAIL
all        degraded
store      ok
root:main  degraded  away
";
        assert_eq!(check_table(&serde_json::from_str(checks).unwrap()), expected);
        let chain = r#"{"chain":"a","suite":"aes-128-gcm","primary":"01","standby":null,"keks":12,
            "rotate_after_uses":5,"max_uses":10,"rotate_after_age":7776000,"later":true}"#;
        let expected = "\
CHAIN  SUITE        KEKS  ROTATE AT  MAX USES  MAX AGE  INLINE  PRIMARY  STANDBY
a      aes-128-gcm  12    5          10        90d      no      01       -
";
        assert_eq!(chain_table(&[serde_json::from_str(chain).unwrap()]), expected);
    }
}
