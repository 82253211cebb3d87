//! Substitutes for cloud services, as child processes: see `tests/clouds/`.
//!
//! The unit tests of the roots include this file as well, so it knows nothing of the rest.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

/// A substitute, whose keys are gone when it is dropped.
pub(crate) struct Fake {
    child: Child,
    pub(crate) url: String,
    client: reqwest::Client,
}

/// One call that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) body: String,
}

impl Fake {
    /// Starts `script` of `tests/clouds` on a free port, and waits until it listens.
    fn start(script: &str) -> Self {
        let mut command = python(script);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| {
            panic!("{script} does not start; run `make test-env`");
        });
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(180));
        Self { child, url: url.to_owned(), client: client.build().unwrap() }
    }

    /// The substitute for Google Cloud KMS.
    pub(crate) fn gcp() -> Self {
        Self::start("fake_gcp.py")
    }

    /// The substitute for Azure Key Vault and Managed HSM.
    pub(crate) fn azure() -> Self {
        Self::start("fake_azure.py")
    }

    /// Host and port.
    pub(crate) fn host(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// A call of its controls.
    pub(crate) async fn control(&self, name: &str, body: Value) -> Value {
        let (status, answer) = self.call(Method::POST, &format!("/fake/{name}"), "", body).await;
        assert_eq!(status, 200, "{name}: {answer}");
        answer
    }

    /// What becomes of calls from now on: a list of faults.
    pub(crate) async fn fails(&self, faults: Value) {
        self.control("faults", faults).await;
    }

    /// Everything works again.
    pub(crate) async fn works(&self) {
        self.fails(json!([])).await;
    }

    /// The calls so far; they are forgotten.
    pub(crate) async fn take(&self) -> Vec<Call> {
        let calls = self.control("calls", json!({})).await;
        self.control("forget", json!({})).await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let calls = calls.as_array().unwrap().iter().map(|call| Call {
            method: text(&call["method"]),
            path: text(&call["path"]),
            body: text(&call["body"]),
        });
        calls.collect()
    }

    /// The calls so far that use a key, by the last word of their paths; all are forgotten.
    pub(crate) async fn uses(&self) -> Vec<String> {
        let calls = self.take().await;
        let words = calls.iter().filter_map(|call| call.path.rsplit([':', '/']).next());
        let is_use = |word: &&str| ["encrypt", "decrypt", "wrapkey", "unwrapkey"].contains(word);
        words.filter(is_use).map(str::to_owned).collect()
    }

    /// A call; the status, and the response.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Value,
    ) -> (u16, Value) {
        let request = self.client.request(method, format!("{}{path}", self.url));
        let request = request.bearer_auth(token).header("metadata-flavor", "Google");
        let answer = request.json(&body).send().await.unwrap();
        let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// A call of Cloud KMS, with a token of the metadata server; it must go well.
    pub(crate) async fn google(&self, method: Method, path: &str, body: Value) -> Value {
        let path_of_token = "/computeMetadata/v1/instance/service-accounts/default/token";
        let (_, token) = self.call(Method::GET, path_of_token, "", json!({})).await;
        let token = token["access_token"].as_str().unwrap();
        let (status, answer) = self.call(method, &format!("/v1/{path}"), token, body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// The name of a new key of Cloud KMS for encryption and decryption.
    pub(crate) async fn google_key(&self, key: &str) -> String {
        self.google_key_for(key, "ENCRYPT_DECRYPT").await
    }

    pub(crate) async fn google_key_for(&self, key: &str, purpose: &str) -> String {
        let location = "projects/p/locations/europe-west3";
        let ring = format!("{location}/keyRings?keyRingId=r");
        self.google(Method::POST, &ring, json!({})).await;
        let path = format!("{location}/keyRings/r/cryptoKeys?cryptoKeyId={key}");
        let made = self.google(Method::POST, &path, json!({"purpose": purpose})).await;
        self.take().await;
        made["name"].as_str().unwrap().to_owned()
    }

    /// Makes another version of a key of Cloud KMS its primary one.
    pub(crate) async fn google_rotate(&self, key: &str) {
        let path = format!("{key}/cryptoKeyVersions");
        let made = self.google(Method::POST, &path, json!({})).await;
        let version = made["name"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let body = json!({"cryptoKeyVersionId": version});
        self.google(Method::POST, &format!("{key}:updatePrimaryVersion"), body).await;
    }

    /// A call of Azure, with a token of the managed identity; it must go well.
    pub(crate) async fn microsoft(&self, method: Method, path: &str, body: Value) -> Value {
        let login = "/msi/token?api-version=2019-08-01&resource=https://vault.azure.net";
        let request = self.client.get(format!("{}{login}", self.url));
        let answer = request.header("x-identity-header", "h").send().await.unwrap();
        let token: Value = answer.json().await.unwrap();
        let token = token["access_token"].as_str().unwrap();
        let (status, answer) =
            self.call(method, &format!("{path}?api-version=7.4"), token, body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// The URL of a new key of Azure: RSA of 2048 bits, or `oct-HSM`, which is AES.
    pub(crate) async fn azure_key(&self, name: &str, kind: &str) -> String {
        let body = json!({"kty": kind});
        self.microsoft(Method::POST, &format!("/keys/{name}/create"), body).await;
        self.take().await;
        format!("{}/keys/{name}", self.url)
    }

    /// The id of the latest version of the key `name` of Azure.
    pub(crate) async fn azure_version(&self, name: &str) -> String {
        let key = self.microsoft(Method::GET, &format!("/keys/{name}"), json!({})).await;
        key["key"]["kid"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()
    }

    /// Makes another version of the key `name` of Azure.
    pub(crate) async fn azure_rotate(&self, name: &str) {
        self.microsoft(Method::POST, &format!("/keys/{name}/rotate"), json!({})).await;
    }

    /// Enables or disables a version of the key `name` of Azure.
    pub(crate) async fn azure_enable(&self, name: &str, version: &str, enabled: bool) {
        let body = json!({"attributes": {"enabled": enabled}});
        self.microsoft(Method::PATCH, &format!("/keys/{name}/{version}"), body).await;
    }

    /// Changes the state of a version of a key of Cloud KMS.
    pub(crate) async fn google_state(&self, key: &str, version: u32, state: &str) {
        let path = format!("{key}/cryptoKeyVersions/{version}?updateMask=state");
        self.google(Method::PATCH, &path, json!({"state": state})).await;
    }
}

/// The vendor's own client, as a child process: see `tests/clouds/gcp_client.py` and
/// `azure_client.py`.
pub(crate) struct Vendor {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Vendor {
    /// Starts `script` of `tests/clouds`.
    pub(crate) fn start(script: &str, arguments: &[&str]) -> Self {
        let mut command = python(script);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// Sends a command; the answer.
    pub(crate) fn ask(&mut self, command: &Value) -> Value {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("it failed: {command}: {line}"))
    }
}

impl Drop for Vendor {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A command that runs `script` of `tests/clouds`.
fn python(script: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/test-env/bin/python");
    assert!(python.exists(), "{} is missing; run `make test-env`", python.display());
    let mut command = Command::new(python);
    command.arg(root.join("tests/clouds").join(script)).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

impl Drop for Fake {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
