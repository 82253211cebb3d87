//! A snapshot of the clients: finds the one that a certificate or a token identifies.
//!
//! A request uses one snapshot. It includes a cache of verified JWTs, which is dropped with it. It
//! must not know requests.

use std::collections::HashMap;
use std::sync::Arc;

use quick_cache::sync::Cache;

use crate::clock::Clock;
use crate::tls::peer::Peer;

use super::access_key::AccessKey;
use super::client::{Client, Usage};
use super::config::Config;
use super::jwt::{self, Unverified};
use super::keys::Source;
use super::san::San;
use super::token::{ByDigest, TokenDigest};
use super::{Credential, Identified, Refusal};

/// Maximum number of verified JWTs in the cache.
const VERIFIED: usize = 10_000;
/// How long a JWT stays in the cache, in seconds, unless it expires earlier: to verify one costs a
/// quarter of a request.
const VERIFIED_FOR: u64 = 60;
/// Maximum length of a token, in bytes.
const MAX_TOKEN: usize = 16 << 10;

/// The clients, indexed by their identities.
pub(super) struct Rules {
    pub(super) config: Config,
    clients: Vec<Arc<Client>>,
    sans: HashMap<San, Arc<Client>>,
    tokens: ByDigest<Arc<Client>>,
    access_keys: HashMap<String, Arc<AccessKey>>,
    issuers: HashMap<String, Issuer>,
    verified: Cache<TokenDigest, Verified>,
}

/// An issuer of JWTs, and the clients that they identify.
struct Issuer {
    keys: Arc<Source>,
    /// Audiences and clients by subject.
    subjects: HashMap<String, Vec<(String, Arc<Client>)>>,
}

/// A verified JWT.
#[derive(Clone)]
struct Verified {
    client: Arc<Client>,
    /// In seconds since 1970.
    until: u64,
    /// The keys that verified it: if they change, it is verified again.
    keys: Arc<Source>,
    generation: u64,
}

impl Rules {
    /// The rules of `config`, which must have been checked. The usage of clients and loaded keys
    /// are taken over from `before`.
    pub(super) fn new(config: Config, before: Option<&Self>, clock: &Arc<dyn Clock>) -> Self {
        let usages: HashMap<&str, &Arc<Usage>> = before
            .into_iter()
            .flat_map(|before| before.clients.iter().map(|client| (client.name(), client.usage())))
            .collect();
        let mut sources: Vec<Arc<Source>> =
            before.into_iter().flat_map(|before| before.sources().cloned()).collect();
        let (mut clients, mut sans, mut tokens) = (Vec::new(), HashMap::new(), Vec::new());
        let mut access_keys = HashMap::new();
        let mut issuers = HashMap::<String, Issuer>::new();
        for settings in &config.clients {
            let client = Arc::new(Client::new(settings, usages.get(&*settings.name).copied()));
            clients.push(Arc::clone(&client));
            sans.extend(settings.tls_san.iter().map(|san| (san.clone(), Arc::clone(&client))));
            tokens
                .extend(settings.token_sha256.iter().map(|digest| (*digest, Arc::clone(&client))));
            access_keys.extend(settings.aws_access_key_id.iter().filter_map(|id| {
                let source = settings.aws_secret(config.aws_secret_key_file.as_deref())?;
                let key = AccessKey::new(id.clone(), Arc::clone(&client), source);
                Some((id.clone(), Arc::new(key)))
            }));
            let Some((jwt, origin)) =
                settings.jwt.as_ref().and_then(|jwt| Some((jwt, jwt.key_source().ok()?)))
            else {
                continue;
            };
            let issuer = issuers.entry(jwt.issuer.clone()).or_insert_with(|| {
                let held = sources.iter().find(|source| *source.source() == origin).cloned();
                let keys = held.unwrap_or_else(|| {
                    let source = Source::start(origin, Arc::clone(clock));
                    sources.push(Arc::clone(&source));
                    source
                });
                Issuer { keys, subjects: HashMap::new() }
            });
            for subject in &jwt.subject {
                let known = issuer.subjects.entry(subject.clone()).or_default();
                known.push((jwt.audience.clone(), Arc::clone(&client)));
            }
        }
        let (tokens, verified) = (ByDigest::new(tokens), Cache::new(VERIFIED));
        Self { config, clients, sans, tokens, access_keys, issuers, verified }
    }

    /// The sources of issuer keys.
    pub(super) fn sources(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.issuers.values().map(|issuer| &issuer.keys)
    }

    /// The client of a verified certificate.
    pub(super) fn by_certificate(&self, peer: &Peer) -> Result<Arc<Client>, Refusal> {
        let dns = peer.dns.iter().map(|name| San::dns(name));
        let uris = peer.uris.iter().map(|uri| San::Uri(uri.clone()));
        let ips = peer.ips.iter().map(|&address| San::ip(address));
        let emails = peer.emails.iter().filter_map(|address| San::email(address));
        let names = dns.chain(uris).chain(ips).chain(emails);
        let mut found = names.filter_map(|san| self.sans.get(&san));
        let client = found.next().ok_or(Refusal::UnknownCertificate)?;
        // The result must not depend on the order of names in a certificate.
        if found.all(|other| Arc::ptr_eq(client, other)) {
            Ok(Arc::clone(client))
        } else {
            Err(Refusal::Ambiguous)
        }
    }

    /// The access key of AWS with this id.
    pub(super) fn access_key(&self, id: &str) -> Option<Arc<AccessKey>> {
        self.access_keys.get(id).cloned()
    }

    /// The client of a token. If newer keys could change a refusal, it includes their source.
    pub(super) fn by_token(
        &self,
        token: &str,
        clock: &dyn Clock,
    ) -> Result<Identified, (Refusal, Option<Arc<Source>>)> {
        if token.len() > MAX_TOKEN {
            return Err((Refusal::TooLong, None));
        }
        let digest = TokenDigest::of(token);
        if let Some(client) = self.tokens.find(&digest) {
            return Ok(Identified { client: Arc::clone(client), by: Credential::Token });
        }
        if self.issuers.is_empty() || !jwt::is_jwt(token) {
            return Err((Refusal::UnknownToken, None));
        }
        let now = clock.unix_now();
        if let Some(Verified { client, until, keys, generation }) = self.verified.get(&digest)
            && now < until
            && generation == keys.generation()
        {
            return Ok(Identified { client, by: Credential::Jwt });
        }
        let verified = self.verify(token, now)?;
        let client = Arc::clone(&verified.client);
        self.verified.insert(digest, verified);
        Ok(Identified { client, by: Credential::Jwt })
    }

    fn verify(&self, token: &str, now: u64) -> Result<Verified, (Refusal, Option<Arc<Source>>)> {
        let refused = |refusal| (refusal, None);
        let token = Unverified::parse(token).map_err(refused)?;
        let claims = &token.claims;
        let issuer = self.issuers.get(&claims.iss).ok_or(refused(Refusal::Issuer))?;
        // Cheap checks first. No claim is trusted before the signature is verified.
        let until = claims.valid_until(now).map_err(refused)?;
        let known = issuer.subjects.get(&claims.sub).ok_or(refused(Refusal::Subject))?;
        let mut meant = known.iter().filter(|(audience, _)| claims.is_for(audience));
        let (_, client) = meant.next().ok_or(refused(Refusal::Audience))?;
        if meant.next().is_some() {
            return Err(refused(Refusal::Ambiguous));
        }
        let (keys, generation) = issuer.keys.keys();
        token.verify(&keys).map_err(|refusal| {
            let ask = token.may_be_of_a_new_key(refusal);
            (refusal, ask.then(|| Arc::clone(&issuer.keys)))
        })?;
        Ok(Verified {
            client: Arc::clone(client),
            until: until.min(now + VERIFIED_FOR),
            keys: Arc::clone(&issuer.keys),
            generation,
        })
    }
}
