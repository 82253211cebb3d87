//! `serve`, and where its configuration comes from.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kms_proxy::config::{self, Config, Flags};
use kms_proxy::{app, root, telemetry, tls};

use super::{Failure, Result, process};

/// File descriptors for everything except the connections of callers: stores, roots, probes, files.
const OTHER_DESCRIPTORS: u64 = 100;

/// How long the end of the process waits for tasks, and for the PKCS#11 modules that they use.
const LAST_TASKS: Duration = Duration::from_secs(2);

pub(super) const SETTINGS: &str = "\
Settings come from the file, then from the environment, then from the flags. \
KMS_PROXY__SECTION__KEY is `key` of [section], KMS_PROXY__ROOT__0__KIND is `kind` of the first \
[[root]], and a list is written as a,b or as a TOML array. A secret is set by its `.._file` key or \
by an environment variable such as KMS_PROXY__ROOT__0__PASSPHRASE, never in the file.

Examples:
  kms-proxy serve --listen 127.0.0.1:9000 --data-dir /var/lib/kms-proxy
  kms-proxy check-config --config kms-proxy.toml
  KMS_PROXY__LOG__LEVEL=debug kms-proxy serve --config kms-proxy.toml";

#[derive(clap::Args, Clone)]
pub(super) struct Args {
    /// The configuration, in TOML [default: none; every setting has its default]
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_CONFIG")]
    config: Option<PathBuf>,
    /// The address to listen on; overrides server.listen [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", value_parser = address)]
    listen: Option<SocketAddr>,
    /// The directory of the store; overrides store.path [default: ./kms-proxy-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Args {
    /// The configuration of this process.
    pub(super) fn load(&self) -> Result<Config> {
        self.read().map_err(|error| Failure::Usage(error.to_string()))
    }

    fn read(&self) -> std::result::Result<Config, config::Error> {
        let flags = Flags { listen: self.listen, data_dir: self.data_dir.clone() };
        Config::load(self.config.as_deref(), &flags)
    }

    /// Like `read`, while the service runs: reading a pipe would block it.
    fn read_again(&self) -> std::result::Result<Config, config::Error> {
        match &self.config {
            Some(path) if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) => {
                let source = std::io::Error::other("not a regular file");
                Err(config::Error::Unreadable { path: path.clone(), source })
            }
            _ => self.read(),
        }
    }
}

fn address(text: &str) -> std::result::Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "must be an IP address and a port, such as 127.0.0.1:8080")
}

/// Runs the service.
pub(super) fn serve(args: &Args) -> Result {
    let config = args.load()?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::refused(format!("can't start threads: {error}")))?;
    let export = telemetry::install(&config.log, &config.traces, runtime.handle())
        .map_err(|error| Failure::refused(error.to_string()))?;
    let descriptors = process::raise_descriptor_limit();
    let wanted = config.server.max_connections as u64 + OTHER_DESCRIPTORS;
    if let Some(descriptors) = descriptors.filter(|there_are| *there_are < wanted) {
        tracing::warn!(
            descriptors,
            max_connections = config.server.max_connections,
            "fewer file descriptors than max_connections are available (LimitNOFILE, ulimit -n)"
        );
    }
    let again = args.clone();
    let result = runtime.block_on(app::run(config, Arc::new(move || again.read_again())));
    export.end();
    // Tasks that a second SIGINT abandoned may still run.
    runtime.shutdown_timeout(LAST_TASKS);
    result.map_err(|error| {
        // Roots and certificates are checked when they are opened.
        if error.is::<root::OpenError>() || error.is::<tls::Error>() {
            return Failure::Usage(error.to_string());
        }
        let error = format!("{error:#}");
        if !tracing::enabled!(tracing::Level::ERROR) {
            return Failure::Refused(error);
        }
        tracing::error!(error, "kms-proxy ends");
        Failure::Silent
    })
}
