//! One thread's session with the key: logged in, with the key found, and reopened when one of them
//! is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;

use crate::root::Error;
use crate::secret::KeyBytes;

use super::config::Config;
use super::error::{self, TokenError};
use super::gcm;
use super::module::{Module, Pass};
use super::token;

/// The plaintext that is encrypted to check a session. The result is not a wrap: its AAD is not
/// that of a KEK.
const PROOF: &[u8; 16] = b"kms-proxy proof.";

/// The session of one thread with the configured key.
pub(super) struct KeySession {
    module: Arc<Module>,
    config: Arc<Config>,
    open: Option<Open>,
    /// Shared by all threads of the root.
    is_warned: Arc<AtomicBool>,
}

/// A session that has the key.
struct Open {
    session: Session,
    key: ObjectHandle,
    epoch: u64,
    /// [`PROOF`], encrypted in this session.
    proof: Vec<u8>,
}

impl KeySession {
    /// A session that is not open yet.
    pub(super) fn new(
        module: Arc<Module>,
        config: Arc<Config>,
        is_warned: Arc<AtomicBool>,
    ) -> Self {
        Self { module, config, open: None, is_warned }
    }

    /// Nonce, ciphertext and tag of `kek`.
    pub(super) fn wrap(&mut self, aad: &[u8], kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        let iv = self.config.gcm_iv;
        self.call(|open| gcm::seal(&open.gcm(), iv, aad, kek.expose()))
    }

    /// Unwraps what [`wrap`](Self::wrap) returned.
    pub(super) fn unwrap(&mut self, aad: &[u8], sealed: &[u8]) -> Result<KeyBytes, Error> {
        self.call(|open| {
            let mut said = String::new();
            // Many tokens report the same error for a wrong wrap and for a broken session. If the
            // session opens the proof that it made itself, but still not this, the wrap is wrong.
            for _ in 0..2 {
                let cause = match gcm::open(&open.gcm(), aad, sealed) {
                    Ok(kek) => {
                        return KeyBytes::from_slice(&kek)
                            .ok_or_else(|| TokenError::Wrong("it holds no KEK".to_owned()));
                    }
                    Err(cause) => cause,
                };
                said = error::text(&cause);
                if error::is_wrong(&cause) {
                    break;
                }
                if !open.works() {
                    return Err(cause.into());
                }
            }
            Err(TokenError::Wrong(format!(
                "the key in the token is another one, or the wrap is damaged or was made for \
                 another KEK ({said})"
            )))
        })
    }

    /// Runs `operation` in the current session, then in a new one, and then in one of the
    /// reinitialised module: only reinitialising makes a token usable again that was removed.
    fn call<T>(&mut self, operation: impl Fn(&Open) -> Result<T, TokenError>) -> Result<T, Error> {
        let mut last = match self.attempt(&operation) {
            Err((error, _)) if error.may_pass() => self.attempt(&operation),
            other => other,
        };
        if let Err((error, epoch)) = &last
            && error.may_pass()
        {
            match self.module.initialise(*epoch, self.config.timeout) {
                Ok(()) => {
                    last = self.attempt(&operation);
                    if last.is_ok() {
                        self.module.helped();
                    }
                }
                Err(why) => tracing::debug!(root = self.config.name, why, "not reinitialised"),
            }
        }
        last.map_err(|(error, _)| error.into())
    }

    /// Opens a session unless one is open, and runs `operation` in it. A failure that a new session
    /// may fix closes the session. The error comes with the epoch in which it happened.
    fn attempt<T>(
        &mut self,
        operation: impl Fn(&Open) -> Result<T, TokenError>,
    ) -> Result<T, (TokenError, u64)> {
        let module = Arc::clone(&self.module);
        let pass = module.enter(self.config.timeout).map_err(|error| (error, 0))?;
        let open = match self.open.take().filter(|open| open.epoch == pass.epoch) {
            Some(open) => Ok(open),
            None => Open::new(&pass, &self.config, &self.is_warned),
        };
        let result = open.and_then(|open| match operation(&open) {
            Err(error) if error.may_pass() => {
                // Its result does not matter: the session may already be gone.
                _ = open.session.close();
                Err(error)
            }
            result => {
                self.open = Some(open);
                result
            }
        });
        result.map_err(|error| (error, pass.epoch))
    }
}

impl Drop for KeySession {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else { return };
        if let Ok(pass) = self.module.enter(self.config.timeout)
            && pass.epoch == open.epoch
        {
            _ = open.session.close();
        }
    }
}

impl Open {
    fn new(pass: &Pass<'_>, config: &Config, is_warned: &AtomicBool) -> Result<Self, TokenError> {
        let session = token::session(pass, config, false)?;
        match Self::with(&session, config, is_warned) {
            Ok((key, proof)) => Ok(Self { session, key, epoch: pass.epoch, proof }),
            Err(error) => {
                _ = session.close();
                Err(error)
            }
        }
    }

    /// The key, and a proof that it works.
    fn with(
        session: &Session,
        config: &Config,
        is_warned: &AtomicBool,
    ) -> Result<(ObjectHandle, Vec<u8>), TokenError> {
        let key = token::find(session, config)?;
        let nature = token::Nature::of(session, key)?;
        if !nature.is_aes_256 {
            let label = &config.key_label;
            return Err(TokenError::Denied(format!("the key {label:?} is not an AES-256 key")));
        }
        let gcm = (session, key);
        let proof = gcm::seal(&gcm, config.gcm_iv, PROOF, PROOF)?;
        if **gcm::open(&gcm, PROOF, &proof)? != *PROOF {
            return Err(TokenError::Denied("the token does not open what it encrypted".to_owned()));
        }
        if !nature.is_kept && !is_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                root = config.name,
                key = config.key_label,
                "the key can be read out of its token: it is extractable, or not sensitive"
            );
        }
        Ok((key, proof))
    }

    fn gcm(&self) -> (&Session, ObjectHandle) {
        (&self.session, self.key)
    }

    /// Whether the session still opens what it made.
    fn works(&self) -> bool {
        gcm::open(&self.gcm(), PROOF, &self.proof).is_ok_and(|proof| **proof == *PROOF)
    }
}
