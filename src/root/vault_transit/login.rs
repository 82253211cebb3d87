//! The sources of tokens: what is configured, read again each time.

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
    /// With a token that was issued for it.
    Token(Secret),
    /// With a role, which issues tokens.
    AppRole {
        /// The mount point of AppRole.
        mount: String,
        /// The role's id.
        role_id: String,
        /// The role's secret id.
        secret_id: Secret,
    },
}

/// A secret, or its file.
#[derive(Clone)]
pub(super) enum Secret {
    /// A secret from the environment.
    Given(Arc<SecretBytes>),
    /// A file that is read each time: an agent may replace it.
    File(PathBuf),
}

impl Login {
    /// Checks that its secret can be read.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::Token(secret) | Self::AppRole { secret_id: secret, .. } => {
                secret.read_now().map(drop)
            }
        }
    }
}

impl Secret {
    /// The current secret, read on a blocking thread.
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
        // It is sent in a header or in JSON.
        if bytes.is_empty() || bytes.len() > MAX_LEN || !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(format!("{source} does not contain a token or secret id"));
        }
        Ok(secret)
    }
}
