//! The file of a root's `ca`: the authorities that may have issued its server's certificate. It is
//! read for each call, so that a replaced file takes effect without a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::{files, pem};

/// The authorities of a file; at least one.
pub(super) struct Authorities {
    pub(super) pem: Vec<u8>,
    /// In DER.
    pub(super) certs: Vec<Vec<u8>>,
}

/// The file, and its last usable contents.
pub(super) struct Ca {
    /// The root's name, for the log.
    root: String,
    path: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used: Option<Arc<Authorities>>,
    trouble: Option<String>,
}

impl Ca {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn open(root: &str, path: Option<&Path>) -> Result<Self, String> {
        let used = path.map(read).transpose()?.map(Arc::new);
        let state = Mutex::new(State { used, trouble: None });
        Ok(Self { root: root.to_owned(), path: path.map(Path::to_owned), state })
    }

    /// Its last usable contents.
    pub(super) fn used(&self) -> Option<Arc<Authorities>> {
        self.state().used.clone()
    }

    /// The current authorities of the file; `None` for the system's. While the file is not usable,
    /// the previous ones stay in force.
    pub(super) async fn current(&self) -> Option<Arc<Authorities>> {
        let path = self.path.clone()?;
        // A disk may be slow. A panic is reported where it happens.
        let read = tokio::task::spawn_blocking(move || read(&path)).await.ok()?;
        let mut state = self.state();
        match read {
            Ok(found) => {
                state.trouble = None;
                if state.used.as_ref().is_none_or(|used| used.pem != found.pem) {
                    tracing::info!(root = self.root, "the new ca is in use");
                    state.used = Some(Arc::new(found));
                }
            }
            Err(trouble) => {
                if state.trouble.as_ref() != Some(&trouble) {
                    tracing::error!(
                        root = self.root,
                        error = trouble,
                        "the new ca is not usable; the previous one stays in use"
                    );
                }
                state.trouble = Some(trouble);
            }
        }
        state.used.clone()
    }

    /// What to add to the error of a failed call, if it is about certificates.
    pub(super) fn explain(&self, detail: &str) -> String {
        let mut text = String::new();
        if let Some(path) = self.path.as_ref().filter(|_| detail.contains("certificate")) {
            text = format!("; ca is {}", path.display());
        }
        if let Some(trouble) = &self.state().trouble {
            text.push_str(&format!("; {trouble}, so the previous one is in use"));
        }
        text
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// Whether both come from the same reading of the file.
pub(super) fn is_same(one: &Option<Arc<Authorities>>, other: &Option<Arc<Authorities>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// The authorities in a file.
pub(super) fn read(path: &Path) -> Result<Authorities, String> {
    let wrong = |detail: String| format!("ca, {}: {detail}", path.display());
    let pem = files::read_regular(path).map_err(|error| wrong(error.to_string()))?;
    let certs = pem::authorities(&pem).map_err(wrong)?;
    let certs = certs.iter().map(|cert| cert.to_vec()).collect();
    Ok(Authorities { pem, certs })
}
