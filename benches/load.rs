//! How many requests a second kms-proxy answers, and what each costs: next to bare axum handlers,
//! next to OpenBao, over HTTPS, with raw bodies, beside large batches, through the AWS KMS API, and
//! with the audit log and archives.
//!
//! The real binary and the others run side by side on one machine. One client drives them in turns,
//! in many short windows, and the medians are compared. Each comparison is a part:
//! `cargo bench --bench load -- --https` measures one alone. `benches/load/results.rs` writes the
//! tables to `benches/results`.

#![expect(clippy::indexing_slicing, reason = "a benchmark may end in a panic")]

#[path = "load/aws.rs"]
mod aws;
#[allow(
    dead_code,
    clippy::panic,
    clippy::unwrap_used,
    reason = "others need the rest, and it is made for tests"
)]
#[path = "../tests/it/support/bao.rs"]
mod bao;
#[path = "load/bare.rs"]
mod bare;
#[path = "load/batches.rs"]
mod batches;
#[path = "load/driver.rs"]
mod driver;
#[path = "load/https.rs"]
mod https;
#[path = "load/openbao.rs"]
mod openbao;
#[path = "load/options.rs"]
mod options;
#[allow(dead_code, clippy::unwrap_used, reason = "it is made for tests")]
#[path = "../tests/it/support/pki.rs"]
mod pki;
#[allow(clippy::expect_used, clippy::unwrap_used, reason = "it is made for tests")]
#[path = "../tests/it/support/ports.rs"]
mod ports;
#[path = "load/raw.rs"]
mod raw;
#[path = "load/results.rs"]
mod results;

fn main() -> anyhow::Result<()> {
    if std::env::args().any(|argument| argument == bare::SERVE) {
        return tokio::runtime::Runtime::new()?.block_on(bare::serve());
    }
    let parts = ["bare", "openbao", "raw", "batches", "https", "aws", "options"];
    let options = results::Options::read(&parts)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        for part in parts.into_iter().filter(|part| options.asks(part)) {
            match part {
                "bare" => bare::compare(&options).await?,
                "openbao" => openbao::compare(&options).await?,
                "raw" => raw::compare(&options).await?,
                "batches" => batches::compare(&options).await?,
                "https" => https::compare(&options).await?,
                "aws" => aws::compare(&options).await?,
                _ => options::compare(&options).await?,
            }
        }
        Ok(())
    })
}
