//! Where tokens come from: what is configured, and reading it anew each time.

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::files;
use crate::root::Error;
use crate::secret::SecretBytes;

/// The longest token, secret id or role id, in bytes.
pub(super) const MAX_LEN: usize = 4 << 10;

/// How a root logs in.
pub(super) enum Login {
    /// With a token that somebody made for it.
    Token(Secret),
    /// With a role, which gives tokens.
    AppRole {
        /// Where AppRole is mounted.
        mount: String,
        /// The role's id.
        role_id: String,
        /// The secret that goes with it.
        secret_id: Secret,
    },
}

/// A secret, or where it stands.
#[derive(Clone)]
pub(super) enum Secret {
    /// It came from the environment.
    Given(Arc<SecretBytes>),
    /// It is read anew whenever it is needed: an agent may replace it.
    File(PathBuf),
}

impl Login {
    /// Whether its secret can be read.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::Token(secret) | Self::AppRole { secret_id: secret, .. } => {
                secret.read_now().map(drop)
            }
        }
    }
}

impl Secret {
    /// The secret as it is now, read away from the async threads.
    pub(super) async fn read(&self) -> Result<Arc<SecretBytes>, Error> {
        if let Self::Given(secret) = self {
            return Ok(Arc::clone(secret));
        }
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || this.read_now()).await;
        let read = read.map_err(|error| Error::Away(error.to_string()))?;
        read.map_err(|detail| Error::Away(format!("it can't log in: {detail}")))
    }

    fn read_now(&self) -> Result<Arc<SecretBytes>, String> {
        let (secret, source) = match self {
            Self::Given(secret) => (Arc::clone(secret), "the environment".to_owned()),
            Self::File(path) => {
                let source = path.display().to_string();
                let is_pipe = std::fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo());
                if is_pipe {
                    return Err(format!("{source} is a pipe; it must be a file, to be read again"));
                }
                let (secret, _) =
                    files::read_secret(path).map_err(|error| format!("{source}: {error}"))?;
                (Arc::new(secret.trim_end()), source)
            }
        };
        let bytes = secret.expose();
        // It goes into a header or into JSON.
        if bytes.is_empty() || bytes.len() > MAX_LEN || !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(format!("what {source} gives is no token or secret id"));
        }
        Ok(secret)
    }
}
