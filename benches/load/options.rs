//! A service with an audit log, an archive or an open status page next to one without: encrypts of
//! 256 B, and batches of 100 of them.

use base64_simd::STANDARD;

use crate::driver::{CONNECTIONS, Driver, Windows, connect, exchange, kms_proxy, median, request};
use crate::results::{Column, Options, Table, row};

/// Windows of each kind with one set of services, and sets. Each service is as often first in a
/// round as the others.
const WINDOWS: usize = 10;
const SETS: usize = 5;
const SIZE: usize = 256;
const ITEMS: usize = 100;

/// What a service has beside the defaults.
#[derive(Clone, Copy)]
enum Extra {
    Nothing,
    /// The audit log as by default: encrypts are counted.
    Count,
    /// A line for each operation, and for each item of a batch.
    Full,
    /// An archive of kind `dir`.
    Archive,
    /// A browser that asks for the status page in each window, 25 times as often as it would.
    Page,
}

/// What the browser asks for.
const PAGE: &[u8] = b"GET /status HTTP/1.1\r\nhost: localhost\r\n\r\n";

impl Extra {
    const ALL: [Self; 5] = [Self::Nothing, Self::Count, Self::Full, Self::Archive, Self::Page];

    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Count => "audit, count",
            Self::Full => "audit, full",
            Self::Archive => "archive",
            Self::Page => "status page",
        }
    }

    fn settings(self, directory: &std::path::Path) -> Vec<(&'static str, String)> {
        let file = ("AUDIT__FILE", directory.join("audit.jsonl").display().to_string());
        match self {
            Self::Nothing | Self::Page => Vec::new(),
            Self::Count => vec![file],
            Self::Full => vec![file, ("AUDIT__RULE__0__LEVEL", "full".to_owned())],
            Self::Archive => vec![
                ("ARCHIVE__0__NAME", "nas".to_owned()),
                ("ARCHIVE__0__KIND", "dir".to_owned()),
                ("ARCHIVE__0__PATH", directory.join("archive").display().to_string()),
                ("ARCHIVE__0__CREATE", "true".to_owned()),
            ],
        }
    }
}

const COLUMNS: [Column; 7] = [
    ("plaintext", "plaintext", 0),
    ("with", "with", 0),
    ("rate", "requests 1/s", 0),
    ("ratio", "ratio to nothing", 3),
    ("cpu_us", "CPU us", 1),
    ("cpu_ratio", "ratio to nothing", 3),
    ("p99_us", "p99 us", 0),
];

/// Measures the table.
pub(crate) async fn compare(options: &Options) -> anyhow::Result<()> {
    let sets = options.times(SETS);
    let about = format!(
        "An audit log, an archive and a status page that is fetched every 400 ms next to a service \
         without them: encrypts over {CONNECTIONS} kept connections, medians of {WINDOWS} interleaved windows with each of {sets} sets of \
         services. CPU is that of the service."
    );
    let mut table = Table::new("options", about, &COLUMNS);
    let text = STANDARD.encode_to_string(vec![7; SIZE]);
    let item = format!(r#"{{"plaintext":"{text}"}}"#);
    let items = vec![item.as_str(); ITEMS].join(",");
    let batch = format!(r#"{{"items":[{items}]}}"#);
    let kinds = [
        (format!("{SIZE} B"), request("/v1/encrypt", &item)),
        (format!("{ITEMS} x {SIZE} B"), request("/v1/batch/encrypt", &batch)),
    ];
    for (kind, request) in kinds {
        let mut figures = Extra::ALL.map(|_| Windows::default());
        let mut costs = Extra::ALL.map(|_| Vec::new());
        for _ in 0..sets {
            let (mut services, mut drivers) = (Vec::new(), Vec::new());
            for extra in Extra::ALL {
                let directory = tempfile::tempdir()?;
                let settings = extra.settings(directory.path());
                let service = kms_proxy(&directory.path().join("data"), &settings).await?;
                drivers.push(Driver::new(&service, vec![request.clone()]).await?);
                services.push((service, directory));
            }
            // The first round warms everything up and does not count.
            for round in 0..=WINDOWS {
                for turn in 0..Extra::ALL.len() {
                    let at = (turn + round) % Extra::ALL.len();
                    let page = matches!(Extra::ALL[at], Extra::Page);
                    let mut page = if page { Some(connect(&services[at].0).await?) } else { None };
                    let page = async {
                        let Some(stream) = &mut page else { return Ok(0) };
                        exchange(stream, PAGE, &mut Vec::new()).await
                    };
                    let (window, _) = tokio::try_join!(drivers[at].window(), page)?;
                    if round > 0 {
                        costs[at].push(window.cpu / window.took.len() as f64);
                        figures[at].add(window);
                    }
                }
            }
        }
        for (at, extra) in Extra::ALL.into_iter().enumerate() {
            let windows = &figures[at];
            let ratios = costs[at].iter().zip(&costs[0]).map(|(cost, base)| cost / base);
            table.push(row![
                kind.as_str(),
                extra.name(),
                windows.rate(),
                windows.ratio_to(&figures[0]),
                windows.cpu_us(),
                median(ratios.collect()),
                windows.quantile(0.99),
            ]);
        }
    }
    Ok(options.show(&table)?)
}
