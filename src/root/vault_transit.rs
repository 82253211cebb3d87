//! `vault-transit`: a key in the transit engine of Vault or OpenBao, which never leaves it.
//!
//! This file owns the two calls and the checks before them. `key` owns their paths, bodies and
//! errors, `session` the tokens, `client` the HTTP. The context of a KEK is passed as associated
//! data, which transit's AEADs authenticate.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base64_simd::STANDARD;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use crate::secret::KeyBytes;

use super::{Context, Error, IfMissing, RootKey};

mod client;
mod config;
mod key;
mod login;
mod login_backoff;
mod session;
mod token;
mod wrapped;

pub use config::Config;

use client::{Answer, Call, Client};
use key::{Ciphertext, Data, Decrypted, Description, Encrypted, Key, Plaintext};
use session::Session;
use wrapped::Wrapped;

/// How long a wrap or an unwrap may take, including a login. The service waits 15 seconds.
const DEADLINE: Duration = Duration::from_secs(14);

/// A key of a transit engine.
pub struct Root {
    key: Key,
    client: Arc<Client>,
    session: Arc<Session>,
    keeper: JoinHandle<()>,
    /// Whether the key is known to exist, or the policy does not allow this root to check.
    looked: AtomicBool,
    /// Whether the server is known to bind a ciphertext to associated data.
    binds: AtomicBool,
    /// The latest version of the key that a response named; 0 if none did.
    latest: AtomicU32,
}

impl Drop for Root {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Root {
    /// Opens the root. This makes no call, so the server may be unavailable.
    ///
    /// # Errors
    /// What is wrong with the settings or the files that they name, for an operator.
    pub async fn open(config: &Config) -> Result<Self, String> {
        config.check()?;
        if config.is_in_the_open() {
            tracing::warn!(
                root = config.name,
                "the address is plain http to another machine: anyone who sees the traffic can \
                 read the token and every KEK; use https"
            );
        }
        let client = Arc::new(Client::new(config)?);
        let session = Arc::new(Session::new(&config.name, Arc::clone(&client), config.login()?));
        let kept = Arc::clone(&session);
        Ok(Self {
            key: Key::new(config),
            client,
            session,
            keeper: tokio::spawn(async move { kept.keep().await }),
            looked: AtomicBool::new(false),
            binds: AtomicBool::new(false),
            latest: AtomicU32::new(0),
        })
    }

    /// Makes a call, and retries it with another token if the first one is refused.
    async fn call(&self, call: &Call) -> Result<Answer, Error> {
        let token = self.session.token().await?;
        let answer = self.client.send(call, Some(&token.secret)).await?;
        if answer.status.as_u16() != 403 {
            return Ok(answer);
        }
        let Some(other) = self.session.another(&token).await? else {
            return Err(self.session.refusal(&token, &call.path).await);
        };
        let answer = self.client.send(call, Some(&other.secret)).await?;
        if answer.status.as_u16() != 403 {
            return Ok(answer);
        }
        Err(self.session.refusal(&other, &call.path).await)
    }

    /// Checks once that the key exists: encrypting would create a missing one if the policy allows
    /// it. A policy may deny this check.
    async fn look(&self) -> Result<(), Error> {
        if self.looked.load(Ordering::Relaxed) {
            return Ok(());
        }
        let answer = match self.call(&Call::get(self.key.path("keys"))).await {
            Err(Error::Denied(_)) => {
                self.looked.store(true, Ordering::Relaxed);
                return Ok(());
            }
            answer => answer?,
        };
        if !answer.status.is_success() {
            return Err(self.key.refused(&answer));
        }
        let Data { data: Description { latest_version, derived, soft_deleted } } = answer.read()?;
        if derived {
            return Err(Error::Denied(self.key.is_derived()));
        }
        if soft_deleted {
            return Err(Error::Denied(self.key.is_gone()));
        }
        self.latest.fetch_max(latest_version, Ordering::Relaxed);
        self.looked.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn encrypt(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        self.look().await?;
        let plaintext = Zeroizing::new(STANDARD.encode_to_string(kek.expose()));
        let associated_data = STANDARD.encode_to_string(context.aad());
        let body = Plaintext { plaintext: &plaintext, associated_data: &associated_data };
        let call = Call::post(self.key.path("encrypt"), &body)?.with_secret(kek.expose());
        let answer = self.call(&call).await?;
        if !answer.status.is_success() {
            return Err(self.key.refused(&answer));
        }
        let Data { data: Encrypted { ciphertext } } = answer.read()?;
        let wrapped = Wrapped::from_text(&ciphertext).ok_or_else(|| {
            Error::Denied("its response is not a ciphertext of an AEAD of transit".to_owned())
        })?;
        self.check_binding(wrapped).await?;
        self.latest.fetch_max(wrapped.version, Ordering::Relaxed);
        Ok(wrapped.to_bytes())
    }

    /// Checks once that a wrap does not open without its context: old servers ignore associated
    /// data, and a wrap could then be passed off as that of another chain.
    async fn check_binding(&self, wrapped: Wrapped<'_>) -> Result<(), Error> {
        if self.binds.load(Ordering::Relaxed) {
            return Ok(());
        }
        let body = Ciphertext { ciphertext: wrapped.text, associated_data: "" };
        let call = Call::post(self.key.path("decrypt"), &body)?;
        match self.call(&call).await {
            Ok(answer) if answer.status.is_success() => Err(Error::Denied(
                "this server ignores associated data; it is too old to be used safely".to_owned(),
            )),
            // If the policy does not allow decrypting, this can't be checked.
            Ok(_) | Err(Error::Denied(_)) => {
                self.binds.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn decrypt(&self, context: Context<'_>, wrapped: Wrapped<'_>) -> Result<KeyBytes, Error> {
        self.look().await?;
        let associated_data = STANDARD.encode_to_string(context.aad());
        let body = Ciphertext { ciphertext: wrapped.text, associated_data: &associated_data };
        let call = Call::post(self.key.path("decrypt"), &body)?;
        let answer = self.call(&call).await?;
        if !answer.status.is_success() {
            return Err(self.key.unopened(&answer, wrapped));
        }
        let Data { data: Decrypted { plaintext } } = answer.read()?;
        let kek = STANDARD.decode_to_vec(plaintext.as_bytes()).map(Zeroizing::new).ok();
        kek.and_then(|kek| KeyBytes::from_slice(&kek))
            .ok_or_else(|| Error::Wrong("it unwraps to something that is not a KEK".to_owned()))
    }
}

#[async_trait]
impl RootKey for Root {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        in_time(self.encrypt(context, kek)).await
    }

    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        in_time(self.decrypt(context, Wrapped::from_bytes(wrapped)?)).await
    }

    /// Compares with the latest version that this process has seen, in a check or a wrap.
    fn is_current(&self, wrapped: &[u8]) -> bool {
        let latest = self.latest.load(Ordering::Relaxed);
        Wrapped::from_bytes(wrapped).is_ok_and(|wrapped| wrapped.version >= latest)
    }

    fn kind(&self) -> &'static str {
        "vault-transit"
    }

    fn key(&self) -> String {
        self.key.path("keys")
    }

    fn token_expires_in(&self) -> Option<Duration> {
        self.session.expires_in()
    }
}

async fn in_time<T>(calls: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(DEADLINE, calls)
        .await
        .unwrap_or_else(|_| Err(Error::Away("no answer in 14 s".to_owned())))
}

#[async_trait]
impl super::Provider for Config {
    fn check(&self, _: &Path) -> Result<(), String> {
        self.check()
    }

    async fn open(&self, _: &Path, _: IfMissing) -> Result<Arc<dyn RootKey>, String> {
        Ok(Arc::new(Root::open(self).await?))
    }

    async fn init(&self, _: &Path) -> Result<String, String> {
        Ok(format!(
            "make the key with Vault or OpenBao: `vault write -f {}/keys/{}`, and give the \
                service's policy update on its encrypt and decrypt",
            self.mount, self.key
        ))
    }
}

#[cfg(test)]
mod tests;
