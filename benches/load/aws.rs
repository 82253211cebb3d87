//! Encrypt of the AWS KMS API, whose signatures are verified, next to `/v1/encrypt`: with a token
//! on the same service, and without an identity on another one.

use std::process::Command;

use base64_simd::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::driver::{CONNECTIONS, Driver, Windows, kms_proxy, request, request_with, with_token};
use crate::results::{self, Column, Options, Table, row};

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

const COLUMNS: [Column; 6] = [
    ("plaintext", "plaintext", 0),
    ("call", "call", 0),
    ("rate", "1/s", 0),
    ("ratio", "ratio of the AWS API to it", 3),
    ("cpu_us", "CPU us", 1),
    ("p99_us", "p99 us", 0),
];

/// Measures the table.
pub(crate) async fn compare(options: &Options) -> anyhow::Result<()> {
    let services = options.times(SERVICES);
    let mut figures: [[Windows; KINDS.len()]; SIZES.len()] = Default::default();
    for _ in 0..services {
        let directory = tempfile::tempdir()?;
        let (token, settings) = with_token()?;
        let secret = directory.path().join("secret");
        std::fs::write(&secret, SECRET)?;
        let allow = r#"[{chains=["*"], operations=["encrypt"]}]"#.to_owned();
        let aws = [
            ("AWS_API__ENABLED", "true".to_owned()),
            ("CLIENT__1__NAME", "signature".to_owned()),
            ("CLIENT__1__AWS_ACCESS_KEY_ID", ID.to_owned()),
            ("CLIENT__1__AWS_SECRET_ACCESS_KEY_FILE", secret.display().to_string()),
            ("CLIENT__1__ALLOW", allow),
        ];
        let settings = [&settings[..], &aws].concat();
        let open = kms_proxy(&directory.path().join("open"), &[]).await?;
        let service = kms_proxy(&directory.path().join("data"), &settings).await?;
        for (size, figures) in SIZES.into_iter().zip(&mut figures) {
            // The AWS KMS API takes 4,096 bytes at most, so no more are compared.
            let text = STANDARD.encode_to_string(vec![7; size]);
            let plain = format!(r#"{{"plaintext":"{text}"}}"#);
            let bearer = format!("authorization: Bearer {token}");
            let headers = ["content-type: application/json", &bearer];
            let authorized = request_with("/v1/encrypt", &headers, plain.as_bytes());
            let signed = sign(&format!(r#"{{"KeyId":"default","Plaintext":"{text}"}}"#))?;
            let mut drivers = [
                Driver::new(&open, vec![request("/v1/encrypt", &plain)]).await?,
                Driver::new(&service, vec![authorized]).await?,
                Driver::new(&service, vec![signed]).await?,
            ];
            // The first round warms everything up and does not count.
            for round in 0..=WINDOWS {
                for (driver, kind) in drivers.iter_mut().zip(&mut *figures) {
                    let window = driver.window().await?;
                    if round > 0 {
                        kind.add(window);
                    }
                }
            }
        }
    }
    let about = format!(
        "Encrypt of the AWS KMS API next to /v1/encrypt: calls per second over {CONNECTIONS} kept \
         connections, medians of {WINDOWS} interleaved windows with each of {services} services."
    );
    let mut table = Table::new("aws", about, &COLUMNS);
    for (size, figures) in SIZES.into_iter().zip(&figures) {
        for (name, kind) in KINDS.into_iter().zip(figures) {
            let (ratio, p99) = (figures[2].ratio_to(kind), kind.quantile(0.99));
            table.push(row![results::size(size), name, kind.rate(), ratio, kind.cpu_us(), p99]);
        }
    }
    Ok(options.show(&table)?)
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
    let headers = [
        "content-type: application/x-amz-json-1.1",
        &format!("x-amz-target: {target}"),
        &format!("x-amz-date: {date}"),
        &format!(
            "authorization: AWS4-HMAC-SHA256 Credential={ID}/{scope}, SignedHeaders={names}, \
             Signature={}",
            hex(&key)
        ),
    ];
    Ok(request_with("/", &headers, body.as_bytes()))
}
