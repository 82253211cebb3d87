//! The configuration as it is printed: what is in force, defaults included, without secrets. It
//! can be read back as a file.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use serde_json::{Value, json};

use crate::human_units::duration::format;
use crate::{auth, root, store};

use super::Config;

impl fmt::Display for Config {
    /// As TOML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut view = view(self);
        drop_nulls(&mut view);
        f.write_str(&toml::to_string(&view).map_err(|_| fmt::Error)?)
    }
}

impl Config {
    /// The settings that are not the same in `other`, as users write them. Secrets are not compared.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut keys = Vec::new();
        differences("", &view(self), &view(other), &mut keys);
        keys
    }
}

fn differences(path: &str, one: &Value, other: &Value, keys: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let all: BTreeSet<_> = one.keys().chain(other.keys()).collect();
            for key in all {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let [one, other] = [one, other].map(|map| map.get(key).unwrap_or(&Value::Null));
                differences(&path, one, other, keys);
            }
        }
        _ if one != other => keys.push(path.to_owned()),
        _ => {}
    }
}

fn view(config: &Config) -> Value {
    let Config { server, log, store, roots, service, auth, kubernetes } = config;
    json!({
        "server": {
            "listen": server.listen,
            "admin_listen": server.admin_listen,
            "insecure": server.insecure,
            "max_body": server.max_body,
            "request_timeout": format(server.request_timeout),
            "max_connections": server.max_connections,
            "max_requests": server.max_requests,
            "body_memory": server.body_memory,
            "idle_timeout": format(server.idle_timeout),
            "drain_delay": format(server.drain_delay),
            "tls": server.tls.as_ref().map(|tls| json!({
                "cert": tls.cert,
                "key": tls.key,
                "client_ca": tls.client_ca,
                "client_cert": tls.client_ca.as_ref().map(|_| tls.client_cert.as_str()),
            })),
        },
        "log": {
            "level": log.level.to_string(),
            "format": log.effective_format().as_str(),
        },
        "store": match store {
            store::Config::File(file) => json!({ "kind": "file", "path": file.path }),
            store::Config::Etcd(etcd) => json!({
                "kind": "etcd",
                "endpoints": etcd.endpoints,
                "prefix": etcd.prefix,
                "username": etcd.username,
                "password_file": etcd.password_file,
                "tls": etcd.tls.as_ref().map(|tls| json!({
                    "ca": tls.ca, "cert": tls.cert, "key": tls.key,
                })),
                "timeout": format(etcd.timeout),
                "data_dir": etcd.data_dir,
            }),
            store::Config::Inline(inline) => json!({ "kind": "inline", "data_dir": inline.data_dir }),
        },
        "root": roots.iter().map(|config| root(config, store.data_dir())).collect::<Vec<_>>(),
        "chain": {
            "names": service.names,
            "suite": service.suite,
            "rotate_after_uses": service.limits.rotate_after_uses,
            "max_uses": service.limits.max_uses,
            "rotate_after_age": format(std::time::Duration::from_secs(service.limits.rotate_after_age)),
            "destroy_delay": format(service.destroy_delay),
            "max_chains": service.max_chains,
        },
        "cache": {
            "dek_entries": service.dek_entries,
            "dek_max_age": format(service.dek_max_age),
            "keks": service.keks,
            "kek_max_age": format(service.kek_max_age),
            "offline_grace": format(service.offline_grace),
        },
        "auth": { "mode": auth.mode.as_str() },
        "client": Some(auth.clients.iter().map(client).collect::<Vec<_>>()).filter(|all| !all.is_empty()),
        "kubernetes": kubernetes.as_ref().map(|kubernetes| json!({
            "socket": kubernetes.socket.to_string(),
            "socket_mode": kubernetes.socket_mode.to_string(),
            "owner": kubernetes.owner.map(|owner| owner.to_string()),
            "allowed_uids": kubernetes.allowed_uids,
            "chain": kubernetes.chain,
            "on_root_outage": kubernetes.on_root_outage.as_str(),
        })),
    })
}

fn client(config: &auth::ClientConfig) -> Value {
    let texts = |all: Vec<String>| Some(all).filter(|all| !all.is_empty());
    let sans = config.tls_san.iter().map(|san| san.as_str().to_owned()).collect();
    let digests = config.token_sha256.iter().map(ToString::to_string).collect();
    let allow = config.allow.iter().map(|allow| {
        let chains: Vec<_> = allow.chains.iter().map(auth::Glob::as_str).collect();
        json!({ "chains": chains, "operations": allow.operations.names().collect::<Vec<_>>() })
    });
    json!({
        "name": config.name,
        "tls_san": texts(sans),
        "token_sha256": texts(digests),
        "jwt": config.jwt.as_ref().map(|jwt| json!({
            "issuer": jwt.issuer,
            "audience": jwt.audience,
            "subject": jwt.subject,
            "jwks_file": jwt.jwks_file,
            "jwks_url": jwt.jwks_url,
            "jwks_ca": jwt.jwks_ca,
            "jwks_token_file": jwt.jwks_token_file,
        })),
        "max_in_flight": config.max_in_flight,
        "lookups_per_minute": config.lookups_per_minute,
        "allow": allow.collect::<Vec<_>>(),
    })
}

fn root(config: &root::Config, data_dir: &Path) -> Value {
    match config {
        root::Config::AwsKms(config) => json!({
            "kind": "aws-kms",
            "name": config.name,
            "key_id": config.key_id,
            "region": config.region,
            "endpoint": config.endpoint,
            "ca": config.ca,
            "timeout": format(config.timeout),
        }),
        root::Config::Local(config) => {
            let key_file = config.path(data_dir);
            json!({ "kind": "local", "name": config.name, "key_file": key_file })
        }
        root::Config::Passphrase(config) => json!({
            "kind": "passphrase",
            "name": config.name,
            "passphrase_file": config.passphrase_file,
            "memory": config.memory,
            "passes": config.passes,
            "lanes": config.lanes,
        }),
        root::Config::Pkcs11(config) => json!({
            "kind": "pkcs11",
            "name": config.name,
            "module": config.module,
            "token_label": config.token_label,
            "slot": config.slot,
            "key_label": config.key_label,
            "pin_file": config.pin_file,
            "gcm_iv": config.gcm_iv.as_str(),
            "timeout": format(config.timeout),
        }),
        root::Config::VaultTransit(config) => json!({
            "kind": "vault-transit",
            "name": config.name,
            "address": config.address,
            "mount": config.mount,
            "key": config.key,
            "namespace": config.namespace,
            "ca": config.ca,
            "token_file": config.token_file,
            "role_id": config.role_id,
            "secret_id_file": config.secret_id_file,
            "auth_mount": config.auth_mount,
            "timeout": format(config.timeout),
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
