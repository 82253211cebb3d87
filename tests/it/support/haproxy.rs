//! A real HAProxy as a child process, with its own ports and directory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::ports::free_port;
use super::until;

/// A load balancer. Dropping it kills the process.
pub(crate) struct Haproxy {
    dir: TempDir,
    child: Child,
    /// Where it takes requests.
    pub(crate) address: SocketAddr,
    stats: SocketAddr,
    client: reqwest::Client,
}

/// What HAProxy reports of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// `UP` or `DOWN`, for example.
    pub(crate) status: String,
    /// How the last check ended: `L7OK` and the HTTP status, for example.
    pub(crate) check: (String, String),
}

impl Haproxy {
    /// Starts one with these `backend` sections; requests go to the one named `first`.
    pub(crate) async fn start(backends: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [address, stats] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let config = format!(
            "global\n  maxconn 100\n\
             defaults\n  mode http\n  timeout connect 60s\n\
             \x20 timeout client 10m\n  timeout server 10m\n  timeout check 60s\n\
             \x20 default-server inter 1s fastinter 100ms rise 1 fall 1\n\
             listen stats\n  bind {stats}\n  stats enable\n  stats uri /stats\n\
             frontend front\n  bind {address}\n  default_backend first\n\
             {backends}\n"
        );
        let file = dir.path().join("haproxy.cfg");
        std::fs::write(&file, config).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new("haproxy")
            .arg("-f")
            .arg(&file)
            .args(["-db", "-C"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let missing = "haproxy is not there: run `make test-env`, or install Debian's haproxy";
        let child = child.unwrap_or_else(|error| panic!("{missing} ({error})"));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut server = Self { dir, child, address, stats, client };
        until("an HAProxy that answers", async || {
            if let Some(status) = server.child.try_wait().unwrap() {
                let log = std::fs::read_to_string(server.dir.path().join("log")).unwrap();
                panic!("haproxy ended with {status}:\n{log}");
            }
            server.try_servers().await.map(drop)
        })
        .await;
        server
    }

    /// Each server, by `backend/server`.
    async fn try_servers(&self) -> Option<BTreeMap<String, Checked>> {
        let url = format!("http://{}/stats;csv", self.stats);
        let csv = self.client.get(url).send().await.ok()?.text().await.ok()?;
        let mut lines = csv.lines().map(|line| line.trim_start_matches("# ").split(','));
        let names: Vec<_> = lines.next()?.collect();
        let rows = lines.map(|line| names.iter().copied().zip(line).collect::<BTreeMap<_, _>>());
        let servers = rows.filter(|row| row.get("check_status").is_some_and(|it| !it.is_empty()));
        let servers = servers.map(|row| {
            let field = |name: &str| row[name].to_owned();
            let check = (field("check_status"), field("check_code"));
            let name = format!("{}/{}", row["pxname"], row["svname"]);
            (name, Checked { status: field("status"), check })
        });
        Some(servers.collect())
    }

    /// Waits until a server is down since a check of it ended with this HTTP status. HAProxy reports
    /// the result of a check before the state that follows from it.
    pub(crate) async fn is_down(&self, server: &str, code: &str) {
        until(&format!("{server} is down since a check ended with {code}"), async || {
            let servers = self.try_servers().await?;
            let is_down = |it: &&Checked| it.check.1 == code && it.status == "DOWN";
            servers.get(server).filter(is_down).map(drop)
        })
        .await;
    }

    /// Waits until a server was checked; what HAProxy reports of it.
    pub(crate) async fn first_check(&self, server: &str) -> Checked {
        until(&format!("a check of {server}"), async || {
            let servers = self.try_servers().await?;
            // A star says that the next check is under way.
            let has_code = |checked: &&Checked| {
                !checked.check.1.is_empty() && !checked.check.0.starts_with('*')
            };
            servers.get(server).filter(has_code).cloned()
        })
        .await
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
