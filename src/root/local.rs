//! `local`: a root key in a file, created at the first start. For development: anyone who reads the
//! file can unwrap every KEK that the root ever wrapped.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::aead::Cipher;
use crate::files::{self, FileAccess};
use crate::id::Suite;
use crate::random;
use crate::secret::KeyBytes;

use super::{Context, Error, RootKey, sealed};

/// The first byte of a wrap. Then follow nonce (12 bytes), sealed KEK (16 or 32) and tag (16).
const FORMAT: u8 = 1;

/// The name of the key file in the data directory.
const FILE_NAME: &str = "root.key";

/// The start of a key file, followed by the key and its check value, in hex.
const MAGIC: &str = "kms-proxy local root key v1";

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
            return read(&path).map(drop);
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
    cipher: OnceLock<Cipher>,
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
        let root = Self { path, cipher: OnceLock::new() };
        let is_missing = !root.path.try_exists().map_err(|error| at(&root.path, &error))?;
        match (is_missing, if_missing) {
            (true, IfMissing::Wait) => {
                tracing::error!(root = config.name, detail = root.missing(), "the key is missing");
                return Ok(root);
            }
            (true, IfMissing::Make) => make(&root.path).map(drop)?,
            (false, _) => {}
        }
        let key = read(&root.path)?;
        _ = root.cipher.set(Cipher::new(&key));
        Ok(root)
    }

    /// The key, read now if it was missing before.
    fn cipher(&self) -> Result<&Cipher, Error> {
        if let Some(cipher) = self.cipher.get() {
            return Ok(cipher);
        }
        if !self.path.try_exists().map_err(|error| Error::Away(at(&self.path, &error)))? {
            return Err(Error::Away(self.missing()));
        }
        let key = read(&self.path).map_err(Error::Away)?;
        Ok(self.cipher.get_or_init(|| Cipher::new(&key)))
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
        Ok(Self { path: PathBuf::new(), cipher: Cipher::new(&key).into() })
    }
}

#[async_trait]
impl RootKey for Root {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        sealed::seal(self.cipher()?, context, &[FORMAT], kek)
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

fn at(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Creates the key file of a root; false if it already exists.
pub(super) fn init(config: &Config, data_dir: &Path) -> Result<bool, String> {
    if config.key_file.is_none() {
        files::make_private_dir(data_dir).map_err(|error| at(data_dir, &error))?;
    }
    make(&config.path(data_dir))
}

fn make(path: &Path) -> Result<bool, String> {
    let key = KeyBytes::random(Suite::Aes256Gcm).map_err(|error| error.to_string())?;
    let made = files::write_new(path, render(&key).as_bytes()).map_err(|error| at(path, &error))?;
    if made {
        tracing::info!(file = %path.display(), "a new root key was created");
    }
    Ok(made)
}

fn read(path: &Path) -> Result<KeyBytes, String> {
    let (contents, access) = files::read_secret(path).map_err(|error| at(path, &error))?;
    check_access(path, access, rustix::process::geteuid().as_raw())?;
    let path = path.display();
    parse(contents.trim_end().expose()).map_err(|detail| {
        format!(
            "{path}: {detail}; restore it from a copy. Without one, what this root wrapped \
             is lost: move the file away to create a new key"
        )
    })
}

/// Checks that nobody but `user`, who runs this process, and root can read or replace a key file.
fn check_access(path: &Path, access: FileAccess, user: u32) -> Result<(), String> {
    let (path, FileAccess { owner, mode, .. }) = (path.display(), access);
    if access.of_others() != 0 {
        return Err(format!(
            "{path}: its mode is {mode:04o}, so other users can read the key; run `chmod 600 \
             {path}`"
        ));
    }
    if owner != user && owner != 0 {
        return Err(format!(
            "{path}: it belongs to user {owner}, who can read and replace the key; it must belong to the \
             user of this process ({user}) or to root"
        ));
    }
    Ok(())
}

/// A key of 32 bytes in hex.
const KEY_DIGITS: usize = 64;

fn render(key: &KeyBytes) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(128));
    let mut digits = Zeroizing::new([0; KEY_DIGITS]);
    text.push_str(MAGIC);
    for part in [key.expose(), &check(key)] {
        text.push(' ');
        text.push_str(base16ct::lower::encode_str(part, &mut *digits).unwrap_or_default());
    }
    text.push('\n');
    text
}

fn parse(text: &[u8]) -> Result<KeyBytes, &'static str> {
    let rest = text.strip_prefix(MAGIC.as_bytes()).ok_or("it is not a key file of this version")?;
    let mut key = Zeroizing::new([0; 32]);
    let digits = rest.get(1..=KEY_DIGITS).ok_or("it is damaged")?;
    base16ct::lower::decode(digits, &mut *key).map_err(|_| "it is damaged")?;
    let key = KeyBytes::from_slice(&*key).ok_or("it is damaged")?;
    // Compares the check value, the length and the separators.
    if render(&key).trim_end().as_bytes() == text { Ok(key) } else { Err("it is damaged") }
}

/// The check value, which detects a damaged key: 4 bytes of its SHA-256.
fn check(key: &KeyBytes) -> [u8; 4] {
    let hash = Sha256::new().chain_update(MAGIC).chain_update(key.expose()).finalize();
    hash.first_chunk().copied().unwrap_or_default()
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

    use super::*;
    use crate::root::RootKey;
    use crate::root::contract::{self, chain, context, unhex, wrong};

    /// The key 00 01 .. 1f; the check is Python's `hashlib`.
    const FILE: &str = "kms-proxy local root key v1 \
        000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 61a36940\n";

    fn config(key_file: Option<PathBuf>) -> Config {
        Config { name: "main".to_owned(), key_file }
    }

    /// A directory with this key file in it.
    fn file(contents: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, contents).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        (dir, path)
    }

    fn refused(contents: &[u8], mode: u32) -> String {
        let (dir, path) = file(contents, mode);
        let error = Root::open(&config(Some(path.clone())), dir.path()).err().expect("refused");
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), contents, "it is left as it is");
        error
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
    fn a_file_that_others_may_read_is_refused() {
        for mode in [0o644, 0o604, 0o666, 0o601] {
            let error = refused(FILE.as_bytes(), mode);
            assert!(
                error.contains(&format!("{mode:04o}")) && error.contains("chmod 600"),
                "{error}"
            );
        }
        let (dir, path) = file(FILE.as_bytes(), 0o400);
        assert!(Root::open(&config(Some(path)), dir.path()).is_ok());
    }

    /// kubelet gives the files of a volume to `fsGroup`: 0440 in a Secret, 0660 in a claim.
    #[test]
    fn a_file_that_the_group_of_this_process_may_read_is_taken_and_that_of_another_is_not() {
        for mode in [0o440, 0o640, 0o660] {
            let (dir, path) = file(FILE.as_bytes(), mode);
            assert!(Root::open(&config(Some(path.clone())), dir.path()).is_ok(), "{mode:o}");
            // Only root could give it to a group that this process is not a member of.
            let (_, access) = files::read_secret(&path).unwrap();
            let access = FileAccess { group: 12_345, ..access };
            let error = check_access(&path, access, access.owner).unwrap_err();
            assert!(error.contains("chmod 600"), "{error}");
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
    fn a_file_of_another_user_is_refused() {
        let (_dir, path) = file(FILE.as_bytes(), 0o600);
        let (_, access) = files::read_secret(&path).unwrap();
        for (owner, user, good) in
            [(1000, 1000, true), (0, 1000, true), (0, 0, true), (1000, 0, false), (1, 2, false)]
        {
            match check_access(&path, FileAccess { owner, ..access }, user) {
                Ok(()) => assert!(good, "{owner} {user}"),
                Err(error) => {
                    assert!(
                        !good && error.contains(&format!("belongs to user {owner}")),
                        "{error}"
                    );
                }
            }
        }
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
    fn a_damaged_file_is_refused_and_its_key_not_told() {
        let text = FILE.trim_end().as_bytes();
        for at in 0..text.len() {
            let mut bad = text.to_vec();
            bad[at] ^= 1;
            for bad in [&bad, &text[..at]] {
                let error = refused(bad, 0o600);
                assert!(!error.contains("0405060708"), "{error}");
            }
        }
        for bad in [&b"\xff\xfe"[..], &[FILE.as_bytes(), b"more"].concat(), &[0; 70_000]] {
            refused(bad, 0o600);
        }
        let newer = FILE.replace("v1", "v2");
        assert!(refused(newer.as_bytes(), 0o600).contains("not a key file of this version"));
    }

    #[test]
    fn a_configured_file_in_a_missing_directory_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not-mounted/key");
        let error = Root::open(&config(Some(path.clone())), dir.path()).err().unwrap();
        assert!(error.contains("not-mounted"), "{error}");
    }
}
