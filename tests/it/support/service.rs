//! One process of the service: its streams, its signals, and calls of its API.

use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{DEADLINE, Sealed, documented, until};

/// What a stream of a process has said so far.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    /// Collects `stream` until it ends.
    fn of(mut stream: impl Read + Send + 'static) -> (Self, std::thread::JoinHandle<()>) {
        let output = Self::default();
        let bytes = Arc::clone(&output.0);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                bytes.lock().unwrap().extend_from_slice(&buffer[..len]);
            }
        });
        (output, thread)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// A running service. Dropping it kills the process.
pub(crate) struct Service {
    child: Child,
    readers: Vec<std::thread::JoinHandle<()>>,
    stdout: Output,
    log: Output,
    address: Option<SocketAddr>,
    scheme: &'static str,
    client: reqwest::Client,
    /// The directory of its data, which must outlive it.
    _dir: Option<Arc<TempDir>>,
}

impl Service {
    /// Starts a process and waits for nothing.
    pub(crate) fn spawn(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdout, out) = Output::of(child.stdout.take().unwrap());
        let (log, err) = Output::of(child.stderr.take().unwrap());
        let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().unwrap();
        let readers = vec![out, err];
        let (address, scheme) = (None, "http");
        Self { child, readers, stdout, log, address, scheme, client, _dir: None }
    }

    /// Keeps the directory of its data as long as the process runs.
    pub(super) fn keep(&mut self, dir: &Arc<TempDir>) {
        self._dir = Some(Arc::clone(dir));
    }

    /// Calls it with this client from now on, over HTTPS most likely.
    pub(crate) fn call_with(&mut self, client: reqwest::Client) {
        self.client = client;
    }

    /// Waits until it says where it is.
    pub(crate) async fn ready(&mut self) {
        let address = until("a service that is ready", async || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended with {status}:\n{}", self.log.text());
            }
            let said = self.stdout.text();
            let (_, url) = said.strip_suffix('\n')?.split_once("is ready on ")?;
            let (scheme, address) = url.split(',').next()?.split_once("://")?;
            let scheme = if scheme == "https" { "https" } else { "http" };
            Some((scheme, address.parse().unwrap()))
        });
        let (scheme, address) = address.await;
        (self.scheme, self.address) = (scheme, Some(address));
    }

    /// Waits until it listens, which it does before it is ready.
    pub(crate) async fn listening(&mut self) {
        let log = self.logged("listening; the service is starting").await;
        let (_, url) = log.split_once("\"url\":\"").expect("the log has the address");
        let (scheme, address) = url.split('"').next().unwrap().split_once("://").unwrap();
        self.scheme = if scheme == "https" { "https" } else { "http" };
        self.address = Some(address.parse().unwrap());
    }

    /// What it has said on stdout.
    pub(crate) fn said(&self) -> String {
        self.stdout.text()
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    /// The URL for the command line.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address())
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    /// Waits until a whole line of the log has `part` in it; the log so far.
    pub(crate) async fn logged(&self, part: &str) -> String {
        until(part, async || {
            let log = self.log.text();
            let (_, rest) = log.split_once(part)?;
            rest.contains('\n').then_some(log)
        })
        .await
    }

    /// Waits until it has ended by itself; its exit code and all of its log.
    pub(crate) async fn ended(mut self) -> (Option<i32>, String) {
        let child = &mut self.child;
        let status = until("the end of the process", async || child.try_wait().unwrap()).await;
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        (status.code(), self.log.text())
    }

    /// Ends it by SIGTERM; it must say that all went well.
    pub(crate) async fn stop(self) -> String {
        self.signal(Signal::TERM);
        let (code, log) = self.ended().await;
        assert_eq!(code, Some(0), "{log}");
        log
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url()))
    }

    /// Sends JSON; the status and the answer, or `None` when the connection broke.
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Option<(StatusCode, Value)> {
        let request = self.request(method.clone(), path);
        let response = request.json(body).send().await.ok()?;
        let (status, body) = (response.status(), response.bytes().await.ok()?);
        let answer = serde_json::from_slice(&body).unwrap_or(Value::Null);
        documented::check(&method, path, status, &answer);
        Some((status, answer))
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        self.try_send(method, path, &body).await.expect("an answer")
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(Method::POST, path, body).await
    }

    /// A POST that must go well.
    pub(crate) async fn ok(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        let response = self.request(Method::GET, path).send().await.unwrap();
        let (status, answer) = (response.status(), response.json().await.unwrap());
        documented::check(&Method::GET, path, status, &answer);
        (status, answer)
    }

    /// The metrics, as they are read by Prometheus.
    pub(crate) async fn metrics(&self) -> String {
        self.request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap()
    }

    /// Encrypts base64; `None` when the connection broke, `Err` when it said no.
    pub(crate) async fn try_encrypt(
        &self,
        chain: &str,
        plaintext: &str,
    ) -> Option<Result<Sealed, (StatusCode, Value)>> {
        let body = json!({"plaintext": plaintext, "chain": chain});
        let (status, answer) = self.try_send(Method::POST, "/v1/encrypt", &body).await?;
        Some(match answer["ciphertext"].as_str() {
            Some(ciphertext) if status == 200 => Ok(Sealed {
                chain: chain.to_owned(),
                plaintext: plaintext.to_owned(),
                ciphertext: ciphertext.to_owned(),
            }),
            _ => Err((status, answer)),
        })
    }

    /// Encrypts base64; it must go well.
    pub(crate) async fn encrypt(&self, chain: &str, plaintext: &str) -> Sealed {
        self.try_encrypt(chain, plaintext).await.expect("an answer").unwrap()
    }

    /// A connection for what no proper client would send.
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.unwrap()
    }

    /// Whether a connection is taken at all.
    pub(crate) async fn is_listening(&self) -> bool {
        TcpStream::connect(self.address()).await.is_ok()
    }
}

/// Sends `text`, and reads until the connection ends.
pub(crate) async fn talk(stream: &mut TcpStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads until `part` has come.
pub(crate) async fn read_until(stream: &mut TcpStream, part: &str) -> String {
    let (mut came, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&came).into_owned();
        if text.contains(part) {
            return text;
        }
        let read = tokio::time::timeout(DEADLINE, stream.read(&mut buffer)).await;
        let len = read.expect("an answer").unwrap();
        assert!(len > 0, "the connection ended before {part:?}: {text}");
        came.extend_from_slice(&buffer[..len]);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.child.kill();
        _ = self.child.wait();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while self.readers.iter().any(|reader| !reader.is_finished())
            && std::time::Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        let log = self.log.text();
        if std::thread::panicking() {
            let start = log.len().saturating_sub(8_000);
            eprintln!(
                "the service's log ends:\n{}",
                String::from_utf8_lossy(&log.as_bytes()[start..])
            );
        } else {
            assert!(!log.contains("panicked at"), "the service panicked:\n{log}");
        }
    }
}
