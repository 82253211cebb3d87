//! Encrypts and decrypts with reqwest and serde: `cargo run --example client`.

use std::path::PathBuf;
use std::time::Duration;

use base64_simd::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// What the service, or a proxy before it, says instead of an answer.
    #[error("{code}: {detail} (HTTP {status})")]
    Refused { status: u16, code: String, detail: String },
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    #[error("a file of the environment can't be read: {0}")]
    File(#[from] std::io::Error),
    #[error("the answer holds no base64")]
    Base64(#[from] base64_simd::Error),
}

const TRIES: usize = 5;

struct Client {
    /// Its connections stay open between calls.
    http: reqwest::Client,
    server: String,
    token_file: Option<PathBuf>,
}

impl Client {
    /// A client of the service that the environment names.
    #[expect(clippy::disallowed_methods, reason = "this is a separate program")]
    fn new() -> Result<Self, Error> {
        let file = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let mut http = reqwest::Client::builder().timeout(Duration::from_secs(15)).no_proxy();
        if let Some(ca) = file("KMS_PROXY_CA") {
            let authorities = reqwest::Certificate::from_pem_bundle(&std::fs::read(ca)?)?;
            http = http.tls_certs_only(authorities);
        }
        if let (Some(cert), Some(key)) = (file("KMS_PROXY_CERT"), file("KMS_PROXY_KEY")) {
            let both = [std::fs::read(key)?, std::fs::read(cert)?].concat();
            http = http.identity(reqwest::Identity::from_pem(&both)?);
        }
        let server = std::env::var("KMS_PROXY_SERVER");
        Ok(Self {
            http: http.build()?,
            server: server.unwrap_or_else(|_| "http://127.0.0.1:8080".to_owned()),
            token_file: file("KMS_PROXY_TOKEN_FILE"),
        })
    }

    async fn encrypt(&self, plaintext: &[u8], aad: &[u8]) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Answer {
            ciphertext: String,
        }
        let (plaintext, aad) =
            (STANDARD.encode_to_string(plaintext), STANDARD.encode_to_string(aad));
        let body = json!({"plaintext": plaintext, "aad": aad, "chain": "default"});
        Ok(self.call::<Answer>("/v1/encrypt", &body).await?.ciphertext)
    }

    async fn decrypt(&self, ciphertext: &str, aad: &[u8]) -> Result<Vec<u8>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            plaintext: String,
        }
        let aad = STANDARD.encode_to_string(aad);
        let body = json!({"ciphertext": ciphertext, "aad": aad, "chain": "default"});
        let answer: Answer = self.call("/v1/decrypt", &body).await?;
        Ok(STANDARD.decode_to_vec(answer.plaintext)?)
    }

    /// Makes a call. A broken connection, 429 and 503 are worth another try: calls can be repeated.
    async fn call<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Error> {
        let mut left = TRIES;
        loop {
            left -= 1;
            let (status, wait, text) = match self.send(path, body).await {
                Ok(answer) => answer,
                Err(Error::Http(_)) if left > 0 => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if matches!(status, 429 | 503) && left > 0 {
                tokio::time::sleep(wait).await;
                continue;
            }
            return match serde_json::from_slice(&text) {
                Ok(answer) if status == 200 => Ok(answer),
                _ => Err(refused(status, &text)),
            };
        }
    }

    /// Sends a request once: the status, the time until another try, and the whole answer.
    async fn send(&self, path: &str, body: &Value) -> Result<(u16, Duration, Vec<u8>), Error> {
        let mut request = self.http.post(format!("{}{path}", self.server)).json(body);
        if let Some(file) = &self.token_file {
            // It is read for each call: tokens are replaced while programs run.
            request = request.bearer_auth(std::fs::read_to_string(file)?.trim());
        }
        let response = request.send().await?;
        let wait = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let wait = wait.and_then(|wait| wait.parse().ok()).unwrap_or(1);
        let status = response.status().as_u16();
        Ok((status, Duration::from_secs(wait), response.bytes().await?.into()))
    }
}

fn refused(status: u16, text: &[u8]) -> Error {
    #[derive(Deserialize)]
    struct Problem {
        code: String,
        detail: String,
    }
    let Problem { code, detail } = serde_json::from_slice(text).unwrap_or_else(|_| Problem {
        code: format!("http_{status}"),
        detail: "the answer is not from kms-proxy".to_owned(),
    });
    Error::Refused { status, code, detail }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let client = Client::new()?;
    // The AAD binds the ciphertext to its place: moved to another row, it does not open.
    let secret = client.encrypt(b"hello", b"row 7").await?;
    let opened = client.decrypt(&secret, b"row 7").await?;
    println!("{}", String::from_utf8_lossy(&opened));
    match client.decrypt(&secret, b"row 8").await {
        Err(Error::Refused { code, .. }) => println!("refused: {code}"),
        other => println!("it opened, or something else went wrong: {other:?}"),
    }
    Ok(())
}
