//! What the tests of the running service share: the real binary as a child process with a data
//! directory and a port. Nothing here waits for a fixed time: everything is polled,
//! with deadlines that only a broken service misses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) mod aws;
#[expect(dead_code, reason = "the tests of the root itself need the rest")]
mod bao;
#[allow(dead_code, reason = "the unit tests of the roots use the rest")]
pub(crate) mod clouds;
mod documented;
#[allow(dead_code, reason = "others need the rest of it")]
pub(crate) mod etcd;
pub(crate) mod haproxy;
#[allow(dead_code, reason = "the unit tests of the module use the rest")]
pub(crate) mod jwt;
#[allow(dead_code, reason = "the unit tests of the root use the rest")]
pub(crate) mod kms;
pub(crate) mod kube;
pub(crate) mod lines;
#[allow(dead_code, reason = "others need the rest of it")]
pub(crate) mod pki;
pub(crate) mod ports;
pub(crate) mod prometheus;
#[allow(dead_code, reason = "others need the rest of it")]
pub(crate) mod proxy;
pub(crate) mod random;
mod service;
pub(crate) mod tools;
pub(crate) mod tunnel;
mod watchdog;

pub(crate) use bao::Bao;
pub(crate) use service::{Service, read_until, talk};

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_kms-proxy");

/// A copy of the program, which other users can run. Another process writes it: a file that this one
/// had open for writing could be busy (`ETXTBSY`), because a test beside this one forked meanwhile.
pub(crate) fn copy_of_the_program(to: &Path) {
    let status = Command::new("cp").arg(BINARY).arg(to).status().unwrap();
    assert!(status.success(), "cp {BINARY} {}: {status}", to.display());
}

/// How long a test waits for what must happen. Processes of a loaded machine stand still for many
/// seconds, and only a broken service takes longer than this.
const DEADLINE: Duration = Duration::from_secs(180);

/// Settings, and the directory that outlives the processes started with them.
#[derive(Clone)]
pub(crate) struct Setup {
    dir: Arc<TempDir>,
    variables: Vec<(String, String)>,
}

impl Setup {
    /// An empty data directory and no setting but a free port.
    pub(crate) fn new() -> Self {
        watchdog::watch();
        Self { dir: Arc::new(tempfile::tempdir().unwrap()), variables: Vec::new() }
    }

    /// The same with a setting more: `KMS_PROXY__{key}`.
    pub(crate) fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.variables.push((format!("KMS_PROXY__{key}"), value.to_string()));
        self
    }

    /// The same with a variable of the environment that is no setting.
    pub(crate) fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.variables.push((name.to_owned(), value.to_string()));
        self
    }

    /// The same with etcd as the store. Its time-outs are long: a loaded etcd is not an outage.
    pub(crate) fn on_etcd(self, etcd: &etcd::Etcd) -> Self {
        self.on_endpoints(&[etcd.url()])
    }

    /// The same with several members of a cluster.
    pub(crate) fn on_endpoints(self, endpoints: &[String]) -> Self {
        self.set("STORE__KIND", "etcd")
            .set("STORE__ENDPOINTS", endpoints.join(","))
            .set("STORE__TIMEOUT", "10s")
            .set("SERVER__REQUEST_TIMEOUT", "30s")
    }

    /// Runs a command of the binary with these settings.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.tool(args).output().unwrap()
    }

    /// A command of the binary as it is to be run.
    pub(crate) fn tool(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(args).env_clear().envs(self.variables.iter().cloned());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.file("data")
    }

    /// A path beside the data directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `kms-proxy serve` as it is to be run. A write past the limit of a file's size is an error
    /// to it, as on a full disk, and not a signal.
    pub(crate) fn command(&self) -> Command {
        self.command_at("127.0.0.1:0")
    }

    /// The same with an address to listen on.
    pub(crate) fn command_at(&self, address: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh", BINARY, "serve"]);
        command.args(["--listen", address, "--data-dir"]).arg(self.data());
        command.env_clear().envs(self.variables.iter().cloned());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Starts the service and waits until it is ready.
    pub(crate) async fn start(&self) -> Service {
        let mut service = Service::spawn(self.command());
        service.keep(&self.dir);
        service.ready().await;
        service
    }

    /// Starts the service and waits until it listens: it is not ready yet.
    pub(crate) async fn listen(&self) -> Service {
        let mut service = Service::spawn(self.command());
        service.keep(&self.dir);
        service.listening().await;
        service
    }

    /// The same, and waits until it has started, but can neither encrypt nor decrypt.
    pub(crate) async fn start_unready(&self) -> Service {
        let service = self.listen().await;
        service.logged("the service is not ready yet").await;
        assert_eq!(service.said(), "", "ready is said when /readyz is 200");
        service
    }

    /// Starts the service and waits until it has started, ready or not. Wrong roots are noticed at
    /// the start only for the chains that the configuration names: while another chain was not
    /// used, `/readyz` is 200.
    pub(crate) async fn start_ready_or_not(&self) -> Service {
        let service = self.listen().await;
        until("a service that has started", async || {
            let log = service.log();
            let is_ready = log.contains("\"message\":\"ready\"");
            (is_ready || log.contains("the service is not ready yet")).then_some(())
        })
        .await;
        service
    }

    /// Starts a service that must end by itself, and gives its exit code and its stderr.
    pub(crate) async fn fails(&self) -> (Option<i32>, String) {
        Service::spawn(self.command()).ended().await
    }
}

/// Runs a command of the binary with `input` on stdin.
pub(crate) fn run(args: &[&str], input: &[u8]) -> Output {
    use std::io::Write;
    watchdog::watch();
    let mut command = Command::new(BINARY);
    command.args(args).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // A command that does not read all of its input is no failure of the test.
        scope.spawn(move || _ = stdin.write_all(input));
        child.wait_with_output().unwrap()
    })
}

/// Prints a line that `make test` shows also if the test succeeds: the output of macros is hidden
/// then.
pub(crate) fn tell(line: &str) {
    use std::io::Write;
    _ = writeln!(std::io::stderr(), "{line}");
}

/// The repository.
pub(crate) fn root() -> &'static Path {
    watchdog::watch();
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Polls until there is an answer.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An envelope that was answered, and what must come out of it.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(crate) chain: String,
    pub(crate) plaintext: String,
    pub(crate) ciphertext: String,
}

impl Sealed {
    /// The id of the KEK that the header names.
    pub(crate) fn kek_id(&self) -> String {
        let bytes = kms_proxy::envelope::from_text(&self.ciphertext).unwrap();
        kms_proxy::envelope::Envelope::parse(&bytes).unwrap().header.kek_id.to_string()
    }
}

/// Decrypts all of `envelopes`, in batches; each must give its plaintext.
pub(crate) async fn decrypt_all(service: &Service, envelopes: &[Sealed]) {
    let mut chains = BTreeMap::<&str, Vec<&Sealed>>::new();
    for sealed in envelopes {
        chains.entry(&sealed.chain).or_default().push(sealed);
    }
    for (chain, envelopes) in chains {
        for some in envelopes.chunks(1_000) {
            let items: Vec<_> =
                some.iter().map(|sealed| json!({"ciphertext": sealed.ciphertext})).collect();
            let body = json!({"chain": chain, "items": items});
            let opened = service.ok("/v1/batch/decrypt", body).await;
            let results = opened["results"].as_array().unwrap();
            assert_eq!(results.len(), some.len());
            for (sealed, result) in some.iter().zip(results) {
                assert_eq!(result["plaintext"], sealed.plaintext, "{sealed:?}: {result}");
            }
        }
    }
}

/// All pages of a list: `path` is without a query. A store that does not respond is asked again.
pub(crate) async fn pages(service: &Service, path: &str, items: &str) -> Vec<Value> {
    let (mut all, mut query) = (Vec::new(), String::new());
    loop {
        let page = until("a page of a list", async || {
            let (status, page) = service.get(&format!("{path}?limit=1000{query}")).await;
            if page["code"] == "store_unavailable" {
                return None;
            }
            assert_eq!(status, 200, "{page}");
            Some(page)
        });
        let page = page.await;
        all.extend(page[items].as_array().unwrap().iter().cloned());
        match page["next"].as_str() {
            Some(next) => query = format!("&after={next}"),
            None => return all,
        }
    }
}

/// Replaces every occurrence of `needle` in a file. There must be one.
pub(crate) fn replace_in_file(path: &Path, needle: &[u8], with: &[u8]) {
    assert_eq!(needle.len(), with.len());
    let mut bytes = std::fs::read(path).unwrap();
    let found: Vec<_> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(needle)).collect();
    assert!(!found.is_empty(), "{} has no such bytes", path.display());
    for at in found {
        bytes[at..at + with.len()].copy_from_slice(with);
    }
    std::fs::write(path, bytes).unwrap();
}
