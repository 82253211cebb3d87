//! Where the public keys of an issuer come from. A leaf.

use std::fmt;
use std::path::PathBuf;

use reqwest::Url;

/// The location of an issuer's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeySource {
    File(PathBuf),
    Url { url: Url, ca: Option<PathBuf>, token_file: Option<PathBuf> },
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            // A query may contain a credential.
            Self::Url { url, .. } => {
                write!(f, "{}{}", url.origin().ascii_serialization(), url.path())
            }
        }
    }
}
