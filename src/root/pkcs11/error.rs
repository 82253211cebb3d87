//! Maps the errors of a module to the few that a caller can act on.

use cryptoki::error::{Error as Cause, RvError};

use crate::root::Error;

/// Why a step did not succeed.
#[derive(Debug)]
pub(super) enum TokenError {
    /// A new session, or reinitialising the module, may help.
    Passing(String),
    /// There is no such key. A module that lost its token reports this too.
    NoKey(String),
    /// The token refuses: a retry does not help.
    Denied(String),
    /// The session works, but the wrap is wrong.
    Wrong(String),
}

impl TokenError {
    /// Whether a new session could change it.
    pub(super) const fn may_pass(&self) -> bool {
        matches!(self, Self::Passing(_) | Self::NoKey(_))
    }
}

impl From<TokenError> for Error {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Passing(detail) => Self::Away(detail),
            TokenError::NoKey(detail) | TokenError::Denied(detail) => Self::Denied(detail),
            TokenError::Wrong(detail) => Self::Wrong(detail),
        }
    }
}

impl From<Cause> for TokenError {
    fn from(cause: Cause) -> Self {
        let said = text(&cause);
        let Cause::Pkcs11(code, _) = cause else { return Self::Passing(said) };
        match code {
            RvError::KeyFunctionNotPermitted => {
                Self::Denied(format!("{said}: the key must be allowed to encrypt and to decrypt"))
            }
            RvError::KeyTypeInconsistent | RvError::KeySizeRange => {
                Self::Denied(format!("{said}: the key is not an AES-256 key"))
            }
            RvError::MechanismInvalid | RvError::FunctionNotSupported => {
                Self::Denied(format!("{said}: the token does not support AES-GCM"))
            }
            RvError::MechanismParamInvalid => Self::Denied(format!(
                "{said}: the token may require to make the nonce itself; see gcm_iv"
            )),
            RvError::ActionProhibited | RvError::FunctionRejected => Self::Denied(said),
            _ => Self::Passing(said),
        }
    }
}

/// Whether only the wrap can be the cause. Some modules, such as SoftHSM, report the same for a
/// wrong tag as for a broken session; this is false for those.
pub(super) fn is_wrong(cause: &Cause) -> bool {
    /// CKR_AEAD_DECRYPT_FAILED of PKCS#11 3.0.
    const AEAD_DECRYPT_FAILED: u64 = 0x42;
    match cause {
        Cause::Pkcs11(RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange, _) => true,
        Cause::Pkcs11(RvError::UnknownErrorCode(code), _) => *code == AEAD_DECRYPT_FAILED,
        _ => false,
    }
}

/// The return code.
pub(super) fn code(cause: &Cause) -> Option<RvError> {
    match cause {
        Cause::Pkcs11(code, _) => Some(*code),
        _ => None,
    }
}

/// The function and the code, such as `C_Decrypt: GeneralError`, without the long text of the
/// standard.
pub(super) fn text(cause: &Cause) -> String {
    match cause {
        Cause::Pkcs11(code, function) => {
            let function = function.to_string();
            format!("C_{}: {code:?}", function.trim_start_matches("Function::"))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    #[test]
    fn codes_become_what_a_caller_can_act_on() {
        for (code, outcome, said) in [
            (RvError::SessionHandleInvalid, "away", "C_Encrypt: SessionHandleInvalid"),
            (RvError::DeviceRemoved, "away", "C_Encrypt: DeviceRemoved"),
            (RvError::GeneralError, "away", "C_Encrypt: GeneralError"),
            (RvError::KeyFunctionNotPermitted, "denied", "allowed to encrypt"),
            (RvError::MechanismInvalid, "denied", "not support AES-GCM"),
            (RvError::MechanismParamInvalid, "denied", "gcm_iv"),
        ] {
            let error = Error::from(TokenError::from(Cause::Pkcs11(code, Function::Encrypt)));
            assert_eq!(error.outcome(), outcome, "{error}");
            assert!(error.to_string().contains(said), "{error}");
        }
        let wrong = |code| is_wrong(&Cause::Pkcs11(code, Function::Decrypt));
        assert!(wrong(RvError::EncryptedDataInvalid) && wrong(RvError::UnknownErrorCode(0x42)));
        assert!(!wrong(RvError::GeneralError) && !wrong(RvError::UnknownErrorCode(0x43)));
    }
}
