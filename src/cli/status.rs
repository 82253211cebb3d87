//! `status`: what `/status.json` says, as tables or as JSON.

use kms_proxy::status::{Finding, Level, Status, count, duration, money};
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value};

use super::chains::{Check, HealthArgs, Readiness, chain_table, check_table};
use super::client::Client;
use super::stdio::{print, printable};
use super::{Failure, Result, chains};

mod tables;

/// Prints the health of the service and its chains.
pub(super) async fn status(args: HealthArgs) -> Result {
    let is_json = args.json;
    let (client, admin) = args.clients()?;
    let all = read(&client, admin.as_ref()).await?;
    let status: Status = serde_json::from_value(all.clone()).map_err(|_| {
        Failure::refused("the service has a status in a form that this version does not know")
    })?;
    let text = if is_json { format!("{all:#}\n") } else { text(&status) };
    print(text.as_bytes())?;
    if status.status == "unavailable" { Err(Failure::Silent) } else { Ok(()) }
}

/// The status with all chains, read a page at a time: at the address of health and metrics, or else
/// at that of the service.
async fn read(client: &Client, admin: Option<&Client>) -> Result<Value> {
    const PATH: &str = "/status.json";
    let first = admin.unwrap_or(client);
    let (mut status, mut body) = first.exchange(first.request(Method::GET, PATH)).await?;
    let mut from = first;
    if status == StatusCode::NOT_FOUND && admin.is_some() {
        from = client;
        (status, body) = from.exchange(from.request(Method::GET, PATH)).await?;
    }
    match status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => {
            return Err(Failure::refused(
                "the status is served at another address, server.admin_listen of the service: set \
                 it with --admin or KMS_PROXY_ADMIN",
            ));
        }
        _ => return Err(from.refusal(status, &body)),
    }
    let mut all: Map<String, Value> = from.parse(&body)?;
    let next_of = |page: &Map<String, Value>| page.get("next")?.as_str().map(str::to_owned);
    let mut next = next_of(&all);
    while let Some(after) = next {
        // The name of a chain needs no escape in a URL.
        let request = from.request(Method::GET, &format!("{PATH}?after={after}"));
        let mut page: Map<String, Value> = from.call_json(request).await?;
        next = next_of(&page);
        if let (Some(Value::Array(chains)), Some(Value::Array(more))) =
            (all.get_mut("chains"), page.get_mut("chains"))
        {
            chains.append(more);
        }
    }
    all.insert("next".to_owned(), Value::Null);
    Ok(all.into())
}

fn text(status: &Status) -> String {
    let checks = status.checks.iter().map(|check| Check {
        name: check.name.clone(),
        status: check.status.clone(),
        detail: check.detail.clone(),
    });
    let readiness = Readiness { status: status.status.clone(), checks: checks.collect() };
    let chains: Vec<_> = status.chains.iter().map(chains::Chain::from).collect();
    let mut parts = vec![check_table(&readiness), chain_table(&chains)];
    parts.extend(tables::all(status));
    if !status.summary.is_empty() && !status.is_well() {
        parts.push(format!("{}\n", printable(&status.summary)));
    }
    let findings = status.findings.iter().filter(|finding| finding.level != Level::Note);
    parts.extend(findings.map(finding_text));
    if let Some(savings) = &status.savings {
        parts.push(format!(
            "Root calls in {}: {} made, {} avoided, {} saved\n",
            duration(status.uptime_seconds),
            count(savings.root_calls),
            count(savings.avoided),
            money(savings.saved, &savings.currency),
        ));
    }
    parts.join("\n")
}

fn finding_text(finding: &Finding) -> String {
    let Finding { about, effect, advice, commands, link, .. } = finding;
    let lines = commands.iter().chain([link]).map(|line| format!("  {}\n", printable(line)));
    let space = if effect.is_empty() { "" } else { " " };
    let (about, advice) = (printable(about), printable(advice));
    format!("{about}: {}{space}{advice}\n{}", printable(effect), lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use kms_proxy::status::{Chain, Forecast, Savings};

    use super::*;

    #[test]
    fn the_tables_are_followed_by_what_to_do_and_what_was_saved() {
        let chain = Chain {
            chain: "orders".to_owned(),
            suite: "aes-128-gcm".to_owned(),
            primary: Some("01".to_owned()),
            keks: Some(3),
            uses_reserved: 16,
            rotate_after_uses: 100,
            max_uses: 200,
            rotate_after_age: 7_776_000,
            next_rotation: Some(Forecast {
                in_seconds: 90,
                reason: "uses".to_owned(),
                ..Forecast::default()
            }),
            encrypts_per_second: 1.5,
            root_calls: 1,
            avoided: 20,
            ..Chain::default()
        };
        let check = kms_proxy::status::Check {
            name: "root:main".to_owned(),
            status: "degraded".to_owned(),
            detail: Some("away\u{1b}[2J".to_owned()),
        };
        let mut status = Status {
            status: "degraded".to_owned(),
            uptime_seconds: 3_600,
            checks: vec![check],
            chains: vec![chain],
            savings: Some(Savings {
                avoided: 20,
                currency: "USD".to_owned(),
                ..Savings::default()
            }),
            ..Status::default()
        };
        status.conclude();
        let text = text(&status);
        let expected = "\
CHECK      STATUS    DETAIL
all        degraded
root:main  degraded  away [2J

CHAIN   SUITE        KEKS  ROTATE AT  MAX USES  MAX AGE  INLINE  PRIMARY  STANDBY
orders  aes-128-gcm  3     100        200       90d      no      01       -

CHAIN   USES  NEXT ROTATION         ENCRYPTS/S  DECRYPTS/S  ROOT CALLS  AVOIDED
orders  16    in 1 min 30 s (uses)  1.5         0           1           20

Root main needs attention.

root:main: ";
        assert!(text.starts_with(expected), "{text}");
        let end = "\n\nRoot calls in 1 h: 0 made, 20 avoided, USD 0.00 saved\n";
        assert!(text.contains("\n  kms-proxy root status\n") && text.ends_with(end), "{text}");
    }
}
