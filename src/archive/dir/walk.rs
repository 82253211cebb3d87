//! Lists of keys: the objects of directories, in the order of their keys.

use std::io;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, statat};

use crate::archive::Error;
use crate::archive::settings::MARKER;

use super::directory::{Directory, is_name, open_dir};

/// The deepest directory that is read. Keys have three names.
const DEEPEST: usize = 8;

impl Directory {
    /// The first `limit` keys that start with `prefix` and come after `after`.
    pub(super) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, Error> {
        let root = self.open()?;
        let mut walk = Walk { after, limit, keys: Vec::new() };
        match walk.below(&root, prefix) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed(prefix, &error))
            }
            // Where a directory is missing, there are no keys.
            _ => Ok(walk.keys),
        }
    }
}

struct Walk<'a> {
    after: Option<&'a str>,
    limit: usize,
    keys: Vec<String>,
}

impl Walk<'_> {
    fn below(&mut self, root: &OwnedFd, prefix: &str) -> io::Result<()> {
        let mut directory = root.try_clone()?;
        for name in prefix.split_terminator('/') {
            if !is_name(name) {
                return Ok(());
            }
            directory = open_dir(&directory, name)?;
        }
        self.directory(&directory, prefix, 0)
    }

    fn directory(&mut self, directory: &OwnedFd, prefix: &str, depth: usize) -> io::Result<()> {
        let mut keys = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if !is_name(name) || (prefix.is_empty() && name == MARKER) {
                continue;
            }
            let kind = match entry.file_type() {
                // Some file systems do not tell it.
                FileType::Unknown => match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(_) => continue,
                },
                kind => kind,
            };
            match kind {
                FileType::RegularFile => keys.push(format!("{prefix}{name}")),
                // In the order of keys, `/` follows the name.
                FileType::Directory => keys.push(format!("{prefix}{name}/")),
                _ => {}
            }
        }
        keys.sort_unstable();
        for key in keys {
            if self.keys.len() >= self.limit {
                break;
            }
            let name = key.strip_prefix(prefix).unwrap_or_default();
            match name.strip_suffix('/') {
                None if self.after.is_none_or(|after| *key > *after) => self.keys.push(key),
                None => {}
                // All keys of this directory come before.
                Some(_) if self.after.is_some_and(|it| *it > *key && !it.starts_with(&key)) => {}
                Some(name) if depth < DEEPEST => {
                    self.directory(&open_dir(directory, name)?, &key, depth + 1)?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}
