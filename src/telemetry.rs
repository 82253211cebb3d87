//! Logging and traces: which events are written and how, and which spans are exported. The rest of
//! the code only emits events and spans.
//!
//! Logs go to stderr, one line per event, with times in RFC 3339 UTC.

use std::io::IsTerminal;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

#[cfg(feature = "otel")]
mod otlp;
#[cfg(not(feature = "otel"))]
#[path = "telemetry/otlp/left_out.rs"]
mod otlp;
pub mod traces;

/// `[log]` of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A level, or directives such as `info,kms_proxy::http=debug`.
    #[serde(deserialize_with = "level", serialize_with = "as_text")]
    pub level: Targets,
    /// The format of lines: by default text on a terminal, else JSON.
    #[serde(serialize_with = "effective")]
    pub format: Option<Format>,
}

impl Default for Config {
    fn default() -> Self {
        let level = Targets::new().with_default(Level::INFO);
        Self { level, format: None }
    }
}

impl Config {
    /// The configured format, or the default for this process's stderr.
    #[must_use]
    pub fn effective_format(&self) -> Format {
        self.format.unwrap_or_else(Format::of_stderr)
    }
}

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// Text for people; in colour on a terminal, unless `NO_COLOR` is set.
    Text,
}

impl Format {
    fn of_stderr() -> Self {
        if std::io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }

    /// The name in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
        }
    }
}

/// Why logging and traces can't start.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// They were started before.
    #[error(transparent)]
    Started(#[from] TryInitError),
    /// Spans can't be exported.
    #[error("traces can't be exported: {0}")]
    Export(String),
}

/// The export of spans.
pub struct Export {
    exporter: Option<otlp::Exporter>,
}

impl Export {
    /// Sends the spans that wait, for at most 2 s.
    pub fn end(self) {
        if let Some(exporter) = self.exporter {
            exporter.end();
        }
    }
}

/// Starts logging and, if it is configured, the export of spans, which uses `runtime`.
///
/// # Errors
/// When logging was already started, or spans can't be exported. A collector that does not answer
/// is no error.
pub fn install(
    config: &Config,
    traces: &traces::Config,
    runtime: &tokio::runtime::Handle,
) -> Result<Export, InstallError> {
    let on_terminal = std::io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match config.effective_format() {
        Format::Json => layer.json().flatten_event(true).with_span_list(false).boxed(),
        Format::Text if on_terminal => layer.boxed(),
        Format::Text => layer.with_ansi(false).boxed(),
    };
    let filter = config.level.clone().and(filter_fn(is_harmless));
    let exporter = traces.endpoint.as_ref().map(|it| otlp::Exporter::start(it, runtime));
    let exporter = exporter.transpose().map_err(InstallError::Export)?;
    let log = tracing_subscriber::registry().with(layer.with_filter(filter));
    match &exporter {
        None => log.try_init()?,
        Some(exporter) => {
            log.with(exporter.layer().with_filter(filter_fn(is_own_span))).try_init()?;
            traces::enable(traces.sample_ratio);
        }
    }
    Ok(Export { exporter })
}

/// Whether it is a span of this crate. These are only for traces.
fn is_own_span(it: &Metadata<'_>) -> bool {
    it.is_span() && it.target().starts_with("kms_proxy")
}

/// Makes panics log their location and not their message, which can contain a part of a request,
/// such as when text is sliced inside a character.
pub fn hush_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "?".to_owned(), ToString::to_string);
        if tracing::dispatcher::has_been_set() {
            tracing::error!("panicked at {place}");
        } else {
            eprintln!("kms-proxy: panicked at {place}");
        }
    }));
}

/// Whether the log may contain it. At `trace` the AWS SDK logs requests and responses, with KEKs if
/// one of its variables is set; no setting enables that here.
fn is_harmless(event: &Metadata<'_>) -> bool {
    (*event.level() != Level::TRACE || !event.target().starts_with("aws_")) && !is_own_span(event)
}

fn as_text<S: Serializer>(level: &Targets, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(level)
}

fn effective<S: Serializer>(format: &Option<Format>, serializer: S) -> Result<S::Ok, S::Error> {
    format.unwrap_or_else(Format::of_stderr).serialize(serializer)
}

fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Targets, D::Error> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    const EXPECTED: &str =
        "expected off, error, warn, info, debug or trace, or directives like info,kms_proxy=debug";
    let mut text = String::deserialize(deserializer).map_err(|_| D::Error::custom(EXPECTED))?;
    text.retain(|c| !c.is_whitespace());
    // The parser takes a misspelt level for the name of a target, and nothing would be logged.
    let known = |directive: &str| match directive.split_once('=') {
        None => LEVELS.contains(&directive),
        Some((target, level)) => !target.is_empty() && LEVELS.contains(&level),
    };
    let targets = text.split(',').all(known).then(|| text.parse().ok()).flatten();
    targets.ok_or_else(|| D::Error::custom(EXPECTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_read() {
        let read = |text: &str| {
            toml::from_str::<Config>(&format!("level = {text:?}")).map(|config| config.level)
        };
        assert_eq!(read("info").unwrap(), Config::default().level);
        let level = read("warn, kms_proxy::http=debug").unwrap();
        assert!(level.would_enable("kms_proxy::http::layers", &Level::DEBUG));
        assert!(!level.would_enable("kms_proxy::service", &Level::INFO));
        for bad in ["", "loud", "info,", "kms_proxy", "kms_proxy=loud", "=debug"] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains("expected off, error"), "{bad}: {error}");
        }
    }
}
