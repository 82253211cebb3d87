//! How an audit log is opened: the sink, the keys, the writer's thread, and one that looks after
//! it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock::Clock;
use crate::metrics::Metrics;

use super::config::{Config, OnFailure, Target};
use super::counts::{Counts, Refusals};
use super::keys::Keys;
use super::queue::{Orders, Queue};
use super::rules::Rules;
use super::sealer::Sealer;
use super::sink::{self, Failed, Sink};
use super::system::System;
use super::writer::Writer;
use super::{Audit, format};

/// How often it is checked whether the writer has hung.
const CHECK_EVERY: Duration = Duration::from_millis(250);
/// How long the end of the process waits for the last lines.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// An audit log that is open.
pub struct Opened {
    /// What listeners and the service report to.
    pub audit: Arc<Audit>,
    stopping: Arc<AtomicBool>,
}

/// Opens the audit log of `config`, if it has one, and writes its first lines.
///
/// # Errors
/// When the sink can't be opened, unless calls go through without it.
pub fn open(
    config: &Config,
    keys: Keys,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
) -> io::Result<Option<Opened>> {
    let Some(target) = &config.file else { return Ok(None) };
    let Keys { signing, hmac } = keys;
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let audit = Arc::new(Audit {
        queue: Queue::new(config.on_failure == OnFailure::Refuse, Arc::clone(&metrics)),
        counts: Counts::default(),
        refusals: Refusals::default(),
        rules: Rules::new(config.rule.clone()),
        aad: config.aad,
        hmac: Box::new(move |aad| hmac.of(aad)),
        node: format::json(&node),
        public_key: signing.public().to_string(),
        clock,
        metrics,
    });
    // A name of the tree that no other start of a process has.
    let mut start = [0; 8];
    crate::random::fill(&mut start).map_err(io::Error::other)?;
    let start = base16ct::lower::encode_string(&start);
    let sealer = Sealer::new(signing, &format!("kms-proxy/{node}/{start}"));
    let stopping = Arc::new(AtomicBool::new(false));
    let writer = match sink::open(config, target, &stopping) {
        Ok(sink) => {
            let mut writer =
                Writer::new(Arc::clone(&audit), sink, sealer, config.sync, Arc::clone(&stopping));
            writer.begin()?;
            writer
        }
        Err(error) if audit.refuses() => return Err(error),
        Err(error) => {
            let (config, target) = (config.clone(), target.clone());
            let sync = config.sync;
            let sink = Box::new(Closed { config, target, sink: None });
            let mut writer =
                Writer::new(Arc::clone(&audit), sink, sealer, sync, Arc::clone(&stopping));
            writer.begin_failed(&error);
            writer
        }
    };
    let looked_after = Arc::clone(&audit);
    let ends = Arc::clone(&stopping);
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    thread("audit").spawn(move || writer.run())?;
    thread("audit-check").spawn(move || {
        while !ends.load(Ordering::Relaxed) {
            std::thread::sleep(CHECK_EVERY);
            looked_after.queue.check();
        }
    })?;
    Ok(Some(Opened { audit, stopping }))
}

impl Opened {
    /// Writes the line of the stop, the last counts and a checkpoint. It waits for them, but not
    /// for long.
    pub async fn stop(self) {
        _ = self.audit.system(&System::new("stop", &[])).await;
        self.audit.queue.order(Orders { stop: true, reopen: false });
        let ended = async {
            while !self.stopping.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
            // A stream that takes nothing is given up.
            self.stopping.store(true, Ordering::Relaxed);
            tracing::warn!("the last lines of the audit log were not written in time");
        }
    }
}

/// A sink that could not be opened yet.
struct Closed {
    config: Config,
    target: Target,
    sink: Option<Box<dyn Sink>>,
}

impl Sink for Closed {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        match &mut self.sink {
            Some(sink) => sink.write(bytes),
            None => Err(Failed { accepted: 0, error: io::ErrorKind::NotConnected.into() }),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sink.as_mut().map_or(Ok(()), |sink| sink.sync())
    }

    fn is_stale(&self) -> bool {
        self.sink.as_ref().is_none_or(|sink| sink.is_stale())
    }

    fn reopen(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Some(sink) => sink.reopen(),
            None => {
                let stopping = Arc::default();
                self.sink = Some(sink::open(&self.config, &self.target, &stopping)?);
                Ok(())
            }
        }
    }

    fn before(&self) -> io::Result<(super::line::Before, bool)> {
        match &self.sink {
            Some(sink) => sink.before(),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn is_full(&self) -> bool {
        self.sink.as_ref().is_some_and(|sink| sink.is_full())
    }

    fn rotate(&mut self, time: &str) -> io::Result<()> {
        self.sink.as_mut().map_or(Ok(()), |sink| sink.rotate(time))
    }
}
