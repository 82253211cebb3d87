//! What a shared store costs, and what inline KEKs cost, which need no store: a replica on etcd and
//! one without a store next to one on the file store, in one run, and the writes to etcd for a
//! million encrypts.

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
#[allow(dead_code, reason = "others need the rest of it")]
#[path = "load/results.rs"]
mod results;

use driver::{CONNECTIONS, Driver, Server, Windows, connect, exchange, kms_proxy, request};
use etcd::Etcd;
use results::{Column, Options, Table, row};

/// Windows with one set of servers, and sets.
const WINDOWS: usize = 8;
const SETS: usize = 5;
/// Encrypts for the count of writes, as batches.
const ENCRYPTS: u64 = 2_000_000;
const BATCH: u64 = 1_000;

const COLUMNS: [Column; 6] = [
    ("call", "call", 0),
    ("store", "store", 0),
    ("rate", "1/s", 0),
    ("ratio", "ratio to file", 3),
    ("cpu_us", "CPU us", 1),
    ("p99_us", "p99 us", 0),
];
const WRITES_COLUMNS: [Column; 4] = [
    ("encrypts", "encrypts", 0),
    ("rate", "1/s", 0),
    ("writes", "writes to etcd", 0),
    ("writes_per_million", "for a million encrypts", 0),
];

fn main() -> anyhow::Result<()> {
    let options = Options::read(&[])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        rates(&options).await?;
        writes(&options).await
    })
}

fn on_etcd(etcd: &Etcd) -> [(&'static str, String); 2] {
    [("STORE__KIND", "etcd".to_owned()), ("STORE__ENDPOINTS", etcd.url())]
}

async fn rates(options: &Options) -> anyhow::Result<()> {
    let sets = options.times(SETS);
    let about = format!(
        "Calls with 256 B per second over {CONNECTIONS} connections, medians of {WINDOWS} \
         interleaved windows with each of {sets} fresh sets of servers. Every decrypt unwraps its \
         DEK."
    );
    let mut table = Table::new("stores", about, &COLUMNS);
    for operation in ["encrypt", "decrypt"] {
        compare(operation, sets, &mut table).await?;
    }
    Ok(options.show(&table)?)
}

async fn compare(operation: &str, sets: usize, table: &mut Table) -> anyhow::Result<()> {
    let body = format!(r#"{{"plaintext":"{}"}}"#, base64_simd::STANDARD.encode_to_string([7; 256]));
    let encrypt = request("/v1/encrypt", &body);
    let mut figures: [Windows; 3] = Default::default();
    for _ in 0..sets {
        let (etcd, directory) = (Etcd::durable().await, tempfile::tempdir()?);
        let inline = [("STORE__KIND", "inline".to_owned())];
        let (mut servers, mut drivers) = (Vec::new(), Vec::new());
        for (index, settings) in [&[][..], &on_etcd(&etcd), &inline].into_iter().enumerate() {
            let directory = directory.path().join(index.to_string());
            let settings = [settings, &[("CACHE__DEK_ENTRIES", "0".to_owned())]].concat();
            let server = kms_proxy(&directory, &settings).await?;
            let request = match operation {
                "encrypt" => encrypt.clone(),
                _ => decrypt(&server, &encrypt).await?,
            };
            drivers.push(Driver::new(&server, vec![request]).await?);
            servers.push(server);
        }
        for round in 0..=WINDOWS {
            for (driver, windows) in drivers.iter_mut().zip(&mut figures) {
                let window = driver.window().await?;
                if round > 0 {
                    windows.add(window);
                }
            }
        }
    }
    for (name, windows) in ["file", "etcd", "inline"].into_iter().zip(&figures) {
        let (ratio, p99) = (windows.ratio_to(&figures[0]), windows.quantile(0.99));
        table.push(row![operation, name, windows.rate(), ratio, windows.cpu_us(), p99]);
    }
    Ok(())
}

/// The request that decrypts what `encrypt` makes.
async fn decrypt(server: &Server, encrypt: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (mut stream, mut buffer) = (connect(server).await?, Vec::new());
    let start = exchange(&mut stream, encrypt, &mut buffer).await?;
    let made: serde_json::Value = serde_json::from_slice(&buffer[start..])?;
    Ok(request("/v1/decrypt", &serde_json::json!({"ciphertext": made["ciphertext"]}).to_string()))
}

async fn writes(options: &Options) -> anyhow::Result<()> {
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
    let per_million = writes as f64 * 1e6 / ENCRYPTS as f64;
    let about = "Writes to etcd of one replica whose only client sends batches of 1,000 items.";
    let mut table = Table::new("writes", about.to_owned(), &WRITES_COLUMNS);
    table.push(row![ENCRYPTS, rate, writes, per_million]);
    Ok(options.show(&table)?)
}

/// etcd's revision: it grows by one with every write.
fn revision(etcd: &Etcd) -> anyhow::Result<i64> {
    let status = etcd.ctl(&["endpoint", "status", "--write-out=json"]);
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let revision = status[0]["Status"]["header"]["revision"].as_i64();
    revision.ok_or_else(|| anyhow::anyhow!("no revision: {status}"))
}
