//! The configuration as it is printed: what is in force, defaults included, without secrets. It can
//! be read back as a file.
//!
//! The settings write themselves: no setting is named here.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use super::{Config, Sections};

impl fmt::Display for Config {
    /// As TOML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut view = view(self);
        drop_nulls(&mut view);
        f.write_str(&toml::to_string(&view).map_err(|_| fmt::Error)?)
    }
}

impl Config {
    /// The settings that differ in `other`, as users write them. Secrets are not compared.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut keys = Vec::new();
        differences("", &view(self), &view(other), &mut keys);
        keys
    }
}

fn view(config: &Config) -> Value {
    // Settings are texts, numbers, lists and tables: all of them can be written.
    serde_json::to_value(Sections::from(config)).unwrap_or_default()
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

/// TOML has no null: settings without a value are left out.
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
