//! What a slow root costs callers that encrypt: the p99 of encrypts while a rotation waits for a root
//! that answers after two seconds, next to that of the moments without a rotation, in one run.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark may end in a panic"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[allow(dead_code, reason = "others need the rest of it")]
#[path = "load/driver.rs"]
mod driver;
#[allow(dead_code, reason = "others need the rest of it")]
#[path = "../tests/it/support/kms.rs"]
mod kms;
#[allow(dead_code, reason = "others need the rest of it")]
#[path = "load/results.rs"]
mod results;

use driver::{CONNECTIONS, Driver, exchange, kms_proxy, median, request};
use kms::{Moto, REGION};
use results::{Column, Options, Table, row};

/// How long the root takes.
const SLOW: Duration = Duration::from_secs(2);
/// Pairs of windows: a chain takes ten rotations by hand a minute.
const PAIRS: usize = 8;

const COLUMNS: [Column; 3] =
    [("rotation", "rotation", 0), ("p99_us", "p99 us", 0), ("ratio", "ratio", 2)];

fn main() -> anyhow::Result<()> {
    let options = Options::read(&[])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(compare(&options))
}

async fn compare(options: &Options) -> anyhow::Result<()> {
    let pairs = options.times(PAIRS);
    let moto = Moto::start();
    let key = moto.create_key().await;
    let root = slow_line(moto.address).await?;
    let directory = tempfile::tempdir()?;
    let settings = [
        ("ROOT__0__NAME", "main".to_owned()),
        ("ROOT__0__KIND", "aws-kms".to_owned()),
        ("ROOT__0__KEY_ID", key),
        ("ROOT__0__ENDPOINT", format!("http://{root}")),
        ("ROOT__0__TIMEOUT", "14s".to_owned()),
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
    ];
    let server = kms_proxy(directory.path(), &settings).await?;
    let body = format!(r#"{{"plaintext":"{}"}}"#, base64_simd::STANDARD.encode_to_string([7; 256]));
    let encrypt = request("/v1/encrypt", &body);
    let (mut stream, mut buffer) = (TcpStream::connect(server.address).await?, Vec::new());
    // The first KEK has to come from the slow root as well.
    exchange(&mut stream, &encrypt, &mut buffer).await?;
    let mut driver = Driver::new(&server, vec![encrypt]).await?.lasting(SLOW);
    driver.window().await?;

    let (mut quiet, mut rotating) = (Vec::new(), Vec::new());
    let rotate = request("/v1/rotate", "{}");
    for _ in 0..pairs {
        quiet.push(driver.window().await?.quantile(0.99));
        let began = Instant::now();
        let (window, rotated) =
            tokio::join!(driver.window(), exchange(&mut stream, &rotate, &mut buffer));
        rotating.push(window?.quantile(0.99));
        rotated?;
        anyhow::ensure!(began.elapsed() >= SLOW, "the root was not slow");
    }
    let ratios = rotating.iter().zip(&quiet).map(|(one, other)| one / other).collect();
    let about = format!(
        "p99 of encrypts of 256 B over {CONNECTIONS} connections, without a rotation and while one \
         waits 2 s for the root, medians of {pairs} windows of 2 s each."
    );
    let mut table = Table::new("rotation", about, &COLUMNS);
    table.push(row!["none", median(quiet), 1.0]);
    table.push(row!["waits for 2 s", median(rotating), median(ratios)]);
    Ok(options.show(&table)?)
}

/// A line to `server` on which each answer takes its time.
async fn slow_line(server: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(server) = TcpStream::connect(server).await else { return };
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                });
                let mut buffer = vec![0; 16 << 10];
                while let Ok(len @ 1..) = from_server.read(&mut buffer).await {
                    tokio::time::sleep(SLOW).await;
                    if to_client.write_all(&buffer[..len]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}
