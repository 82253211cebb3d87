//! A real Prometheus as a child process, with its own port and directory.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::ports::free_port;
use super::until;

/// A server. Dropping it kills the process.
pub(crate) struct Prometheus {
    dir: TempDir,
    child: Child,
    address: SocketAddr,
    client: reqwest::Client,
}

impl Prometheus {
    /// A server that reads the metrics of `targets` every second, under the job `kms-proxy`, and
    /// evaluates the alerts in `rules`; it is ready.
    pub(crate) async fn start(targets: &[SocketAddr], rules: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let targets: Vec<_> = targets.iter().map(|target| format!("'{target}'")).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs: [{{job_name: kms-proxy, static_configs: [{{targets: [{}]}}]}}]\n",
            rules.display(),
            targets.join(", ")
        );
        std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let missing =
            "prometheus is not there: run `make test-env`, or install Debian's prometheus";
        let child = child.unwrap_or_else(|error| panic!("{missing} ({error})"));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut server = Self { dir, child, address, client };
        until("a Prometheus that is ready", async || {
            if let Some(status) = server.child.try_wait().unwrap() {
                let log = std::fs::read_to_string(server.dir.path().join("log")).unwrap();
                panic!("prometheus ended with {status}:\n{log}");
            }
            let url = format!("http://{}/-/ready", server.address);
            server.client.get(url).send().await.ok()?.status().is_success().then_some(())
        })
        .await;
        server
    }

    /// What `expression` is now: the list of its series.
    pub(crate) async fn query(&self, expression: &str) -> Vec<Value> {
        let form: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let request = self.client.post(format!("http://{}/api/v1/query", self.address));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let answer = request.body(format!("query={form}")).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        assert_eq!(answer["data"]["resultType"], "vector", "{expression}");
        answer["data"]["result"].as_array().unwrap().clone()
    }

    /// The `data` of a GET below `/api/v1`.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let url = format!("http://{}/api/v1/{path}", self.address);
        let mut answer: Value = self.client.get(url).send().await.unwrap().json().await.unwrap();
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].take()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
