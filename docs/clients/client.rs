//! Encrypts and decrypts with reqwest and serde: `cargo run --example client`.

use std::time::Duration;

use base64_simd::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// What the service says instead of an answer.
    #[error("{code}: {detail}")]
    Refused { code: String, detail: String },
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    #[error("the answer holds no base64")]
    Base64(#[from] base64_simd::Error),
}

struct Client {
    http: reqwest::Client,
    server: String,
}

impl Client {
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

    /// Makes a call; 429 and 503 say when it is worth another try.
    async fn call<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Error> {
        #[derive(Deserialize)]
        struct Problem {
            code: String,
            detail: String,
        }
        let mut tries = 3;
        loop {
            let request = self.http.post(format!("{}{path}", self.server)).json(body);
            let response = request.send().await?;
            if response.status().is_success() {
                return Ok(response.json().await?);
            }
            tries -= 1;
            let wait = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
            if let Some(seconds) = wait.and_then(|wait| wait.parse().ok())
                && tries > 0
            {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                continue;
            }
            let Problem { code, detail } = response.json().await?;
            return Err(Error::Refused { code, detail });
        }
    }
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::disallowed_methods, reason = "this is a program of its own")]
async fn main() -> Result<(), Error> {
    let server = std::env::var("KMS_PROXY_SERVER");
    let server = server.unwrap_or_else(|_| "http://127.0.0.1:8080".to_owned());
    let http = reqwest::Client::builder().timeout(Duration::from_secs(15)).build()?;
    let client = Client { http, server };

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
