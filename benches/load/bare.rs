//! Bare axum handlers, and what requests cost next to them.
//!
//! The handlers form a ladder, so that the table shows where the time is spent: JSON, base64,
//! cryptography, and all the rest of a real service.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use base64_simd::STANDARD;
use kms_proxy::{id::ChainName, id::Suite, keychain::KeyChain};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use crate::driver::{CONNECTIONS, Driver, Server, Windows, exchange, kms_proxy, request};
use crate::results::{self, Column, Options, Table, row};

/// Windows of each kind with one pair of servers, and pairs.
const WINDOWS: usize = 3;
const PAIRS: usize = 7;
/// Fresh envelopes for each window of decrypts: about as many as are opened in one, so that hardly
/// any is opened twice and comes from the DEK cache.
const ENVELOPES: usize = 40_000;
/// Envelopes that are made in one request.
const BATCH: usize = 500;

/// The argument with which this program is the server of bare handlers.
pub(crate) const SERVE: &str = "--bare-server";

/// The bare handlers, on the same runtime as the real service.
pub(crate) async fn serve() -> anyhow::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Body {
        plaintext: String,
    }
    #[derive(Serialize)]
    struct Sealed {
        ciphertext: String,
    }
    let chain = KeyChain::generate(ChainName::new("bench")?, Suite::Aes128Gcm)?;
    let chain = Arc::new(Mutex::new(Arc::new(chain)));
    let seal = async |State(chain): State<Arc<Mutex<Arc<KeyChain>>>>, Json(body): Json<Body>| {
        let plaintext = STANDARD.decode_to_vec(&body.plaintext).unwrap_or_default();
        let current = Arc::clone(&chain.lock().unwrap_or_else(|e| e.into_inner()));
        let envelope = match current.encrypt(&plaintext, b"") {
            Ok(envelope) => envelope,
            Err(_) => {
                // Its uses are spent: a new one.
                let name = current.name().clone();
                if let Ok(fresh) = KeyChain::generate(name, Suite::Aes128Gcm) {
                    *chain.lock().unwrap_or_else(|e| e.into_inner()) = Arc::new(fresh);
                }
                Vec::new()
            }
        };
        Json(Sealed { ciphertext: kms_proxy::envelope::to_text(&envelope) })
    };
    let router = axum::Router::new()
        .route("/constant", post(async || r#"{"status":"ok"}"#))
        .route("/echo", post(async |body: Bytes| body))
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

/// Starts this program as the server of the bare handlers.
pub(crate) fn start() -> anyhow::Result<Server> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.arg(SERVE).stdout(Stdio::piped()).spawn()?;
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

/// The ladder, from the top down: name, path, and whether kms-proxy answers it. The ratios are to
/// [`BASE`]; a decrypt, whose request is larger, has its own base.
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

const COLUMNS: [Column; 6] = [
    ("plaintext", "plaintext", 0),
    ("handler", "handler", 0),
    ("rate", "1/s", 0),
    ("ratio", "ratio to bare JSON", 3),
    ("cpu_us", "CPU us", 1),
    ("p99_us", "p99 us", 0),
];

/// Measures the ladder.
pub(crate) async fn compare(options: &Options) -> anyhow::Result<()> {
    let pairs = options.times(PAIRS);
    let about = format!(
        "Requests per second over {CONNECTIONS} connections, medians of interleaved windows, \
         {WINDOWS} with each of {pairs} fresh pairs of servers. The ratio is to the bare handler \
         that reads and answers JSON of the same size."
    );
    let mut table = Table::new("bare", about, &COLUMNS);
    for size in [256, 4096] {
        let body = format!(r#"{{"plaintext":"{}"}}"#, STANDARD.encode_to_string(vec![7; size]));
        let mut rungs = LADDER.map(|_| Windows::default());
        for _ in 0..pairs {
            climb(&body, &mut rungs).await?;
        }
        for (index, (rung, (name, ..))) in rungs.iter().zip(LADDER).enumerate() {
            let base = &rungs[if index < DECRYPT_BASE { BASE } else { DECRYPT_BASE }];
            let (ratio, p99) = (rung.ratio_to(base), rung.quantile(0.99));
            table.push(row![results::size(size), name, rung.rate(), ratio, rung.cpu_us(), p99]);
        }
    }
    Ok(options.show(&table)?)
}

/// All rungs with one pair of servers: how a process happens to lie in memory is worth 15 %, so one
/// pair alone says little.
async fn climb(body: &str, rungs: &mut [Windows]) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (bare, ours) = (start()?, kms_proxy(directory.path(), &[]).await?);
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
            let window = driver.window().await?;
            if round > 0 {
                rung.add(window);
            }
        }
    }
    Ok(())
}
