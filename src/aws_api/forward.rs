//! Calls that are forwarded to the real KMS, signed with the credentials of the service.
//!
//! It knows no caller: who may have what KMS returns is decided by who asks here. Identical
//! concurrent calls share one, and the number of concurrent calls is bounded.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::json::Text;
use crate::metrics::{Metrics, Operation as Permission};
use crate::root;
use crate::root::forward::{self as kms, Response};
use crate::shared_call::SharedCalls;

use super::config::Config;
pub(super) use super::config::Forward;
use super::context::Context;
use super::error::{Code, Error};
use super::identity::Caller;
use super::operation::{Other, Served};
use super::request::{self, Look};
use super::{Answer, Api};

mod cache;
mod refusal;

use cache::Cache;

/// Concurrent calls of KMS: at 10 ms each they are 6,400 a second, more than half of the quota of
/// an account.
pub(super) const MAX_CALLS: usize = 64;

/// Calls in flight and calls that wait for their turn: without a bound a slow KMS would collect
/// them.
pub(super) const MAX_WAITING: usize = 1_024;

/// A digest of a ciphertext and its encryption context.
pub(super) type Digest = [u8; 32];

/// A plaintext that KMS returned, and the ARN of its key. Wiped on drop.
pub(super) struct Foreign {
    plaintext: Zeroizing<Vec<u8>>,
    key: Arc<str>,
}

impl Foreign {
    pub(super) fn plaintext(&self) -> &[u8] {
        &self.plaintext
    }

    /// The ARN of the key of KMS.
    pub(super) fn key(&self) -> &str {
        &self.key
    }
}

/// A response of KMS to a call that was made now.
#[derive(Clone)]
pub(super) struct Fresh {
    pub(super) opened: Arc<Foreign>,
    /// The number of refusals of keys when the call began.
    refusals: u64,
}

/// Forwards calls.
pub(super) struct Forwarder {
    mode: Forward,
    kms: Arc<Kms>,
    cache: Arc<Cache>,
    calls: SharedCalls<[u8; 32], Result<Fresh, Error>>,
}

/// KMS, with a bound on calls.
struct Kms {
    /// Without it nothing is forwarded.
    service: Option<Arc<dyn kms::Kms>>,
    calls: Semaphore,
    /// Places for calls in flight and calls that wait.
    places: Semaphore,
    metrics: Arc<Metrics>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DecryptCall<'a> {
    ciphertext_blob: String,
    encryption_context:
        &'a std::collections::BTreeMap<std::borrow::Cow<'a, str>, std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DecryptResponse<'a> {
    #[serde(borrow)]
    plaintext: Text<'a>,
    #[serde(borrow)]
    key_id: Text<'a>,
}

impl Forwarder {
    pub(super) fn new(
        config: &Config,
        service: Option<Arc<dyn kms::Kms>>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        if service.is_some() {
            metrics.forwarded.expect(Served::Decrypt.name());
        }
        let (calls, places) = (Semaphore::new(MAX_CALLS), Semaphore::new(MAX_WAITING));
        let kms = Arc::new(Kms { service, calls, places, metrics });
        Self {
            mode: config.forward,
            kms,
            cache: Cache::start(config.forward_cache, clock),
            calls: SharedCalls::default(),
        }
    }

    pub(super) fn mode(&self) -> Forward {
        self.mode
    }

    /// The digest that a ciphertext is kept under.
    pub(super) fn digest(&self, blob: &[u8], context: &Context<'_>) -> Digest {
        let mut hash = Sha256::new();
        hash.update((blob.len() as u64).to_be_bytes());
        hash.update(blob);
        for (key, value) in context.pairs() {
            for text in [key, value] {
                hash.update((text.len() as u64).to_be_bytes());
                hash.update(text.as_bytes());
            }
        }
        hash.finalize().into()
    }

    /// What was kept of a ciphertext. Whether the caller may have it is not checked.
    pub(super) fn kept(&self, digest: &Digest) -> Option<Arc<Foreign>> {
        self.cache.find(digest)
    }

    /// Keeps what KMS returned, for a caller who may have it, unless KMS has refused a key since
    /// the call began: the response may be older than that.
    pub(super) fn keep(&self, digest: Digest, fresh: &Fresh) {
        self.cache.keep(digest, &fresh.opened, fresh.refusals);
    }

    /// Has KMS decrypt a ciphertext. Whether the caller may have what comes back is not checked.
    /// The call continues as long as any caller waits for it: KMS may bill one that is cancelled.
    pub(super) async fn decrypt(
        &self,
        blob: &[u8],
        context: &Context<'_>,
        key_id: Option<&str>,
        digest: &Digest,
    ) -> Result<Fresh, Error> {
        // A call with another key is another call: KMS checks the key.
        let mut hash = Sha256::new_with_prefix(digest);
        hash.update(key_id.unwrap_or_default());
        let call = || {
            let call = DecryptCall {
                ciphertext_blob: base64_simd::STANDARD.encode_to_string(blob),
                encryption_context: context.pairs(),
                key_id,
            };
            let body = Zeroizing::new(super::response::write(&call));
            let (kms, cache) = (Arc::clone(&self.kms), Arc::clone(&self.cache));
            let key_id = key_id.map(str::to_owned);
            async move {
                // A caller that joins this call later gets a response that is as old as the call.
                let refusals = cache.refusals();
                let opened = kms.decrypt(body).await.map_err(|refusal| {
                    if refusal.is_of_key {
                        cache.forget(refusal.key.as_deref().or(key_id.as_deref()));
                    }
                    refusal.error
                });
                opened.map(|opened| Fresh { opened, refusals })
            }
        };
        let result = self.calls.join(&hash.finalize().into(), call).await;
        // The panic is logged where it happens.
        result.unwrap_or_else(|| Err(Error::new(Code::Internal, "an internal error occurred")))
    }

    /// How many callers wait for KMS to decrypt.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.calls.callers()
    }
}

impl Kms {
    async fn decrypt(&self, body: Zeroizing<Vec<u8>>) -> Result<Arc<Foreign>, refusal::Refusal> {
        let name = Served::Decrypt.name();
        let answer = self.call(name, body).await.map_err(refusal::away)?;
        if answer.status != 200 {
            return Err(refusal::read(&answer.body));
        }
        let read: Option<DecryptResponse<'_>> = serde_json::from_slice(&answer.body).ok();
        let opened = read.and_then(|read| {
            let plaintext =
                base64_simd::STANDARD.decode_to_vec(read.plaintext.0.as_bytes()).ok()?;
            let plaintext = Zeroizing::new(plaintext);
            Some(Arc::new(Foreign { plaintext, key: Arc::from(&*read.key_id.0) }))
        });
        opened.ok_or_else(refusal::unreadable)
    }

    /// Calls KMS when a place is free, and counts the call.
    async fn call(
        &self,
        operation: &'static str,
        body: Zeroizing<Vec<u8>>,
    ) -> Result<Response, root::Error> {
        let Some(service) = &self.service else {
            return Err(root::Error::Denied("nothing is forwarded".to_owned()));
        };
        match self.places.try_acquire() {
            Ok(_place) => {
                let _turn = self.calls.acquire().await;
                let mut count = Count { metrics: &self.metrics, operation, outcome: "abandoned" };
                let called = service.call(operation, body).await;
                count.outcome = match &called {
                    Ok(answer) if answer.status == 200 => "ok",
                    Ok(answer) => refusal::outcome(&answer.body),
                    Err(_) => "unavailable",
                };
                called
            }
            Err(_) => Err(root::Error::Away("too many calls wait for AWS KMS".to_owned())),
        }
    }
}

/// Counts a call when it is over, also if nobody waits for its end.
struct Count<'a> {
    metrics: &'a Metrics,
    operation: &'static str,
    outcome: &'static str,
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.metrics.forwarded.called(self.operation, self.outcome);
    }
}

impl Api {
    /// Forwards an operation that is served for chains, on a key without a chain.
    pub(super) async fn forward_served(
        &self,
        caller: &Caller,
        operation: Served,
        body: &Bytes,
    ) -> Result<Answer, Error> {
        self.forward(caller, operation.name(), operation.permission(), body).await
    }

    /// Forwards an operation that is not served, unless it is on a chain.
    pub(super) async fn forward_other(
        &self,
        caller: &Caller,
        operation: Other,
        body: Bytes,
    ) -> Result<Answer, Error> {
        let look: Look<'_> = request::parse(&body)?;
        let Other { name, permission, instead } = operation;
        let named = look.names()?;
        let (mut is_ours, mut exists) = (false, false);
        for key_id in &named {
            let Some(key) = self.find(key_id).await else { continue };
            caller.check(name, permission, &key)?;
            is_ours = true;
            exists |= self.service.may_exist(&key.chain).await;
        }
        if !is_ours && self.forwarder.mode == Forward::All {
            return self.forward(caller, name, permission, &body).await;
        }
        if !exists && !named.is_empty() {
            return Err(Error::unknown_key());
        }
        let message = format!("kms-proxy does not serve {name}: {instead}");
        Err(Error::new(Code::UnsupportedOperation, message))
    }

    async fn forward(
        &self,
        caller: &Caller,
        operation: &'static str,
        permission: Permission,
        body: &Bytes,
    ) -> Result<Answer, Error> {
        if self.forwarder.mode != Forward::All {
            return Err(Error::unknown_key());
        }
        caller.check_all(operation, permission)?;
        let answer = self.forwarder.kms.call(operation, Zeroizing::new(body.to_vec())).await;
        let answer = answer.map_err(|error| refusal::away(error).error)?;
        match (answer.status != 200).then(|| refusal::of_credentials(&answer.body)).flatten() {
            Some(error) => Err(error),
            None => Ok(Answer::Forwarded(answer)),
        }
    }
}
