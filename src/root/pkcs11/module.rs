//! A PKCS#11 module in this process: loaded once, however many roots use it, and never unloaded.
//!
//! It owns the state of the whole module: its initialisation, which ends all sessions of all roots,
//! and the PINs that a token refused. It knows nothing about keys and wraps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::RvError;
use cryptoki::session::{Session, UserType};
use cryptoki::types::RawAuthPin;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::secret::SecretBytes;

use super::error::{self, TokenError};

/// Pauses between initialisations that did not help: each ends the sessions of all roots that use
/// the module.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// All modules of this process, by their real paths. A module has one state per process, so two
/// contexts of the same module would end each other's sessions.
static MODULES: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

/// One module.
pub(super) struct Module {
    path: PathBuf,
    pkcs11: Pkcs11,
    gate: Mutex<Gate>,
    changed: Condvar,
    /// Tokens, and PINs that they refused. Held during a login, so that only one of several threads
    /// tries a wrong PIN.
    refused: Mutex<Vec<(String, Arc<SecretBytes>)>>,
}

/// Who is inside the module, and who may go in.
#[derive(Default)]
struct Gate {
    /// Incremented by each initialisation. Sessions of an older epoch are gone, and their handles
    /// may belong to other sessions.
    epoch: u64,
    is_initialised: bool,
    /// Calls under way.
    inside: usize,
    /// No call may enter.
    is_closed: bool,
    pause: Duration,
    not_before: Option<Instant>,
}

impl Gate {
    /// Sets the pause before the next initialisation.
    fn postpone(&mut self) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.not_before = Some(Instant::now() + self.pause);
    }
}

impl Module {
    /// The module at `path`, which is loaded if necessary. The first caller that needs it
    /// initialises it.
    ///
    /// # Errors
    /// When the file is not a PKCS#11 module that this process can load.
    pub(super) fn load(path: &Path) -> Result<Arc<Self>, String> {
        let at = |error: &dyn std::fmt::Display| format!("module {}: {error}", path.display());
        let real = path.canonicalize().map_err(|error| at(&error))?;
        let mut modules = MODULES.lock();
        if let Some(module) = modules.get(&real) {
            return Ok(Arc::clone(module));
        }
        let pkcs11 = Pkcs11::new(&real).map_err(|cause| at(&error::text(&cause)))?;
        let module = Arc::new(Self {
            path: path.to_owned(),
            pkcs11,
            gate: Mutex::default(),
            changed: Condvar::new(),
            refused: Mutex::default(),
        });
        modules.insert(real, Arc::clone(&module));
        Ok(module)
    }

    /// Admits the caller, for one or a few calls. Waits while the module is being initialised.
    pub(super) fn enter(&self, patience: Duration) -> Result<Pass<'_>, TokenError> {
        let mut gate = self.wait(self.gate.lock(), patience, |gate| gate.is_closed);
        if gate.is_closed {
            return Err(TokenError::Passing("the module is being initialised".to_owned()));
        }
        gate.inside += 1;
        Ok(Pass { module: self, epoch: gate.epoch, is_initialised: gate.is_initialised })
    }

    /// Ends all sessions and reinitialises the module, unless another thread has done so since
    /// `epoch`. Waits until no call is inside.
    ///
    /// # Errors
    /// Why it was not done, or why it failed.
    pub(super) fn initialise(&self, epoch: u64, patience: Duration) -> Result<(), String> {
        let mut gate = self.wait(self.gate.lock(), patience, |gate| gate.is_closed);
        if gate.epoch != epoch && gate.is_initialised {
            return Ok(());
        }
        if gate.is_closed {
            return Err("the module is being initialised".to_owned());
        }
        if gate.not_before.is_some_and(|moment| Instant::now() < moment) {
            return Err("the last attempt to reinitialise the module was a moment ago".to_owned());
        }
        gate.is_closed = true;
        gate = self.wait(gate, patience, |gate| gate.inside > 0);
        if gate.inside > 0 {
            gate.is_closed = false;
            gate.postpone();
            self.changed.notify_all();
            return Err(
                "a call of the module has not returned, so it can't be reinitialised".to_owned()
            );
        }
        let was_initialised = std::mem::take(&mut gate.is_initialised);
        // It may hang like any call; callers have their own deadlines.
        drop(gate);
        if was_initialised {
            let module = self.path.display();
            tracing::info!(%module, "the PKCS#11 module is reinitialised");
            // The result of the next step is what matters.
            _ = self.pkcs11.clone().finalize();
        }
        let flags = CInitializeFlags::OS_LOCKING_OK;
        let done = match self.pkcs11.initialize(CInitializeArgs::new(flags)) {
            // By another part of this process.
            Err(cause) if error::code(&cause) == Some(RvError::CryptokiAlreadyInitialized) => {
                Ok(())
            }
            other => other.map_err(|cause| error::text(&cause)),
        };
        let mut gate = self.gate.lock();
        gate.is_closed = false;
        gate.is_initialised = done.is_ok();
        gate.epoch += 1;
        if was_initialised || done.is_err() {
            gate.postpone();
        }
        self.changed.notify_all();
        done
    }

    /// The last initialisation helped: the next one need not wait.
    pub(super) fn helped(&self) {
        let mut gate = self.gate.lock();
        gate.pause = Duration::ZERO;
        gate.not_before = None;
    }

    fn wait<'a>(
        &self,
        mut gate: MutexGuard<'a, Gate>,
        patience: Duration,
        condition: impl Fn(&Gate) -> bool,
    ) -> MutexGuard<'a, Gate> {
        self.changed.wait_while_for(&mut gate, |gate| condition(gate), patience);
        gate
    }
}

/// The right to call the module. While one is held the module is not reinitialised.
pub(super) struct Pass<'a> {
    module: &'a Module,
    pub(super) epoch: u64,
    is_initialised: bool,
}

impl Pass<'_> {
    /// The module, if it is initialised.
    pub(super) fn pkcs11(&self) -> Result<&Pkcs11, TokenError> {
        match self.is_initialised {
            true => Ok(&self.module.pkcs11),
            false => Err(TokenError::Passing("the module is not initialised".to_owned())),
        }
    }

    /// Logs in the user of `token`, for all sessions of this process. A PIN that the token refused
    /// is never retried, since an HSM locks after a few attempts.
    pub(super) fn log_in(
        &self,
        session: &Session,
        token: &str,
        pin: &Arc<SecretBytes>,
    ) -> Result<(), TokenError> {
        const REFUSED: &str = "the PIN is wrong; it is not retried until the service is \
                               restarted or the PIN changes";
        let mut refused = self.module.refused.lock();
        if refused.iter().any(|(of, bad)| of == token && bad == pin) {
            return Err(TokenError::Denied(REFUSED.to_owned()));
        }
        let raw = RawAuthPin::new(Box::new(pin.expose().to_vec()));
        let Err(cause) = session.login_with_raw(UserType::User, &raw) else { return Ok(()) };
        match error::code(&cause) {
            Some(RvError::UserAlreadyLoggedIn) => Ok(()),
            Some(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange) => {
                refused.push((token.to_owned(), Arc::clone(pin)));
                Err(TokenError::Denied(REFUSED.to_owned()))
            }
            Some(RvError::PinLocked) => Err(TokenError::Denied(LOCKED.to_owned())),
            Some(RvError::PinExpired) => {
                Err(TokenError::Denied("the PIN has expired; set a new one".to_owned()))
            }
            Some(RvError::UserPinNotInitialized) => Err(TokenError::Denied(NO_PIN.to_owned())),
            _ => Err(cause.into()),
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.module.gate.lock().inside -= 1;
        self.module.changed.notify_all();
    }
}

/// Messages for a token whose user can't log in with any PIN.
pub(super) const LOCKED: &str =
    "the PIN is locked after wrong attempts; the token's security officer can unlock it";
pub(super) const NO_PIN: &str =
    "the token's user has no PIN yet; the token's security officer can set one";
