//! Responses that a real server does not give on demand, from a server in this process.

use std::net::SocketAddr;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::root::contract::repeated_in_pieces;
use crate::root::echo::LEFT_OUT;

/// What happens to a call.
enum Fate {
    /// A status, a body, and header lines with their line ends.
    Answer(u16, String, &'static str),
    /// No response.
    Hang,
    /// The connection ends.
    Reset,
}

fn answer(status: u16, body: impl ToString) -> Fate {
    Fate::Answer(status, body.to_string(), "")
}

type Told = Box<dyn Fn() -> Fate + Send>;
type Script = Arc<Mutex<Box<dyn FnMut(&str) -> Fate + Send>>>;

/// A server with scripted responses that records its requests.
struct Faulty {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    script: Script,
    task: JoinHandle<()>,
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Faulty {
    async fn start(script: impl FnMut(&str) -> Fate + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, script): (_, Script) = (Arc::default(), Arc::new(Mutex::new(Box::new(script))));
        let (seen, told) = (Arc::clone(&asked), Arc::clone(&script));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&seen), Arc::clone(&told)));
            }
        });
        Self { address, asked, script, task }
    }

    fn then(&self, script: impl FnMut(&str) -> Fate + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    /// The number of calls of `path`.
    fn count(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| asked.contains(path)).count()
    }

    fn config(&self) -> Config {
        let token = secret("s.hunter2hunter2hunter2");
        Config { token, ..config(&format!("http://{}", self.address)) }
    }
}

async fn serve(
    mut stream: TcpStream,
    asked: Arc<Mutex<Vec<String>>>,
    script: Script,
) -> std::io::Result<()> {
    let mut came = Vec::new();
    // The head ends with an empty line, and contains the length of the body.
    let request = loop {
        let mut buffer = [0; 4096];
        let len = stream.read(&mut buffer).await?;
        came.extend_from_slice(&buffer[..len]);
        let text = String::from_utf8_lossy(&came).into_owned();
        if len == 0 {
            return Ok(());
        }
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let len = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        if body.len() >= len.map_or(0, |len| len.parse().unwrap()) {
            break text;
        }
    };
    asked.lock().unwrap().push(request.clone());
    let path = request.split(' ').nth(1).unwrap_or_default();
    let fate = (script.lock().unwrap())(path);
    match fate {
        Fate::Answer(status, body, headers) => {
            let head = format!(
                "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n",
                body.len()
            );
            stream.write_all(format!("{head}{body}").as_bytes()).await
        }
        Fate::Hang => std::future::pending().await,
        Fate::Reset => Ok(()),
    }
}

/// A token that does not expire, and a key that exists.
fn well(path: &str) -> Option<Fate> {
    match path {
        "/v1/auth/token/lookup-self" => Some(answer(200, json!({"data": {"ttl": 0}}))),
        "/v1/transit/keys/kek" => Some(answer(200, json!({"data": {"latest_version": 1}}))),
        _ => None,
    }
}

const WRAPPED: &str = "vault:v1:zSaBL+w8tyCSAKJl1+z1mdsgsMrs3zWBe6CZsEwdVg==";

/// Wraps a KEK.
async fn wrap(root: &Root) -> Result<Vec<u8>, Error> {
    let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes128Gcm).unwrap());
    root.wrap(context(&chain, &kek), &kek).await
}

#[tokio::test]
async fn every_fault_of_the_server_is_away_until_it_is_over() {
    let server = Faulty::start(|_| Fate::Reset).await;
    let root = Root::open(&server.config()).await.unwrap();
    let errors = |text: &str| json!({"errors": [text]}).to_string();
    let html = "<html>no such page</html>".to_owned();
    let moved = "Location: http://127.0.0.1:1/v1/\r\n";
    let fates: Vec<(&str, Told)> = vec![
        ("", Box::new(|| Fate::Reset)),
        ("throttles", Box::new(move || answer(429, errors("slow down")))),
        (
            "rate limit",
            Box::new(move || answer(429, json!({"errors": ["rate limit quota exceeded"]}))),
        ),
        ("500 internal error", Box::new(|| answer(500, json!({"errors": ["internal error"]})))),
        ("sealed", Box::new(|| answer(503, json!({"errors": ["Vault is sealed"]})))),
        ("answers 503", Box::new(|| answer(503, ""))),
        ("standby", Box::new(|| answer(473, json!({"errors": []})))),
        ("caught up", Box::new(|| answer(412, json!({"errors": []})))),
        ("redirects", Box::new(move || Fate::Answer(307, String::new(), moved))),
        ("another server", Box::new(move || answer(404, &html))),
        ("another server", Box::new(|| answer(403, "forbidden"))),
        ("another server", Box::new(|| answer(400, "not JSON"))),
        ("be parsed", Box::new(|| answer(200, "not JSON"))),
        ("be parsed", Box::new(|| answer(200, json!({"data": null})))),
        ("be parsed", Box::new(|| answer(204, ""))),
        ("longer", Box::new(|| answer(200, "x".repeat((1 << 20) + 1)))),
    ];
    for (what, fate) in fates {
        server.then(move |path| match path {
            "/v1/transit/encrypt/kek" => fate(),
            path => well(path).unwrap(),
        });
        match wrap(&root).await {
            Err(Error::Away(detail)) => assert!(detail.contains(what), "{what}: {detail}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    server.then(|path| match path {
        "/v1/transit/encrypt/kek" => answer(200, json!({"data": {"ciphertext": WRAPPED}})),
        "/v1/transit/decrypt/kek" => {
            answer(400, json!({"errors": ["cipher: message authentication failed"]}))
        }
        path => well(path).unwrap(),
    });
    assert_eq!(wrap(&root).await.unwrap()[1..], *WRAPPED.as_bytes());
    assert_eq!(server.count("/v1/transit/keys/kek"), 1, "the key is checked once");
}

#[tokio::test]
async fn a_server_that_does_not_respond_is_away_after_the_timeout() {
    let server = Faulty::start(|_| Fate::Hang).await;
    let config = Config { timeout: Duration::from_millis(200), ..server.config() };
    let root = Root::open(&config).await.unwrap();
    match wrap(&root).await {
        Err(Error::Away(detail)) => assert!(detail.starts_with("no answer in 200ms"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn errors_contain_no_secret_that_a_server_repeats() {
    let server = Faulty::start(|path| well(path).unwrap_or_else(|| answer(404, ""))).await;
    let root = Root::open(&server.config()).await.unwrap();
    let asked = Arc::clone(&server.asked);
    server.then(move |path| match path {
        "/v1/transit/encrypt/kek" => {
            let request = asked.lock().unwrap().last().unwrap().clone();
            answer(400, json!({"errors": [format!("what is this: {request}")]}))
        }
        path => well(path).unwrap(),
    });
    let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes256Gcm).unwrap());
    let error = root.wrap(context(&chain, &kek), &kek).await.unwrap_err().to_string();
    assert!(error.contains(LEFT_OUT) && !error.contains("what is this"), "{error}");
    // In pieces that could not be a key or a token by their length.
    let hex = repeated_in_pieces(&kek);
    let told = hex.clone();
    server.then(move |path| match path {
        "/v1/transit/encrypt/kek" => answer(400, json!({"errors": [format!("bad {told}")]})),
        path => well(path).unwrap(),
    });
    let error = root.wrap(context(&chain, &kek), &kek).await.unwrap_err().to_string();
    assert!(error.contains(LEFT_OUT) && !error.contains(&hex), "{error}");
}

#[tokio::test]
async fn a_server_without_associated_data_is_not_used() {
    let server = Faulty::start(|path| match path {
        "/v1/transit/encrypt/kek" => answer(200, json!({"data": {"ciphertext": WRAPPED}})),
        "/v1/transit/decrypt/kek" => {
            answer(200, json!({"data": {"plaintext": STANDARD.encode_to_string([7; 16])}}))
        }
        path => well(path).unwrap(),
    })
    .await;
    let root = Root::open(&server.config()).await.unwrap();
    for _ in 0..2 {
        match wrap(&root).await {
            Err(Error::Denied(detail)) => assert!(detail.contains("associated data"), "{detail}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_plaintext_that_is_not_a_kek_is_refused() {
    let server = Faulty::start(|path| well(path).unwrap()).await;
    let root = Root::open(&server.config()).await.unwrap();
    let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes128Gcm).unwrap());
    let wrapped = Wrapped::from_text(WRAPPED).unwrap().to_bytes();
    for plaintext in ["", "AAAA", "not base64", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        server.then(move |path| match path {
            "/v1/transit/decrypt/kek" => answer(200, json!({"data": {"plaintext": plaintext}})),
            path => well(path).unwrap(),
        });
        let detail = wrong(&root, context(&chain, &kek), &wrapped).await;
        assert_eq!(detail, "it unwraps to something that is not a KEK");
    }
    for ciphertext in ["", "vault:v1:AAAA", "not one", &format!("{WRAPPED}\u{e9}")] {
        let ciphertext = ciphertext.to_owned();
        server.then(move |path| match path {
            "/v1/transit/encrypt/kek" => answer(200, json!({"data": {"ciphertext": ciphertext}})),
            path => well(path).unwrap(),
        });
        assert!(matches!(wrap(&root).await, Err(Error::Denied(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_log_in_once_and_a_wrong_secret_is_sent_once() {
    let role = |server: &Faulty| Config {
        token: None,
        role_id: Some("role".to_owned()),
        secret_id: secret("hunter2"),
        ..server.config()
    };
    let server = Faulty::start(|path| match path {
        "/v1/auth/approle/login" => answer(
            200,
            json!({"auth": {"client_token": "s.y", "lease_duration": 3600, "renewable": true}}),
        ),
        "/v1/transit/encrypt/kek" => answer(200, json!({"data": {"ciphertext": WRAPPED}})),
        "/v1/transit/decrypt/kek" => answer(400, json!({"errors": ["invalid ciphertext"]})),
        path => well(path).unwrap(),
    })
    .await;
    let root = Arc::new(Root::open(&role(&server)).await.unwrap());
    let many = async |root: &Arc<Root>| {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let root = Arc::clone(root);
            calls.spawn(async move { wrap(&root).await });
        }
        calls.join_all().await
    };
    assert!(many(&root).await.iter().all(Result::is_ok));
    assert_eq!(server.count("/v1/auth/approle/login"), 1);

    let server = Faulty::start(|path| match path {
        "/v1/auth/approle/login" => answer(400, json!({"errors": ["invalid role or secret ID"]})),
        path => well(path).unwrap(),
    })
    .await;
    let root = Arc::new(Root::open(&role(&server)).await.unwrap());
    for result in many(&root).await {
        assert!(matches!(result, Err(Error::Away(_))), "{result:?}");
    }
    assert_eq!(server.count("/v1/auth/approle/login"), 1);
}
