//! Raw bodies next to JSON, and next to a bare axum handler that receives and returns as many
//! bytes.

use std::time::Duration;

use base64_simd::STANDARD;
use serde_json::json;

use crate::bare;
use crate::driver::{
    CONNECTIONS, Driver, Windows, connect, exchange, kms_proxy, request, request_with,
};
use crate::results::{self, Column, Options, Table, row};

/// Windows of each kind with one pair of servers, and pairs.
const WINDOWS: usize = 3;
const PAIRS: usize = 5;
const WINDOW: Duration = Duration::from_millis(600);
const SIZES: [usize; 2] = [64 << 10, 1 << 20];
/// Distinct envelopes that are decrypted in turns.
const ENVELOPES: usize = 16;
const OCTETS: [&str; 1] = ["content-type: application/octet-stream"];

const COLUMNS: [Column; 11] = [
    ("call", "call", 0),
    ("plaintext", "plaintext", 0),
    ("json_rate", "JSON 1/s", 0),
    ("rate", "raw 1/s", 0),
    ("ratio", "raw to JSON", 2),
    ("bare_rate", "bare 1/s", 0),
    ("json_cpu_us", "JSON CPU us", 0),
    ("cpu_us", "raw CPU us", 0),
    ("bare_cpu_us", "bare CPU us", 0),
    ("cpu_ratio", "CPU, raw to bare", 2),
    ("p99_us", "raw p99 us", 0),
];

/// What is driven: the bare handler, and encrypt and decrypt with raw bodies and with JSON.
const KINDS: usize = 5;

/// Measures the table.
pub(crate) async fn compare(options: &Options) -> anyhow::Result<()> {
    let pairs = options.times(PAIRS);
    let about = format!(
        "Bodies of `application/octet-stream` next to JSON, and next to a bare handler that \
         receives and returns the plaintext; {CONNECTIONS} connections, {WINDOWS} interleaved \
         windows with each of {pairs} fresh pairs of servers."
    );
    let mut table = Table::new("raw", about, &COLUMNS);
    for size in SIZES {
        let mut figures: [Windows; KINDS] = Default::default();
        for _ in 0..pairs {
            measure(size, &mut figures).await?;
        }
        let [bare, encrypt, decrypt, json_encrypt, json_decrypt] = &figures;
        for (name, raw, json) in
            [("encrypt", encrypt, json_encrypt), ("decrypt", decrypt, json_decrypt)]
        {
            table.push(row![
                name,
                results::size(size),
                json.rate(),
                raw.rate(),
                raw.ratio_to(json),
                bare.rate(),
                json.cpu_us(),
                raw.cpu_us(),
                bare.cpu_us(),
                raw.cpu_us() / bare.cpu_us(),
                raw.quantile(0.99),
            ]);
        }
    }
    Ok(options.show(&table)?)
}

async fn measure(size: usize, figures: &mut [Windows; KINDS]) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    // Each decrypt unwraps its DEK.
    let settings = [("CACHE__DEK_ENTRIES", "0".to_owned())];
    let (bare, ours) = (bare::start()?, kms_proxy(directory.path(), &settings).await?);
    let plaintext = vec![7; size];
    let encrypt = request_with("/v1/encrypt", &OCTETS, &plaintext);
    let (mut stream, mut buffer) = (connect(&ours).await?, Vec::new());
    let (mut decrypt, mut json_decrypt) = (Vec::new(), Vec::new());
    for _ in 0..ENVELOPES {
        let start = exchange(&mut stream, &encrypt, &mut buffer).await?;
        let envelope = &buffer[start..];
        let text = json!({"ciphertext": kms_proxy::envelope::to_text(envelope)}).to_string();
        decrypt.push(request_with("/v1/decrypt", &OCTETS, envelope));
        json_decrypt.push(request("/v1/decrypt", &text));
    }
    let text = json!({"plaintext": STANDARD.encode_to_string(&plaintext)}).to_string();
    let kinds: [_; KINDS] = [
        (&bare, vec![request_with("/echo", &OCTETS, &plaintext)]),
        (&ours, vec![encrypt]),
        (&ours, decrypt),
        (&ours, vec![request("/v1/encrypt", &text)]),
        (&ours, json_decrypt),
    ];
    let mut drivers = Vec::new();
    for (server, requests) in kinds {
        drivers.push(Driver::new(server, requests).await?.lasting(WINDOW));
    }
    // The first round warms everything up and does not count.
    for round in 0..=WINDOWS {
        for turn in 0..KINDS {
            let at = (turn + round) % KINDS;
            let window = drivers[at].window().await?;
            if round > 0 {
                figures[at].add(window);
            }
        }
    }
    Ok(())
}
