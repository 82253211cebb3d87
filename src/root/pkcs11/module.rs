//! A PKCS#11 module in this process: loaded once, however many roots use it, and never unloaded.
//!
//! It owns what is of the whole module: its initialisation, which ends all sessions of all roots,
//! and the PINs that a token refused. Of keys and wraps it knows nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::RvError;
use cryptoki::session::{Session, UserType};
use cryptoki::types::RawAuthPin;

use crate::secret::SecretBytes;

use super::fault::{self, Fault};

/// Pauses between initialisations that did not help: each ends the sessions of all roots that use
/// the module.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// All modules of this process, by their real paths. A module has state for the whole process, so
/// two contexts of one would end each other's sessions.
static MODULES: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

/// One module.
pub(super) struct Module {
    path: PathBuf,
    pkcs11: Pkcs11,
    gate: Mutex<Gate>,
    changed: Condvar,
    /// Tokens, and PINs that they refused. Held during a login: of several threads with a wrong
    /// PIN one tries it.
    refused: Mutex<Vec<(String, Arc<SecretBytes>)>>,
}

/// Who is inside the module, and who may go in.
#[derive(Default)]
struct Gate {
    /// Grows with each initialisation. Sessions of an older epoch are gone, and their handles may
    /// mean others' sessions.
    epoch: u64,
    is_initialised: bool,
    /// Calls under way.
    inside: usize,
    /// Nobody may go in.
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
    /// The module at `path`, which is loaded if it is not there yet. It is initialised by the
    /// first who needs it.
    ///
    /// # Errors
    /// When the file is no PKCS#11 module that this process can load.
    pub(super) fn load(path: &Path) -> Result<Arc<Self>, String> {
        let at = |error: &dyn std::fmt::Display| format!("module {}: {error}", path.display());
        let real = path.canonicalize().map_err(|error| at(&error))?;
        let mut modules = lock(&MODULES);
        if let Some(module) = modules.get(&real) {
            return Ok(Arc::clone(module));
        }
        let pkcs11 = Pkcs11::new(&real).map_err(|cause| at(&fault::text(&cause)))?;
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

    /// Lets the caller in, for a call or a few; it waits while the module is initialised.
    pub(super) fn enter(&self, patience: Duration) -> Result<Pass<'_>, Fault> {
        let mut gate = self.wait(lock(&self.gate), patience, |gate| gate.is_closed);
        if gate.is_closed {
            return Err(Fault::Passing("the module is being initialised".to_owned()));
        }
        gate.inside += 1;
        Ok(Pass { module: self, epoch: gate.epoch, is_initialised: gate.is_initialised })
    }

    /// Ends all sessions and initialises the module anew, unless somebody else has done so since
    /// `epoch`. It waits until nobody is inside.
    ///
    /// # Errors
    /// Why it was not done, or failed.
    pub(super) fn initialise(&self, epoch: u64, patience: Duration) -> Result<(), String> {
        let mut gate = self.wait(lock(&self.gate), patience, |gate| gate.is_closed);
        if gate.epoch != epoch && gate.is_initialised {
            return Ok(());
        }
        if gate.is_closed {
            return Err("the module is being initialised".to_owned());
        }
        if gate.not_before.is_some_and(|moment| Instant::now() < moment) {
            return Err("the last try to initialise the module anew was a moment ago".to_owned());
        }
        gate.is_closed = true;
        gate = self.wait(gate, patience, |gate| gate.inside > 0);
        if gate.inside > 0 {
            gate.is_closed = false;
            gate.postpone();
            self.changed.notify_all();
            return Err(
                "a call of the module has not returned, so it can't be initialised anew".to_owned()
            );
        }
        let was_initialised = std::mem::take(&mut gate.is_initialised);
        // It may hang as any call may; whoever waits has his own deadline.
        drop(gate);
        if was_initialised {
            let module = self.path.display();
            tracing::info!(%module, "the PKCS#11 module is initialised anew");
            // Whatever it says, only the next step counts.
            _ = self.pkcs11.clone().finalize();
        }
        let flags = CInitializeFlags::OS_LOCKING_OK;
        let done = match self.pkcs11.initialize(CInitializeArgs::new(flags)) {
            // By another part of this process.
            Err(cause) if fault::code(&cause) == Some(RvError::CryptokiAlreadyInitialized) => {
                Ok(())
            }
            other => other.map_err(|cause| fault::text(&cause)),
        };
        let mut gate = lock(&self.gate);
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
        let mut gate = lock(&self.gate);
        gate.pause = Duration::ZERO;
        gate.not_before = None;
    }

    fn wait<'a>(
        &self,
        gate: MutexGuard<'a, Gate>,
        patience: Duration,
        condition: impl Fn(&Gate) -> bool,
    ) -> MutexGuard<'a, Gate> {
        self.changed
            .wait_timeout_while(gate, patience, |gate| condition(gate))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

/// The right to call the module. While one is held the module is not initialised anew.
pub(super) struct Pass<'a> {
    module: &'a Module,
    pub(super) epoch: u64,
    is_initialised: bool,
}

impl Pass<'_> {
    /// The module, if it is initialised.
    pub(super) fn pkcs11(&self) -> Result<&Pkcs11, Fault> {
        match self.is_initialised {
            true => Ok(&self.module.pkcs11),
            false => Err(Fault::Passing("the module is not initialised".to_owned())),
        }
    }

    /// Logs the user of `token` in, for all sessions of this process with it. A PIN that the token
    /// refused is never tried again: an HSM locks after a few.
    pub(super) fn log_in(
        &self,
        session: &Session,
        token: &str,
        pin: &Arc<SecretBytes>,
    ) -> Result<(), Fault> {
        const REFUSED: &str = "the PIN is wrong; it is not tried again until the service is \
                               restarted or the PIN changes";
        let mut refused = lock(&self.module.refused);
        if refused.iter().any(|(of, bad)| of == token && bad == pin) {
            return Err(Fault::Denied(REFUSED.to_owned()));
        }
        let raw = RawAuthPin::new(Box::new(pin.expose().to_vec()));
        let Err(cause) = session.login_with_raw(UserType::User, &raw) else { return Ok(()) };
        match fault::code(&cause) {
            Some(RvError::UserAlreadyLoggedIn) => Ok(()),
            Some(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange) => {
                refused.push((token.to_owned(), Arc::clone(pin)));
                Err(Fault::Denied(REFUSED.to_owned()))
            }
            Some(RvError::PinLocked) => Err(Fault::Denied(LOCKED.to_owned())),
            Some(RvError::PinExpired) => {
                Err(Fault::Denied("the PIN has expired; set a new one".to_owned()))
            }
            Some(RvError::UserPinNotInitialized) => Err(Fault::Denied(NO_PIN.to_owned())),
            _ => Err(cause.into()),
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        lock(&self.module.gate).inside -= 1;
        self.module.changed.notify_all();
    }
}

/// What is said when the token's user can't log in with any PIN.
pub(super) const LOCKED: &str =
    "the PIN is locked after wrong ones; the token's security officer unlocks it";
pub(super) const NO_PIN: &str =
    "the token's user has no PIN yet; the token's security officer sets one";

/// What a panic of another thread left is as good as before: each change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
