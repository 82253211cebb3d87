//! What the benchmarks of the running service share: a server as a child process, and a client that
//! drives it over many connections in short windows.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a driver talks over.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Connections of a driver.
pub(crate) const CONNECTIONS: usize = 32;
pub(crate) const WINDOW: Duration = Duration::from_millis(400);

/// A child that ends with this process.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a variable is one of AWS, not a setting.
fn is_of_aws(key: &str) -> bool {
    key.starts_with("AWS_") && !key.starts_with("AWS_API__")
}

/// Starts the real binary with `settings` beside the defaults.
pub(crate) async fn kms_proxy(
    directory: &std::path::Path,
    settings: &[(&str, String)],
) -> anyhow::Result<Server> {
    // Free a moment ago; nobody else takes it on a quiet machine.
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut child = Command::new(env!("CARGO_BIN_EXE_kms-proxy"))
        .args(["serve", "--listen", &address.to_string(), "--data-dir"])
        .arg(directory)
        .envs(settings.iter().map(|(key, value)| match is_of_aws(key) {
            true => ((*key).to_owned(), value),
            false => (format!("KMS_PROXY__{key}"), value),
        }))
        .stderr(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take();
    let mut server = Server { child, address };
    // It accepts connections before it is ready. If it does not start, its output ends.
    let mut lines = BufReader::new(stdout.ok_or_else(|| anyhow::anyhow!("no stdout"))?);
    let mut line = String::new();
    while !line.contains("is ready on") {
        line.clear();
        anyhow::ensure!(lines.read_line(&mut line)? > 0, "kms-proxy does not start");
    }
    server.child.stdout = Some(lines.into_inner());
    Ok(server)
}

/// A whole POST request.
pub(crate) fn request(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Sends one request and reads its whole answer into `buffer`; gives where the body starts.
pub(crate) async fn exchange(
    stream: &mut (impl Stream + ?Sized),
    request: &[u8],
    buffer: &mut Vec<u8>,
) -> anyhow::Result<usize> {
    stream.write_all(request).await?;
    stream.flush().await?;
    buffer.clear();
    loop {
        anyhow::ensure!(stream.read_buf(buffer).await? > 0, "the server closed the connection");
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut answer = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(start) = answer.parse(buffer)? else { continue };
        anyhow::ensure!(answer.code == Some(200), "{}", String::from_utf8_lossy(buffer));
        let length = answer.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
        let length = length.ok_or_else(|| anyhow::anyhow!("no length"))?.value;
        let whole = start + std::str::from_utf8(length)?.parse::<usize>()?;
        while buffer.len() < whole {
            anyhow::ensure!(stream.read_buf(buffer).await? > 0, "the answer ends early");
        }
        return Ok(start);
    }
}

/// A new connection.
pub(crate) async fn connect(server: &Server) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(server.address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Seconds that a process has spent on the processors, in user and in kernel mode.
fn cpu_seconds(pid: u32) -> f64 {
    // Fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms; the second field ends with ')'.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Drives one server with the same connections in every window.
pub(crate) struct Driver {
    pid: u32,
    streams: Vec<Box<dyn Stream>>,
    pub(crate) requests: std::sync::Arc<Vec<Vec<u8>>>,
    next: usize,
}

impl Driver {
    pub(crate) async fn new(server: &Server, requests: Vec<Vec<u8>>) -> anyhow::Result<Self> {
        let mut streams: Vec<Box<dyn Stream>> = Vec::new();
        for _ in 0..CONNECTIONS {
            streams.push(Box::new(connect(server).await?));
        }
        Ok(Self::over(server, streams, requests))
    }

    /// The same over connections that are there.
    pub(crate) fn over(
        server: &Server,
        streams: Vec<Box<dyn Stream>>,
        requests: Vec<Vec<u8>>,
    ) -> Self {
        Self { pid: server.child.id(), streams, requests: requests.into(), next: 0 }
    }

    /// One window: requests a second, requests, and seconds of the server's processors.
    pub(crate) async fn window(&mut self) -> anyhow::Result<(f64, f64, f64)> {
        let (start, cpu) = (Instant::now(), cpu_seconds(self.pid));
        let mut tasks = Vec::new();
        for (index, mut stream) in std::mem::take(&mut self.streams).into_iter().enumerate() {
            let requests = std::sync::Arc::clone(&self.requests);
            let mut at = self.next + index * requests.len() / CONNECTIONS;
            tasks.push(tokio::spawn(async move {
                let (mut done, mut buffer) = (0_u32, Vec::with_capacity(1 << 16));
                while start.elapsed() < WINDOW {
                    exchange(&mut *stream, &requests[at % requests.len()], &mut buffer).await?;
                    (done, at) = (done + 1, at + 1);
                }
                anyhow::Ok((stream, done))
            }));
        }
        let mut total = 0.0;
        for task in tasks {
            let (stream, done) = task.await??;
            self.streams.push(stream);
            total += f64::from(done);
        }
        let cpu = cpu_seconds(self.pid) - cpu;
        self.next += (total as usize) / CONNECTIONS;
        Ok((total / start.elapsed().as_secs_f64(), total, cpu))
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
