//! [`Calls`]: calls on one chain, of one operation, one after another. It finds the chain, takes
//! the uses, reads the clock, and counts and reports what came of each call.
//!
//! What many calls share is done once for a stretch of them. This file knows no plaintext and no
//! envelope.

use std::sync::Arc;
use std::time::Duration;

use crate::audit::Event;
use crate::clock::Monotonic;
use crate::id::KekId;
use crate::keychain::{EncryptError, Permit, Uses};
use crate::metrics::{Operation, Successes};

use super::KeyService;
use super::chain::Chain;
use super::error::{Error, Kind};
use super::last_used::Way;

/// A call that takes longer than this ends its stretch: the chain may have changed meanwhile.
const PAUSE: Duration = Duration::from_millis(10);

/// Calls on the chain that a caller named.
pub(crate) struct Calls<'a> {
    pub(super) service: &'a KeyService,
    /// What the caller named; without it, the chain is `default`.
    named: Option<&'a str>,
    /// How many calls are expected before [`settle`](Self::settle).
    expected: u64,
    shared: Shared,
}

/// What the calls of a stretch share.
#[derive(Default)]
struct Shared {
    chain: Option<Arc<Chain>>,
    uses: Option<Uses>,
    /// When the last call ended.
    now: Option<Monotonic>,
    /// They have their chain: a call that waits has the other one, and may be given up.
    successes: Option<(Arc<Chain>, Successes)>,
}

impl KeyService {
    /// Calls on `chain`, or on `default` if that is `None`. Nothing happens before the first one.
    pub(crate) fn on<'a>(&'a self, chain: Option<&'a str>) -> Calls<'a> {
        Calls { service: self, named: chain, expected: 1, shared: Shared::default() }
    }
}

impl Calls<'_> {
    /// The next `calls` calls are a stretch, without a pause: they share the chain as it is at the
    /// first of them.
    pub(crate) fn expect(&mut self, calls: usize) {
        self.settle();
        self.expected = calls as u64;
    }

    /// Ends a stretch: counts what succeeded, and returns the uses that were not spent.
    pub(crate) fn settle(&mut self) {
        let Shared { successes, .. } = std::mem::take(&mut self.shared);
        if let Some((chain, successes)) = successes {
            self.service.core.metrics.add(&chain.metrics, successes);
        }
    }

    /// Begins a call: gives the chain, which [`finish`](Self::finish) takes back, and the time.
    pub(super) async fn begin(
        &mut self,
        operation: Operation,
    ) -> Result<(Arc<Chain>, Monotonic), Error> {
        let now = self.shared.now.unwrap_or_else(|| self.service.core.clock.now());
        let chain = match self.shared.chain.take() {
            Some(chain) => chain,
            None => self.service.find(operation, self.named).await?,
        };
        Ok((chain, now))
    }

    /// Counts and reports the outcome of a call.
    pub(super) fn finish<T>(
        &mut self,
        operation: Operation,
        chain: Arc<Chain>,
        started: Monotonic,
        event: Event<'_>,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        let service = self.service;
        if self.expected == 1 {
            return service.finish_with(operation, &chain, started, event, result);
        }
        let Shared { now, successes, .. } = &mut self.shared;
        let ended = service.core.clock.now();
        *now = Some(ended);
        let result = match result {
            Ok(made) => {
                let none = || (Arc::clone(&chain), service.core.metrics.successes(operation));
                let (_, successes) = successes.get_or_insert_with(none);
                successes.took(ended.since(started));
                KeyService::report_outcome(operation, &chain, event, Ok(made))
            }
            Err(error) => service.finish_with(operation, &chain, started, event, Err(error)),
        };
        self.shared.chain = Some(chain);
        if ended.since(started) > PAUSE {
            self.settle();
        }
        result
    }

    /// Spends one use, and waits for one if none is left. Returns the result with the id of its
    /// KEK.
    pub(super) async fn spend_use<T>(
        &mut self,
        chain: &Chain,
        mut now: Monotonic,
        spend: impl FnOnce(Permit<'_>) -> Result<T, EncryptError>,
    ) -> Result<(T, KekId), Error> {
        if let Some(one) = self.shared.uses.as_mut().and_then(|uses| uses.next(now)) {
            return self.service.spend(one, spend);
        }
        self.shared.uses = None;
        let (mut until, rounds) = (None, chain.rounds());
        let core = &self.service.core;
        loop {
            let snapshot = chain.snapshot();
            if self.expected > 1 {
                self.shared.uses = snapshot.take_many(self.expected, now);
            }
            let many = self.shared.uses.as_mut().and_then(|uses| uses.next(now));
            if let Some(one) = many.or_else(|| snapshot.take(now)) {
                chain.watch_level(&snapshot, now);
                return self.service.spend(one, spend);
            }
            let until = match until {
                None => *until.insert(now + core.config.wait),
                Some(until) => {
                    // The permit may be left over from requests that waited before.
                    if let Some(error) = chain.last_error().filter(|_| chain.rounds() != rounds) {
                        return Err(error);
                    }
                    until
                }
            };
            chain.wait_for_uses(until.since(now), core.config.max_waiting).await?;
            now = core.clock.now();
        }
    }
}

impl Drop for Calls<'_> {
    fn drop(&mut self) {
        self.settle();
    }
}

impl KeyService {
    fn spend<T>(
        &self,
        one: Permit<'_>,
        spend: impl FnOnce(Permit<'_>) -> Result<T, EncryptError>,
    ) -> Result<(T, KekId), Error> {
        let (void_at, kek) = (one.void_at(), one.kek());
        let made = spend(one).map_err(encrypt_error)?;
        let now = self.core.clock.now();
        // If the use has expired meanwhile, the result must not be returned.
        if now < void_at {
            self.core.used.note(&kek.noted().encrypts, kek.chain(), kek.id(), Way::Encrypt, now);
            Ok((made, kek.id()))
        } else {
            Err(Error::exhausted("the reserved use expired while it was spent; try again"))
        }
    }
}

fn encrypt_error(error: EncryptError) -> Error {
    match error {
        EncryptError::AadTooLong | EncryptError::OtherSuite => {
            Error::new(Kind::InvalidRequest, error.to_string())
        }
        EncryptError::NoRecord => Error::new(Kind::Conflict, error.to_string()),
        EncryptError::TooLong => Error::new(Kind::PayloadTooLarge, error.to_string()),
        EncryptError::Exhausted => Error::exhausted("no use of the KEK is left"),
        EncryptError::Randomness(error) => Error::internal(&error),
    }
}
