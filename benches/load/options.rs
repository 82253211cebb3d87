//! A service with an audit log or an archive next to one without: encrypts of 256 B, and batches of
//! 100 of them.

use base64_simd::STANDARD;

use crate::driver::{CONNECTIONS, Driver, kms_proxy, median, request};

/// Windows of each kind with one set of services, and sets.
const WINDOWS: usize = 5;
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
         {CONNECTIONS} kept connections, and the ratio to nothing"
    );
    println!("{:>16}  {:>13}  {:>9}  {:>5}", "plaintext", "with", "1/s", "ratio");
    let text = STANDARD.encode_to_string(vec![7; SIZE]);
    let item = format!(r#"{{"plaintext":"{text}"}}"#);
    let items = vec![item.as_str(); ITEMS].join(",");
    let batch = format!(r#"{{"items":[{items}]}}"#);
    let kinds = [
        (format!("{SIZE} B"), request("/v1/encrypt", &item)),
        (format!("{ITEMS} x {SIZE} B"), request("/v1/batch/encrypt", &batch)),
    ];
    for (kind, request) in kinds {
        let mut rates = Extra::ALL.map(|_| Vec::new());
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
                for (driver, rates) in drivers.iter_mut().zip(&mut rates) {
                    let rate = driver.window().await?.0;
                    if round > 0 {
                        rates.push(rate);
                    }
                }
            }
        }
        let [nothing, ..] = &rates;
        for (extra, with) in Extra::ALL.into_iter().zip(&rates) {
            let ratio = median(with.iter().zip(nothing).map(|(with, base)| with / base).collect());
            let (name, rate) = (extra.name(), median(with.clone()));
            println!("{kind:>16}  {name:>13}  {rate:>9.0}  {ratio:>5.3}");
        }
    }
    Ok(())
}
