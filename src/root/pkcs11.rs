//! `pkcs11`: an AES-256 key in an HSM, which never leaves it, through the PKCS#11 module of the
//! HSM's maker.
//!
//! The token seals KEKs with AES-GCM. Modules block, hang, lose sessions and tokens; so they are
//! called on threads of their own, and what is lost is opened anew, without a restart.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;

use crate::secret::KeyBytes;

use super::{Context, Error, IfMissing, RootKey, sealed};

mod config;
mod fault;
mod gcm;
mod init;
mod link;
mod module;
mod pool;
mod token;

pub use config::{Config, GcmIv};

use link::Link;
use module::Module;
use pool::Pool;

/// The first byte of a wrap. Then follow nonce (12 bytes), sealed KEK (16 or 32) and tag (16).
const FORMAT: u8 = 1;

/// How long a module may take to be loaded, and a key to be made: some do a lot of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The key in the token.
pub struct Root {
    links: Pool<Link>,
    key_label: String,
}

impl Root {
    /// Loads the module. The token is asked when it is first needed, so it may be away now.
    ///
    /// # Errors
    /// What is wrong, for an operator: a setting, the PIN's file, or the module can't be loaded.
    pub async fn open(config: &Config) -> Result<Self, String> {
        config.check()?;
        if let Some((file, mode)) = config.open_pin_file() {
            tracing::warn!(
                root = config.name,
                file = %file.display(),
                mode = format!("{mode:04o}"),
                "others may read the file with the PIN"
            );
        }
        let path = config.module.clone();
        let module = pool::apart(PATIENCE, move || Module::load(&path)).await;
        let module = module.ok_or_else(|| took_too_long(config))??;
        let (own, is_warned) = (Arc::new(config.clone()), Arc::new(AtomicBool::new(false)));
        let link = move || Link::new(Arc::clone(&module), Arc::clone(&own), Arc::clone(&is_warned));
        Ok(Self { links: Pool::start(config.timeout, link)?, key_label: config.key_label.clone() })
    }

    /// Makes the key in the token, and says what was done.
    ///
    /// # Errors
    /// What is wrong, for an operator: there is such a key already, or it can't be made.
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
        // The thread needs a copy of its own. It is wiped when the call has returned.
        let kek = KeyBytes::from_slice(kek.expose()).ok_or_else(sealed::wrong_length)?;
        let sealed = self.links.call(move |link| link.wrap(&aad, &kek)).await?;
        Ok([&[FORMAT], &sealed[..]].concat())
    }

    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        let sealed = sealed::after_format(wrapped, FORMAT)?;
        // The token is not asked about what can be no wrap.
        sealed::check_length(context, sealed)?;
        let (aad, sealed) = (context.aad(), sealed.to_vec());
        self.links.call(move |link| link.unwrap(&aad, &sealed)).await
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
