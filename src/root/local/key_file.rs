//! The key file of a `local` root: its format, and who may read or replace it.
//!
//! It must not know what the key is used for.

use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::files::{self, FileAccess};
use crate::id::Suite;
use crate::secret::KeyBytes;

/// The start of a key file, followed by the key and its check value, in hex.
const MAGIC: &str = "kms-proxy local root key v1";

/// Creates a key file; false if it already exists.
pub(super) fn create(path: &Path) -> Result<bool, String> {
    let key = KeyBytes::random(Suite::Aes256Gcm).map_err(|error| error.to_string())?;
    let made = files::write_new(path, render(&key).as_bytes()).map_err(|error| at(path, &error))?;
    if made {
        tracing::info!(file = %path.display(), "a new root key was created");
    }
    Ok(made)
}

/// Reads a key file that nobody else can read or replace.
pub(super) fn read(path: &Path) -> Result<KeyBytes, String> {
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
            "{path}: it belongs to user {owner}, who can read and replace the key; it must belong \
             to the user of this process ({user}) or to root"
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

/// `error`, which an access to `path` had.
pub(super) fn at(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    /// The key 00 01 .. 1f; the check is Python's `hashlib`.
    pub(in crate::root::local) const FILE: &str = "kms-proxy local root key v1 \
        000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 61a36940\n";

    /// A directory with this key file in it.
    pub(in crate::root::local) fn file(contents: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, contents).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        (dir, path)
    }

    fn refused(contents: &[u8], mode: u32) -> String {
        let (_dir, path) = file(contents, mode);
        let error = read(&path).err().expect("refused");
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), contents, "it is left as it is");
        error
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
        let (_dir, path) = file(FILE.as_bytes(), 0o400);
        assert!(read(&path).is_ok());
    }

    /// kubelet gives the files of a volume to `fsGroup`: 0440 in a Secret, 0660 in a claim.
    #[test]
    fn a_file_that_the_group_of_this_process_may_read_is_taken_and_that_of_another_is_not() {
        for mode in [0o440, 0o640, 0o660] {
            let (_dir, path) = file(FILE.as_bytes(), mode);
            assert!(read(&path).is_ok(), "{mode:o}");
            // Only root could give it to a group that this process is not a member of.
            let (_, access) = files::read_secret(&path).unwrap();
            let access = FileAccess { group: 12_345, ..access };
            let error = check_access(&path, access, access.owner).unwrap_err();
            assert!(error.contains("chmod 600"), "{error}");
        }
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
}
