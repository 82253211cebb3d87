//! etcd as the tests run it: real processes, each with its own ports and directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::ports::free_port;

/// The disk of a loaded machine is slow. The kernel keeps what a killed process wrote.
const NO_SYNC: &str = "--unsafe-no-fsync";

/// How long a member may take to become healthy.
const DEADLINE: Duration = Duration::from_secs(180);

/// One member. Dropping it kills the process and removes its data.
pub(crate) struct Etcd {
    dir: TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
    pub(crate) port: u16,
    scheme: &'static str,
}

impl Etcd {
    /// A cluster of one member that is ready.
    pub(crate) async fn start() -> Self {
        let [member] = Self::cluster::<1>().await;
        member
    }

    /// The same with files that are synced, as in production: for benchmarks.
    pub(crate) async fn durable() -> Self {
        let mut member = Self::start().await;
        member.arguments.retain(|argument| argument != NO_SYNC);
        member.restart();
        member.healthy().await;
        member
    }

    /// A cluster of `N` members that are ready.
    pub(crate) async fn cluster<const N: usize>() -> [Self; N] {
        let ports: [u16; N] = std::array::from_fn(|_| free_port());
        let peers: Vec<_> =
            ports.iter().enumerate().map(|(i, at)| format!("m{i}=http://127.0.0.1:{at}")).collect();
        let members: [Self; N] = std::array::from_fn(|index| {
            let peer = format!("http://127.0.0.1:{}", ports[index]);
            let arguments = [
                ("--name", format!("m{index}")),
                ("--listen-peer-urls", peer.clone()),
                ("--initial-advertise-peer-urls", peer),
                ("--initial-cluster", peers.join(",")),
            ];
            let mut member =
                Self::new("http", arguments.map(|(key, value)| format!("{key}={value}")));
            if N == 1 {
                // It also limits how long a request may take.
                member.arguments.push("--election-timeout=5000".to_owned());
            }
            member.spawn();
            member
        });
        for member in &members {
            member.healthy().await;
        }
        members
    }

    /// A member that asks for client certificates, with the server's files in `files`: `ca.pem`,
    /// `server.pem` and `server.key`. It answers no plain health check.
    pub(crate) fn with_tls(files: &Path) -> Self {
        let file = |name: &str| files.join(name).display().to_string();
        let peer = format!("http://127.0.0.1:{}", free_port());
        let mut member = Self::new(
            "https",
            [
                "--client-cert-auth".to_owned(),
                format!("--trusted-ca-file={}", file("ca.pem")),
                format!("--cert-file={}", file("server.pem")),
                format!("--key-file={}", file("server.key")),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                "--auth-token-ttl=2".to_owned(),
            ],
        );
        member.spawn();
        member
    }

    fn new(scheme: &'static str, more: impl IntoIterator<Item = String>) -> Self {
        let port = free_port();
        let url = format!("{scheme}://127.0.0.1:{port}");
        let mut arguments = vec![
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            "--log-level=error".to_owned(),
            NO_SYNC.to_owned(),
        ];
        arguments.extend(more);
        Self { dir: tempfile::tempdir().unwrap(), arguments, child: None, port, scheme }
    }

    fn spawn(&mut self) {
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(self.data())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let missing = "etcd is not there: run `make test-env`, or install Debian's etcd-server";
        self.child = Some(child.unwrap_or_else(|error| panic!("{missing} ({error})")));
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// Waits until it answers, and has a leader.
    pub(crate) async fn healthy(&self) {
        let start = Instant::now();
        while !self.health().await.is_ok_and(|answer| answer.contains("\"true\"")) {
            let port = self.port;
            assert!(start.elapsed() < DEADLINE, "etcd on port {port} does not become healthy");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn health(&self) -> std::io::Result<String> {
        let ask = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        tokio::time::timeout(Duration::from_secs(10), ask)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    /// Kills the process.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that was paused must be able to end.
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it again with what it has on disk.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.spawn();
    }

    /// Ends it, and starts an empty one at the same address.
    pub(crate) fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.data()).unwrap();
        self.spawn();
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Runs `etcdctl` on it; what it prints comes back.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url()])
            .args(["--dial-timeout=60s", "--command-timeout=120s"])
            .args(arguments)
            .output()
            .expect("etcdctl is not there: run `make test-env`, or install Debian's etcd-client");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "etcdctl {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Puts the snapshot in `file` in the place of its data, and starts it again.
    pub(crate) fn restore(&mut self, file: &Path) {
        self.kill();
        std::fs::remove_dir_all(self.data()).unwrap();
        let data = self.data();
        let of_cluster = self.arguments.iter().filter(|argument| {
            ["--name", "--initial-cluster", "--initial-advertise-peer-urls"]
                .iter()
                .any(|key| argument.starts_with(&format!("{key}=")))
        });
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore"])
            .arg(file)
            .arg("--data-dir")
            .arg(data)
            .args(of_cluster)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.spawn();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
