//! `s3`, `gcs` and `azure`: an archive in a bucket, through the crate `object_store`.
//!
//! This file owns the conditional writes, the order of lists, and how long a call may take.
//! Signatures and credentials belong to the crate, which reads the variables of each provider;
//! `connect` makes its clients, and `failure` interprets its errors.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{
    ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion,
};

use super::{Condition, Config, Error, Object, Version, Written};

mod connect;
mod failure;

#[cfg(test)]
mod tests;

/// The longest object that is read, in bytes. One of a KEK with many roots has a few KB.
const LONGEST: u64 = 1 << 20;

/// An archive in a bucket.
pub struct Archive {
    store: Box<dyn ObjectStore>,
    /// What keys are relative to; without a `/` at its end.
    prefix: Path,
    timeout: Duration,
    kind: &'static str,
    /// The URL, for errors.
    url: String,
    versions: Versions,
}

/// What a provider compares in a conditional write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Versions {
    /// The entity tag: S3 and Azure.
    ETags,
    /// The generation: Google.
    Generations,
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Archive {
    /// The archive in the configured bucket. This makes no call.
    ///
    /// # Errors
    /// What is wrong with the settings or the credentials in the environment; for a `dir` archive,
    /// which is another type.
    pub fn new(config: &Config) -> Result<Self, String> {
        Self::with(config, &connect::variables())
    }

    fn with(config: &Config, variables: &connect::Variables) -> Result<Self, String> {
        let url = config.url().ok_or("it is not an archive in a bucket")?;
        let timeout = config.timeout();
        let store = connect::connect(config, variables)?;
        let versions = match config {
            Config::Gcs(_) => Versions::Generations,
            _ => Versions::ETags,
        };
        let prefix = Path::parse(url.prefix).map_err(|error| format!("url: {error}"))?;
        Ok(Self { store, prefix, timeout, kind: config.kind(), url: url.text.to_owned(), versions })
    }

    fn path(&self, key: &str) -> Result<Path, Error> {
        let prefix = self.prefix.as_ref();
        let path = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}/{key}") };
        Path::parse(path).map_err(|error| Error::Unavailable(error.to_string()))
    }

    /// Bounds a call.
    async fn within<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::time::timeout(self.timeout, call).await.unwrap_or_else(|_| {
            let timeout = crate::human_units::duration::format(self.timeout);
            Err(Error::Unavailable(format!("{}: no answer in {timeout}", self.url)))
        })
    }

    fn failed(&self, error: &object_store::Error) -> Error {
        failure::failed(&self.url, error)
    }

    fn version(&self, e_tag: Option<String>, generation: Option<String>) -> Result<Version, Error> {
        let (version, what) = match self.versions {
            Versions::ETags => (e_tag, "ETag"),
            Versions::Generations => (generation, "generation"),
        };
        version
            .map(Version)
            .ok_or_else(|| Error::Unavailable(format!("{}: a response has no {what}", self.url)))
    }

    async fn get_object(&self, key: &str) -> Result<Option<Object>, Error> {
        let found = match self.store.get(&self.path(key)?).await {
            Ok(found) => found,
            Err(error) if failure::is_absent(&error) => return Ok(None),
            Err(error) => return Err(self.failed(&error)),
        };
        if found.meta.size > LONGEST {
            let detail = format!("{}/{key} is longer than an object is (1 MiB)", self.url);
            return Err(Error::Unavailable(detail));
        }
        let version = self.version(found.meta.e_tag.clone(), found.meta.version.clone())?;
        let bytes = found.bytes().await.map_err(|error| self.failed(&error))?;
        Ok(Some(Object { bytes: bytes.to_vec(), version }))
    }

    async fn put_object(
        &self,
        key: &str,
        bytes: Vec<u8>,
        condition: Condition,
    ) -> Result<Written, Error> {
        let mode = match condition {
            Condition::Absent => PutMode::Create,
            Condition::Unchanged(Version(version)) => PutMode::Update(match self.versions {
                Versions::ETags => UpdateVersion { e_tag: Some(version), version: None },
                Versions::Generations => UpdateVersion { e_tag: None, version: Some(version) },
            }),
        };
        let options = PutOptions { mode, ..PutOptions::default() };
        let path = self.path(key)?;
        match self.store.put_opts(&path, PutPayload::from(bytes), options).await {
            Ok(PutResult { e_tag, version, .. }) => {
                Ok(Written::Applied(self.version(e_tag, version)?))
            }
            Err(error) if failure::is_conflict(&error) => Ok(Written::Conflict),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn list_keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, Error> {
        let below = self.path(prefix.trim_end_matches('/'));
        let below = if prefix.is_empty() { self.prefix.clone() } else { below? };
        let after = after.filter(|after| *after >= prefix);
        let listed = match after {
            Some(after) => self.store.list_with_offset(Some(&below), &self.path(after)?),
            None => self.store.list(Some(&below)),
        };
        let prefix_len = match self.prefix.as_ref() {
            "" => 0,
            prefix => prefix.len() + 1,
        };
        let mut keys = Vec::new();
        let mut listed = listed;
        while keys.len() < limit {
            match listed.try_next().await {
                Ok(Some(object)) => {
                    let key = object.location.as_ref().get(prefix_len..).unwrap_or_default();
                    // An offset that the provider includes is left out here.
                    if key.starts_with(prefix) && after.is_none_or(|after| key > after) {
                        keys.push(key.to_owned());
                    }
                }
                Ok(None) => break,
                Err(error) if failure::is_absent(&error) => break,
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Ok(keys)
    }
}

#[async_trait]
impl super::Archive for Archive {
    async fn get(&self, key: &str) -> Result<Option<Object>, Error> {
        self.within(self.get_object(key)).await
    }

    async fn put(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> Result<Written, Error> {
        self.within(self.put_object(key, bytes, condition)).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, Error> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        // A page of the providers has 1,000 to 5,000 keys; the time-out is that of a page.
        let pages = u32::try_from(limit / 1000 + 1).unwrap_or(u32::MAX);
        let listed = self.list_keys(prefix, after, limit);
        tokio::time::timeout(self.timeout.saturating_mul(pages), listed).await.unwrap_or_else(
            |_| Err(Error::Unavailable(format!("{}: the list took too long", self.url))),
        )
    }

    fn kind(&self) -> &'static str {
        self.kind
    }
}
