//! The clients of docs/clients, each run against a service that serves known clients alone, over TLS,
//! and behind a proxy that breaks connections and says what the service would not.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use kms_proxy::auth::token;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::pki::Pki;
use crate::support::tools::{node, printed};
use crate::support::{BINARY, Service, Setup, root, tell};

/// What each of them prints.
const SAID: &str = "hello\nrefused: invalid_ciphertext\n";

/// How a client is run; `None` where the machine has no such language.
fn runs(client: &str) -> Option<Command> {
    let file = root().join("docs/clients").join(client);
    let tools = root().join("target/test-env");
    let with = |program: PathBuf, arguments: &[&str]| {
        assert!(program.exists(), "{} is missing: run `make test-env`", program.display());
        let mut command = Command::new(program);
        command.args(arguments).arg(&file);
        Some(command)
    };
    match client {
        "curl.sh" => with("/bin/sh".into(), &[]),
        "client.py" => with(tools.join("bin/python"), &[]),
        "client.ts" => with(node(), &["--no-warnings"]),
        "client.go" => {
            // `go run` would compile it each time.
            static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
                let cache = root().join("target/go-cache");
                let (tools, built) = (root().join("target/test-env"), cache.join("client"));
                let mut go = Command::new(tools.join("bin/go"));
                go.arg("build").arg("-o").arg(&built).arg(root().join("docs/clients/client.go"));
                // What it compiles of its own library is kept: it takes a minute.
                go.env("GOCACHE", cache).env("GO111MODULE", "off");
                printed(go.output().expect("go is missing: run `make test-env`"));
                built
            });
            Some(Command::new(&*BUILT))
        }
        "Client.java" => {
            let java = Path::new("/usr/bin/java");
            java.exists().then(|| with(java.into(), &[])).flatten()
        }
        "client.rs" => {
            let built = Path::new(BINARY).parent().unwrap().join("examples/client");
            assert!(built.exists(), "run `cargo build --release --example client`");
            Some(Command::new(built))
        }
        other => panic!("how is {other} run?"),
    }
}

/// A service for two clients alone: one with a token, one with a certificate.
struct World {
    service: Service,
    pki: Pki,
    setup: Setup,
}

impl World {
    async fn start(with_tls: bool) -> Self {
        let setup = Setup::new();
        let pki = Pki::new(setup.file("pki"));
        let (token, digest) = token::generate().unwrap();
        std::fs::write(setup.file("token"), format!("{}\n", *token)).unwrap();
        let allow = r#"[{chains=["default"], operations=["encrypt", "decrypt"]}]"#;
        let mut with = setup
            .clone()
            .set("AUTH__MODE", "required")
            .set("CLIENT__0__NAME", "by-token")
            .set("CLIENT__0__TOKEN_SHA256", digest)
            .set("CLIENT__0__ALLOW", allow);
        if with_tls {
            let (cert, key) = pki.server(&["127.0.0.1"]);
            with = with
                .set("SERVER__TLS__CERT", cert.display())
                .set("SERVER__TLS__KEY", key.display())
                .set("SERVER__TLS__CLIENT_CA", pki.ca().display())
                .set("CLIENT__1__NAME", "by-certificate")
                .set("CLIENT__1__TLS_SAN", "app.example")
                .set("CLIENT__1__ALLOW", allow);
        }
        Self { service: with.start().await, pki, setup }
    }

    fn token(&self) -> Vec<(&'static str, PathBuf)> {
        vec![("KMS_PROXY_TOKEN_FILE", self.setup.file("token"))]
    }

    fn certificate(&self) -> Vec<(&'static str, PathBuf)> {
        let (cert, key) = self.pki.client(&["app.example"]);
        vec![("KMS_PROXY_CERT", cert), ("KMS_PROXY_KEY", key)]
    }
}

/// A proxy before a service. It counts connections, and answers the first of them itself.
struct Front {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Front {
    /// `answers` are for the first connections, one each; an empty one only ends its connection.
    async fn start(service: SocketAddr, answers: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let answer = answers.get(number).copied();
                tokio::spawn(async move {
                    let Some(answer) = answer else {
                        let mut service = TcpStream::connect(service).await.unwrap();
                        _ = copy_bidirectional(&mut client, &mut service).await;
                        return;
                    };
                    read_request(&mut client).await;
                    _ = client.write_all(answer.as_bytes()).await;
                    _ = client.shutdown().await;
                });
            }
        });
        Self { address, connections }
    }
}

/// Reads one request whole: what is closed before may lose the answer.
async fn read_request(client: &mut TcpStream) {
    let (mut came, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&came).to_lowercase();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let (_, length) = head.split_once("content-length:").expect("a length");
            let length: usize = length.lines().next().unwrap().trim().parse().unwrap();
            if came.len() >= head.len() + 4 + length {
                return;
            }
        }
        match client.read(&mut buffer).await {
            Ok(len @ 1..) => came.extend_from_slice(&buffer[..len]),
            _ => return,
        }
    }
}

/// Every client that can be run here, by name.
fn clients() -> Vec<String> {
    let files = std::fs::read_dir(root().join("docs/clients")).unwrap();
    let mut files: Vec<_> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    let (run, not_run): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| runs(file).is_some());
    tell(&format!("clients: {} run, {} not run", run.len(), not_run.len()));
    for file in &not_run {
        tell(&format!("  not run: {file}: its language is not here"));
    }
    assert!(run.len() >= 5, "{run:?}");
    run
}

/// Variables of a client.
type Variables = Vec<(&'static str, PathBuf)>;

/// Runs a client on the service at `url`.
async fn run(client: &str, url: String, variables: &Variables) -> Output {
    let mut command = runs(client).unwrap();
    command.env("KMS_PROXY_SERVER", url).envs(variables.iter().cloned());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// Runs a client on a proxy before the service, which answers the first connections itself, and
/// checks how many connections it made. A client that took as long as its own time-outs is run again.
async fn run_behind(
    client: &str,
    world: &World,
    answers: &'static [&'static str],
    variables: Variables,
    expected: usize,
) -> Output {
    let url = world.service.url();
    let (scheme, _) = url.split_once("://").unwrap();
    for _ in 0..3 {
        let (front, started) =
            (Front::start(world.service.address(), answers).await, Instant::now());
        let url = format!("{scheme}://{}", front.address);
        let ended = run(client, url, &variables).await;
        let connections = front.connections.load(Ordering::Relaxed);
        if connections == expected {
            return ended;
        }
        let took = started.elapsed();
        assert!(took > PATIENCE, "{client}: {connections} connections, not {expected}: {ended:?}");
    }
    panic!("{client} always takes long");
}

/// A client waits 15 s for a response, and then tries again.
const PATIENCE: Duration = Duration::from_secs(12);

/// Runs a check for each client, all at the same time: much of their time they wait.
async fn for_each<F: Future<Output = ()> + Send + 'static>(check: impl Fn(String) -> F) {
    let mut checks: JoinSet<()> = clients().into_iter().map(check).collect();
    while let Some(ended) = checks.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

fn assert_said(client: &str, ended: &Output) {
    let said = String::from_utf8_lossy(&ended.stdout);
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said == SAID, "{client}: {said}\n{errors}");
}

/// A client that must fail, with `part` in what it says.
fn assert_failed(client: &str, ended: &Output, part: &str) {
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && errors.contains(part), "{client}: {part}: {errors}");
    assert!(ended.stdout.is_empty(), "{client}");
}

/// The connections that a client makes. Each command of curl is a process with its own.
fn connections_of(client: &str) -> usize {
    if client == "curl.sh" { 3 } else { 1 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_authenticates_over_tls_and_uses_its_connection_again() {
    let world = Arc::new(World::start(true).await);
    for_each(|client| {
        let world = Arc::clone(&world);
        async move {
            for identity in [world.token(), world.certificate()] {
                let mut variables = vec![("KMS_PROXY_CA", world.pki.ca())];
                variables.extend(identity);
                let expected = connections_of(&client);
                let ended = run_behind(&client, &world, &[], variables, expected).await;
                assert_said(&client, &ended);
            }
            let nobody = vec![("KMS_PROXY_CA", world.pki.ca())];
            let ended = run(&client, world.service.url(), &nobody).await;
            assert_failed(&client, &ended, "unauthenticated");
        }
    })
    .await;
}

const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n\
                    Content-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>";
const OVERLOADED: &str = "HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nRetry-After: 1\r\n\
                          Content-Type: application/problem+json\r\nContent-Length: 21\r\n\r\n\
                          {\"code\":\"overloaded\"}";
const BAD_GATEWAY: &str = "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\
                           Content-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>";
const PORTAL: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n\
                      Content-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_tries_again_after_a_broken_connection_and_when_it_is_asked_to() {
    let world = Arc::new(World::start(false).await);
    for_each(|client| {
        let world = Arc::clone(&world);
        async move {
            let (answers, expected) = (&["", BUSY, OVERLOADED], 3 + connections_of(&client));
            let ended = run_behind(&client, &world, answers, world.token(), expected).await;
            assert_said(&client, &ended);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_survives_an_answer_that_is_not_from_the_service() {
    let world = Arc::new(World::start(false).await);
    for_each(|client| {
        let world = Arc::clone(&world);
        async move {
            for (answers, part) in
                [(&[BAD_GATEWAY], "http_502"), (&[PORTAL], "the answer is not from kms-proxy")]
            {
                // It does not repeat the call.
                let ended = run_behind(&client, &world, answers, world.token(), 1).await;
                assert_failed(&client, &ended, part);
            }
        }
    })
    .await;
}
