//! What many, large and slow clients can do: memory stays bounded, and others are served.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Method, Version};
use rustix::process::Resource;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::lifecycle::{memory_kb, resident_kb};
use crate::support::pki::{self, Pki};
use crate::support::random::Random;
use crate::support::{Service, Setup, read_until, talk, tell, until};

const IDLE: usize = 5_000;
/// Memory of an idle connection in bytes: about twice what was measured.
const PLAIN_CONNECTION: u64 = 56 << 10;
const TLS_CONNECTION: u64 = 72 << 10;

const SENDERS: usize = 500;
const LARGEST: usize = 4 << 20;
/// The budget of bodies and answers is 256 MiB by default. The rest is for buffers of connections,
/// for what is at work, and for what the allocator has not given back yet: 480 to 590 MB were measured.
/// Without a budget it is 2 GB.
const MAX_PEAK_KB: u64 = 800 << 10;

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A service, plain or with TLS, and how to connect to it.
pub(crate) struct Target {
    pub(crate) service: Service,
    tls: Option<TlsConnector>,
    _setup: Setup,
}

impl Target {
    async fn start(with_tls: bool) -> Self {
        Self::with(Setup::new().set("SERVER__REQUEST_TIMEOUT", "5m"), with_tls, &[]).await
    }

    pub(crate) async fn with(setup: Setup, with_tls: bool, protocols: &[&str]) -> Self {
        if !with_tls {
            return Self { service: setup.start().await, tls: None, _setup: setup };
        }
        let pki = Pki::new(setup.file("pki"));
        let (cert, key) = pki.server(&["localhost", "127.0.0.1"]);
        let setup =
            setup.set("SERVER__TLS__CERT", cert.display()).set("SERVER__TLS__KEY", key.display());
        let mut service = setup.start().await;
        service.call_with(pki::client(&pki.ca(), None).build().unwrap());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pki.ca()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let tls = Some(TlsConnector::from(Arc::new(config)));
        Self { service, tls, _setup: setup }
    }

    /// Connects. The service gives up a handshake that takes long, as on a loaded machine: then the
    /// next one counts.
    pub(crate) async fn connect(&self) -> Box<dyn Stream> {
        let tcp = async || TcpStream::connect(self.service.address()).await.unwrap();
        for _ in 0..3 {
            if let Ok(stream) = self.try_over(tcp().await).await {
                return stream;
            }
        }
        self.over(tcp().await).await
    }

    /// Connects in the same way, over an open connection.
    pub(crate) async fn over(&self, stream: TcpStream) -> Box<dyn Stream> {
        self.try_over(stream).await.unwrap()
    }

    async fn try_over(&self, stream: TcpStream) -> std::io::Result<Box<dyn Stream>> {
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from("localhost").unwrap();
        Ok(Box::new(tls.connect(name, stream).await?))
    }
}

/// Reads one answer whole: its status, and how long its body is.
async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(u16, usize)> {
    let mut came = Vec::with_capacity(16 << 10);
    loop {
        if stream.read_buf(&mut came).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(start)) = head.parse(&came) else { continue };
        let status = head.code.unwrap();
        let length = head.headers.iter().find(|header| header.name == "content-length").unwrap();
        let length: usize = std::str::from_utf8(length.value).unwrap().parse().unwrap();
        let mut rest = stream.take((start + length - came.len()) as u64);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
        return Ok((status, length));
    }
}

/// As many file descriptors as the system allows: one for each connection.
pub(crate) fn take_descriptors() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
    let enough = limit.current.is_none_or(|limit| limit > IDLE as u64 + 200);
    assert!(enough, "this test needs {IDLE} connections; run: ulimit -Hn 10000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_idle_connections_take_little_memory() {
    take_descriptors();
    for (with_tls, each) in [(false, PLAIN_CONNECTION), (true, TLS_CONNECTION)] {
        let target = Target::start(with_tls).await;
        let before = resident_kb(&target.service);
        let mut connections = Vec::with_capacity(IDLE);
        for _ in 0..IDLE {
            let mut stream = target.connect().await;
            let get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
            stream.write_all(get).await.unwrap();
            assert_eq!(answer(&mut stream).await.unwrap().0, 200);
            connections.push(stream);
        }
        let grown = resident_kb(&target.service) - before;
        let one = grown * 1024 / IDLE as u64;
        tell(&format!(
            "{IDLE} idle connections, TLS {with_tls}: {grown} kB more, {one} bytes each"
        ));
        assert!(one < each, "{one} bytes each");
        let mut last = connections.pop().unwrap();
        last.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert_eq!(answer(&mut last).await.unwrap().0, 200, "they are still there");
    }
}

/// How long the service reads the rest of a refused body: after that the response may be lost.
const REST_TIMEOUT: Duration = Duration::from_secs(4);

/// Sends the largest body until it is taken; how often it was refused.
async fn send_largest(
    target: Arc<Target>,
    together: Arc<tokio::sync::Barrier>,
    mut pauses: Random,
) -> u32 {
    let head = format!(
        "POST /v1/encrypt HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {LARGEST}\r\n\r\n"
    );
    let body: &[u8] = &[7; LARGEST];
    let (half, rest) = body.split_at(LARGEST / 2);
    let mut refused = 0;
    loop {
        let began = Instant::now();
        let mut stream = target.connect().await;
        let mut sent = stream.write_all(head.as_bytes()).await;
        if sent.is_ok() {
            sent = stream.write_all(half).await;
        }
        if refused == 0 {
            // All of them are half sent at the same time. One that is already refused waits as well,
            // because the others wait for it.
            together.wait().await;
        }
        if sent.is_ok() {
            sent = stream.write_all(rest).await;
        }
        if sent.is_ok() {
            sent = stream.flush().await;
        }
        match answer(&mut stream).await {
            Ok((200, length)) if sent.is_ok() => {
                assert!(length > LARGEST);
                return refused;
            }
            Ok((429, _)) => refused += 1,
            // Refused while it waited for the others, or while the machine was busy.
            Err(_) if sent.is_err() || began.elapsed() > REST_TIMEOUT => refused += 1,
            other => panic!("{other:?} after {sent:?}"),
        }
        // What is sent to be refused costs as much as the rest of the test, so the pauses grow.
        let most = 300 << refused.min(4);
        tokio::time::sleep(Duration::from_millis(200 + pauses.below(most))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_under_five_hundred_clients_that_send_the_largest_body() {
    for with_tls in [false, true] {
        let target = Arc::new(Target::start(with_tls).await);
        let together = Arc::new(tokio::sync::Barrier::new(SENDERS));
        let mut senders = tokio::task::JoinSet::new();
        for sender in 0..SENDERS as u64 {
            let (target, together) = (Arc::clone(&target), Arc::clone(&together));
            senders.spawn(send_largest(target, together, Random(sender)));
        }
        let mut refused = 0;
        while let Some(ended) = senders.join_next().await {
            refused += ended.expect("it is served in the end");
        }
        let peak = memory_kb(&target.service, "VmHWM:");
        tell(&format!(
            "{SENDERS} clients with {LARGEST} bytes each, TLS {with_tls}: {peak} kB at most; \
             {refused} times overloaded"
        ));
        assert!(refused > 0, "the budget is smaller than all of them");
        assert!(peak < MAX_PEAK_KB, "{peak} kB");
        target.service.encrypt("default", "aGVsbG8=").await;
    }
}

#[tokio::test]
async fn unread_answers_count_and_small_requests_succeed() {
    let service = Setup::new()
        .set("SERVER__MAX_BODY", "16MiB")
        .set("SERVER__BODY_MEMORY", "32MiB")
        .start()
        .await;
    let body = vec![7; 15 << 20];
    let octets = || {
        let request = service.request(Method::POST, "/v1/encrypt");
        request.header("content-type", "application/octet-stream").body(body.clone())
    };
    let mut silent = Vec::new();
    for _ in 0..2 {
        // The kernel keeps little for it, and all the rest stays in the service.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 << 10).unwrap();
        let mut stream = socket.connect(service.address()).await.unwrap();
        let head = format!(
            "POST /v1/encrypt HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\
             \r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        // The answer has begun.
        read_until(&mut stream, "HTTP/1.1 200").await;
        silent.push(stream);
    }
    let refused = octets().send().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    let problem: Value = refused.json().await.unwrap();
    assert_eq!((&problem["code"], &problem["status"]), (&json!("overloaded"), &json!(429)));
    service.encrypt("default", "aGVsbG8=").await;
    drop(silent);
    until("there is room again", async || {
        (octets().send().await.unwrap().status() == 200).then_some(())
    })
    .await;
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, len @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Makes many requests and reads no response. How many answers began, how many streams were reset;
/// it ends when the service cuts a connection on which it waits with answers.
async fn take_nothing(target: Arc<Target>, streams: u32) -> (u32, u32) {
    const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(frame(4, 0, 0, &NO_WINDOW));
    // GET, https, the path and the authority, without compression (RFC 7541).
    let head = b"\x82\x87\x04\x0a/v1/chains\x01\x09localhost";
    for number in 0..streams {
        sent.extend(frame(1, 0b101, 2 * number + 1, head));
    }
    let mut stream = target.connect().await;
    stream.write_all(&sent).await.unwrap();
    stream.flush().await.unwrap();
    let (mut answered, mut reset) = (0, 0);
    while answered + reset < streams || answered > 0 {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            break;
        }
        let [a, b, c, kind, ..] = head;
        answered += u32::from(kind == 1);
        reset += u32::from(kind == 3);
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
    }
    (answered, reset)
}

#[tokio::test]
async fn many_small_unread_answers_count() {
    let setup = Setup::new().set("SERVER__MAX_BODY", "1MiB").set("SERVER__BODY_MEMORY", "2MiB");
    let target = Arc::new(Target::with(setup, true, &["h2"]).await);
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..6 {
        all.spawn(take_nothing(Arc::clone(&target), 120));
    }
    let counts = tokio::time::timeout(Duration::from_secs(300), all.join_all()).await;
    let counts = counts.expect("connections that take nothing are cut");
    let (answered, reset) =
        counts.iter().fold((0, 0), |(a, b), (answered, reset)| (a + answered, b + reset));
    tell(&format!("unread HTTP/2 answers: {answered} began, {reset} had no room"));
    assert_eq!(answered + reset, 720);
    // 4 KiB and the body each.
    assert!((400..=512).contains(&answered), "{counts:?}");
    target.service.encrypt("default", "aGVsbG8=").await;
}

#[tokio::test]
async fn the_answer_of_a_batch_counts_while_it_is_made() {
    let setup = Setup::new().set("SERVER__MAX_BODY", "1MiB").set("SERVER__BODY_MEMORY", "2MiB");
    let service = setup.start().await;
    let item = json!({"plaintext": "A".repeat(32)});
    let items = |count: usize| json!({"items": vec![item.clone(); count]});
    service.ok("/v1/batch/encrypt", items(1_000)).await;
    // The result of each has more than 210 bytes: more than 2 MiB together.
    let (status, problem) = service.post("/v1/batch/encrypt", items(10_000)).await;
    assert_eq!((status.as_u16(), &problem["code"]), (429, &json!("overloaded")), "{problem}");
    service.ok("/v1/batch/encrypt", items(1_000)).await;
}

#[tokio::test]
async fn one_waiting_request_too_many_is_refused_and_those_that_need_not_wait_are_served() {
    let setup = Setup::new().set("SERVER__MAX_REQUESTS", 1).set("SERVER__REQUEST_TIMEOUT", "5m");
    let service = setup.start().await;
    let head = "POST /v1/encrypt HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                Content-Type: application/json\r\nContent-Length: 18\r\nExpect: 100-continue\r\n\r\n";
    let mut first = service.connect().await;
    first.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut first, "100 Continue").await;
    let mut second = service.connect().await;
    let answer = talk(&mut second, head).await;
    assert!(answer.contains("HTTP/1.1 429") && answer.contains("under way"), "{answer}");
    let mut third = service.connect().await;
    let whole = head.replace("Expect: 100-continue\r\n", "") + r#"{"plaintext":"AA"}"#;
    let answer = talk(&mut third, &whole).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("not base64"), "{answer}");
    let answer = talk(&mut first, r#"{"plaintext":"AA"}"#).await;
    assert!(answer.contains("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn heads_have_a_bound_that_the_largest_aad_fits_in() {
    let service = Setup::new().start().await;
    let aad = base64_simd::STANDARD.encode_to_string(vec![7; 64 << 10]);
    let head = |more: &str| {
        format!(
            "POST /v1/encrypt HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: 0\r\n{more}\r\n"
        )
    };
    for (more, status) in [
        (format!("kms-proxy-aad: {aad}\r\n"), "200"),
        (format!("kms-proxy-aad: {aad}{aad}\r\n"), "431"),
        ("a: b\r\n".repeat(90), "200"),
        ("a: b\r\n".repeat(101), "431"),
    ] {
        let mut stream = service.connect().await;
        // It may be answered before all of it is sent.
        _ = stream.write_all(head(&more).as_bytes()).await;
        let start = read_until(&mut stream, "\r\n").await;
        assert!(start.starts_with(&format!("HTTP/1.1 {status}")), "{} bytes: {start}", more.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_are_not_finished_take_no_more_than_their_part_of_the_budget() {
    const CONNECTIONS: usize = 1_000;
    const HEAD: usize = 126_000;
    const BUDGET: usize = 32 << 20;
    take_descriptors();
    // Both at the same time: the last connections end as idle ones, after half a minute.
    let measure = async |with_tls| {
        let setup = Setup::new().set("SERVER__BODY_MEMORY", BUDGET);
        let target = Target::with(setup, with_tls, &[]).await;
        target.service.encrypt("default", "aGVsbG8=").await;
        let before = resident_kb(&target.service);
        let head = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nx: {}", "a".repeat(HEAD));
        let mut connections = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let mut stream = target.connect().await;
            // Most end before all of it is sent.
            _ = stream.write_all(head.as_bytes()).await;
            connections.push(stream);
        }
        // Bodies have their part, and small requests need none.
        let octets = target.service.request(Method::POST, "/v1/encrypt").body(vec![7; 2 << 20]);
        let octets = octets.header("content-type", "application/octet-stream");
        assert_eq!(octets.send().await.unwrap().status(), 200);
        target.service.encrypt("default", "aGVsbG8=").await;
        // Those without room are closed with no answer; the others later, as idle ones.
        let mut ended = tokio::task::JoinSet::new();
        for mut stream in connections {
            ended.spawn(async move {
                let mut rest = Vec::new();
                _ = stream.read_to_end(&mut rest).await;
                assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
            });
        }
        let all = tokio::time::timeout(Duration::from_secs(300), ended.join_all()).await;
        all.expect("every connection ends");
        let grown = memory_kb(&target.service, "VmHWM:").saturating_sub(before);
        tell(&format!(
            "{CONNECTIONS} unfinished heads of {HEAD} bytes, TLS {with_tls}: {grown} kB more"
        ));
        // The heads' half of the budget, in buffers of up to twice their size, a body and its answer,
        // and what each connection takes until it is closed.
        assert!(grown < 80 << 10, "{grown} kB");
    };
    tokio::join!(measure(false), measure(true));
}

/// As many fields as a head has room for, with short names and no values (RFC 7541).
pub(crate) fn many_names() -> Vec<u8> {
    let mut fields = Vec::new();
    for number in 0..3_400_u32 {
        fields.extend(b"\x00\x03");
        fields.extend([1, 26, 676].map(|unit| b'a' + u8::try_from(number / unit % 26).unwrap()));
        fields.push(0);
    }
    fields
}

/// Begins an HTTP/2 connection whose first head has `fields`, in frames of the largest size, and
/// does not end.
pub(crate) fn unfinished_head(fields: &[u8]) -> Vec<u8> {
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(frame(4, 0, 0, &[]));
    // GET, https, the path and the authority, without compression (RFC 7541).
    let block = [b"\x82\x87\x04\x0a/v1/chains\x01\x09localhost", fields].concat();
    for (index, piece) in block.chunks(16 << 10).enumerate() {
        sent.extend(frame(if index == 0 { 1 } else { 9 }, 0, 1, piece));
    }
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_of_http_2_that_are_not_finished_take_no_more_than_their_part_of_the_budget() {
    const CONNECTIONS: usize = 1_000;
    const BUDGET: usize = 32 << 20;
    /// A head counts as 512 KiB, and heads get half of the budget.
    const WITH_ROOM: usize = BUDGET / 2 / (512 << 10);
    take_descriptors();
    // One long value; a field that is one byte on the wire; fields with a short name and no value.
    let long = [&b"\x00\x01x\x7f\xe1\xd6\x07"[..], &[b'a'; 126_000]].concat();
    let short = vec![0x93; 3_400];
    for (what, fields) in
        [("a long value", long), ("one name", short), ("many names", many_names())]
    {
        let setup = Setup::new().set("SERVER__BODY_MEMORY", BUDGET);
        let target = Target::with(setup, true, &["h2"]).await;
        target.service.encrypt("default", "aGVsbG8=").await;
        let before = resident_kb(&target.service);
        let sent = unfinished_head(&fields);
        let mut connections = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let mut stream = target.connect().await;
            _ = stream.write_all(&sent).await;
            _ = stream.flush().await;
            connections.push(stream);
        }
        // Others are served.
        target.service.encrypt("default", "aGVsbG8=").await;
        let mut ended = tokio::task::JoinSet::new();
        for mut stream in connections {
            ended.spawn(async move {
                _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            });
        }
        for _ in WITH_ROOM..CONNECTIONS {
            let end = tokio::time::timeout(Duration::from_secs(300), ended.join_next()).await;
            end.expect("connections without room for a head end").unwrap().unwrap();
        }
        let grown = memory_kb(&target.service, "VmHWM:").saturating_sub(before);
        tell(&format!("{CONNECTIONS} unfinished heads of HTTP/2, {what}: {grown} kB more"));
        // The heads' half of the budget, and what each connection takes until it is closed.
        assert!(grown < 80 << 10, "{grown} kB");
    }
}

#[tokio::test]
async fn a_head_of_http_2_has_as_many_fields_as_one_of_http_1() {
    let target = Target::with(Setup::new(), true, &[]).await;
    for (fields, status) in [(90, 200), (101, 431)] {
        let mut request = target.service.request(Method::GET, "/healthz");
        for _ in 0..fields {
            request = request.header("accept", "");
        }
        let answer = request.send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (status, Version::HTTP_2));
    }
}

#[tokio::test]
async fn a_client_that_says_nothing_is_cut_off_by_the_handshake() {
    let target = Target::start(true).await;
    let mut silent = target.service.connect().await;
    let mut half = target.service.connect().await;
    // The head of a record that never comes.
    half.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    target.service.encrypt("default", "aGVsbG8=").await;
    for stream in [&mut silent, &mut half] {
        assert_eq!(talk(stream, "").await, "", "it ends, and says nothing");
    }
}
