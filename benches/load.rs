//! How many requests a second kms-proxy answers, next to bare axum handlers on the same machine.
//!
//! The real binary and a server of bare handlers run side by side; one client thread with 32
//! connections drives them in turns, in many short windows, and the medians are compared. The
//! handlers form a ladder, so that the table tells where the time goes: JSON, base64,
//! cryptography, and all the rest of a real service. Then HTTPS next to plain HTTP, and handshakes,
//! the AWS KMS API next to `/v1/encrypt`, and the audit log and archives next to a service without.

#![expect(clippy::indexing_slicing, reason = "a benchmark may end in a panic")]

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use axum::Json;
use axum::extract::State;
use axum::routing::post;
use base64_simd::STANDARD;
use kms_proxy::{id::ChainName, id::Suite, keychain::KeyChain};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

#[path = "load/aws.rs"]
mod aws;
#[allow(dead_code, reason = "others need the rest of it")]
#[path = "load/driver.rs"]
mod driver;
#[path = "load/https.rs"]
mod https;
#[path = "load/options.rs"]
mod options;
#[allow(dead_code, clippy::unwrap_used, reason = "it is made for tests")]
#[path = "../tests/it/support/pki.rs"]
mod pki;

use driver::{CONNECTIONS, Driver, Server, exchange, kms_proxy, median, request};

/// Windows of each kind with one pair of servers, and pairs.
const WINDOWS: usize = 3;
const PAIRS: usize = 7;
/// Fresh envelopes for each window of decrypts: about as many as are opened in one, so that hardly
/// any is opened twice and comes from the DEK cache.
const ENVELOPES: usize = 40_000;
/// Envelopes that are made in one request.
const BATCH: usize = 500;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--bare-server") {
        return tokio::runtime::Runtime::new()?.block_on(bare_server());
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        // `cargo bench --bench load -- --https` does that part alone, and so on.
        let parts = ["--bare", "--https", "--aws", "--options"];
        let is_asked = |part: &str| arguments.iter().any(|argument| argument == part);
        let asks = |part: &str| is_asked(part) || !parts.into_iter().any(is_asked);
        if asks("--bare") {
            compare().await?;
        }
        if asks("--https") {
            https::compare().await?;
        }
        if asks("--aws") {
            aws::compare().await?;
        }
        if asks("--options") {
            options::compare().await?;
        }
        Ok(())
    })
}

/// The bare handlers, on the same runtime as the real service.
async fn bare_server() -> anyhow::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Body {
        plaintext: String,
    }
    #[derive(Serialize)]
    struct Sealed {
        ciphertext: String,
    }
    let chain = KeyChain::generate(ChainName::new("bench")?, Suite::Aes128Gcm)?;
    let chain = std::sync::Arc::new(std::sync::Mutex::new(std::sync::Arc::new(chain)));
    let seal = async |State(chain): State<
        std::sync::Arc<std::sync::Mutex<std::sync::Arc<KeyChain>>>,
    >,
                      Json(body): Json<Body>| {
        let plaintext = STANDARD.decode_to_vec(&body.plaintext).unwrap_or_default();
        let current = std::sync::Arc::clone(&chain.lock().unwrap_or_else(|e| e.into_inner()));
        let envelope = match current.encrypt(&plaintext, b"") {
            Ok(envelope) => envelope,
            Err(_) => {
                // Its uses are spent: a new one.
                let name = current.name().clone();
                if let Ok(fresh) = KeyChain::generate(name, Suite::Aes128Gcm) {
                    *chain.lock().unwrap_or_else(|e| e.into_inner()) = std::sync::Arc::new(fresh);
                }
                Vec::new()
            }
        };
        Json(Sealed { ciphertext: kms_proxy::envelope::to_text(&envelope) })
    };
    let router = axum::Router::new()
        .route("/constant", post(async || r#"{"status":"ok"}"#))
        .route("/json", post(async |body: Json<Body>| body))
        .route(
            "/base64",
            post(async |Json(body): Json<Body>| {
                let bytes = STANDARD.decode_to_vec(&body.plaintext).unwrap_or_default();
                Json(Body { plaintext: STANDARD.encode_to_string(bytes) })
            }),
        )
        .route("/seal", post(seal))
        .with_state(chain);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    axum::serve(listener, router).await?;
    Ok(())
}

fn bare() -> anyhow::Result<Server> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("--bare-server")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let stdout = child.stdout.take().ok_or_else(|| anyhow::anyhow!("no stdout"))?;
    BufReader::new(stdout).read_line(&mut line)?;
    Ok(Server { child, address: line.trim().parse()? })
}

/// The text forms of fresh envelopes.
async fn envelopes(address: SocketAddr, body: &str) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Made {
        results: Vec<Encrypted>,
    }
    #[derive(Deserialize)]
    struct Encrypted {
        ciphertext: String,
    }
    let (mut stream, mut buffer) = (TcpStream::connect(address).await?, Vec::new());
    let items = vec![body; BATCH].join(",");
    let request = request("/v1/batch/encrypt", &format!(r#"{{"items":[{items}]}}"#));
    let mut made = Vec::new();
    while made.len() < ENVELOPES {
        let start = exchange(&mut stream, &request, &mut buffer).await?;
        let answer: Made = serde_json::from_slice(&buffer[start..])?;
        made.extend(answer.results.into_iter().map(|result| result.ciphertext));
    }
    Ok(made)
}

/// What came of one kind of request.
struct Rung {
    name: &'static str,
    /// Requests a second, one number a window.
    rates: Vec<f64>,
    /// Requests, and seconds of the server's processors.
    total: (f64, f64),
}

/// The ladder, from the top down: name, path, and whether kms-proxy answers it. The ratios are to
/// [`BASE`]; a decrypt, whose request is larger, has a base of its own.
const LADDER: [(&str, &str, bool); 7] = [
    ("bare: constant answer", "/constant", false),
    ("bare: JSON in and out", "/json", false),
    ("bare: JSON and base64", "/base64", false),
    ("bare: JSON, base64, seal", "/seal", false),
    ("kms-proxy /v1/encrypt", "/v1/encrypt", true),
    ("bare: JSON as large as a decrypt's", "/json", false),
    ("kms-proxy /v1/decrypt", "/v1/decrypt", true),
];
const BASE: usize = 1;
const DECRYPT_BASE: usize = 5;
const DECRYPT: usize = 6;

async fn compare() -> anyhow::Result<()> {
    println!("requests a second, {CONNECTIONS} connections; medians of interleaved windows,");
    println!("{WINDOWS} with each of {PAIRS} fresh pairs of servers");
    println!("ratio: to the bare handler that reads and answers JSON of the same size\n");
    println!("{:>9}  {:<34} {:>9}  {:>5}  {:>7}", "plaintext", "", "1/s", "ratio", "CPU us");
    for size in [256, 4096] {
        let body = format!(r#"{{"plaintext":"{}"}}"#, STANDARD.encode_to_string(vec![7; size]));
        let mut rungs =
            LADDER.map(|(name, ..)| Rung { name, rates: Vec::new(), total: (0.0, 0.0) });
        for _ in 0..PAIRS {
            climb(&body, &mut rungs).await?;
        }
        for (index, rung) in rungs.iter().enumerate() {
            let base = &rungs[if index < DECRYPT_BASE { BASE } else { DECRYPT_BASE }].rates;
            let ratios = rung.rates.iter().zip(base).map(|(rate, base)| rate / base).collect();
            println!(
                "{size:>9}  {:<34} {:>9.0}  {:>6.3}  {:>7.2}",
                rung.name,
                median(rung.rates.clone()),
                median(ratios),
                rung.total.1 / rung.total.0 * 1e6
            );
        }
    }
    Ok(())
}

/// All rungs with one pair of servers: how a process happens to lie in memory is worth 15 %, so one
/// pair alone says little.
async fn climb(body: &str, rungs: &mut [Rung]) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (bare, ours) = (bare()?, kms_proxy(directory.path(), &[]).await?);
    let mut drivers = Vec::new();
    for (_, path, is_ours) in LADDER {
        let server = if is_ours { &ours } else { &bare };
        drivers.push(Driver::new(server, vec![request(path, body)]).await?);
    }
    // The first round warms everything up and does not count.
    for round in 0..=WINDOWS {
        // Both get the same bodies: what the caches of the processor cost is shared.
        let fresh = envelopes(ours.address, body).await?;
        for (index, field) in [(DECRYPT_BASE, "plaintext"), (DECRYPT, "ciphertext")] {
            let bodies = fresh.iter().map(|text| format!(r#"{{"{field}":"{text}"}}"#));
            let requests: Vec<_> = bodies.map(|body| request(LADDER[index].1, &body)).collect();
            drivers[index].requests = requests.into();
        }
        drop(fresh);
        for (driver, rung) in drivers.iter_mut().zip(&mut *rungs) {
            let (rate, requests, cpu) = driver.window().await?;
            if round > 0 {
                rung.rates.push(rate);
                rung.total.0 += requests;
                rung.total.1 += cpu;
            }
        }
    }
    Ok(())
}
