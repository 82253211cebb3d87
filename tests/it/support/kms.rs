//! A replacement of AWS KMS: moto's server as a child process, and a proxy before it that notes every
//! call and can fail in all the ways that matter.
//!
//! The unit tests of the root `aws-kms` include this file as well, so it knows nothing of the rest.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The region of every key here.
pub(crate) const REGION: &str = "eu-central-1";

/// moto's server, with keys that are gone when it is dropped.
pub(crate) struct Moto {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Moto {
    /// The server that tests share as long as any of them has it: a start takes seconds. They create
    /// keys, and nothing that has a name.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Moto>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let moto = Arc::new(Self::start());
            *shared = Arc::downgrade(&moto);
            moto
        })
    }

    /// Starts it on a free port, and waits until it listens.
    pub(crate) fn start() -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-env/bin/moto_server");
        let mut command = Command::new(&program);
        command.args(["-H", "127.0.0.1", "-p", "0"]).env("PYTHONUNBUFFERED", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("{}: {error}; run `make test-env`", program.display());
        });
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = lines.by_ref().map_while(Result::ok);
        let address = said.filter_map(|line| {
            let (_, rest) = line.split_once("Running on http://")?;
            rest.trim().parse().ok()
        });
        let address = { address }.next().expect("moto says where it listens; run `make test-env`");
        // It logs every request, and would wait for a reader.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, address }
    }

    /// The ARN of a new key.
    pub(crate) async fn create_key(&self) -> String {
        let made = self.call("CreateKey", json!({})).await;
        made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    /// A call of `operation` without a valid signature: moto only reads the region.
    pub(crate) async fn call(&self, operation: &str, body: Value) -> Value {
        let scope = format!("AWS4-HMAC-SHA256 Credential=test/20260101/{REGION}/kms/aws4_request");
        let target = format!("TrentService.{operation}");
        let authorization = format!("{scope}, SignedHeaders=host, Signature=0");
        let (status, answer) = pass(self.address, &target, &authorization, &body.to_string()).await;
        assert_eq!(status, 200, "{operation}: {answer}");
        serde_json::from_str(&answer).unwrap_or(Value::Null)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// One call that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Such as `TrentService.Encrypt`.
    pub(crate) target: String,
    pub(crate) body: Value,
}

/// What becomes of a call.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// moto answers it.
    Through,
    /// An error of KMS: status, code, message.
    Error(u16, &'static str, &'static str),
    /// An answer that is not KMS's: status, text.
    Text(u16, String),
    /// No answer, ever.
    Hang,
    /// The head of an answer, and then nothing.
    Stall,
    /// The connection is closed without one.
    Close,
}

/// A proxy before moto. It notes each call, and then does what the test has set.
pub(crate) struct Front {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

struct State {
    calls: Vec<Call>,
    way: Way,
    /// The calls that moto answers, by the id that the SDK gives to a call and to its retries.
    passed: HashSet<String>,
}

impl State {
    /// Notes a call, and returns what becomes of it. The retry of a call that moto answers is not
    /// noted: a loaded moto answered after the time-out of the first attempt.
    fn note(&mut self, id: String, call: Call) -> Way {
        let is_late = self.passed.contains(&id);
        if matches!(self.way, Way::Through) && !id.is_empty() {
            self.passed.insert(id);
        }
        if !is_late {
            self.calls.push(call);
        }
        self.way.clone()
    }
}

impl Front {
    /// Starts it before `moto`; without one nothing goes through.
    pub(crate) async fn start(moto: Option<&Moto>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { calls: Vec::new(), way: Way::Through, passed: HashSet::new() };
        let state = Arc::new(Mutex::new(state));
        let (shared, moto) = (Arc::clone(&state), moto.map(|moto| moto.address));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared), moto));
            }
        });
        Self { address, state, task }
    }

    /// Where a root finds it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What becomes of calls from now on.
    pub(crate) fn set(&self, way: Way) {
        self.state.lock().unwrap().way = way;
    }

    /// The calls so far; they are forgotten.
    pub(crate) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }

    /// The targets of the calls so far.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.state.lock().unwrap().calls.iter().map(|call| call.target.clone()).collect()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers what comes on one connection.
async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>, moto: Option<SocketAddr>) {
    let mut came = Vec::new();
    while let Some((head, body)) = read_request(&mut stream, &mut came).await {
        let target = header(&head, "x-amz-target");
        let call = serde_json::from_str(&body).unwrap_or(Value::Null);
        let call = Call { target: target.clone(), body: call };
        let way = state.lock().unwrap().note(header(&head, "amz-sdk-invocation-id"), call);
        let (status, text) = match way {
            Way::Through => through(&head, &target, &body, moto).await,
            Way::Error(status, code, message) => {
                let kind = format!("com.amazonaws.kms#{code}");
                (status, json!({"__type": kind, "message": message}).to_string())
            }
            Way::Text(status, text) => (status, text),
            Way::Hang => return std::future::pending().await,
            Way::Stall => {
                _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{").await;
                return std::future::pending().await;
            }
            Way::Close => return,
        };
        let answer = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: application/x-amz-json-1.1\r\n\
             x-amzn-requestid: request-7\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn through(head: &str, target: &str, body: &str, moto: Option<SocketAddr>) -> (u16, String) {
    let moto = moto.expect("there is no moto for this call to go to");
    let (status, answer) = pass(moto, target, &header(head, "authorization"), body).await;
    // Of a ciphertext of another key than the one that the call names, KMS says this.
    if status == 400 && answer.contains("AccessDeniedException") {
        return (status, answer.replace("AccessDeniedException", "IncorrectKeyException"));
    }
    (status, answer)
}

/// Each call has its own connection: a connection must not outlive the runtime of its test.
static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(|| {
    let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0);
    client.timeout(Duration::from_secs(180)).build().unwrap()
});

async fn pass(moto: SocketAddr, target: &str, authorization: &str, body: &str) -> (u16, String) {
    let request = CLIENT.post(format!("http://{moto}/"));
    let request = request.header("content-type", "application/x-amz-json-1.1");
    let request = request.header("x-amz-target", target).header("authorization", authorization);
    let answer = request.body(body.to_owned()).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// The head and the body of the next request; `None` at the end.
async fn read_request(stream: &mut TcpStream, came: &mut Vec<u8>) -> Option<(String, String)> {
    loop {
        if let Some(end) = came.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&came[..end]).into_owned();
            let all = end + 4 + header(&head, "content-length").parse::<usize>().unwrap_or(0);
            if came.len() >= all {
                let body = String::from_utf8_lossy(&came[end + 4..all]).into_owned();
                came.drain(..all);
                return Some((head, body));
            }
        }
        let mut buffer = [0; 4096];
        let len = stream.read(&mut buffer).await.ok().filter(|len| *len > 0)?;
        came.extend_from_slice(&buffer[..len]);
    }
}

/// A header of a request; empty if it is not there.
fn header(head: &str, name: &str) -> String {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let value = { lines }.find(|(key, _)| key.eq_ignore_ascii_case(name));
    value.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}
