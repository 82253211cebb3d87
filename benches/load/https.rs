//! HTTPS next to plain HTTP, each on a service of its own, and handshakes with and without
//! resumption. The client's share of the cryptography is on the same processors.

use std::sync::Arc;
use std::time::Instant;

use base64_simd::STANDARD;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::driver::{
    CONNECTIONS, Driver, Server, Stream, WINDOW, Windows, connect, exchange, kms_proxy, median,
    request,
};
use crate::pki::Pki;
use crate::results::{self, Column, Options, Table, row};

/// Windows of each kind with one pair of services, and pairs.
const WINDOWS: usize = 5;
const PAIRS: usize = 7;
const SIZES: [usize; 2] = [256, 4096];

const COLUMNS: [Column; 7] = [
    ("plaintext", "plaintext", 0),
    ("http_rate", "HTTP 1/s", 0),
    ("rate", "HTTPS 1/s", 0),
    ("ratio", "ratio", 3),
    ("http_cpu_us", "HTTP CPU us", 1),
    ("cpu_us", "HTTPS CPU us", 1),
    ("p99_us", "HTTPS p99 us", 0),
];
const HANDSHAKE_COLUMNS: [Column; 2] =
    [("handshake", "handshake", 0), ("rate", "connections 1/s", 0)];

/// Measures both tables.
pub(crate) async fn compare(options: &Options) -> anyhow::Result<()> {
    let pairs = options.times(PAIRS);
    let mut figures: [[Windows; 2]; SIZES.len()] = Default::default();
    let mut handshakes = [Vec::new(), Vec::new()];
    for _ in 0..pairs {
        let directory = tempfile::tempdir()?;
        let pki = Pki::new(directory.path().join("pki"));
        let (cert, key) = pki.server(&["localhost"]);
        let settings = [
            ("SERVER__TLS__CERT", cert.display().to_string()),
            ("SERVER__TLS__KEY", key.display().to_string()),
        ];
        let http = kms_proxy(&directory.path().join("http"), &[]).await?;
        let https = kms_proxy(&directory.path().join("https"), &settings).await?;
        let tls = connector(&pki, Resumption::default())?;
        for (size, figures) in SIZES.into_iter().zip(&mut figures) {
            let body = format!(r#"{{"plaintext":"{}"}}"#, STANDARD.encode_to_string(vec![7; size]));
            let requests = vec![request("/v1/encrypt", &body)];
            let mut streams: Vec<Box<dyn Stream>> = Vec::new();
            for _ in 0..CONNECTIONS {
                streams.push(Box::new(shake_hands(&https, &tls).await?));
            }
            let mut bare = Driver::new(&http, requests.clone()).await?;
            let mut wrapped = Driver::over(&https, streams, requests);
            // The first round warms everything up and does not count.
            for round in 0..=WINDOWS {
                let windows = [bare.window().await?, wrapped.window().await?];
                for (figures, window) in figures.iter_mut().zip(windows).filter(|_| round > 0) {
                    figures.add(window);
                }
            }
        }
        for (rates, resumption) in
            handshakes.iter_mut().zip([Resumption::disabled(), Resumption::default()])
        {
            rates.push(shake_many_hands(&https, &connector(&pki, resumption)?).await?);
        }
    }
    let about = format!(
        "Encrypts per second over {CONNECTIONS} kept connections, HTTPS (TLS 1.3) next to plain \
         HTTP/1.1; {WINDOWS} interleaved windows with each of {pairs} pairs of services. The \
         client's share of the cryptography is on the same processors."
    );
    let mut table = Table::new("https", about, &COLUMNS);
    for (size, [http, https]) in SIZES.into_iter().zip(&figures) {
        table.push(row![
            results::size(size),
            http.rate(),
            https.rate(),
            https.ratio_to(http),
            http.cpu_us(),
            https.cpu_us(),
            https.quantile(0.99),
        ]);
    }
    options.show(&table)?;
    let about = "Connections per second, each with a handshake (TLS 1.3, P-256) and one request.";
    let mut table = Table::new("handshakes", about.to_owned(), &HANDSHAKE_COLUMNS);
    let [full, resumed] = handshakes.map(median);
    table.push(row!["full", full]);
    table.push(row!["resumed", resumed]);
    Ok(options.show(&table)?)
}

fn connector(pki: &Pki, resumption: Resumption) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.ca())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = resumption;
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn shake_hands(server: &Server, tls: &TlsConnector) -> anyhow::Result<TlsStream<TcpStream>> {
    Ok(tls.connect(ServerName::try_from("localhost")?, connect(server).await?).await?)
}

/// Connections a second for some windows; without resumption none is resumed, else nearly all.
async fn shake_many_hands(server: &Server, tls: &TlsConnector) -> anyhow::Result<f64> {
    let start = Instant::now();
    let client = async || {
        let (mut done, mut resumed, mut buffer) = (0_u32, 0_u32, Vec::new());
        let get = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
        while start.elapsed() < WINDOW * 3 {
            let mut stream = shake_hands(server, tls).await?;
            exchange(&mut stream, get, &mut buffer).await?;
            let kind = stream.get_ref().1.handshake_kind();
            resumed += u32::from(kind == Some(HandshakeKind::Resumed));
            done += 1;
        }
        anyhow::Ok((done, resumed))
    };
    let (mut done, mut resumed) = (0, 0);
    for (all, some) in eight_times(client).await? {
        (done, resumed) = (done + all, resumed + some);
    }
    let share = f64::from(resumed) / f64::from(done);
    anyhow::ensure!(share == 0.0 || share > 0.9, "{share} of the sessions were resumed");
    Ok(f64::from(done) / start.elapsed().as_secs_f64())
}

/// Eight clients at once.
async fn eight_times<T>(client: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
    let (a, b, c, d, e, f, g, h) = tokio::try_join!(
        client(),
        client(),
        client(),
        client(),
        client(),
        client(),
        client(),
        client()
    )?;
    Ok(vec![a, b, c, d, e, f, g, h])
}
