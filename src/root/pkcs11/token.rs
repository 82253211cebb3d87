//! Finds the configured token and its key, and opens sessions.

use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::slot::Slot;

use super::config::Config;
use super::error::TokenError;
use super::module::{LOCKED, NO_PIN, Pass};

/// A session with the configured token, logged in. It has to be closed explicitly, since its handle
/// may belong to another session after the module was reinitialised.
pub(super) fn session(
    pass: &Pass<'_>,
    config: &Config,
    may_write: bool,
) -> Result<Session, TokenError> {
    let pkcs11 = pass.pkcs11()?;
    let slot = slot(pass, config)?;
    let token = pkcs11.get_token_info(slot)?;
    let session = match may_write {
        true => pkcs11.open_rw_session_no_drop(slot)?,
        false => pkcs11.open_ro_session_no_drop(slot)?,
    };
    if !token.login_required() {
        return Ok(session);
    }
    // Reading the flags does not use up an attempt of the PIN.
    let logged_in = if token.user_pin_locked() {
        Err(TokenError::Denied(LOCKED.to_owned()))
    } else if !token.user_pin_initialized() {
        Err(TokenError::Denied(NO_PIN.to_owned()))
    } else {
        let which = format!("{} {}", token.serial_number(), token.label());
        let pin = config.pin().map_err(TokenError::Passing);
        pin.and_then(|pin| pass.log_in(&session, &which, &pin))
    };
    match logged_in {
        Ok(()) => Ok(session),
        Err(error) => {
            _ = session.close();
            Err(error)
        }
    }
}

/// The slot of the configured token.
fn slot(pass: &Pass<'_>, config: &Config) -> Result<Slot, TokenError> {
    let pkcs11 = pass.pkcs11()?;
    let mut slots = pkcs11.get_slots_with_token()?;
    match (&config.token_label, config.slot) {
        // A token that can't be queried is skipped.
        (Some(label), _) => slots.retain(|slot| {
            let token = pkcs11.get_token_info(*slot);
            token.is_ok_and(|token| token.token_initialized() && token.label() == label)
        }),
        (None, id) => slots.retain(|slot| Some(slot.id()) == id),
    }
    match slots[..] {
        [slot] => Ok(slot),
        [] => Err(TokenError::Passing(format!("{} is not there", config.token()))),
        [_, _, ..] => Err(TokenError::Denied(format!(
            "there are {} tokens with the label of {}; set slot instead",
            slots.len(),
            config.token()
        ))),
    }
}

/// The key with the configured label.
pub(super) fn find(session: &Session, config: &Config) -> Result<ObjectHandle, TokenError> {
    match find_all(session, config)?[..] {
        [key] => Ok(key),
        [] => Err(TokenError::NoKey(format!(
            "{} has no secret key with the label {:?}; `kms-proxy root init` creates one",
            config.token(),
            config.key_label
        ))),
        ref keys => Err(TokenError::Denied(format!(
            "{} has {} secret keys with the label {:?}; there must be one",
            config.token(),
            keys.len(),
            config.key_label
        ))),
    }
}

/// All secret keys with the configured label.
pub(super) fn find_all(
    session: &Session,
    config: &Config,
) -> Result<Vec<ObjectHandle>, TokenError> {
    let label = config.key_label.clone().into_bytes();
    let wanted = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label)];
    Ok(session.find_objects(&wanted)?)
}

/// The attributes of a key.
pub(super) struct Nature {
    pub(super) is_aes_256: bool,
    /// It is not extractable.
    pub(super) is_kept: bool,
}

impl Nature {
    pub(super) fn of(session: &Session, key: ObjectHandle) -> Result<Self, TokenError> {
        let asked = [
            AttributeType::KeyType,
            AttributeType::ValueLen,
            AttributeType::Sensitive,
            AttributeType::Extractable,
        ];
        let told = session.get_attributes(key, &asked)?;
        // If the token does not report the length, the proof has to show it.
        let other_len =
            |attribute: &Attribute| matches!(attribute, Attribute::ValueLen(len) if **len != 32);
        Ok(Self {
            is_aes_256: told.contains(&Attribute::KeyType(KeyType::AES))
                && !told.iter().any(other_len),
            is_kept: told.contains(&Attribute::Sensitive(true))
                && told.contains(&Attribute::Extractable(false)),
        })
    }
}
