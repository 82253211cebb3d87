//! Checks that nobody else can replace files in the directories of the socket's path.
//!
//! It changes nothing, and must not know the purpose of the socket.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// The most symbolic links in the path of a socket, as in Linux.
const MAX_LINKS: usize = 40;

/// Checks that every directory and link in the path belongs to root or to this process' user, and
/// that nobody else may rename files in it.
pub(super) fn check_directories(directory: &Path) -> Result<(), String> {
    let shown = |path: &Path, error: io::Error| match error.kind() {
        ErrorKind::NotFound => format!("the directory {} does not exist", directory.display()),
        _ => format!("{}: {error}", path.display()),
    };
    let absolute = std::path::absolute(directory).map_err(|error| shown(directory, error))?;
    let mut steps: Vec<OsString> = steps(&absolute);
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    check_directory(&at, &fs::symlink_metadata(&at).map_err(|error| shown(&at, error))?)?;
    while let Some(step) = steps.pop() {
        if step == ".." {
            at.pop();
            continue;
        }
        at.push(step);
        let found = fs::symlink_metadata(&at).map_err(|error| shown(&at, error))?;
        check_directory(&at, &found)?;
        if found.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(format!("{}: too many symbolic links", directory.display()));
            }
            let target = fs::read_link(&at).map_err(|error| shown(&at, error))?;
            at.pop();
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            steps.extend(self::steps(&target));
        } else if !found.is_dir() {
            return Err(format!("{} is not a directory", at.display()));
        }
    }
    Ok(())
}

/// The components of a path, in reverse order.
fn steps(path: &Path) -> Vec<OsString> {
    let steps = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    steps.collect()
}

fn check_directory(path: &Path, found: &Metadata) -> Result<(), String> {
    check_owner(path, found.uid(), rustix::process::geteuid().as_raw())?;
    let (mode, is_sticky) = (found.mode() & 0o7777, found.mode() & 0o1000 != 0);
    if found.is_dir() && mode & 0o022 != 0 && !is_sticky {
        return Err(format!(
            "{} has mode {mode:04o}, so others could put another socket there: revoke their write \
             permission (chmod go-w)",
            path.display()
        ));
    }
    Ok(())
}

fn check_owner(path: &Path, owner: u32, ours: u32) -> Result<(), String> {
    if [0, ours].contains(&owner) {
        return Ok(());
    }
    Err(format!(
        "{} belongs to user {owner}, who could put another socket there: it must belong to root or \
         to user {ours}",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_another_user_is_refused() {
        for (owner, ours, good) in
            [(1000, 1000, true), (0, 1000, true), (0, 0, true), (1000, 0, false), (1, 2, false)]
        {
            match check_owner(Path::new("/run/kms"), owner, ours) {
                Ok(()) => assert!(good, "{owner} {ours}"),
                Err(error) => assert!(
                    !good && error.contains(&format!("/run/kms belongs to user {owner}")),
                    "{error}"
                ),
            }
        }
    }
}
