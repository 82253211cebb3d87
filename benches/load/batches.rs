//! What large batches cost other callers: the p99 of single requests while batches of 10,000 items
//! run on another connection, next to that without them.

use std::sync::Arc;
use std::time::Duration;

use base64_simd::STANDARD;

use crate::driver::{Driver, Server, Window, kms_proxy, median, request};
use crate::results::{Column, Options, Table, row};

/// Windows of each kind with one service, and services.
const WINDOWS: usize = 4;
const SERVICES: usize = 5;
const WINDOW: Duration = Duration::from_secs(1);
const SIZE: usize = 256;
/// Items of a batch: the most that it may have.
const ITEMS: usize = 10_000;
/// Connections with single requests: few, so that they do not wait for each other.
const SINGLES: usize = 4;

const COLUMNS: [Column; 5] = [
    ("batches", "batches on another connection", 0),
    ("rate", "single requests 1/s", 0),
    ("p50_us", "p50 us", 0),
    ("p99_us", "p99 us", 0),
    ("items_rate", "batch items 1/s", 0),
];

/// What the windows of one kind measured.
#[derive(Default)]
struct Figures {
    rates: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    items: Vec<f64>,
}

impl Figures {
    fn add(&mut self, window: &Window, batches: f64) {
        self.rates.push(window.rate);
        self.p50.push(window.quantile(0.5));
        self.p99.push(window.quantile(0.99));
        self.items.push(batches * ITEMS as f64);
    }
}

/// Measures the table.
pub(crate) async fn compare(options: &Options) -> anyhow::Result<()> {
    let services = options.times(SERVICES);
    let text = STANDARD.encode_to_string(vec![7; SIZE]);
    let item = format!(r#"{{"plaintext":"{text}"}}"#);
    let items = vec![item.as_str(); ITEMS].join(",");
    let single = request("/v1/encrypt", &item);
    let batch = request("/v1/batch/encrypt", &format!(r#"{{"items":[{items}]}}"#));
    let (mut alone, mut beside) = (Figures::default(), Figures::default());
    for _ in 0..services {
        let directory = tempfile::tempdir()?;
        let server = Arc::new(kms_proxy(directory.path(), &[]).await?);
        let singles = vec![single.clone()];
        let mut singles =
            Driver::with_connections(&server, SINGLES, singles).await?.lasting(WINDOW);
        // The first round warms everything up and does not count.
        for round in 0..=WINDOWS {
            let quiet = singles.window().await?;
            let (busy, batches) = tokio::try_join!(singles.window(), drive(&server, &batch))?;
            if round > 0 {
                alone.add(&quiet, 0.0);
                beside.add(&busy, batches);
            }
        }
    }
    let about = format!(
        "Encrypts of {SIZE} B on {SINGLES} connections, alone, and while another connection sends \
         batches of {ITEMS} such items one after the other; medians of {WINDOWS} windows with each \
         of {services} services. The client is on the same processors."
    );
    let mut table = Table::new("batches", about, &COLUMNS);
    for (name, figures) in [("none", alone), ("10,000 items each", beside)] {
        let Figures { rates, p50, p99, items } = figures;
        table.push(row![name, median(rates), median(p50), median(p99), median(items)]);
    }
    Ok(options.show(&table)?)
}

/// Batches per second of a window. A thread of its own drives them, or the client would delay the
/// single requests by the time that it takes for a batch.
async fn drive(server: &Arc<Server>, batch: &[u8]) -> anyhow::Result<f64> {
    let (server, batches) = (Arc::clone(server), vec![batch.to_vec()]);
    let thread = tokio::task::spawn_blocking(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let driver = Driver::with_connections(&server, 1, batches).await?;
            driver.lasting(WINDOW).window().await
        })
    });
    Ok(thread.await??.rate)
}
