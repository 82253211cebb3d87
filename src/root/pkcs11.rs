//! `pkcs11`: an AES-256 key that never leaves an HSM, through the PKCS#11 module of the HSM's
//! vendor.
//!
//! The token seals KEKs with AES-GCM. Modules block, hang, and lose sessions and tokens. So they
//! are called on dedicated threads, and what is lost is reopened without a restart.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;

use crate::secret::KeyBytes;

use super::{Context, Error, IfMissing, RootKey, sealed};

mod config;
mod error;
mod gcm;
mod init;
mod module;
mod pool;
mod session;
mod token;

pub use config::{Config, GcmIv};

use module::Module;
use pool::Pool;
use session::KeySession;

/// The first byte of a wrap. Then follow nonce (12 bytes), sealed KEK (16 or 32) and tag (16).
const FORMAT: u8 = 1;

/// How long loading a module and creating a key may take: some modules are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// The key in the token.
pub struct Root {
    links: Pool<KeySession>,
    key_label: String,
}

impl Root {
    /// Loads the module. The token is not used before the first call, so it may be absent now.
    ///
    /// # Errors
    /// A message for an operator: a setting or the PIN's file is wrong, or the module can't be
    /// loaded.
    pub async fn open(config: &Config) -> Result<Self, String> {
        config.check()?;
        if let Some((file, mode)) = config.open_pin_file() {
            tracing::warn!(
                root = config.name,
                file = %file.display(),
                mode = format!("{mode:04o}"),
                "other users can read the file with the PIN"
            );
        }
        let path = config.module.clone();
        let module = pool::apart(PATIENCE, move || Module::load(&path)).await;
        let module = module.ok_or_else(|| took_too_long(config))??;
        let (own, is_warned) = (Arc::new(config.clone()), Arc::new(AtomicBool::new(false)));
        let session =
            move || KeySession::new(Arc::clone(&module), Arc::clone(&own), Arc::clone(&is_warned));
        Ok(Self {
            links: Pool::start(config.timeout, session)?,
            key_label: config.key_label.clone(),
        })
    }

    /// Creates the key in the token, and returns what was done.
    ///
    /// # Errors
    /// A message for an operator: the key already exists, or it can't be created.
    pub async fn init(config: &Config) -> Result<String, String> {
        config.check()?;
        let own = config.clone();
        let made = pool::apart(PATIENCE, move || {
            let module = Module::load(&own.module)?;
            init::make(&module, &own).map_err(|error| error.to_string())
        });
        made.await.ok_or_else(|| took_too_long(config))?
    }
}

#[async_trait]
impl RootKey for Root {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        let aad = context.aad();
        // The thread needs its own copy. It is wiped when the call has returned.
        let kek = KeyBytes::from_slice(kek.expose()).ok_or_else(sealed::wrong_length)?;
        let sealed = self.links.call(move |session| session.wrap(&aad, &kek)).await?;
        Ok([&[FORMAT], &sealed[..]].concat())
    }

    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        let sealed = sealed::after_format(wrapped, FORMAT)?;
        // Bytes that can't be a wrap cost no call.
        sealed::check_length(context, sealed)?;
        let (aad, sealed) = (context.aad(), sealed.to_vec());
        self.links.call(move |session| session.unwrap(&aad, &sealed)).await
    }

    fn kind(&self) -> &'static str {
        "pkcs11"
    }

    fn key(&self) -> String {
        self.key_label.clone()
    }
}

fn took_too_long(config: &Config) -> String {
    format!("module {}: no answer in {} s", config.module.display(), PATIENCE.as_secs())
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
        Root::init(self).await
    }
}

#[cfg(test)]
mod tests;
