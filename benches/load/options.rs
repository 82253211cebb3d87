//! A service with an audit log or an archive next to one without: encrypts of 256 B, and batches of
//! 100 of them.

use base64_simd::STANDARD;

use crate::driver::{CONNECTIONS, Driver, kms_proxy, median, request};

/// Windows of each kind with one set of services, and sets. Each service is as often first in a
/// round as the others.
const WINDOWS: usize = 8;
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
}

impl Extra {
    const ALL: [Self; 4] = [Self::Nothing, Self::Count, Self::Full, Self::Archive];

    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Count => "audit, count",
            Self::Full => "audit, full",
            Self::Archive => "archive",
        }
    }

    fn settings(self, directory: &std::path::Path) -> Vec<(&'static str, String)> {
        let file = ("AUDIT__FILE", directory.join("audit.jsonl").display().to_string());
        match self {
            Self::Nothing => Vec::new(),
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

/// Prints the table.
pub(crate) async fn compare() -> anyhow::Result<()> {
    println!(
        "\nAn audit log and an archive next to a service without them: requests a second over \
         {CONNECTIONS} kept connections, and the ratio to nothing; \
         then the CPU time of a request in the service"
    );
    println!(
        "{:>16}  {:>13}  {:>9}  {:>5}  {:>7}  {:>5}",
        "plaintext", "with", "1/s", "ratio", "CPU us", "ratio"
    );
    let text = STANDARD.encode_to_string(vec![7; SIZE]);
    let item = format!(r#"{{"plaintext":"{text}"}}"#);
    let items = vec![item.as_str(); ITEMS].join(",");
    let batch = format!(r#"{{"items":[{items}]}}"#);
    let kinds = [
        (format!("{SIZE} B"), request("/v1/encrypt", &item)),
        (format!("{ITEMS} x {SIZE} B"), request("/v1/batch/encrypt", &batch)),
    ];
    for (kind, request) in kinds {
        let (mut rates, mut costs) =
            (Extra::ALL.map(|_| Vec::new()), Extra::ALL.map(|_| Vec::new()));
        for _ in 0..SETS {
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
                    let (rate, requests, cpu) = drivers[at].window().await?;
                    if round > 0 {
                        rates[at].push(rate);
                        costs[at].push(cpu * 1e6 / requests);
                    }
                }
            }
        }
        for (at, extra) in Extra::ALL.into_iter().enumerate() {
            let (rate, faster) = beside(&rates[at], &rates[0]);
            let (cost, dearer) = beside(&costs[at], &costs[0]);
            println!(
                "{kind:>16}  {:>13}  {rate:>9.0}  {faster:>5.3}  {cost:>7.1}  {dearer:>5.3}",
                extra.name()
            );
        }
    }
    Ok(())
}

/// The median of `these`, and of their ratios to `those` of the same rounds.
fn beside(these: &[f64], those: &[f64]) -> (f64, f64) {
    let ratios = these.iter().zip(those).map(|(this, that)| this / that).collect();
    (median(these.to_vec()), median(ratios))
}
