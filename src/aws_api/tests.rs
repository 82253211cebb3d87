//! The AWS KMS API over real connections, with a stand-in for KMS.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;
use http::header::HOST;
use prometheus::Registry;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::auth::{self, ClientConfig};
use crate::clock::{ManualClock, SystemClock};
use crate::http::{Listeners, Server as HttpServer};
use crate::metrics::Metrics;
use crate::root::{self, testing::TestRoot};
use crate::service::ChainSettings;
use crate::sigv4::testing::{Credentials, sign};
use crate::sigv4::{self, Scope, format_date};
use crate::store::memory;
use crate::tls;
use crate::tls::tests::pki::{self, Pki};

mod data;
mod errors;
mod forwarding;
mod keys;
mod kms;
mod permissions;
mod signatures;
mod vectors;

use kms::FakeKms;

const REGION: &str = "eu-central-1";
const ACCOUNT: &str = "111122223333";
/// A key of KMS that is mapped to the chain `orders`.
const ORDERS: &str =
    "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
/// One that is mapped to `bills`.
const BILLS: &str = "arn:aws:kms:eu-central-1:111122223333:key/mrk-b1";
/// One that is mapped to no chain.
const UNMAPPED: &str = "arn:aws:kms:eu-central-1:111122223333:key/unmapped";

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// The credentials of callers that have no others.
const ANYONE: Credentials<'_> = Credentials { access_key_id: "KPANYONE", secret: SECRET };

/// The configuration of a server.
struct Setup {
    /// Lines of `[aws_api]`.
    settings: String,
    /// The `[[client]]` tables. Without one, every caller may make every call.
    clients: String,
    /// The client names in a certificate of HTTPS; plain HTTP if there are none.
    certificate: &'static [&'static str],
}

impl Setup {
    fn new() -> Self {
        Self { settings: String::new(), clients: String::new(), certificate: &[] }
    }

    /// With a line of `[aws_api]`.
    fn set(mut self, line: &str) -> Self {
        self.settings.push_str(line);
        self.settings.push('\n');
        self
    }

    /// With a client `name`: `identity` is a line of its settings, `allow` what it may do.
    fn client(mut self, name: &str, identity: &str, allow: &str) -> Self {
        self.clients += &format!("[[client]]\nname = '{name}'\n{identity}\nallow = [{allow}]\n");
        self
    }

    /// With a client whose access key id is `id`, and whose secret is [`SECRET`].
    fn access_key(self, id: &str, allow: &str) -> Self {
        let identity = format!("aws_access_key_id = '{id}'\naws_secret_access_key_file = 'SECRET'");
        self.client(&id.to_ascii_lowercase(), &identity, allow)
    }

    async fn start(self) -> Server {
        Server::new(self).await
    }
}

struct Server {
    url: String,
    client: Client,
    clock: Arc<ManualClock>,
    api: Arc<Api>,
    kms: Arc<FakeKms>,
    service: Arc<KeyService>,
    store: Arc<memory::Store>,
    root: Arc<TestRoot>,
    registry: Registry,
    auth: Option<Arc<Auth>>,
    auth_config: auth::Config,
    _dir: tempfile::TempDir,
}

impl Server {
    async fn new(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let secret = file("secret", SECRET.as_bytes());
        let secret_key = file("key", &[7; 32]);
        let (registry, store) = (Registry::new(), Arc::new(memory::Store::new()));
        let (root, clock) = (Arc::new(TestRoot::default()), Arc::new(ManualClock::new()));
        let metrics = Metrics::new(&registry).unwrap();
        let service = KeyService::start(
            service::Config::default(),
            Arc::clone(&store) as _,
            vec![root::Named { name: "main".into(), root: Arc::clone(&root) as _ }],
            Arc::clone(&clock) as _,
            Arc::clone(&metrics),
        );
        let service = service.await.unwrap();
        for chain in ["orders", "bills", "plain"] {
            service.put_chain(chain, ChainSettings::default()).await.unwrap();
        }
        let clients = setup.clients.replace("'SECRET'", &format!("'{}'", secret.display()));
        let auth_config = auth_config(&clients, secret_key);
        let auth = Auth::start(auth_config.clone(), Arc::clone(&clock) as _, metrics).await;

        let config = format!(
            "enabled = true\nregion = '{REGION}'\naccount = '{ACCOUNT}'\n{}\n\
             [[key]]\nkey_id = '{ORDERS}'\naliases = ['alias/orders']\nchain = 'orders'\n\
             [[key]]\nkey_id = 'mrk-b1'\nchain = 'bills'\n",
            setup.settings
        );
        let config: Config = toml::from_str(&config).unwrap();
        assert_eq!(config.check(), Ok(()));
        let kms = Arc::new(FakeKms::default());
        let to_kms = Some(Arc::clone(&kms) as _);
        let api = Api::new(&config, Arc::clone(&service), auth.clone(), clock.clone(), to_kms);

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = Client::builder();
        let (mut server_tls, mut scheme) = (None, "http");
        if !setup.certificate.is_empty() {
            let pki = Pki::new(dir.path().join("pki"));
            let (cert, key) = pki.server(&["127.0.0.1"]);
            let config = tls::Config {
                cert,
                key,
                client_ca: Some(pki.ca()),
                client_cert: tls::ClientCert::Optional,
            };
            let clock = Arc::new(SystemClock::new());
            server_tls = Some(Arc::new(tls::Server::open(config, clock).unwrap()));
            scheme = "https";
            client = pki::client(&pki.ca(), Some(&pki.client(setup.certificate)));
        }
        let listeners = Listeners { public: listener, tls: server_tls, admin: None };
        // A busy machine may need seconds for a request.
        let request_timeout = Duration::from_secs(120);
        let server = HttpServer::new(
            crate::http::Config { request_timeout, ..crate::http::Config::default() },
            crate::http::Admin::default(),
            listeners,
            auth.clone(),
            registry.clone(),
            Arc::clone(service.metrics()),
            Arc::default(),
        );
        server.entrance().serve_beside(Arc::clone(&api) as _);
        server.entrance().open(&service);
        tokio::spawn(server.serve(std::future::pending()));
        Self {
            url: format!("{scheme}://{address}"),
            client: client.no_proxy().build().unwrap(),
            clock,
            api,
            kms,
            service,
            store,
            root,
            registry,
            auth,
            auth_config,
            _dir: dir,
        }
    }

    /// A call that is not signed yet.
    fn request(&self, operation: &str, body: &Value) -> Request {
        let mut headers = HeaderMap::new();
        let host = self.url.split("//").nth(1).unwrap();
        headers.insert(HOST, HeaderValue::from_str(host).unwrap());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-amz-json-1.1"));
        let target = format!("TrentService.{operation}");
        headers.insert("x-amz-target", HeaderValue::from_str(&target).unwrap());
        let now = self.clock.unix_now();
        Request { method: "POST", path: "/".to_owned(), headers, body: body.to_string(), now }
    }

    async fn send(&self, request: Request) -> Answer {
        let Request { method, path, headers, body, .. } = request;
        let url = format!("{}{path}", self.url);
        let request = self.client.request(method.parse().unwrap(), url).headers(headers);
        let response = request.body(body).send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or(Value::Null);
        Answer { status, headers, body }
    }

    /// A call with an access key whose secret is [`SECRET`].
    async fn call_as(&self, access_key_id: &str, operation: &str, body: Value) -> Answer {
        let request = self.request(operation, &body);
        self.send(request.signed(Credentials { access_key_id, secret: SECRET })).await
    }

    async fn call(&self, operation: &str, body: Value) -> Answer {
        self.call_as(ANYONE.access_key_id, operation, body).await
    }

    /// The response to a call that must succeed.
    async fn ok(&self, operation: &str, body: Value) -> Value {
        let answer = self.call(operation, body).await;
        assert_eq!(answer.status, 200, "{operation}: {}", answer.body);
        answer.body
    }

    /// Waits until this many callers wait for KMS to decrypt.
    async fn until_waiting(&self, count: usize) {
        while self.api.forwarder.waiting() != count {
            tokio::task::yield_now().await;
        }
    }

    /// The error of a call.
    async fn error(&self, operation: &str, body: Value) -> String {
        self.call(operation, body).await.code()
    }

    /// The value of a metric with these labels; 0 if it does not exist.
    fn metric(&self, name: &str) -> u64 {
        let text = prometheus::TextEncoder::new();
        let text = text.encode_to_string(&self.registry.gather()).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }
}

fn auth_config(clients: &str, secret_key: PathBuf) -> auth::Config {
    #[derive(Default, serde::Deserialize)]
    struct File {
        #[serde(default)]
        client: Vec<ClientConfig>,
    }
    let File { client: clients } = toml::from_str(clients).unwrap();
    let mode = if clients.is_empty() { auth::Mode::None } else { auth::Mode::Required };
    let config = auth::Config { mode, clients, aws_secret_key_file: Some(secret_key) };
    config.check().unwrap();
    config
}

/// A request, with all parts that a test can alter.
#[derive(Clone)]
struct Request {
    method: &'static str,
    path: String,
    headers: HeaderMap,
    body: String,
    /// When it was made.
    now: u64,
}

impl Request {
    fn signed(self, credentials: Credentials<'_>) -> Self {
        let scope = Scope { region: REGION, service: "kms" };
        let now = self.now;
        self.signed_at(credentials, scope, now)
    }

    fn signed_at(mut self, credentials: Credentials<'_>, scope: Scope<'_>, unix: u64) -> Self {
        let date = HeaderValue::from_str(&format_date(unix)).unwrap();
        self.headers.insert("x-amz-date", date);
        let (path, query) = self.path.split_once('?').unwrap_or((&self.path, ""));
        let request = sigv4::Request {
            method: self.method,
            path,
            query,
            headers: &self.headers,
            authority: None,
            body: self.body.as_bytes(),
        };
        let authorization = sign(&request, credentials, scope);
        self.set("authorization", &authorization)
    }

    fn set(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, HeaderValue::from_str(value).unwrap());
        self
    }

    fn get(&self, name: &str) -> &str {
        self.headers.get(name).unwrap().to_str().unwrap()
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    /// The error's name; empty for a success.
    fn code(&self) -> String {
        assert_eq!(self.status == 200, self.body.get("__type").is_none(), "{self:?}");
        self.body["__type"].as_str().unwrap_or_default().to_owned()
    }

    fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

/// Bytes as base64.
fn base64(bytes: impl AsRef<[u8]>) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}

fn bytes(value: &Value) -> Vec<u8> {
    base64_simd::STANDARD.decode_to_vec(value.as_str().unwrap()).unwrap()
}
