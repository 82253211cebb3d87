//! The configured token and its key: where they are, and the way in.

use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::slot::Slot;

use super::config::Config;
use super::fault::Fault;
use super::module::{LOCKED, NO_PIN, Pass};

/// A session with the configured token, logged in. It is closed by hand: after the module was
/// initialised anew its handle may be another session's.
pub(super) fn session(pass: &Pass<'_>, config: &Config, may_write: bool) -> Result<Session, Fault> {
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
    // Flags cost no try of the PIN.
    let logged_in = if token.user_pin_locked() {
        Err(Fault::Denied(LOCKED.to_owned()))
    } else if !token.user_pin_initialized() {
        Err(Fault::Denied(NO_PIN.to_owned()))
    } else {
        let which = format!("{} {}", token.serial_number(), token.label());
        let pin = config.pin().map_err(Fault::Passing);
        pin.and_then(|pin| pass.log_in(&session, &which, &pin))
    };
    match logged_in {
        Ok(()) => Ok(session),
        Err(fault) => {
            _ = session.close();
            Err(fault)
        }
    }
}

/// The slot of the configured token.
fn slot(pass: &Pass<'_>, config: &Config) -> Result<Slot, Fault> {
    let pkcs11 = pass.pkcs11()?;
    let mut slots = pkcs11.get_slots_with_token()?;
    match (&config.token_label, config.slot) {
        // A token that can't be asked is none of ours.
        (Some(label), _) => slots.retain(|slot| {
            let token = pkcs11.get_token_info(*slot);
            token.is_ok_and(|token| token.token_initialized() && token.label() == label)
        }),
        (None, id) => slots.retain(|slot| Some(slot.id()) == id),
    }
    match slots[..] {
        [slot] => Ok(slot),
        [] => Err(Fault::Passing(format!("{} is not there", config.token()))),
        [_, _, ..] => Err(Fault::Denied(format!(
            "there are {} tokens of the label of {}; give its slot instead",
            slots.len(),
            config.token()
        ))),
    }
}

/// The key of the configured label.
pub(super) fn find(session: &Session, config: &Config) -> Result<ObjectHandle, Fault> {
    match find_all(session, config)?[..] {
        [key] => Ok(key),
        [] => Err(Fault::NoKey(format!(
            "{} has no secret key with the label {:?}; `kms-proxy root init` makes one",
            config.token(),
            config.key_label
        ))),
        ref keys => Err(Fault::Denied(format!(
            "{} has {} secret keys with the label {:?}; there must be one",
            config.token(),
            keys.len(),
            config.key_label
        ))),
    }
}

/// All secret keys of the configured label.
pub(super) fn find_all(session: &Session, config: &Config) -> Result<Vec<ObjectHandle>, Fault> {
    let label = config.key_label.clone().into_bytes();
    let wanted = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label)];
    Ok(session.find_objects(&wanted)?)
}

/// What a token tells of a key.
pub(super) struct Nature {
    pub(super) is_aes_256: bool,
    /// It can't be read out.
    pub(super) is_kept: bool,
}

impl Nature {
    pub(super) fn of(session: &Session, key: ObjectHandle) -> Result<Self, Fault> {
        let asked = [
            AttributeType::KeyType,
            AttributeType::ValueLen,
            AttributeType::Sensitive,
            AttributeType::Extractable,
        ];
        let told = session.get_attributes(key, &asked)?;
        // A token that does not tell the length leaves it to the proof.
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
