use std::error::Error;
use std::sync::Arc;

use kms_proxy::root::pkcs11;
use kms_proxy::secret::SecretBytes;
use kms_proxy::{KeyService, store};

/// Starts a service whose KEKs are wrapped by the AES-256 key `kek` in the token `main` of an HSM,
/// and kept in the directory `data`.
pub async fn start(module: &str, pin: &str, data: &str) -> Result<Arc<KeyService>, Box<dyn Error>> {
    let pin = SecretBytes::new(pin.as_bytes().to_vec());
    let config = pkcs11::Config::new("hsm", module, "main", "kek", pin);
    let service = KeyService::builder()
        .store(store::file::Store::open(data.as_ref()).await?)
        .root("hsm", pkcs11::Root::open(&config).await?)
        .start()
        .await?;
    Ok(service)
}
