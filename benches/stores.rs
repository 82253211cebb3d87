//! What a shared store costs, and what none does, where each envelope carries its KEK along: a
//! replica on etcd and one without a store next to one on the file store, in one run, and the writes
//! to etcd for a million encrypts.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark may end in a panic"
)]

use std::time::Instant;

#[allow(dead_code, reason = "others need the rest of it")]
#[path = "load/driver.rs"]
mod driver;
#[allow(dead_code, reason = "others need the rest of it")]
#[path = "../tests/it/support/etcd.rs"]
mod etcd;
#[path = "../tests/it/support/ports.rs"]
mod ports;

use driver::{CONNECTIONS, Driver, Server, connect, exchange, kms_proxy, median, request};
use etcd::Etcd;

/// Windows with one set of servers, and sets.
const WINDOWS: usize = 8;
const SETS: usize = 5;
/// Encrypts for the count of writes, as batches.
const ENCRYPTS: u64 = 2_000_000;
const BATCH: u64 = 1_000;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        rates().await?;
        writes().await
    })
}

fn on_etcd(etcd: &Etcd) -> [(&'static str, String); 2] {
    [("STORE__KIND", "etcd".to_owned()), ("STORE__ENDPOINTS", etcd.url())]
}

async fn rates() -> anyhow::Result<()> {
    println!(
        "calls with 256 B a second, {CONNECTIONS} connections; medians of interleaved windows,"
    );
    println!("{WINDOWS} with each of {SETS} fresh sets of servers; every decrypt opens its DEK\n");
    for operation in ["encrypts", "decrypts"] {
        compare(operation).await?;
    }
    Ok(())
}

async fn compare(operation: &str) -> anyhow::Result<()> {
    let body = format!(r#"{{"plaintext":"{}"}}"#, base64_simd::STANDARD.encode_to_string([7; 256]));
    let encrypt = request("/v1/encrypt", &body);
    let (mut rates, mut ratios) = <([Vec<f64>; 3], [Vec<f64>; 3])>::default();
    for _ in 0..SETS {
        let (etcd, directory) = (Etcd::durable().await, tempfile::tempdir()?);
        let inline = [("STORE__KIND", "inline".to_owned())];
        let (mut servers, mut drivers) = (Vec::new(), Vec::new());
        for (index, settings) in [&[][..], &on_etcd(&etcd), &inline].into_iter().enumerate() {
            let directory = directory.path().join(index.to_string());
            let settings = [settings, &[("CACHE__DEK_ENTRIES", "0".to_owned())]].concat();
            let server = kms_proxy(&directory, &settings).await?;
            let request = match operation {
                "encrypts" => encrypt.clone(),
                _ => decrypt(&server, &encrypt).await?,
            };
            drivers.push(Driver::new(&server, vec![request]).await?);
            servers.push(server);
        }
        for round in 0..=WINDOWS {
            let mut window = [0.0; 3];
            for (driver, rate) in drivers.iter_mut().zip(&mut window) {
                *rate = driver.window().await?.0;
            }
            for (index, rate) in window.into_iter().enumerate().filter(|_| round > 0) {
                rates[index].push(rate);
                ratios[index].push(rate / window[0]);
            }
        }
    }
    println!("{operation}");
    for (name, (rates, ratios)) in
        ["file", "etcd", "inline"].iter().zip(rates.into_iter().zip(ratios))
    {
        println!("{name:>6} {:>9.0}  ratio {:.3}", median(rates), median(ratios));
    }
    println!();
    Ok(())
}

/// The request that decrypts what `encrypt` makes.
async fn decrypt(server: &Server, encrypt: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (mut stream, mut buffer) = (connect(server).await?, Vec::new());
    let start = exchange(&mut stream, encrypt, &mut buffer).await?;
    let made: serde_json::Value = serde_json::from_slice(&buffer[start..])?;
    Ok(request("/v1/decrypt", &serde_json::json!({"ciphertext": made["ciphertext"]}).to_string()))
}

async fn writes() -> anyhow::Result<()> {
    let (server, directory) = (Etcd::durable().await, tempfile::tempdir()?);
    let service = kms_proxy(directory.path(), &on_etcd(&server)).await?;
    let items = vec![r#"{"plaintext":"AAAA"}"#; BATCH as usize].join(",");
    let request = request("/v1/batch/encrypt", &format!(r#"{{"items":[{items}]}}"#));
    let (before, began) = (revision(&server)?, Instant::now());
    let mut stream = tokio::net::TcpStream::connect(service.address).await?;
    let mut buffer = Vec::new();
    for _ in 0..ENCRYPTS / BATCH {
        let start = exchange(&mut stream, &request, &mut buffer).await?;
        anyhow::ensure!(!buffer[start..].windows(7).any(|part| part == b"\"error\""), "one failed");
    }
    let writes = revision(&server)? - before;
    let rate = ENCRYPTS as f64 / began.elapsed().as_secs_f64();
    println!(
        "{writes} writes to etcd for {ENCRYPTS} encrypts at {rate:.0} a second: {:.0} for a million",
        writes as f64 * 1e6 / ENCRYPTS as f64
    );
    Ok(())
}

/// etcd's revision: it grows by one with every write.
fn revision(etcd: &Etcd) -> anyhow::Result<i64> {
    let status = etcd.ctl(&["endpoint", "status", "--write-out=json"]);
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let revision = status[0]["Status"]["header"]["revision"].as_i64();
    revision.ok_or_else(|| anyhow::anyhow!("no revision: {status}"))
}
