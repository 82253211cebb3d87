//! The operations on data: Encrypt, Decrypt, GenerateDataKey and ReEncrypt.

use std::sync::Arc;

use bytes::Bytes;

use crate::audit::{Event, record};
use crate::id::ChainName;
use crate::json::Object;
use crate::keychain::message::{Opened, Plaintext, Sealed};
use crate::metrics::Operation as Permission;
use crate::secret::SecretBytes;
use crate::service::{self, Kind};

use super::blob::{self, Blob};
use super::context::Context;
use super::error::{Code, Error};
use super::forward::Foreign;
use super::identity::Caller;
use super::key_id::Key;
use super::operation::Served;
use super::request::{self, MAX_BLOB, MAX_BYTES, SYMMETRIC};
use super::{Answer, Api, Forward};

/// A ciphertext that was opened.
struct Decrypted {
    plaintext: Source,
    arn: Arc<str>,
}

/// Where its plaintext is.
enum Source {
    Own(Opened),
    Foreign(Arc<Foreign>),
}

impl Decrypted {
    fn plaintext(&self) -> &[u8] {
        match &self.plaintext {
            Source::Own(opened) => opened.as_slice(),
            Source::Foreign(foreign) => foreign.plaintext(),
        }
    }
}

/// The key that a caller names for a ciphertext of KMS.
enum Named<'a> {
    Nothing,
    Mapped(Key),
    /// A key of KMS without a chain.
    Unmapped(&'a str),
}

impl Api {
    pub(super) async fn encrypt(&self, caller: &Caller, body: Bytes) -> Result<Answer, Error> {
        let name = Served::Encrypt.name();
        let request: request::Encrypt<'_> = request::parse(&body)?;
        let Some(key) = self.find(request.key_id()?).await else {
            return self.forward_served(caller, Served::Encrypt, &body).await;
        };
        caller.check(name, Permission::Encrypt, &key)?;
        let aad = aad("encryptionContext", &request.encryption_context)?;
        let sealed = self.seal(&key.chain, request.plaintext()?, &aad).await?;
        if request.is_dry_run() {
            return Err(Error::dry_run());
        }
        Ok(write(sealed.len(), |object| {
            object
                .base64("CiphertextBlob", &sealed)
                .text("KeyId", &key.arn)
                .plain("EncryptionAlgorithm", SYMMETRIC)
        }))
    }

    pub(super) async fn decrypt(&self, caller: &Caller, body: Bytes) -> Result<Answer, Error> {
        let request: request::Decrypt<'_> = request::parse(&body)?;
        let (key_id, blob) = (request.key_id()?, request.blob()?);
        let context = &request.encryption_context;
        let opened = self.open(caller, Served::Decrypt, key_id, blob, context).await?;
        if request.is_dry_run() {
            return Err(Error::dry_run());
        }
        let plaintext = opened.plaintext();
        Ok(write(plaintext.len(), |object| {
            object
                .base64("Plaintext", plaintext)
                .text("KeyId", &opened.arn)
                .plain("EncryptionAlgorithm", SYMMETRIC)
        }))
    }

    /// GenerateDataKey, and GenerateDataKeyWithoutPlaintext.
    pub(super) async fn generate_data_key(
        &self,
        caller: &Caller,
        operation: Served,
        body: Bytes,
    ) -> Result<Answer, Error> {
        let request: request::GenerateDataKey<'_> = request::parse(&body)?;
        let Some(key) = self.find(request.key_id()?).await else {
            return self.forward_served(caller, operation, &body).await;
        };
        caller.check(operation.name(), Permission::Datakey, &key)?;
        let aad = aad("encryptionContext", &request.encryption_context)?;
        let chain = Some(key.chain.as_str());
        let made = self.service.on(chain).datakey(request.bytes()?, 1..=MAX_BYTES, &aad).await?;
        let sealed = write_blob(&key.chain, &made.envelope)?;
        if request.is_dry_run() {
            return Err(Error::dry_run());
        }
        let plaintext = made.plaintext.expose();
        Ok(write(sealed.len() + plaintext.len(), |object| {
            let object = object.base64("CiphertextBlob", &sealed);
            let object = match operation {
                Served::GenerateDataKey => object.base64("Plaintext", plaintext),
                _ => object,
            };
            object.text("KeyId", &key.arn)
        }))
    }

    pub(super) async fn re_encrypt(&self, caller: &Caller, body: Bytes) -> Result<Answer, Error> {
        let name = Served::ReEncrypt.name();
        let request: request::ReEncrypt<'_> = request::parse(&body)?;
        let (source, blob) = (request.source_key_id()?, request.blob()?);
        let Some(key) = self.find(request.destination_key_id()?).await else {
            if !matches!(Blob::parse(&blob), Blob::Foreign) {
                let message = "a ciphertext of kms-proxy cannot be re-encrypted under a key that \
                               has no chain: decrypt it, and encrypt it with that key";
                return Err(Error::new(Code::UnsupportedOperation, message));
            }
            caller.check_all(name, Permission::Decrypt)?;
            return self.forward_served(caller, Served::ReEncrypt, &body).await;
        };
        caller.check(name, Permission::Encrypt, &key)?;
        self.must_exist(&key).await?;
        let aad = aad("destinationEncryptionContext", &request.destination_encryption_context)?;
        let context = &request.source_encryption_context;
        let opened = self.open(caller, Served::ReEncrypt, source, blob, context).await?;
        let sealed = self.seal(&key.chain, opened.plaintext().into(), &aad).await?;
        if request.is_dry_run() {
            return Err(Error::dry_run());
        }
        Ok(write(sealed.len(), |object| {
            object
                .base64("CiphertextBlob", &sealed)
                .text("KeyId", &key.arn)
                .text("SourceKeyId", &opened.arn)
                .plain("SourceEncryptionAlgorithm", SYMMETRIC)
                .plain("DestinationEncryptionAlgorithm", SYMMETRIC)
        }))
    }

    pub(super) fn generate_random(&self, caller: &Caller, body: &[u8]) -> Result<Answer, Error> {
        let request: request::GenerateRandom = request::parse(body)?;
        caller.check_some(Served::GenerateRandom.name(), Permission::Datakey)?;
        let random = SecretBytes::random(request.bytes()?);
        let random = random.map_err(|error| Error::new(Code::Internal, error.to_string()))?;
        let random = random.expose();
        Ok(write(random.len(), |object| object.base64("Plaintext", random)))
    }

    async fn seal(
        &self,
        chain: &ChainName,
        plaintext: Plaintext,
        aad: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let made = self.service.encrypt(Some(chain.as_str()), plaintext, aad).await?;
        write_blob(chain, &made.envelope)
    }

    /// Opens a ciphertext for a caller who may decrypt with the chain of its key.
    async fn open(
        &self,
        caller: &Caller,
        operation: Served,
        key_id: Option<&str>,
        blob: Vec<u8>,
        context: &Context<'_>,
    ) -> Result<Decrypted, Error> {
        let (chain, envelope) = match Blob::parse(&blob) {
            Blob::Own { chain, envelope } => (chain, envelope),
            Blob::Foreign => {
                return Box::pin(self.open_foreign(caller, operation, key_id, &blob, context))
                    .await;
            }
            Blob::Malformed => return Err(Error::invalid_ciphertext()),
        };
        let key = match key_id {
            Some(key_id) => self.find(key_id).await.ok_or_else(Error::unknown_key)?,
            None => Key { arn: self.keys.arn(&chain), chain: chain.clone(), kms: None },
        };
        caller.check(operation.name(), Permission::Decrypt, &key)?;
        if key.chain != chain {
            self.must_exist(&key).await?;
            return Err(Error::incorrect_key());
        }
        // An encryption context that was never used to encrypt opens nothing.
        let aad = context.to_aad().map_err(|_| Error::invalid_ciphertext())?;
        let opened = self.service.decrypt(Some(chain.as_str()), envelope.to_vec(), &aad).await;
        let opened = opened.map_err(|error| damaged_name(error, key_id.is_some()))?;
        Ok(Decrypted { plaintext: Source::Own(opened.plaintext), arn: key.arn })
    }

    /// Opens a ciphertext of KMS. The key that KMS reports counts: the caller must be allowed to
    /// decrypt with its chain before the plaintext is returned or kept, because the credentials of
    /// kms-proxy may open more than the caller may.
    async fn open_foreign(
        &self,
        caller: &Caller,
        operation: Served,
        key_id: Option<&str>,
        blob: &[u8],
        context: &Context<'_>,
    ) -> Result<Decrypted, Error> {
        let named = self.name_foreign(caller, operation, key_id).await?;
        let kms_key = match &named {
            Named::Nothing => None,
            Named::Mapped(key) => key.kms.as_deref(),
            Named::Unmapped(key_id) => Some(*key_id),
        };
        let digest = self.forwarder.digest(blob, context);
        let kept = self.forwarder.kept(&digest);
        // Which key another name means, only KMS knows.
        let kept = kept.filter(|kept| match &named {
            Named::Unmapped(key_id) => *key_id == kept.key(),
            _ => true,
        });
        if let Some(kept) = kept {
            let arn = self.check_foreign(caller, operation, &named, &kept, context)?;
            return Ok(Decrypted { plaintext: Source::Foreign(kept), arn });
        }
        let fresh = self.forwarder.decrypt(blob, context, kms_key, &digest).await?;
        let arn = self.check_foreign(caller, operation, &named, &fresh.opened, context)?;
        self.forwarder.keep(digest, &fresh);
        Ok(Decrypted { plaintext: Source::Foreign(fresh.opened), arn })
    }

    /// The key that a caller names for a ciphertext of KMS, which they may decrypt with.
    async fn name_foreign<'a>(
        &self,
        caller: &Caller,
        operation: Served,
        key_id: Option<&'a str>,
    ) -> Result<Named<'a>, Error> {
        let name = operation.name();
        let mode = self.forwarder.mode();
        let Some(key_id) = key_id else {
            let mut chains = self.keys.mapped_chains();
            let may_some = chains.any(|chain| caller.may(Permission::Decrypt, chain.as_str()));
            if !may_some && mode == Forward::All {
                caller.check_all(name, Permission::Decrypt)?;
            } else if !may_some {
                return Err(self.no_foreign(caller, name));
            }
            return match mode {
                Forward::None => Err(Error::invalid_ciphertext()),
                Forward::Keys | Forward::All => Ok(Named::Nothing),
            };
        };
        let Some(key) = self.find(key_id).await else {
            if mode == Forward::All {
                caller.check_all(name, Permission::Decrypt)?;
                return Ok(Named::Unmapped(key_id));
            }
            return Err(Error::unknown_key());
        };
        caller.check(name, Permission::Decrypt, &key)?;
        if key.kms.is_none() {
            self.must_exist(&key).await?;
        }
        // Other chains have never made a ciphertext of KMS.
        if key.kms.is_none() || mode == Forward::None {
            return Err(Error::invalid_ciphertext());
        }
        Ok(Named::Mapped(key))
    }

    /// The error for a caller who may decrypt with no mapped chain.
    fn no_foreign(&self, caller: &Caller, operation: &str) -> Error {
        match self.keys.mapped_chains().next() {
            Some(_) => caller.denied(operation, "a key of AWS KMS"),
            None => Error::invalid_ciphertext(),
        }
    }

    /// Checks that a caller may have what KMS has opened; the key as responses name it.
    fn check_foreign(
        &self,
        caller: &Caller,
        operation: Served,
        named: &Named<'_>,
        opened: &Foreign,
        context: &Context<'_>,
    ) -> Result<Arc<str>, Error> {
        let name = operation.name();
        let used = opened.key();
        if let Named::Mapped(key) = named
            && key.kms.as_deref() != Some(used)
        {
            return Err(Error::incorrect_key());
        }
        match self.keys.find_kms(used) {
            Some(key) => caller.check(name, Permission::Decrypt, &key)?,
            None if self.forwarder.mode() == Forward::All => {
                caller.check_all(name, Permission::Decrypt)?;
            }
            // No setting says that callers may use it. Its ARN is for the log alone.
            None => return Err(caller.denied_as(name, used, "a key of AWS KMS without a chain")),
        }
        report_foreign(opened, context);
        match named {
            Named::Mapped(key) => Ok(Arc::clone(&key.arn)),
            Named::Nothing | Named::Unmapped(_) => Ok(used.into()),
        }
    }
}

/// Tells the audit log what KMS has opened for the caller.
fn report_foreign(opened: &Foreign, context: &Context<'_>) {
    let aad = record::is_on().then(|| context.to_aad().ok()).flatten();
    record::report(&Event {
        operation: Some(Permission::Decrypt),
        key: Some(opened.key()),
        aad: aad.as_deref(),
        plaintext_bytes: Some(opened.plaintext().len()),
        outcome: record::OK,
        ..Event::default()
    });
}

/// An unknown chain in a ciphertext is damage to the ciphertext, unless the caller named the chain.
fn damaged_name(error: service::Error, is_named: bool) -> Error {
    match error.kind() {
        Kind::UnknownChain if !is_named => {
            Error { is_counted: true, ..Error::invalid_ciphertext() }
        }
        _ => error.into(),
    }
}

/// A response with `len` binary bytes and the members that `members` adds.
fn write(len: usize, members: impl FnOnce(Object<'_>) -> Object<'_>) -> Answer {
    let mut out = Vec::new();
    members(Object::start(&mut out, Object::room(len))).end();
    Answer::Json(out)
}

fn aad(member: &'static str, context: &Context<'_>) -> Result<Vec<u8>, Error> {
    context.to_aad().map_err(|_| Error::constraint(member, "Member must have less than 64 KiB"))
}

fn write_blob(chain: &ChainName, envelope: &Sealed) -> Result<Vec<u8>, Error> {
    let blob = blob::write(chain, envelope.as_slice());
    if blob.len() > MAX_BLOB {
        let message = "the ciphertext would be longer than the 6,144 bytes that KMS allows: the \
                       chain has too many roots for a KEK in each ciphertext";
        return Err(Error::new(Code::Validation, message));
    }
    Ok(blob)
}
