//! The checks of the settings of a `pkcs11` root, and the source of its PIN.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::files;
use crate::secret::SecretBytes;

pub use crate::root::settings::{GcmIv, Pkcs11 as Config};

/// The longest label of a token, in bytes: PKCS#11 pads it to that.
const MAX_TOKEN_LABEL: usize = 32;

/// The service waits 15 s for a root, so a longer wait would have no effect.
const MAX_TIMEOUT: Duration = Duration::from_secs(15);

impl Config {
    /// Checks that the files exist, and that exactly one token and one PIN are named. The module is
    /// not loaded.
    pub(in crate::root) fn check(&self) -> Result<(), String> {
        let module = self.module.display();
        match std::fs::metadata(&self.module) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(format!("module {module}: not a regular file")),
            Err(error) => return Err(format!("module {module}: {error}")),
        }
        match (&self.token_label, self.slot) {
            (Some(label), None) if (1..=MAX_TOKEN_LABEL).contains(&label.len()) => {}
            (Some(_), None) => return Err("token_label must have 1 to 32 bytes".to_owned()),
            (None, Some(_)) => {}
            (Some(_), Some(_)) => {
                return Err("token_label and slot are both set; set one".to_owned());
            }
            (None, None) => return Err("token_label is missing; set it or slot".to_owned()),
        }
        if self.key_label.is_empty() {
            return Err("key_label is empty".to_owned());
        }
        if !(Duration::from_millis(100)..=MAX_TIMEOUT).contains(&self.timeout) {
            return Err("timeout must be between 100ms and 15s".to_owned());
        }
        self.pin().map(drop)
    }

    /// The PIN, from the file or the environment.
    pub(super) fn pin(&self) -> Result<Arc<SecretBytes>, String> {
        let (pin, source) = match (&self.pin_file, &self.pin) {
            (Some(path), None) => (Arc::new(read(path)?.0), format!("in {}", path.display())),
            (None, Some(pin)) => (Arc::clone(pin), "in the environment".to_owned()),
            (Some(_), Some(_)) => {
                return Err("the PIN is set twice, by pin_file and by the environment; set it \
                            once"
                    .to_owned());
            }
            (None, None) => return Err("there is no PIN; name a file in pin_file".to_owned()),
        };
        if pin.expose().is_empty() {
            return Err(format!("the PIN {source} is empty"));
        }
        Ok(pin)
    }

    /// The PIN's file with its mode, if other users than its owner can read it.
    pub(super) fn open_pin_file(&self) -> Option<(&Path, u32)> {
        let path = self.pin_file.as_deref()?;
        let (_, access) = read(path).ok()?;
        (access.of_others() != 0).then_some((path, access.mode))
    }

    /// The token, for messages.
    pub(super) fn token(&self) -> String {
        match (&self.token_label, self.slot) {
            (Some(label), _) => format!("token {label:?}"),
            (None, slot) => format!("the token in slot {}", slot.unwrap_or_default()),
        }
    }
}

/// Reads the PIN's file. It is read more than once, so a pipe is refused.
fn read(path: &Path) -> Result<(SecretBytes, files::FileAccess), String> {
    let at = |detail: &dyn fmt::Display| format!("pin_file {}: {detail}", path.display());
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(at(&"not a regular file, but it is read for each login")),
        Err(error) => return Err(at(&error)),
    }
    let (pin, access) = files::read_secret(path).map_err(|error| at(&error))?;
    Ok((pin.trim_end(), access))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration with these lines more. The module is any file: it is not loaded.
    fn config(lines: &str) -> Result<Config, String> {
        let text = format!("name = 'hsm'\nmodule = '/bin/sh'\nkey_label = 'kek'\n{lines}");
        toml::from_str(&text).map_err(|error| error.to_string())
    }

    fn secret(text: &str) -> Option<Arc<SecretBytes>> {
        Some(Arc::new(SecretBytes::new(text.into())))
    }

    #[test]
    fn defaults_are_five_seconds_and_nonces_of_our_own() {
        let config = config("slot = 7").unwrap();
        assert_eq!((config.slot, config.gcm_iv), (Some(7), GcmIv::Caller));
        assert_eq!(config.timeout, Duration::from_secs(5));
    }

    #[test]
    fn one_token_is_named_in_one_way() {
        for (lines, wrong) in [
            ("slot = 7", None),
            ("slot = '7'", None),
            ("token_label = 'a'", None),
            ("", Some("token_label is missing")),
            ("slot = 7\ntoken_label = 'a'", Some("both set")),
            ("token_label = ''", Some("1 to 32 bytes")),
            ("token_label = '123456789012345678901234567890123'", Some("1 to 32 bytes")),
            ("slot = 7\ntimeout = '16s'", Some("between 100ms and 15s")),
        ] {
            let config = Config { pin: secret("1234"), ..config(lines).unwrap() };
            match (config.check(), wrong) {
                (Ok(()), None) => {}
                (Err(error), Some(wrong)) => assert!(error.contains(wrong), "{lines}: {error}"),
                (other, _) => panic!("{lines}: {other:?}"),
            }
        }
        for bad in ["slot = 'seven'", "slot = -1", "slot = 7\npin = '1234'", "gcm_iv = 'zero'"] {
            assert!(config(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_pin_is_given_once_and_is_shown_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pin");
        std::fs::write(&file, "4711-secret\n").unwrap();
        let none = config("slot = 7").unwrap();
        let by_file = Config { pin_file: Some(file.clone()), ..none.clone() };
        assert_eq!(by_file.pin().unwrap().expose(), b"4711-secret");
        let both = Config { pin: secret("4711-secret"), ..by_file.clone() };
        for (bad, said) in [
            (none.clone(), "there is no PIN"),
            (both.clone(), "set twice"),
            (Config { pin: secret(""), ..none.clone() }, "is empty"),
            (Config { pin_file: Some(dir.path().into()), ..none.clone() }, "not a regular file"),
            (Config { pin_file: Some(dir.path().join("x")), ..none.clone() }, "No such file"),
            (Config { module: "/no/such.so".into(), ..by_file }, "module /no/such.so"),
        ] {
            let error = bad.check().unwrap_err();
            assert!(error.contains(said) && !error.contains("4711"), "{error}");
        }
        assert!(!format!("{both:?}").contains("4711"));
        std::fs::write(&file, " \n").unwrap();
        let empty = Config { pin_file: Some(file), ..none };
        assert!(empty.check().unwrap_err().contains("is empty"));
    }
}
