//! stub
use serde::Deserialize;
use std::path::{Path, PathBuf};
/// c
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// n
    pub name: String,
    /// f
    pub key_file: Option<PathBuf>,
}
/// r
pub struct Root;
impl Root {
    /// o
    pub fn open(_: &Config, _: &Path) -> Result<Self, String> {
        Err(String::new())
    }
}
#[async_trait::async_trait]
impl super::RootKey for Root {
    async fn wrap(
        &self,
        _: super::Context<'_>,
        _: &crate::secret::KeyBytes,
    ) -> Result<Vec<u8>, super::Error> {
        Err(super::Error::Away(String::new()))
    }
    async fn unwrap(
        &self,
        _: super::Context<'_>,
        _: &[u8],
    ) -> Result<crate::secret::KeyBytes, super::Error> {
        Err(super::Error::Away(String::new()))
    }
    fn kind(&self) -> &'static str {
        "local"
    }
}
