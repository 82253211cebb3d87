//! The configuration as it is printed: what is in force, defaults included, without secrets. It
//! can be read back as a file.

use std::fmt;
use std::path::Path;

use serde_json::{Value, json};

use crate::units::duration::format;
use crate::{root, store};

use super::Config;

impl fmt::Display for Config {
    /// As TOML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut view = view(self);
        drop_nulls(&mut view);
        f.write_str(&toml::to_string(&view).map_err(|_| fmt::Error)?)
    }
}

fn view(config: &Config) -> Value {
    let Config { server, log, store, roots, service } = config;
    json!({
        "server": {
            "listen": server.listen,
            "admin_listen": server.admin_listen,
            "insecure": server.insecure,
            "max_body": server.max_body,
            "request_timeout": format(server.request_timeout),
            "max_connections": server.max_connections,
        },
        "log": {
            "level": log.level.to_string(),
            "format": log.effective_format().as_str(),
        },
        "store": match store {
            store::Config::File(file) => json!({ "kind": "file", "path": file.path }),
        },
        "root": roots.iter().map(|config| root(config, store.data_dir())).collect::<Vec<_>>(),
        "chain": {
            "names": service.names,
            "suite": service.suite,
            "rotate_after_uses": service.limits.rotate_after_uses,
            "max_uses": service.limits.max_uses,
            "rotate_after_age": format(std::time::Duration::from_secs(service.limits.rotate_after_age)),
            "destroy_delay": format(service.destroy_delay),
        },
        "cache": {
            "dek_entries": service.dek_entries,
            "dek_max_age": format(service.dek_max_age),
            "keks": service.keks,
        },
        "auth": { "mode": "none" },
    })
}

fn root(config: &root::Config, data_dir: &Path) -> Value {
    match config {
        root::Config::Local(config) => {
            let key_file = config.path(data_dir);
            json!({ "kind": "local", "name": config.name, "key_file": key_file })
        }
        root::Config::Passphrase(config) => json!({
            "kind": "passphrase",
            "name": config.name,
            "passphrase_file": config.passphrase_file,
        }),
    }
}

/// TOML has no null: what is not set is left out.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
