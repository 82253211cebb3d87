//! Encrypt of the AWS KMS API, whose signatures are verified, next to `/v1/encrypt`: with a token
//! on the same service, and without an identity on another one.

use std::process::Command;

use base64_simd::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::driver::{CONNECTIONS, Driver, kms_proxy, median, request};

/// Windows of each kind with one service, and services.
const WINDOWS: usize = 5;
const SERVICES: usize = 7;
const SIZES: [usize; 2] = [256, 4096];

const ID: &str = "KPBENCH";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const SCOPE: [&str; 3] = ["us-east-1", "kms", "aws4_request"];

/// How a call is authenticated: the lines of the table.
const KINDS: [&str; 3] =
    ["/v1/encrypt, no identity", "/v1/encrypt, token", "AWS Encrypt, Signature Version 4"];

/// What came of one kind of call with one size.
#[derive(Default)]
struct Rates {
    /// Calls a second, one number a window.
    rates: Vec<f64>,
    /// Calls, and seconds of the server's processors.
    total: (f64, f64),
}

/// Prints the table.
pub(crate) async fn compare() -> anyhow::Result<()> {
    println!(
        "\nEncrypt of the AWS KMS API next to /v1/encrypt: calls a second over {CONNECTIONS} kept \
         connections;"
    );
    println!("ratios: of the AWS KMS API to each line, medians of interleaved windows\n");
    println!("{:>9}  {:<34} {:>9}  {:>5}  {:>7}", "plaintext", "", "1/s", "ratio", "CPU us");
    let mut all = SIZES.map(|_| KINDS.map(|_| Rates::default()));
    for _ in 0..SERVICES {
        let directory = tempfile::tempdir()?;
        let (token, digest) = token()?;
        let secret = directory.path().join("secret");
        std::fs::write(&secret, SECRET)?;
        let allow = "[{chains=[\"*\"], operations=[\"encrypt\"]}]".to_owned();
        let settings = [
            ("AUTH__MODE", "required".to_owned()),
            ("AWS_API__ENABLED", "true".to_owned()),
            ("CLIENT__0__NAME", "token".to_owned()),
            ("CLIENT__0__TOKEN_SHA256", digest),
            ("CLIENT__0__ALLOW", allow.clone()),
            ("CLIENT__1__NAME", "signature".to_owned()),
            ("CLIENT__1__AWS_ACCESS_KEY_ID", ID.to_owned()),
            ("CLIENT__1__AWS_SECRET_ACCESS_KEY_FILE", secret.display().to_string()),
            ("CLIENT__1__ALLOW", allow),
        ];
        let open = kms_proxy(&directory.path().join("open"), &[]).await?;
        let service = kms_proxy(&directory.path().join("data"), &settings).await?;
        for (size, all) in SIZES.into_iter().zip(&mut all) {
            // The AWS KMS API takes 4,096 bytes at most, so no more are compared.
            let text = STANDARD.encode_to_string(vec![7; size]);
            let plain = request("/v1/encrypt", &format!(r#"{{"plaintext":"{text}"}}"#));
            let with_token = with_header(&plain, &format!("authorization: Bearer {token}"));
            let signed = sign(&format!(r#"{{"KeyId":"default","Plaintext":"{text}"}}"#))?;
            let mut drivers = [
                Driver::new(&open, vec![plain]).await?,
                Driver::new(&service, vec![with_token]).await?,
                Driver::new(&service, vec![signed]).await?,
            ];
            // The first round warms everything up and does not count.
            for round in 0..=WINDOWS {
                for (driver, kind) in drivers.iter_mut().zip(&mut *all) {
                    let (rate, calls, cpu) = driver.window().await?;
                    if round > 0 {
                        kind.rates.push(rate);
                        kind.total.0 += calls;
                        kind.total.1 += cpu;
                    }
                }
            }
        }
    }
    for (size, [open, token, aws]) in SIZES.into_iter().zip(&all) {
        for (name, kind) in KINDS.into_iter().zip([open, token, aws]) {
            let ratios = aws.rates.iter().zip(&kind.rates).map(|(aws, kind)| aws / kind);
            println!(
                "{size:>9}  {name:<34} {:>9.0}  {:>5.3}  {:>7.2}",
                median(kind.rates.clone()),
                median(ratios.collect()),
                kind.total.1 / kind.total.0 * 1e6
            );
        }
    }
    Ok(())
}

/// A token, and its digest.
fn token() -> anyhow::Result<(String, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_kms-proxy")).args(["token", "new"]).output()?;
    let token = String::from_utf8(output.stdout)?.trim().to_owned();
    let digest = base16ct::lower::encode_string(&Sha256::digest(&token));
    Ok((token, digest))
}

/// A request with one more header.
fn with_header(request: &[u8], header: &str) -> Vec<u8> {
    String::from_utf8_lossy(request)
        .replacen("\r\n\r\n", &format!("\r\n{header}\r\n\r\n"), 1)
        .into_bytes()
}

/// A call of Encrypt, signed as AWS documents it.
fn sign(body: &str) -> anyhow::Result<Vec<u8>> {
    let date = Command::new("date").args(["-u", "+%Y%m%dT%H%M%SZ"]).output()?.stdout;
    let date = String::from_utf8(date)?.trim().to_owned();
    let day = date.get(..8).unwrap_or_default();
    let hex = |bytes: &[u8]| base16ct::lower::encode_string(bytes);
    let (names, target) = ("host;x-amz-date;x-amz-target", "TrentService.Encrypt");
    let canonical = format!(
        "POST\n/\n\nhost:localhost\nx-amz-date:{date}\nx-amz-target:{target}\n\n{names}\n{}",
        hex(&Sha256::digest(body))
    );
    let scope = format!("{day}/{}", SCOPE.join("/"));
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in [day, SCOPE[0], SCOPE[1], SCOPE[2], &text] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&key)?;
        mac.update(part.as_bytes());
        key = mac.finalize().into_bytes().to_vec();
    }
    Ok(format!(
        "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-amz-json-1.1\r\n\
         x-amz-target: {target}\r\nx-amz-date: {date}\r\nauthorization: AWS4-HMAC-SHA256 \
         Credential={ID}/{scope}, SignedHeaders={names}, Signature={}\r\n\
         content-length: {}\r\n\r\n{body}",
        hex(&key),
        body.len()
    )
    .into_bytes())
}
