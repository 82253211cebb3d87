//! Who calls, and what each caller may do: `[auth]` and the `[[client]]`s of the configuration.
//!
//! It turns a verified certificate, a token or a JWT into a client with its permissions. It knows
//! no HTTP but the text of a bearer token, and no chain but by its name.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::service::{Check, Health};
use crate::tls::peer::Peer;

mod client;
mod config;
mod jwks;
mod jwt;
mod key_source;
mod keys;
mod permission;
mod rules;
mod san;
#[cfg(test)]
mod tests;
pub mod token;

pub(crate) use client::Client;
pub use config::{ClientConfig, Config, JwtConfig, Mode, Wrong};
pub use permission::{Allow, Glob, Operations};
use rules::Rules;
pub use san::San;

/// How long a start waits for the keys of issuers.
const START_WAIT: Duration = Duration::from_secs(6);

/// Recognises callers, by rules that can be exchanged while it does.
pub struct Auth {
    rules: ArcSwap<Rules>,
    /// Why the configuration of this moment is not in force.
    refused: ArcSwap<Option<String>>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// What a caller has shown.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a> {
    /// Its certificate, if it has shown one that was verified.
    pub(crate) peer: Option<&'a Peer>,
    /// Its bearer token.
    pub(crate) token: Token<'a>,
}

/// The header `Authorization`.
#[derive(Clone, Copy)]
pub(crate) enum Token<'a> {
    /// No `Authorization` header.
    Missing,
    /// There is one, and it holds no bearer token, or there are several.
    Malformed,
    /// A bearer token.
    Bearer(&'a str),
}

/// Why a caller is not recognised: for the log and the metrics. Callers hear none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It has shown nothing.
    Nothing,
    /// What it has shown can't be read.
    Malformed,
    /// The JWT lacks this claim.
    MissingClaim(&'static str),
    /// The token is longer than any is.
    TooLong,
    /// The token is nobody's.
    UnknownToken,
    /// The certificate is not trusted, or missing although it is required: the handshake fails.
    Certificate,
    /// No name in the certificate is a client's.
    UnknownCertificate,
    /// It is more than one client.
    Ambiguous,
    /// The JWT is not signed, or in a way that is not taken.
    Algorithm,
    /// The JWT is of an issuer of no client.
    Issuer,
    /// The JWT is of no client's subject.
    Subject,
    /// The JWT is meant for others.
    Audience,
    /// The JWT's time is over.
    Expired,
    /// The JWT's time is yet to come.
    NotYetValid,
    /// The issuer has no such key, or its keys could not be read.
    UnknownKey,
    /// The JWT's signature is not its issuer's.
    Signature,
}

impl Refusal {
    /// One for each label.
    const LABELLED: [Self; 15] = [
        Self::Nothing,
        Self::Malformed,
        Self::TooLong,
        Self::UnknownToken,
        Self::Certificate,
        Self::UnknownCertificate,
        Self::Ambiguous,
        Self::Algorithm,
        Self::Issuer,
        Self::Subject,
        Self::Audience,
        Self::Expired,
        Self::NotYetValid,
        Self::UnknownKey,
        Self::Signature,
    ];

    /// The label of the metric.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "no_credentials",
            Self::Malformed | Self::MissingClaim(_) => "malformed",
            Self::TooLong => "too_long",
            Self::UnknownToken => "unknown_token",
            Self::Certificate => "certificate",
            Self::UnknownCertificate => "unknown_certificate",
            Self::Ambiguous => "ambiguous",
            Self::Algorithm => "algorithm",
            Self::Issuer => "issuer",
            Self::Subject => "subject",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
        }
    }

    /// What the label leaves out, for the log.
    pub(crate) fn detail(self) -> Option<String> {
        match self {
            Self::MissingClaim(name) => Some(format!("the JWT has no claim `{name}`")),
            _ => None,
        }
    }
}

impl Auth {
    /// The rules of `config`, which was checked; `None` in mode `none`. It waits for the keys of
    /// issuers, but not for long: without them it starts, and readiness says so.
    pub async fn start(
        config: Config,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Option<Arc<Self>> {
        let auth = Self::new(config, clock, metrics)?;
        auth.settled().await;
        Some(auth)
    }

    /// The same without waiting. Must be called in a runtime.
    pub fn new(config: Config, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Option<Arc<Self>> {
        if config.mode == Mode::None {
            return None;
        }
        let rules = Rules::new(config, None, &clock);
        metrics.callers.fail_with(Refusal::LABELLED.into_iter().map(Refusal::as_str));
        set_clients(&metrics, &rules);
        let rules = ArcSwap::from_pointee(rules);
        Some(Arc::new(Self { rules, refused: ArcSwap::default(), clock, metrics }))
    }

    /// Waits for the keys of issuers, but not for long.
    pub async fn settled(&self) {
        settle(&self.rules.load_full()).await;
    }

    /// Whether the rules are those of `config`.
    #[must_use]
    pub fn is(&self, config: &Config) -> bool {
        self.rules.load().config == *config
    }

    /// Puts the rules of `config`, which was checked, in place of the old ones.
    pub async fn replace(&self, config: Config) {
        if !self.is(&config) {
            let rules = Rules::new(config, Some(&self.rules.load()), &self.clock);
            settle(&rules).await;
            let clients = rules.config.clients.len();
            set_clients(&self.metrics, &rules);
            self.rules.store(Arc::new(rules));
            tracing::info!(clients, "clients and permissions were reloaded");
        }
        self.refused.store(Arc::default());
        self.metrics.callers.rules_current.set(1);
    }

    /// Notes that the configuration of this moment can't be used: the old rules stay. It is logged
    /// once for each reason.
    pub fn refuse(&self, reason: String) {
        if self.refused.load().as_deref() != Some(&reason) {
            tracing::error!(
                reason,
                "the configuration can't be used: the clients and permissions before it stay"
            );
            self.refused.store(Arc::new(Some(reason)));
            self.metrics.callers.rules_current.set(0);
        }
    }

    /// What readiness should say: nothing when all is well.
    pub(crate) fn checks(&self) -> Vec<Check> {
        let degraded = |name: &str, detail: String| Check {
            name: name.to_owned(),
            health: Health::Degraded,
            detail: Some(detail),
        };
        let refused = self.refused.load().as_ref().clone();
        let mut checks: Vec<_> =
            refused.map(|reason| degraded("config", reason)).into_iter().collect();
        for source in self.rules.load().sources() {
            let trouble = source.trouble();
            checks.extend(
                trouble.map(|detail| degraded("jwks", format!("{}: {detail}", source.source()))),
            );
        }
        checks
    }

    /// The client that a caller is. A token counts before a certificate, and a bad one is not made
    /// good by it.
    pub(crate) async fn identify(&self, shown: Shown<'_>) -> Result<Arc<Client>, Refusal> {
        match (shown.token, shown.peer) {
            (Token::Bearer(token), _) => self.by_token(token).await,
            (Token::Malformed, _) => Err(Refusal::Malformed),
            (Token::Missing, Some(peer)) => self.rules.load().by_certificate(peer),
            (Token::Missing, None) => Err(Refusal::Nothing),
        }
    }

    /// Counts a caller that was not recognised and should have been.
    pub(crate) fn failed(&self, refusal: Refusal) {
        self.metrics.callers.failed(refusal.as_str());
    }

    async fn by_token(&self, token: &str) -> Result<Arc<Client>, Refusal> {
        let find = || self.rules.load().by_token(token, &*self.clock);
        match find() {
            Ok(client) => Ok(client),
            // Perhaps its issuer has new keys.
            Err((refusal, Some(keys))) => {
                if Box::pin(keys.ask()).await {
                    find().map_err(|(refusal, _)| refusal)
                } else {
                    Err(refusal)
                }
            }
            Err((refusal, None)) => Err(refusal),
        }
    }
}

/// Gives each client its metrics.
fn set_clients(metrics: &Metrics, rules: &Rules) {
    metrics.traffic.set_clients(rules.config.clients.iter().map(|client| client.name.clone()));
}

/// Waits until the keys of issuers were looked for once.
async fn settle(rules: &Rules) {
    let settled = async {
        for source in rules.sources() {
            source.settled().await;
        }
    };
    // A slow source is reported by then, or will be.
    let _ = tokio::time::timeout(START_WAIT, settled).await;
}
