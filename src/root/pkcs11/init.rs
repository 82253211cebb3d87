//! Creates the key in the token, once, when an operator requests it.

use std::sync::Arc;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::Attribute;
use cryptoki::session::Session;

use crate::root::Error;

use super::config::Config;
use super::error::TokenError;
use super::module::Module;
use super::token::{self, Nature};

/// Creates an AES-256 key with the configured label, and returns what was done. An existing key is
/// never changed.
pub(super) fn make(module: &Arc<Module>, config: &Config) -> Result<String, Error> {
    let here = || {
        let pass = module.enter(config.timeout)?;
        let session = token::session(&pass, config, true)?;
        let made = make_in(&session, config);
        _ = session.close();
        made
    };
    module.initialise(0, config.timeout).map_err(Error::Away)?;
    here().map_err(Error::from)
}

fn make_in(session: &Session, config: &Config) -> Result<String, TokenError> {
    let (place, label) = (config.token(), &config.key_label);
    if !token::find_all(session, config)?.is_empty() {
        return Err(TokenError::Denied(format!(
            "{place} already has a secret key with the label {label:?}; nothing was changed"
        )));
    }
    let key = session.generate_key(&Mechanism::AesKeyGen, &template(config))?;
    let undo = |why: &str| {
        let undone = match session.destroy_object(key) {
            Ok(()) => "it was deleted again",
            Err(_) => "and it could not be deleted",
        };
        TokenError::Denied(format!("a key was created in {place}, but {why}; {undone}"))
    };
    if token::find_all(session, config)?.len() != 1 {
        return Err(undo("another one with its label was created meanwhile"));
    }
    if !Nature::of(session, key)?.is_kept {
        return Err(undo("the token would allow extracting it"));
    }
    Ok(format!(
        "an AES-256 key with the label {label:?} was created in {place}; it is not extractable. \
         Back it up as the token's vendor describes: what it wraps is lost without it"
    ))
}

fn template(config: &Config) -> [Attribute; 14] {
    [
        Attribute::Label(config.key_label.clone().into_bytes()),
        Attribute::ValueLen(32.into()),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Derive(false),
        Attribute::Modifiable(false),
    ]
}
