//! What three real replicas cost a real etcd and their root, next to what the simulation of
//! src/service/tests/scaling.rs says about the same load; and the memory of a replica by its chains
//! and KEKs.
//!
//! `make scaling` runs the simulation first. Its figures are then in target/scaling.json.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark may end in a panic"
)]

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

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

use driver::{Server, connect, exchange, kms_proxy, request};
use etcd::Etcd;
use results::{Column, Options, Table, row};

/// The load: `make scaling` simulates the same.
const REPLICAS: usize = 3;
const PER_SECOND: usize = 1_000;
const ROTATE_AFTER: u64 = 1 << 16;
const STEP: Duration = Duration::from_millis(500);
const WARM: Duration = Duration::from_secs(30);
const MEASURED: Duration = Duration::from_secs(240);
/// The simulation is right if no figure differs by more than this factor.
const AGREES: f64 = 1.5;
/// What is rarer than this, in a second, is too rare for a comparison.
const RARE: f64 = 0.02;

const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/scaling.json");

const COLUMNS: [Column; 4] = [
    ("figure", "in a second", 0),
    ("measured", "measured", 2),
    ("simulated", "simulated", 2),
    ("ratio", "ratio", 2),
];
const MEMORY_COLUMNS: [Column; 3] =
    [("chains", "chains", 0), ("keks", "KEKs in memory", 0), ("mib", "MiB", 1)];

fn main() -> anyhow::Result<()> {
    let options = Options::read(&["load", "memory"])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if options.asks("load") {
            load(&options).await?;
        }
        if options.asks("memory") {
            memory(&options).await?;
        }
        Ok(())
    })
}

/// A replica on `etcd`. All have the same root key.
async fn replica(
    etcd: &Etcd,
    directory: &std::path::Path,
    name: &str,
    more: &[(&'static str, String)],
) -> anyhow::Result<Server> {
    let settings = [
        ("STORE__KIND", "etcd".to_owned()),
        ("STORE__ENDPOINTS", etcd.url()),
        ("ROOT__0__KIND", "local".to_owned()),
        ("ROOT__0__NAME", "main".to_owned()),
        ("ROOT__0__KEY_FILE", directory.join("root.key").display().to_string()),
    ];
    let settings = [&settings[..], more].concat();
    kms_proxy(&directory.join(name), &settings).await
}

fn batch(items: usize) -> Vec<u8> {
    let items = vec![r#"{"plaintext":"AAAA"}"#; items].join(",");
    request("/v1/batch/encrypt", &format!(r#"{{"items":[{items}]}}"#))
}

async fn send(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<()> {
    let mut buffer = Vec::new();
    let start = exchange(stream, request, &mut buffer).await?;
    anyhow::ensure!(!buffer[start..].windows(7).any(|part| part == b"\"error\""), "one failed");
    Ok(())
}

async fn load(options: &Options) -> anyhow::Result<()> {
    let (etcd, directory) = (Etcd::durable().await, tempfile::tempdir()?);
    let limits = [
        ("CHAIN__ROTATE_AFTER_USES", ROTATE_AFTER.to_string()),
        ("CHAIN__MAX_USES", (2 * ROTATE_AFTER).to_string()),
    ];
    let mut replicas = Vec::new();
    for name in ["a", "b", "c"].iter().take(REPLICAS) {
        replicas.push(replica(&etcd, directory.path(), name, &limits).await?);
    }
    let mut clients = Vec::new();
    for (index, replica) in replicas.iter().enumerate() {
        let mut stream = connect(replica).await?;
        let pause = STEP * index as u32 / REPLICAS as u32;
        clients.push(tokio::spawn(async move {
            let request = batch(PER_SECOND * STEP.as_millis() as usize / 1000);
            tokio::time::sleep(pause).await;
            let mut ticks = tokio::time::interval(STEP);
            loop {
                ticks.tick().await;
                if let Err(error) = send(&mut stream, &request).await {
                    return error;
                }
            }
        }));
    }
    tokio::time::sleep(WARM).await;
    let (before, began) = (Counted::now(&etcd, &replicas).await?, Instant::now());
    let measured = if options.is_quick { MEASURED / 8 } else { MEASURED };
    tokio::time::sleep(measured).await;
    let (after, took) = (Counted::now(&etcd, &replicas).await?, began.elapsed().as_secs_f64());
    for client in clients {
        anyhow::ensure!(!client.is_finished(), "{}", client.await?);
        client.abort();
    }
    let simulated = std::fs::read_to_string(FIGURES).ok();
    let simulated: serde_json::Value = serde_json::from_str(simulated.as_deref().unwrap_or("{}"))?;
    let about = format!(
        "{REPLICAS} replicas that each encrypt {PER_SECOND} times a second, in two batches, and \
         rotate after {ROTATE_AFTER} uses, for {took:.0} s; next to the simulation of the same."
    );
    let (mut table, mut wrong) = (Table::new("scaling", about, &COLUMNS), Vec::new());
    for ((name, before), (_, after)) in before.0.iter().zip(&after.0) {
        let measured = (after - before) / took;
        let of_simulation = simulated[*name].as_f64();
        let ratio = of_simulation.map(|it| measured / it);
        let is_rare = measured < RARE && of_simulation.is_none_or(|it| it < RARE);
        if !is_rare && ratio.is_some_and(|it| !(1.0 / AGREES..=AGREES).contains(&it)) {
            wrong.push(*name);
        }
        table.push(row![*name, measured, of_simulation, ratio]);
    }
    options.show(&table)?;
    let memory: Vec<_> = replicas.iter().map(|it| format!("{:.1}", it.memory())).collect();
    println!("resident memory of the replicas: {} MiB", memory.join(", "));
    anyhow::ensure!(wrong.is_empty(), "the simulation differs by more than {AGREES}: {wrong:?}");
    Ok(())
}

/// What has happened since the start, by name.
struct Counted(Vec<(&'static str, f64)>);

impl Counted {
    async fn now(etcd: &Etcd, replicas: &[Server]) -> anyhow::Result<Self> {
        let mut of_replicas = String::new();
        for replica in replicas {
            of_replicas.push_str(&metrics(replica.address).await?);
        }
        let of_etcd = metrics(([127, 0, 0, 1], etcd.port).into()).await?;
        let ours = |name: &str| sum(&of_replicas, name);
        let calls = |operation: &str| {
            let name = "kms_proxy_store_call_duration_seconds_count";
            ours(&format!("{name}{{operation=\"{operation}\""))
        };
        let of_root = |operation: &str| {
            let calls = lines(&of_replicas, "kms_proxy_root_calls_total");
            let asked = format!("operation=\"{operation}\"");
            calls.filter(|(labels, _)| labels.contains(&asked)).map(|(_, it)| it).sum::<f64>()
        };
        let reserved = |outcome: &str| {
            let calls = lines(&of_replicas, "kms_proxy_reservations_total");
            let asked = format!("outcome=\"{outcome}\"");
            calls.filter(|(labels, _)| labels.contains(&asked)).map(|(_, it)| it).sum::<f64>()
        };
        Ok(Self(vec![
            ("reads", calls("get") + calls("list") + calls("count")),
            ("transactions", calls("commit")),
            ("writes", revision(etcd)?),
            ("blocks", reserved("ok")),
            ("events", sum(&of_etcd, "etcd_debugging_mvcc_events_total")),
            ("sent", sum(&of_etcd, "etcd_network_client_grpc_sent_bytes_total")),
            ("wraps", of_root("wrap")),
            ("unwraps", of_root("unwrap")),
        ]))
    }
}

async fn metrics(address: std::net::SocketAddr) -> anyhow::Result<String> {
    let (mut stream, mut buffer) = (TcpStream::connect(address).await?, Vec::new());
    let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let start = exchange(&mut stream, request, &mut buffer).await?;
    Ok(String::from_utf8_lossy(&buffer[start..]).into_owned())
}

/// The labels and the value of each series of a metric.
fn lines<'a>(metrics: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    metrics.lines().filter_map(move |line| {
        let (series, value) = line.rsplit_once(' ')?;
        Some((series.strip_prefix(name)?, value.parse().ok()?))
    })
}

fn sum(metrics: &str, name: &str) -> f64 {
    lines(metrics, name).map(|(_, value)| value).sum()
}

/// etcd's revision: it grows by one with every write.
fn revision(etcd: &Etcd) -> anyhow::Result<f64> {
    let status = etcd.ctl(&["endpoint", "status", "--write-out=json"]);
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let revision = status[0]["Status"]["header"]["revision"].as_f64();
    revision.ok_or_else(|| anyhow::anyhow!("no revision: {status}"))
}

/// The resident memory of a replica with many chains, and with many KEKs.
async fn memory(options: &Options) -> anyhow::Result<()> {
    let about = "Resident memory of a replica by its chains and KEKs in memory. Its chains are \
        idle; the KEKs are those of one chain that encrypted under each of them.";
    let mut table = Table::new("memory-by-chains", about.to_owned(), &MEMORY_COLUMNS);
    for chains in [1, 10, 100, 1_000] {
        let (etcd, directory) = (Etcd::start().await, tempfile::tempdir()?);
        let names: Vec<_> = (1..chains).map(|number| format!("chain-{number}")).collect();
        let settings = [("CHAIN__NAMES", names.join(","))];
        let settings = if chains > 1 { &settings[..] } else { &[] };
        let server = replica(&etcd, directory.path(), "a", settings).await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        table.push(row![chains, chains, server.memory()]);
    }
    let (etcd, directory) = (Etcd::start().await, tempfile::tempdir()?);
    let settings =
        [("CHAIN__ROTATE_AFTER_USES", "1000".to_owned()), ("CHAIN__MAX_USES", "2000".to_owned())];
    let server = replica(&etcd, directory.path(), "a", &settings).await?;
    let mut stream = connect(&server).await?;
    for thousands in if options.is_quick { vec![1] } else { vec![1, 4] } {
        let mut keks = 0;
        while keks < thousands * 1_000 {
            send(&mut stream, &batch(1_000)).await?;
            let text = metrics(server.address).await?;
            keks = sum(&text, "kms_proxy_rotations_total") as usize + 1;
        }
        table.push(row![1, keks, server.memory()]);
    }
    Ok(options.show(&table)?)
}
