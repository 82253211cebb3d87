//! `local`: a root key in a file, created at the first start. For development: anyone who reads the
//! file can unwrap every KEK that the root ever wrapped.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::aead::Cipher;
use crate::files;
use crate::id::Suite;
use crate::random;
use crate::secret::KeyBytes;

use super::{Context, Error, RootKey, sealed};

mod key_file;

use key_file::at;

/// The first byte of a wrap. Then follow nonce (12 bytes), sealed KEK (16 or 32) and tag (16).
const FORMAT: u8 = 1;

/// The name of the key file in the data directory.
const FILE_NAME: &str = "root.key";

/// One `[[root]]` with `kind = "local"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// The root's name in records and metrics.
    pub name: String,
    /// The key file; `root.key` in the data directory by default.
    pub key_file: Option<PathBuf>,
}

impl Config {
    /// A root whose key file is `root.key` in the data directory.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), key_file: None }
    }

    /// The path of the key file.
    #[must_use]
    pub fn path(&self, data_dir: &Path) -> PathBuf {
        self.key_file.clone().unwrap_or_else(|| data_dir.join(FILE_NAME))
    }

    /// Checks the key file, or the directory in which it would be created.
    pub(super) fn check(&self, data_dir: &Path) -> Result<(), String> {
        let path = self.path(data_dir);
        if self.key_file.is_none() && data_dir.is_dir() {
            files::check_dir(data_dir).map_err(|error| at(data_dir, &error))?;
        }
        if path.try_exists().map_err(|error| at(&path, &error))? {
            return key_file::read(&path).map(drop);
        }
        // Only the data directory is created if it is missing.
        if path.parent() == Some(data_dir) {
            return Ok(());
        }
        files::check_parent(&path).map_err(|error| at(&path, &error))
    }
}

/// What to do if the key file is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfMissing {
    /// Create one.
    Make,
    /// Wait until an operator restores or creates it: the store has KEKs that the root wrapped.
    Wait,
}

/// A root key in memory.
pub struct Root {
    /// The path of the key file; empty for a key that is only in memory.
    path: PathBuf,
    key: OnceLock<Key>,
}

struct Key {
    bytes: KeyBytes,
    cipher: Cipher,
}

impl Key {
    fn new(bytes: KeyBytes) -> Self {
        Self { cipher: Cipher::new(&bytes), bytes }
    }
}

impl Root {
    /// Reads the key file, or creates it with mode 0600. If several processes start concurrently,
    /// one creates it and all read the same key.
    ///
    /// # Errors
    /// A message for an operator: the file can't be read or created, other users can read or
    /// replace it, or its contents are damaged.
    pub fn open(config: &Config, data_dir: &Path) -> Result<Self, String> {
        Self::open_if(config, data_dir, IfMissing::Make)
    }

    /// Like [`open`](Self::open), with a choice. A root that waits for its file is unavailable
    /// until then.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_if(
        config: &Config,
        data_dir: &Path,
        if_missing: IfMissing,
    ) -> Result<Self, String> {
        let path = config.path(data_dir);
        if config.key_file.is_none() {
            files::make_private_dir(data_dir).map_err(|error| at(data_dir, &error))?;
        }
        tracing::warn!(
            root = config.name,
            file = %path.display(),
            "this root keeps its key in a file: it is for development"
        );
        let root = Self { path, key: OnceLock::new() };
        let is_missing = !root.path.try_exists().map_err(|error| at(&root.path, &error))?;
        match (is_missing, if_missing) {
            (true, IfMissing::Wait) => {
                tracing::error!(root = config.name, detail = root.missing(), "the key is missing");
                return Ok(root);
            }
            (true, IfMissing::Make) => key_file::create(&root.path).map(drop)?,
            (false, _) => {}
        }
        _ = root.key.set(Key::new(key_file::read(&root.path)?));
        Ok(root)
    }

    /// The key, read now if it was missing before.
    fn cipher(&self) -> Result<&Cipher, Error> {
        if let Some(key) = self.key.get() {
            return Ok(&key.cipher);
        }
        let key = self.read()?;
        Ok(&self.key.get_or_init(|| Key::new(key)).cipher)
    }

    fn read(&self) -> Result<KeyBytes, Error> {
        if !self.path.try_exists().map_err(|error| Error::Away(at(&self.path, &error)))? {
            return Err(Error::Away(self.missing()));
        }
        key_file::read(&self.path).map_err(Error::Away)
    }

    /// Fails if the file does not have the key any more. What the key in memory wraps would be lost
    /// when the process ends.
    fn check_file(&self) -> Result<(), Error> {
        let Some(key) = self.key.get().filter(|_| !self.path.as_os_str().is_empty()) else {
            return Ok(());
        };
        if self.read()? != key.bytes {
            let path = self.path.display();
            let detail = format!(
                "the key file {path} was replaced by another one while the service runs: restore \
                 it from a copy"
            );
            return Err(Error::Away(detail));
        }
        Ok(())
    }

    fn missing(&self) -> String {
        format!(
            "the key file {} is missing, and the store has KEKs that it wrapped: restore it \
             from a copy. If it is lost permanently, `kms-proxy root init` creates a new one",
            self.path.display()
        )
    }

    /// A root with a new key that is only in memory: for tests, and for key chains that need not
    /// outlive the process.
    ///
    /// # Errors
    /// [`random::Unavailable`] when the operating system gives no randomness.
    pub fn generate() -> Result<Self, random::Unavailable> {
        let key = KeyBytes::random(Suite::Aes256Gcm)?;
        Ok(Self { path: PathBuf::new(), key: Key::new(key).into() })
    }
}

#[async_trait]
impl RootKey for Root {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        let cipher = self.cipher()?;
        self.check_file()?;
        sealed::seal(cipher, context, &[FORMAT], kek)
    }

    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        let cipher = self.cipher()?;
        let sealed = sealed::after_format(wrapped, FORMAT)?;
        sealed::open(cipher, context, sealed, "the key file is another one")
    }

    fn kind(&self) -> &'static str {
        "local"
    }
}

/// Creates the key file of a root; false if it already exists.
pub(super) fn init(config: &Config, data_dir: &Path) -> Result<bool, String> {
    if config.key_file.is_none() {
        files::make_private_dir(data_dir).map_err(|error| at(data_dir, &error))?;
    }
    key_file::create(&config.path(data_dir))
}

#[async_trait]
impl super::Provider for Config {
    fn check(&self, data_dir: &Path) -> Result<(), String> {
        self.check(data_dir)
    }

    async fn open(
        &self,
        data_dir: &Path,
        if_missing: IfMissing,
    ) -> Result<Arc<dyn RootKey>, String> {
        Ok(Arc::new(Root::open_if(self, data_dir, if_missing)?))
    }

    async fn init(&self, data_dir: &Path) -> Result<String, String> {
        let path = self.path(data_dir);
        Ok(if init(self, data_dir)? {
            format!("a new key is in {}", path.display())
        } else {
            format!("nothing to do: the key is in {}", path.display())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::key_file::tests::{FILE, file};
    use super::*;
    use crate::root::RootKey;
    use crate::root::contract::{self, chain, context, unhex, wrong};

    fn config(key_file: Option<PathBuf>) -> Config {
        Config { name: "main".to_owned(), key_file }
    }

    #[tokio::test]
    async fn it_keeps_the_contract() {
        contract::all(Root::generate().unwrap(), Root::generate().unwrap()).await;
    }

    /// Computed with Python's `cryptography`.
    #[tokio::test]
    async fn a_known_wrap_opens() {
        let (dir, path) = file(FILE.as_bytes(), 0o600);
        let root = Root::open(&config(Some(path)), dir.path()).unwrap();
        let wrapped = unhex(
            "016465666768696a6b6c6d6e6f481adc657dec5099366b55e3d66864f24705c8\
             75a1dfd5653690b0315b6b143c",
        );
        let (chain, kek) = (
            chain("orders"),
            KeyBytes::from_slice(&unhex("000102030405060708090a0b0c0d0e0f")).unwrap(),
        );
        assert!(root.unwrap(context(&chain, &kek), &wrapped).await.unwrap() == kek);
        // Another key does not open it, and a later format is named.
        let other = Root::generate().unwrap();
        wrong(&other, context(&chain, &kek), &wrapped).await;
        let newer = [&[2], &wrapped[1..]].concat();
        let detail = wrong(&root, context(&chain, &kek), &newer).await;
        assert_eq!(detail, "its format is 2, and this version reads 1");
    }

    #[tokio::test]
    async fn the_key_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let roots: Vec<Root> = std::thread::scope(|scope| {
            let open = || Root::open(&config(None), &data).unwrap();
            let starts: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        let path = data.join(FILE_NAME);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1);
        let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes128Gcm).unwrap());
        let wrapped = roots[0].wrap(context(&chain, &kek), &kek).await.unwrap();
        for root in roots.iter().chain([&Root::open(&config(None), &data).unwrap()]) {
            assert!(root.unwrap(context(&chain, &kek), &wrapped).await.unwrap() == kek);
        }
    }

    #[test]
    fn a_data_directory_that_others_can_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o777, 0o1777] {
            std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(mode)).unwrap();
            let error = Root::open(&config(None), dir.path()).err().expect("refused");
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
            assert_eq!(config(None).check(dir.path()).unwrap_err(), error);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no key is made");
        }
    }

    #[test]
    fn a_named_pipe_in_place_of_the_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        files::mkfifo(&dir.path().join(FILE_NAME));
        let error = Root::open(&config(None), dir.path()).err().expect("refused");
        assert!(error.contains("root.key: it is a named pipe"), "{error}");
    }

    #[test]
    fn a_check_finds_what_a_start_would_and_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        assert_eq!(config(None).check(&data), Ok(()));
        assert_eq!(config(Some(dir.path().join("key"))).check(&data), Ok(()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is made");
        let missing = config(Some(dir.path().join("not-mounted/key")));
        assert_eq!(missing.check(&data).err(), Root::open(&missing, &data).err());
        let (_dir, path) = file(FILE.as_bytes(), 0o644);
        let open = config(Some(path));
        assert_eq!(open.check(&data).err(), Root::open(&open, &data).err());
        assert!(missing.check(&data).is_err() && open.check(&data).is_err());
    }

    #[test]
    fn a_configured_file_in_a_missing_directory_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not-mounted/key");
        let error = Root::open(&config(Some(path.clone())), dir.path()).err().unwrap();
        assert!(error.contains("not-mounted"), "{error}");
    }
}
