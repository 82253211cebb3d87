//! The files that a configuration names, and the check that the audit log is not one of them: its
//! lines would be appended to a key, or to a file of the store.
//!
//! It must not know what is in the files.

use std::path::{Path, PathBuf};

use crate::{archive, audit, files, kubernetes, root, store};

use super::Config;
use super::check::{Wrong, wrong};

/// A file, and the setting that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// The key with its section, such as `root.0.pin_file`.
    pub setting: String,
    /// Its path, as it is written.
    pub path: PathBuf,
    /// Whether only the service may read it.
    pub is_secret: bool,
    /// Whether it may be on a mount that hangs: a call of the file system might not return.
    pub may_hang: bool,
}

/// Files, as they are collected.
struct Found(Vec<NamedFile>);

impl Found {
    fn secret(&mut self, setting: impl Into<String>, path: Option<&PathBuf>) {
        self.add(setting.into(), path, true);
    }

    fn public(&mut self, setting: impl Into<String>, path: Option<&PathBuf>) {
        self.add(setting.into(), path, false);
    }

    fn add(&mut self, setting: String, path: Option<&PathBuf>, is_secret: bool) {
        let path = path.cloned();
        self.0.extend(path.map(|path| NamedFile { setting, path, is_secret, may_hang: false }));
    }

    /// A file of an archive: its calls have a timeout, and it stops no service.
    fn archived(&mut self, setting: String, path: PathBuf) {
        self.0.push(NamedFile { setting, path, is_secret: false, may_hang: true });
    }
}

impl Config {
    /// The files that are named by settings or belong to the store or to an archive, without the
    /// audit log itself. It does not look whether they exist.
    #[must_use]
    pub fn files(&self) -> Vec<NamedFile> {
        let mut found = Found(Vec::new());
        if let Some(tls) = &self.server.tls {
            found.public("server.tls.cert", Some(&tls.cert));
            found.secret("server.tls.key", Some(&tls.key));
            found.public("server.tls.client_ca", tls.client_ca.as_ref());
        }
        of_store(&self.store, &mut found);
        for (index, archive) in self.archives.iter().enumerate() {
            found.public(format!("archive.{index}.ca"), archive.ca().map(Path::to_owned).as_ref());
            if let archive::Config::Dir(dir) = archive {
                found.archived(format!("archive.{index}.path"), dir.marker());
            }
        }
        for (index, root) in self.roots.iter().enumerate() {
            of_root(root, self.store.data_dir(), &format!("root.{index}"), &mut found);
        }
        for (index, client) in self.auth.clients.iter().enumerate() {
            let key = |name: &str| format!("client.{index}.{name}");
            let secret = client.aws_secret_access_key_file.as_ref();
            found.secret(key("aws_secret_access_key_file"), secret);
            if let Some(jwt) = &client.jwt {
                found.public(key("jwt.jwks_file"), jwt.jwks_file.as_ref());
                found.public(key("jwt.jwks_ca"), jwt.jwks_ca.as_ref());
                found.secret(key("jwt.jwks_token_file"), jwt.jwks_token_file.as_ref());
            }
        }
        found.secret("aws_api.secret_key_file", self.auth.aws_secret_key_file.as_ref());
        if let Some(kubernetes) = &self.kubernetes
            && let kubernetes::Address::Path(path) = &kubernetes.socket
        {
            found.public("kubernetes.socket", Some(path));
        }
        found.0
    }

    /// Fails if the file of the audit log is `own`, the configuration file, or another file that
    /// the configuration names. The file system of an archive is not called: if it hangs, nobody
    /// could start the service, or change the permissions of one that runs.
    pub(super) fn check_audit_file(&self, own: Option<&Path>) -> Result<(), Wrong> {
        let Some(audit::Target::File(log)) = &self.audit.file else { return Ok(()) };
        if own.is_some_and(|own| files::is_same(own, log)) {
            let detail = "this is the configuration file: the log needs a file of its own";
            return Err(wrong("audit.file", detail));
        }
        let is_log = |file: &&NamedFile| match file.may_hang {
            true => files::is_written_same(&file.path, log),
            false => files::is_same(&file.path, log),
        };
        match self.files().iter().find(is_log) {
            Some(NamedFile { setting, .. }) => {
                let detail = format!("this is a file of {setting} too: the log needs its own");
                Err(wrong("audit.file", &detail))
            }
            None => Ok(()),
        }
    }
}

fn of_store(store: &store::Config, found: &mut Found) {
    match store {
        store::Config::File(file) => {
            for path in file.files() {
                found.secret("store.path", Some(&path));
            }
        }
        store::Config::Etcd(etcd) => {
            found.secret("store.password_file", etcd.password_file.as_ref());
            if let Some(tls) = &etcd.tls {
                found.public("store.tls.ca", tls.ca.as_ref());
                found.public("store.tls.cert", tls.cert.as_ref());
                found.secret("store.tls.key", tls.key.as_ref());
            }
        }
        store::Config::Inline(_) => {}
    }
}

fn of_root(root: &root::Config, data_dir: &Path, section: &str, found: &mut Found) {
    let key = |name: &str| format!("{section}.{name}");
    match root {
        root::Config::AwsKms(root) => found.public(key("ca"), root.ca.as_ref()),
        root::Config::AzureKeyVault(root) => found.public(key("ca"), root.ca.as_ref()),
        root::Config::GcpKms(root) => {
            found.secret(key("credentials_file"), root.credentials_file.as_ref());
            found.public(key("ca"), root.ca.as_ref());
        }
        root::Config::Local(root) => found.secret(key("key_file"), Some(&root.path(data_dir))),
        root::Config::Passphrase(root) => {
            found.secret(key("passphrase_file"), root.passphrase_file.as_ref());
        }
        root::Config::Pkcs11(root) => {
            found.public(key("module"), Some(&root.module));
            found.secret(key("pin_file"), root.pin_file.as_ref());
        }
        root::Config::VaultTransit(root) => {
            found.public(key("ca"), root.ca.as_ref());
            found.secret(key("token_file"), root.token_file.as_ref());
            found.secret(key("secret_id_file"), root.secret_id_file.as_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::config::{Flags, Sections};

    fn load(own: &Path, text: &str) -> Result<Config, String> {
        let config = Config::from_sources(Some((own, text)), [], &Flags::default());
        config.map_err(|error| error.to_string())
    }

    /// Every setting that names a file.
    const FILES: &str = r#"
[server]
tls = { cert = "tls.crt", key = "tls.key", client_ca = "clients.crt" }
[store]
kind = "file"
path = "data"
[[archive]]
name = "nas"
kind = "dir"
path = "mount"
[[root]]
name = "local"
kind = "local"
[[root]]
name = "phrase"
kind = "passphrase"
passphrase_file = "the-phrase"
[[root]]
name = "hsm"
kind = "pkcs11"
module = "hsm.so"
slot = 7
key_label = "kek"
pin_file = "pin"
[[root]]
name = "aws"
kind = "aws-kms"
key_id = "alias/a"
ca = "aws.crt"
[[root]]
name = "azure"
kind = "azure-key-vault"
key_id = "https://v.vault.azure.net/keys/k"
ca = "azure.crt"
[[root]]
name = "gcp"
kind = "gcp-kms"
key_id = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
credentials_file = "gcp.json"
ca = "gcp.crt"
[[root]]
name = "vault"
kind = "vault-transit"
address = "https://vault"
key = "k"
token_file = "vault.token"
ca = "vault.crt"
[[client]]
name = "a"
allow = [{ chains = ["a"], operations = ["encrypt"] }]
aws_access_key_id = "AKIA1"
aws_secret_access_key_file = "secret-key"
[[client]]
name = "b"
allow = [{ chains = ["a"], operations = ["encrypt"] }]
jwt = { issuer = "i", audience = "a", subject = "s", jwks_file = "jwks.json" }
[[client]]
name = "c"
allow = [{ chains = ["a"], operations = ["encrypt"] }]
[client.jwt]
issuer = "j"
audience = "a"
subject = "s"
jwks_url = "https://i/keys"
jwks_ca = "jwks.crt"
jwks_token_file = "jwks.token"
[aws_api]
enabled = true
secret_key_file = "derive"
[kubernetes]
socket = "unix:///no/kms.sock"
[auth]
mode = "required"
[audit]
file = "LOG"
"#;

    /// One with [`FILES`], and one with those of other kinds. A store in etcd reads its files when
    /// settings are checked, so they are set later.
    fn configs() -> [Config; 2] {
        let text = FILES
            .replace(
                "kind = \"file\"\npath = \"data\"",
                "kind = \"etcd\"\nendpoints = [\"https://a\"]",
            )
            .replace("token_file = \"vault.token\"", "role_id = \"r\"\nsecret_id_file = \"id\"");
        let mut other = load(Path::new("k.toml"), &text).unwrap();
        let store::Config::Etcd(etcd) = &mut other.store else { panic!("another store") };
        let [ca, cert, key] = ["a", "b", "c"].map(|name| Some(name.into()));
        (etcd.tls, etcd.password_file) =
            (Some(crate::store::settings::EtcdTls { ca, cert, key }), Some("d".into()));
        [load(Path::new("k.toml"), FILES).unwrap(), other]
    }

    /// The settings within `value` that name a file, by their names.
    fn named(path: &str, value: &Value, found: &mut Vec<String>) {
        let of = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| named(&of(key), value, found)),
            Value::Array(items) => {
                (0..).zip(items).for_each(|(index, it): (usize, _)| {
                    named(&of(&index.to_string()), it, found);
                });
            }
            Value::String(_) => {
                let key = path.rsplit('.').next().unwrap();
                let is_file = key.ends_with("_file") || key == "ca" || key.ends_with("_ca");
                let is_tls = path.contains("tls.") && ["cert", "key"].contains(&key);
                if is_file || is_tls || ["path", "module", "socket"].contains(&key) {
                    found.push(path.to_owned());
                }
            }
            _ => {}
        }
    }

    #[test]
    fn every_setting_that_names_a_file_is_known() {
        for config in configs() {
            let view = serde_json::to_value(Sections::from(&config)).unwrap();
            let (mut expected, mut files) = (Vec::new(), config.files());
            named("", &view, &mut expected);
            expected.sort();
            files.sort_by(|one, other| one.setting.cmp(&other.setting));
            files.dedup_by(|one, other| one.setting == other.setting);
            let known: Vec<_> = files.iter().map(|file| file.setting.clone()).collect();
            assert_eq!(known, expected);
            assert!(known.len() > 15, "{known:?}");
            let is_public = |file: &NamedFile| {
                let key = file.setting.rsplit('.').next().unwrap();
                let public = ["cert", "ca", "client_ca", "jwks_ca", "jwks_file", "module"];
                public.contains(&key)
                    || ["archive.0.path", "kubernetes.socket"].contains(&&*file.setting)
            };
            for file in files {
                assert_eq!(file.is_secret, !is_public(&file), "{}", file.setting);
            }
        }
    }

    /// A link that is not noticed shows that its target was not looked for.
    #[test]
    fn the_file_system_of_an_archive_is_not_called() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::create_dir(at("nas")).unwrap();
        std::os::unix::fs::symlink(at("nas"), at("mount")).unwrap();
        let text = |log: &str| {
            let archive = format!("name = 'nas'\nkind = 'dir'\npath = '{}'", at("mount"));
            format!("[audit]\nfile = '{log}'\n[[archive]]\n{archive}")
        };
        let with = |log: &str| load(&dir.path().join("k.toml"), &text(log)).map(drop);
        assert_eq!(with(&at("nas/kms-proxy-archive")), Ok(()));
        for log in ["mount/kms-proxy-archive", "mount/./kms-proxy-archive"] {
            let error = with(&at(log)).unwrap_err();
            assert!(error.starts_with("audit.file: this is a file of archive.0.path"), "{error}");
        }
    }

    #[test]
    fn the_audit_log_is_no_other_file_of_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tls.key"), "").unwrap();
        std::os::unix::fs::symlink(dir.path().join("tls.key"), dir.path().join("link")).unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let mut text = FILES.to_owned();
        let names = load(Path::new("k.toml"), &text).unwrap().files();
        // The paths of the text are those of the directory.
        let words = FILES.split('"').skip(1).step_by(2);
        let is_file = |word: &&str| names.iter().any(|file| file.path.as_os_str() == *word);
        for path in words.filter(is_file).chain(["data", "mount"]) {
            text = text.replace(&format!("\"{path}\""), &format!("\"{}\"", at(path)));
        }
        let with = |log: &str| load(&dir.path().join("k.toml"), &text.replace("LOG", log));
        assert_eq!(with(&at("audit.jsonl")).map(drop), Ok(()));
        for file in with("stdout").unwrap().files() {
            let error = with(&file.path.display().to_string()).unwrap_err();
            assert!(error.starts_with("audit.file: this is a file of "), "{error}");
        }
        for (log, expected) in [
            (at("k.toml"), "audit.file: this is the configuration file"),
            (at("./k.toml"), "audit.file: this is the configuration file"),
            (at("link"), "audit.file: this is a file of server.tls.key too"),
        ] {
            let error = with(&log).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
