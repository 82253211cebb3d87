//! What `init` has written, and the next commands. It looks at files, and changes none.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kms_proxy::files;

use super::plan::{Archive, Identities, Plan, Root, Store};
use super::text::{ADMIN, HTTPS, is_open, word};

/// What was written, and the next commands. `token_path` is the file for the token of a client, and
/// `taken` the addresses at which something else listens, each with its setting.
pub(super) fn summary(
    plan: &Plan,
    path: &Path,
    token_path: impl Fn(&str) -> PathBuf,
    new_passphrase: Option<&str>,
    taken: &[(&str, SocketAddr)],
) -> String {
    let (file, token) = (word(path), plan.token_client().map(|it| (it, token_path(it))));
    let mut text = format!("{}: the configuration\n", path.display());
    if let Some((client, token)) = &token {
        text += &format!("{}: the token of the client {client}\n", token.display());
    }
    if let Some(passphrase) = new_passphrase {
        let what = "a new passphrase; back it up: without it all data is lost";
        text += &format!("{passphrase}: {what}\n");
    }
    for (key, address) in taken {
        let set = format!("set another server.{key} in {}", path.display());
        text += &format!("Something listens on {address} already: {set}\n");
    }
    text += "\nNext:\n";
    for directory in missing_directories(plan) {
        text += &format!("  mkdir -p -m 700 {}\n", word(&directory));
    }
    if let Some(Archive { kind: "dir", place }) = &plan.archive {
        let mark = word(&Path::new(place).join("kms-proxy-archive"));
        text += &format!("  touch {mark}     # where the disk is mounted\n");
    }
    if let Root::Pkcs11 { .. } = plan.root {
        text += &format!("  kms-proxy root init --config {file} --root main\n");
    }
    text += &format!("  kms-proxy check-config --production --config {file}\n");
    text += &format!("  kms-proxy serve --config {file}\n");
    let mut to = String::new();
    if plan.tls.is_some() {
        to += &format!(" --server https://localhost:{HTTPS}");
    }
    if let Some((_, token)) = &token {
        to += &format!(" --token-file {}", word(token));
    }
    let command = match plan.identities {
        // The application needs its own JWT or certificate; the operator can do this.
        Identities::Jwt { .. } | Identities::Certificate { .. } => "kms-proxy chain list",
        Identities::Token | Identities::None => "echo hello | kms-proxy encrypt",
    };
    let note = if plan.tls.is_some() { "     # --ca FILE for a private authority" } else { "" };
    text += &format!("  {command}{to}{note}\n");
    text += &match &token {
        // Its address of health and metrics serves the status to this machine alone.
        _ if !is_open(plan) => format!("  kms-proxy status --admin http://127.0.0.1:{ADMIN}\n"),
        Some(("operator", _)) => format!("  kms-proxy status{to}{note}\n"),
        _ => {
            let token = word(&path.with_file_name("operator.token"));
            let what = "     # that of the client operator, once it is in the configuration";
            format!(
                "  kms-proxy status --server https://localhost:{HTTPS} --token-file {token}{what}\n"
            )
        }
    };
    text
}

/// The directories that the service needs and does not make.
fn missing_directories(plan: &Plan) -> Vec<PathBuf> {
    let archive = plan.archive.iter().filter(|archive| archive.kind == "dir");
    let archive = archive.map(|archive| PathBuf::from(&archive.place));
    let log = plan.audit.iter().filter(|file| *file != "stdout" && !file.starts_with("unix:"));
    let log = log.filter_map(|file| Path::new(file).parent().map(Path::to_owned));
    // It makes its data directory, if it may.
    let data = match &plan.store {
        Store::File { path } => Some(PathBuf::from(path)),
        Store::Etcd { .. } | Store::Inline => None,
    };
    let data = data.filter(|data| {
        let parent = data.parent().filter(|parent| !parent.as_os_str().is_empty());
        files::check_writable_dir(parent.unwrap_or(Path::new("."))).is_err()
    });
    let is_missing = |path: &PathBuf| !path.as_os_str().is_empty() && !path.exists();
    let mut missing: Vec<_> = data.into_iter().chain(archive).chain(log).collect();
    missing.retain(is_missing);
    missing.dedup();
    missing
}
