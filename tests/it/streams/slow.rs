//! Clients that are slow, or do not read: how much memory they occupy, and when their streams end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::lifecycle::{memory_kb, resident_kb};
use crate::limits::{Stream, Target, frame};
use crate::support::{Setup, tell, until};

use super::http2::{Connection, data, head};
use super::wire::{Answer, Call, Framing};
use super::{encrypt, ended, message};

const STREAMS: usize = 50;
/// What a stream may take.
const MAX_STREAM_KB: u64 = 256;

/// A connection for which the kernel keeps little: some megabytes, most of them on the other side.
async fn narrow(target: &Target) -> Box<dyn Stream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(256 << 10).unwrap();
    socket.set_send_buffer_size(256 << 10).unwrap();
    target.over(socket.connect(target.service.address()).await.unwrap()).await
}

/// A request of which a part is sent.
type Filled = (ReadHalf<Box<dyn Stream>>, WriteHalf<Box<dyn Stream>>, usize);

/// Sends a body until no more of it is taken for a while; how much was.
async fn fill(target: Arc<Target>, body: Arc<Vec<u8>>) -> Filled {
    let (reader, mut writer) = tokio::io::split(narrow(&target).await);
    writer.write_all(Call::encrypt(&body).head().as_bytes()).await.unwrap();
    let mut sent = 0;
    let a_while = Duration::from_millis(500);
    while let Ok(more) = timeout(a_while, writer.write(&body[sent..])).await {
        sent += more.unwrap();
        assert!(sent < body.len(), "all of it is taken, and nothing was read");
    }
    (reader, writer, sent)
}

/// What the service takes for each stream beyond `before`, which must be little.
fn check_memory(target: &Target, before: u64, what: &str) {
    let grown = memory_kb(&target.service, "VmHWM:").saturating_sub(before);
    let each = grown / STREAMS as u64;
    tell(&format!("{STREAMS} streams {what}: {grown} kB more, {each} kB each"));
    assert!(each < MAX_STREAM_KB, "{each} kB each, {what}");
}

/// No stream of the test ends by itself, also on a loaded machine.
fn patient() -> Setup {
    Setup::new().set("SERVER__STREAM_IDLE_TIMEOUT", "5m")
}

/// A client that does not read is not read from: it can send what the buffers have room for, and no
/// more; then its stream continues where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_occupy_little_and_can_continue() {
    for with_tls in [false, true] {
        let target = Arc::new(Target::with(patient(), with_tls, &[]).await);
        encrypt(&target, &message(100_000)).await;
        let before = resident_kb(&target.service);
        let body = Arc::new(message(24 << 20));
        let mut filling = JoinSet::new();
        for _ in 0..STREAMS {
            filling.spawn(fill(Arc::clone(&target), Arc::clone(&body)));
        }
        let waiting = filling.join_all().await;
        check_memory(&target, before, &format!("that are not read, TLS {with_tls}"));
        for (mut reader, mut writer, sent) in waiting.into_iter().take(2) {
            let sending = async {
                writer.write_all(&body[sent..]).await.unwrap();
                writer.flush().await.unwrap();
            };
            let mut came = Vec::new();
            let ((), read) = tokio::join!(sending, reader.read_to_end(&mut came));
            read.unwrap();
            assert!(Answer::parse(&came).unwrap().is_whole);
        }
    }
}

/// Over HTTP/2 the window of a stream is in memory, as far as the window of its connection allows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_http_2_that_do_not_read_occupy_little() {
    const OF_EACH: usize = 4;
    let target = Target::with(patient(), true, &["h2"]).await;
    let mut warm = Connection::new(&target, 1 << 20).await;
    let sent = [head(1, None), data(1, &message(100_000)), frame(0, 1, 1, &[])];
    warm.send(&sent.concat()).await;
    let answer = warm.answer(1).await;
    assert!(answer.is_whole, "{answer:?}");
    let before = resident_kb(&target.service);
    let mut connections = Vec::new();
    for _ in 0..STREAMS.div_ceil(OF_EACH) {
        let mut connection = Connection::new(&target, 1_000).await;
        for stream in (0..OF_EACH).map(|number| u32::try_from(2 * number + 1).unwrap()) {
            let sent = [head(stream, None), data(stream, &message(128 << 10))].concat();
            connection.send(&sent).await;
        }
        connections.push(connection);
    }
    let open = format!("\nkms_proxy_streams_open {}\n", connections.len() * OF_EACH);
    until("all streams have begun", async || {
        target.service.metrics().await.contains(&open).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    check_memory(&target, before, "that are not read, HTTP/2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_send_slowly_occupy_little() {
    for with_tls in [false, true] {
        let target = Target::with(patient(), with_tls, &[]).await;
        let body = message(150_000);
        encrypt(&target, &body).await;
        let before = resident_kb(&target.service);
        let mut open = Vec::new();
        for _ in 0..STREAMS {
            let mut call = Call::encrypt(&body).begin(&target, 100_000).await;
            call.answer_head().await;
            open.push(call);
        }
        check_memory(&target, before, &format!("that are sent slowly, TLS {with_tls}"));
        for call in open {
            assert!(call.finish().await.is_whole);
        }
    }
}

/// Many clients send all of a body before they read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_everything_before_it_reads_is_cut_and_the_log_says_why() {
    for with_tls in [false, true] {
        let setup = Setup::new().set("SERVER__STREAM_IDLE_TIMEOUT", "2s");
        let target = Target::with(setup, with_tls, &[]).await;
        let body = message(24 << 20);
        let (mut reader, mut writer) = tokio::io::split(narrow(&target).await);
        let sending = async {
            writer.write_all(Call::encrypt(&body).head().as_bytes()).await?;
            writer.write_all(&body).await?;
            writer.flush().await
        };
        let sent = timeout(Duration::from_secs(180), sending).await.expect("it is cut");
        assert!(sent.is_err(), "TLS {with_tls}");
        target.service.logged("it must read while it sends").await;
        assert_eq!(ended(&target.service, "encrypt", "unread").await, 1);
        let mut came = Vec::new();
        _ = timeout(Duration::from_secs(180), reader.read_to_end(&mut came)).await.unwrap();
        assert!(Answer::parse(&came).is_none_or(|answer| !answer.is_whole));
        until("another stream", async || {
            (Call::encrypt(b"hello").send(&target).await.is_whole).then_some(())
        })
        .await;
    }
}

/// A stream may last longer than `server.request_timeout`, `server.idle_timeout` and
/// `server.stream_idle_timeout`, as long as something comes, and something is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_writer_and_a_slow_reader_are_not_cut() {
    let setup = || {
        Setup::new()
            .set("SERVER__REQUEST_TIMEOUT", "4s")
            .set("SERVER__IDLE_TIMEOUT", "1s")
            .set("SERVER__STREAM_IDLE_TIMEOUT", "3s")
    };
    let targets = [
        Target::with(setup(), false, &[]).await,
        Target::with(setup(), true, &[]).await,
        Target::with(setup(), false, &[]).await,
    ];
    tokio::join!(
        not_cut(async || write_slowly(&targets[0]).await),
        not_cut(async || write_slowly(&targets[1]).await),
        not_cut(async || read_slowly(&targets[2]).await),
    );
}

/// Repeats an attempt in which this process stood still for almost as long as a stream may. An
/// attempt returns whether its stream came to its end, and its longest pause.
async fn not_cut(attempt: impl AsyncFn() -> (bool, Duration)) {
    for _ in 0..5 {
        let (is_whole, longest) = attempt().await;
        if is_whole {
            return;
        }
        assert!(longest > Duration::from_millis(1_500), "cut after {longest:?} without a byte");
    }
    panic!("this process always stands still");
}

/// The longest time between two moments.
struct Pauses {
    last: Instant,
    longest: Duration,
}

impl Pauses {
    fn new() -> Self {
        Self { last: Instant::now(), longest: Duration::ZERO }
    }

    fn moment(&mut self) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
    }
}

/// Idle connections are cut 5 s after the time-out.
const SLOW: Duration = Duration::from_secs(8);

async fn write_slowly(target: &Target) -> (bool, Duration) {
    let body = message(100_000);
    let made = Call::encrypt(&body).send(target).await;
    let mut pauses = Pauses::new();
    if !made.is_whole {
        return (false, Duration::MAX);
    }
    let envelope = made.body;
    let call = Call { framing: Framing::Length, ..Call::decrypt(&envelope) };
    let started = Instant::now();
    let (mut reader, mut writer) = tokio::io::split(target.connect().await);
    let sending = async {
        writer.write_all(call.head().as_bytes()).await?;
        for piece in envelope.chunks(envelope.len() / 32) {
            pauses.moment();
            writer.write_all(piece).await?;
            writer.flush().await?;
            tokio::time::sleep(SLOW / 31).await;
        }
        pauses.moment();
        std::io::Result::Ok(())
    };
    let mut came = Vec::new();
    let (read, sent) = tokio::join!(reader.read_to_end(&mut came), sending);
    let answer = Answer::parse(&came).unwrap_or_default();
    assert!(body.starts_with(&answer.body));
    let is_whole = read.is_ok() && sent.is_ok() && answer.is_whole;
    assert!(!is_whole || answer.body == body && started.elapsed() > SLOW);
    (is_whole, pauses.longest)
}

async fn read_slowly(target: &Target) -> (bool, Duration) {
    let body = message(24 << 20);
    let call = Call::encrypt(&body);
    let mut pauses = Pauses::new();
    let (mut reader, mut writer) = tokio::io::split(narrow(target).await);
    let sending = async {
        writer.write_all(call.head().as_bytes()).await?;
        writer.write_all(&body).await?;
        writer.flush().await
    };
    let reading = async {
        let (started, mut came) = (Instant::now(), Vec::new());
        while started.elapsed() < SLOW {
            let mut some = [0; 4096];
            pauses.moment();
            let len = reader.read(&mut some).await?;
            came.extend_from_slice(&some[..len]);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(came.len() < 12 << 20, "the reader was slow");
        reader.read_to_end(&mut came).await?;
        pauses.moment();
        std::io::Result::Ok(Answer::parse(&came).unwrap_or_default())
    };
    let (sent, answer) = tokio::join!(sending, reading);
    let is_whole = sent.is_ok() && answer.is_ok_and(|answer| answer.is_whole);
    (is_whole, pauses.longest)
}
