//! Identities and permissions of callers: `[auth]` and the `[[client]]`s of the configuration.
//!
//! Maps a verified certificate, a token or a JWT to a client with its permissions. It must not know
//! HTTP, beyond the text of a bearer token, nor chains, beyond their names.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::service::{Check, Health};
use crate::tls::peer::Peer;

mod access_key;
pub mod aws;
mod client;
mod config;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
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

/// How long a start waits for issuer keys.
const START_WAIT: Duration = Duration::from_secs(6);

/// Identifies callers by rules that can be replaced while requests are served.
pub struct Auth {
    rules: ArcSwap<Rules>,
    /// Why the current configuration was rejected; `None` if it is in force.
    refused: ArcSwap<Option<String>>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// The credentials of a request.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a> {
    /// The verified client certificate.
    pub(crate) peer: Option<&'a Peer>,
    /// The bearer token.
    pub(crate) token: Token<'a>,
}

/// The header `Authorization`.
#[derive(Clone, Copy)]
pub(crate) enum Token<'a> {
    /// No `Authorization` header.
    Missing,
    /// There are several, or it is not a bearer token.
    Malformed,
    /// A bearer token.
    Bearer(&'a str),
}

/// What identified a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    /// A verified client certificate.
    Certificate,
    /// A token of the configuration.
    Token,
    /// A JWT.
    Jwt,
    /// A signature by an access key of AWS.
    AccessKey,
}

impl Credential {
    /// How the audit log calls it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "mtls",
            Self::Token => "token",
            Self::Jwt => "jwt",
            Self::AccessKey => "sigv4",
        }
    }
}

/// A caller that was identified.
#[derive(Clone, Debug)]
pub(crate) struct Identified {
    /// Who it is.
    pub(crate) client: Arc<Client>,
    /// By what.
    pub(crate) by: Credential,
}

/// Why a caller was not identified. For the log and the metrics only: callers do not learn it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There are no credentials.
    Nothing,
    /// The credentials can't be parsed.
    Malformed,
    /// The JWT lacks this claim.
    MissingClaim(&'static str),
    /// The token exceeds the limit of length.
    TooLong,
    /// No client has this token.
    UnknownToken,
    /// The certificate is not trusted, or missing although it is required: the handshake fails.
    Certificate,
    /// No client has a name of this certificate.
    UnknownCertificate,
    /// More than one client matches.
    Ambiguous,
    /// The JWT is unsigned, or its algorithm is not accepted.
    Algorithm,
    /// No client has the JWT's issuer.
    Issuer,
    /// No client of the issuer has the JWT's subject.
    Subject,
    /// The JWT is for another audience.
    Audience,
    /// The JWT has expired.
    Expired,
    /// The JWT is not valid yet.
    NotYetValid,
    /// The issuer has no such key, or its keys could not be loaded.
    UnknownKey,
    /// The JWT's signature is invalid.
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

    /// Details for the log that the label omits.
    pub(crate) fn detail(self) -> Option<String> {
        match self {
            Self::MissingClaim(name) => Some(format!("the JWT has no claim `{name}`")),
            _ => None,
        }
    }
}

impl Auth {
    /// The rules of `config`, which must have been checked; `None` in mode `none`. Waits for issuer
    /// keys, but not for long: without them it starts, and readiness reports that.
    pub async fn start(
        config: Config,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Option<Arc<Self>> {
        let auth = Self::new(config, clock, metrics)?;
        auth.settled().await;
        Some(auth)
    }

    /// Like [`Auth::start`], without waiting. Must be called in a runtime.
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

    /// Waits until issuer keys were loaded, but not for long.
    pub async fn settled(&self) {
        settle(&self.rules.load_full()).await;
    }

    /// Whether the rules are those of `config`.
    #[must_use]
    pub fn is(&self, config: &Config) -> bool {
        self.rules.load().config == *config
    }

    /// Replaces the rules by those of `config`, which must have been checked.
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

    /// Records that the current configuration can't be used; the old rules stay in force. Each
    /// reason is logged once.
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

    /// The checks that readiness reports; empty if there is no problem.
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
            let last_error = source.last_error();
            checks.extend(
                last_error.map(|detail| degraded("jwks", format!("{}: {detail}", source.source()))),
            );
        }
        checks
    }

    /// Identifies the caller. A token has precedence over a certificate: with an invalid token, a
    /// valid certificate does not help.
    pub(crate) async fn identify(&self, shown: Shown<'_>) -> Result<Identified, Refusal> {
        match (shown.token, shown.peer) {
            (Token::Bearer(token), _) => self.by_token(token).await,
            (Token::Malformed, _) => Err(Refusal::Malformed),
            (Token::Missing, Some(peer)) => {
                let client = self.rules.load().by_certificate(peer)?;
                Ok(Identified { client, by: Credential::Certificate })
            }
            (Token::Missing, None) => Err(Refusal::Nothing),
        }
    }

    /// The access key of AWS with this id, if it is a client's.
    pub(crate) fn access_key(&self, id: &str) -> Option<Arc<access_key::AccessKey>> {
        self.rules.load().access_key(id)
    }

    /// Counts a request that needed an identity and had none.
    pub(crate) fn failed(&self, refusal: Refusal) {
        self.metrics.callers.failed(refusal.as_str());
    }

    async fn by_token(&self, token: &str) -> Result<Identified, Refusal> {
        let find = || self.rules.load().by_token(token, &*self.clock);
        match find() {
            Ok(identified) => Ok(identified),
            // The issuer may have new keys.
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

/// Registers the metrics of each client.
fn set_clients(metrics: &Metrics, rules: &Rules) {
    metrics.traffic.set_clients(rules.config.clients.iter().map(|client| client.name.clone()));
}

/// Waits until every source of issuer keys was read once, or `START_WAIT` is over.
async fn settle(rules: &Rules) {
    let settled = async {
        for source in rules.sources() {
            source.settled().await;
        }
    };
    // Readiness reports a source that is late.
    let _ = tokio::time::timeout(START_WAIT, settled).await;
}
