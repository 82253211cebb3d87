//! What the benchmarks of running servers share: a server as a child process, and a client that
//! drives it over many connections in short windows. It knows no table.

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

impl Server {
    /// Its resident memory in MiB.
    pub(crate) fn memory(&self) -> f64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kib.map_or(f64::NAN, |kib| kib / 1024.0)
    }
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

/// An address on loopback. It was free a moment ago; nothing else takes it on a quiet machine.
pub(crate) fn free_address() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Starts the real binary with `settings` beside the defaults.
pub(crate) async fn kms_proxy(
    directory: &std::path::Path,
    settings: &[(&str, String)],
) -> anyhow::Result<Server> {
    let address = free_address()?;
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
    // In a thread of its own: a root that it waits for may be a task of this runtime.
    let lines = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        while !line.contains("is ready on") {
            line.clear();
            anyhow::ensure!(lines.read_line(&mut line)? > 0, "kms-proxy does not start");
        }
        Ok(lines)
    });
    server.child.stdout = Some(lines.await??.into_inner());
    Ok(server)
}

/// A token, and the settings of a service whose only client has it and may do everything.
pub(crate) fn with_token() -> anyhow::Result<(String, [(&'static str, String); 4])> {
    let output = Command::new(env!("CARGO_BIN_EXE_kms-proxy")).args(["token", "new"]).output()?;
    let token = String::from_utf8(output.stdout)?.trim().to_owned();
    let digest = base16ct::lower::encode_string(&<sha2::Sha256 as sha2::Digest>::digest(&token));
    let settings = [
        ("AUTH__MODE", "required".to_owned()),
        ("CLIENT__0__NAME", "token".to_owned()),
        ("CLIENT__0__TOKEN_SHA256", digest),
        ("CLIENT__0__ALLOW", r#"[{chains=["*"], operations=["encrypt", "decrypt"]}]"#.to_owned()),
    ];
    Ok((token, settings))
}

/// A whole POST request with a body of JSON.
pub(crate) fn request(path: &str, body: &str) -> Vec<u8> {
    request_with(path, &["content-type: application/json"], body.as_bytes())
}

/// A whole POST request.
pub(crate) fn request_with(path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
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
        let is_good = matches!(answer.code, Some(200 | 204));
        anyhow::ensure!(is_good, "{}", String::from_utf8_lossy(buffer));
        if answer.code == Some(204) {
            return Ok(start);
        }
        let header = |name| answer.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
        let Some(length) = header("content-length") else {
            anyhow::ensure!(header("transfer-encoding").is_some(), "no length");
            read_chunks(stream, buffer, start).await?;
            return Ok(start);
        };
        let whole = start + std::str::from_utf8(length.value)?.parse::<usize>()?;
        while buffer.len() < whole {
            anyhow::ensure!(stream.read_buf(buffer).await? > 0, "the answer ends early");
        }
        return Ok(start);
    }
}

/// Reads a body in chunks to its end. After `start`, `buffer` then has the data without framing.
async fn read_chunks(
    stream: &mut (impl Stream + ?Sized),
    buffer: &mut Vec<u8>,
    start: usize,
) -> anyhow::Result<()> {
    // Where the data ends, and where the next chunk begins.
    let (mut end, mut next) = (start, start);
    loop {
        let (line, size) = match httparse::parse_chunk_size(&buffer[next..]) {
            Ok(httparse::Status::Complete((line, size))) => (line, usize::try_from(size)?),
            Ok(httparse::Status::Partial) => {
                anyhow::ensure!(stream.read_buf(buffer).await? > 0, "the answer ends early");
                continue;
            }
            Err(_) => anyhow::bail!("a chunk has no size"),
        };
        let data = next + line;
        next = data + size + "\r\n".len();
        while buffer.len() < next {
            anyhow::ensure!(stream.read_buf(buffer).await? > 0, "the answer ends early");
        }
        buffer.copy_within(data..data + size, end);
        end += size;
        if size == 0 {
            buffer.truncate(end);
            return Ok(());
        }
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
    length: Duration,
}

impl Driver {
    pub(crate) async fn new(server: &Server, requests: Vec<Vec<u8>>) -> anyhow::Result<Self> {
        Self::with_connections(server, CONNECTIONS, requests).await
    }

    /// The same over another number of connections.
    pub(crate) async fn with_connections(
        server: &Server,
        connections: usize,
        requests: Vec<Vec<u8>>,
    ) -> anyhow::Result<Self> {
        let mut streams: Vec<Box<dyn Stream>> = Vec::new();
        for _ in 0..connections {
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
        let requests = requests.into();
        Self { pid: server.child.id(), streams, requests, next: 0, length: WINDOW }
    }

    /// The same with windows of another length.
    pub(crate) fn lasting(self, length: Duration) -> Self {
        Self { length, ..self }
    }

    /// One window. It ends when the last request that began in it is answered.
    pub(crate) async fn window(&mut self) -> anyhow::Result<Window> {
        let (start, cpu, length) = (Instant::now(), cpu_seconds(self.pid), self.length);
        let connections = self.streams.len();
        let mut tasks = Vec::new();
        for (index, mut stream) in std::mem::take(&mut self.streams).into_iter().enumerate() {
            let requests = std::sync::Arc::clone(&self.requests);
            let mut at = self.next + index * requests.len() / connections;
            tasks.push(tokio::spawn(async move {
                let (mut took, mut buffer) = (Vec::new(), Vec::with_capacity(1 << 16));
                let mut began = start.elapsed();
                while began < length {
                    exchange(&mut *stream, &requests[at % requests.len()], &mut buffer).await?;
                    let ended = start.elapsed();
                    took.push((ended - began).as_secs_f32());
                    (began, at) = (ended, at + 1);
                }
                anyhow::Ok((stream, took))
            }));
        }
        let mut all = Vec::new();
        for task in tasks {
            let (stream, took) = task.await??;
            self.streams.push(stream);
            all.extend(took);
        }
        let cpu = cpu_seconds(self.pid) - cpu;
        self.next += all.len() / connections;
        Ok(Window { rate: all.len() as f64 / start.elapsed().as_secs_f64(), cpu, took: all })
    }
}

/// What a window measured.
pub(crate) struct Window {
    /// Requests per second.
    pub(crate) rate: f64,
    /// Seconds of the server's processors.
    pub(crate) cpu: f64,
    /// The seconds that each request took, in no order.
    pub(crate) took: Vec<f32>,
}

impl Window {
    /// The latency that this part of the requests did not exceed, in microseconds.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        quantile(self.took.clone(), part)
    }
}

/// What all windows of one kind measured.
#[derive(Default)]
pub(crate) struct Windows {
    /// Requests per second, one number a window.
    pub(crate) rates: Vec<f64>,
    cpu: f64,
    took: Vec<f32>,
}

impl Windows {
    pub(crate) fn add(&mut self, window: Window) {
        self.rates.push(window.rate);
        self.cpu += window.cpu;
        self.took.extend(window.took);
    }

    /// The median rate.
    pub(crate) fn rate(&self) -> f64 {
        median(self.rates.clone())
    }

    /// The median of the ratios to the rates of `other` in the same rounds.
    pub(crate) fn ratio_to(&self, other: &Self) -> f64 {
        median(self.rates.iter().zip(&other.rates).map(|(this, that)| this / that).collect())
    }

    /// Microseconds of the server's processors per request.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu / self.took.len() as f64 * 1e6
    }

    /// The latency that this part of all requests did not exceed, in microseconds.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        quantile(self.took.clone(), part)
    }
}

fn quantile(mut took: Vec<f32>, part: f64) -> f64 {
    took.sort_by(f32::total_cmp);
    let at = (took.len() as f64 * part) as usize;
    took.get(at.min(took.len().saturating_sub(1))).map_or(f64::NAN, |took| f64::from(*took) * 1e6)
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
