//! OpenBao's transit engine next to kms-proxy: the same client, payloads and key size, both over
//! HTTP with JSON, and both with a token to check.
//!
//! OpenBao is a dev server: its storage is in memory, and nothing is audited. kms-proxy has its
//! file store, and no cache of DEKs, so each decrypt unwraps its own.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64_simd::STANDARD;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::bao;
use crate::driver::{
    CONNECTIONS, Driver, Server, WINDOW, Windows, connect, exchange, free_address, kms_proxy,
    median, request_with, with_token,
};
use crate::results::{self, Column, Options, Table, row};

/// Windows of each kind with one pair of servers, and pairs.
const WINDOWS: usize = 3;
const PAIRS: usize = 5;
/// A window of calls of 64 KiB and more, of which there are few.
const LONG_WINDOW: Duration = Duration::from_secs(1);
const SIZES: [usize; 4] = [256, 4 << 10, 64 << 10, 1 << 20];
/// Items of a batch, and the size of each.
const ITEMS: usize = 100;
const ITEM_SIZE: usize = 256;
/// Bytes of all distinct ciphertexts that are decrypted in turns, and how many there are at least.
const CIPHERTEXTS: usize = 4 << 20;
const MIN_CIPHERTEXTS: usize = 16;
/// How long a start may take.
const DEADLINE: Duration = Duration::from_secs(60);
const ROOT_TOKEN: &str = "bench-root-token";

const COLUMNS: [Column; 10] = [
    ("call", "call", 0),
    ("plaintext", "plaintext", 0),
    ("openbao_rate", "OpenBao 1/s", 0),
    ("rate", "kms-proxy 1/s", 0),
    ("ratio", "ratio", 1),
    ("openbao_cpu_us", "OpenBao CPU us", 1),
    ("cpu_us", "kms-proxy CPU us", 1),
    ("cpu_ratio", "ratio", 1),
    ("openbao_p99_us", "OpenBao p99 us", 0),
    ("p99_us", "kms-proxy p99 us", 0),
];
const MEMORY_COLUMNS: [Column; 3] = [
    ("server", "server", 0),
    ("start_mib", "after the start MiB", 0),
    ("mib", "after load MiB", 0),
];

/// A call that is compared.
#[derive(Clone, Copy)]
struct Call {
    name: &'static str,
    is_decrypt: bool,
    size: usize,
    items: Option<usize>,
}

impl Call {
    fn all() -> Vec<Self> {
        let single = SIZES.into_iter().flat_map(|size| {
            [("encrypt", false), ("decrypt", true)].map(|call| (call, size, None))
        });
        let batch = [("batch of 100, encrypt", false), ("batch of 100, decrypt", true)];
        let batch = batch.map(|call| (call, ITEM_SIZE, Some(ITEMS)));
        single
            .chain(batch)
            .map(|((name, is_decrypt), size, items)| Self { name, is_decrypt, size, items })
            .collect()
    }
}

/// A server and how it is called.
struct Api {
    server: Server,
    token: String,
    is_openbao: bool,
}

impl Api {
    /// The requests of a call, in turns.
    async fn requests(&self, call: Call) -> anyhow::Result<Vec<Vec<u8>>> {
        let plaintext = STANDARD.encode_to_string(vec![7; call.size]);
        let items = call.items.unwrap_or(1);
        let encrypt = self.request(false, call.items.is_some(), &vec![plaintext; items]);
        if !call.is_decrypt {
            return Ok(vec![encrypt]);
        }
        let (mut stream, mut buffer) = (connect(&self.server).await?, Vec::new());
        let mut requests = Vec::new();
        let count = (CIPHERTEXTS / (call.size * items)).max(MIN_CIPHERTEXTS);
        while requests.len() < count {
            let start = exchange(&mut stream, &encrypt, &mut buffer).await?;
            let made = self.ciphertexts(&serde_json::from_slice(&buffer[start..])?);
            anyhow::ensure!(made.len() == items, "{}", String::from_utf8_lossy(&buffer));
            requests.push(self.request(true, call.items.is_some(), &made));
        }
        Ok(requests)
    }

    fn request(&self, is_decrypt: bool, is_batch: bool, values: &[String]) -> Vec<u8> {
        let (operation, field) =
            if is_decrypt { ("decrypt", "ciphertext") } else { ("encrypt", "plaintext") };
        let items: Vec<_> = values.iter().map(|value| json!({field: value})).collect();
        let body = match (is_batch, self.is_openbao) {
            (false, _) => items.first().cloned().unwrap_or_default(),
            (true, true) => json!({"batch_input": items}),
            (true, false) => json!({"items": items}),
        };
        let path = match (is_batch, self.is_openbao) {
            (_, true) => format!("/v1/transit/{operation}/kek"),
            (true, false) => format!("/v1/batch/{operation}"),
            (false, false) => format!("/v1/{operation}"),
        };
        self.post(&path, &body)
    }

    fn post(&self, path: &str, body: &Value) -> Vec<u8> {
        let token = match self.is_openbao {
            true => format!("x-vault-token: {}", self.token),
            false => format!("authorization: Bearer {}", self.token),
        };
        let headers = ["content-type: application/json", &token];
        request_with(path, &headers, body.to_string().as_bytes())
    }

    /// The ciphertexts in the answer to an encrypt.
    fn ciphertexts(&self, answer: &Value) -> Vec<String> {
        let answer = if self.is_openbao { &answer["data"] } else { answer };
        let items = &answer[if self.is_openbao { "batch_results" } else { "results" }];
        let items = items.as_array().map_or_else(|| vec![answer], |items| items.iter().collect());
        items.iter().filter_map(|item| item["ciphertext"].as_str()).map(str::to_owned).collect()
    }
}

/// A dev server of OpenBao with a transit key of AES-128-GCM.
async fn openbao() -> anyhow::Result<Api> {
    let address = free_address()?;
    let child = Command::new(bao::binary())
        .args(["server", "-dev", "-dev-no-store-token"])
        .arg(format!("-dev-root-token-id={ROOT_TOKEN}"))
        .arg(format!("-dev-listen-address={address}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let server = Server { child, address };
    let api = Api { server, token: ROOT_TOKEN.to_owned(), is_openbao: true };
    let start = Instant::now();
    let mount = api.post("/v1/sys/mounts/transit", &json!({"type": "transit"}));
    let key = api.post("/v1/transit/keys/kek", &json!({"type": "aes128-gcm96"}));
    let mut buffer = Vec::new();
    loop {
        let made = async {
            let mut stream = TcpStream::connect(address).await?;
            exchange(&mut stream, &mount, &mut buffer).await?;
            exchange(&mut stream, &key, &mut buffer).await
        };
        match made.await {
            Ok(_) => return Ok(api),
            Err(error) if start.elapsed() > DEADLINE => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Measures both tables.
pub(crate) async fn compare(options: &Options) -> anyhow::Result<()> {
    let pairs = options.times(PAIRS);
    let calls = Call::all();
    let mut figures: Vec<[Windows; 2]> = calls.iter().map(|_| <[Windows; 2]>::default()).collect();
    let mut memory: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..pairs {
        let directory = tempfile::tempdir()?;
        let (token, settings) = with_token()?;
        let settings = [&settings[..], &[("CACHE__DEK_ENTRIES", "0".to_owned())]].concat();
        let server = kms_proxy(directory.path(), &settings).await?;
        let apis = [openbao().await?, Api { server, token, is_openbao: false }];
        for (memory, api) in memory.iter_mut().zip(&apis) {
            memory[0].push(api.server.memory());
        }
        for (call, figures) in calls.iter().zip(&mut figures) {
            measure(*call, &apis, figures).await?;
        }
        for (memory, api) in memory.iter_mut().zip(&apis) {
            memory[1].push(api.server.memory());
        }
    }
    let about = format!(
        "OpenBao's transit engine (dev server, in memory, aes128-gcm96) next to kms-proxy (file \
         store, AES-128-GCM), each with a token to check; JSON over {CONNECTIONS} connections, \
         {WINDOWS} interleaved windows with each of {pairs} fresh pairs of servers. Of a batch, \
         rates and CPU are per item, and p99 is that of the whole batch."
    );
    let mut table = Table::new("openbao", about, &COLUMNS);
    for (call, [bao, ours]) in calls.iter().zip(&figures) {
        let items = call.items.unwrap_or(1) as f64;
        let (bao_cpu, cpu) = (bao.cpu_us() / items, ours.cpu_us() / items);
        table.push(row![
            call.name,
            results::size(call.size),
            bao.rate() * items,
            ours.rate() * items,
            ours.ratio_to(bao),
            bao_cpu,
            cpu,
            bao_cpu / cpu,
            bao.quantile(0.99),
            ours.quantile(0.99),
        ]);
    }
    options.show(&table)?;
    let about = "Resident memory, medians: after the start, and directly after all of these calls.";
    let mut table = Table::new("memory", about.to_owned(), &MEMORY_COLUMNS);
    for (name, [start, end]) in ["OpenBao", "kms-proxy"].into_iter().zip(memory) {
        table.push(row![name, median(start), median(end)]);
    }
    Ok(options.show(&table)?)
}

/// Windows of one call on both servers.
async fn measure(call: Call, apis: &[Api; 2], figures: &mut [Windows; 2]) -> anyhow::Result<()> {
    let length = if call.size < 64 << 10 { WINDOW } else { LONG_WINDOW };
    let mut drivers = Vec::new();
    for api in apis {
        let requests = api.requests(call).await?;
        drivers.push(Driver::new(&api.server, requests).await?.lasting(length));
    }
    // The first round warms everything up and does not count. Each is first in half of the rounds.
    for round in 0..=WINDOWS {
        for turn in 0..drivers.len() {
            let at = (turn + round) % drivers.len();
            let window = drivers[at].window().await?;
            if round > 0 {
                figures[at].add(window);
            }
        }
    }
    Ok(())
}
