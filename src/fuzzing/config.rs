//! Configurations: one that is accepted is printed as one that means the same.

use std::ffi::OsString;
use std::path::Path;

use crate::config::{Config, Flags};

/// A file. Its lines of the form `KMS_PROXY__NAME=VALUE` are taken as variables instead.
pub fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let (mut file, mut variables) = (String::new(), Vec::new());
    for line in text.split_inclusive('\n') {
        match line.split_once('=').filter(|(name, _)| name.starts_with("KMS_PROXY__")) {
            Some((name, value)) => variables.push((name, value.trim_end_matches('\n'))),
            None => file.push_str(line),
        }
    }
    let Ok(config) = load(&file, &variables) else { return };
    // A secret from a variable is not printed, so the rest alone may be refused.
    if variables.is_empty() {
        let printed = config.to_string();
        let read = load(&printed, &[]).unwrap();
        assert_eq!(config.differences(&read), Vec::<String>::new());
        assert_eq!(read.to_string(), printed);
    }
}

fn load(file: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let variables = variables.iter().map(|(name, value)| (OsString::from(name), value.into()));
    let loaded =
        Config::from_sources(Some((Path::new("k.toml"), file)), variables, &Flags::default());
    loaded.map_err(|error| error.to_string())
}
