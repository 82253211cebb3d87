//! What deploys the service: the Helm chart, the Compose file, the Dockerfile. No engine and no
//! cluster is needed: each is rendered, validated, and run as far as that goes without one.

use std::path::{Path, PathBuf};

use toml::Value as Toml;

use crate::support::BINARY;
use crate::support::tools::printed;

mod compose;
mod helm;
mod image;
mod options;
mod release;
mod systemd;

/// Runs `kms-proxy check-config` on a configuration that was made for other places: each file that
/// it names is made in `dir`, where the configuration then finds it. Gives the paths as they were.
fn check_config(text: &str, dir: &Path) -> Vec<PathBuf> {
    let mut config: Toml = toml::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
    let pem = rcgen::generate_simple_self_signed(vec!["kms-proxy".to_owned()]).unwrap();
    let mut paths = Vec::new();
    relocate(&mut config, "", &mut |key, path| {
        paths.push(PathBuf::from(path.trim_start_matches("unix://")));
        let place = dir.join(path.trim_start_matches("unix://").trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        match key {
            "socket" => return format!("unix://{}", place.display()),
            "path" | "data_dir" => return place.display().to_string(),
            "key" => std::fs::write(&place, pem.signing_key.serialize_pem()).unwrap(),
            "cert" | "ca" | "client_ca" | "jwks_ca" => {
                std::fs::write(&place, pem.cert.pem()).unwrap();
            }
            "jwks_file" => std::fs::write(&place, r#"{"keys": []}"#).unwrap(),
            _ => std::fs::write(&place, "correct horse battery staple").unwrap(),
        }
        place.display().to_string()
    });
    let file = dir.join("kms-proxy.toml");
    std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    let mut command = std::process::Command::new(BINARY);
    let output = command.args(["check-config", "--config"]).arg(&file).env_clear().output();
    printed(output.unwrap());
    paths
}

/// Gives each path in `value` to `place`, with its key, and takes what that says instead.
fn relocate(value: &mut Toml, key: &str, place: &mut impl FnMut(&str, &str) -> String) {
    match value {
        Toml::String(text) if text.starts_with("unix:///") => *text = place(key, text),
        // The prefix of keys in etcd only looks like a path.
        Toml::String(text) if text.starts_with('/') && key != "prefix" => *text = place(key, text),
        Toml::Array(items) => items.iter_mut().for_each(|item| relocate(item, key, place)),
        Toml::Table(table) => {
            table.iter_mut().for_each(|(key, value)| relocate(value, &key.clone(), place));
        }
        _ => {}
    }
}
