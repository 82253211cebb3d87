//! The file and the environment, merged into one tree: where each setting comes from, and where
//! secrets are allowed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;

use crate::secret::SecretBytes;

use super::Error;
use super::tree::Tree;
use super::variables::{self, PREFIX};

/// Keys whose values are secrets, in any table. They are not allowed in the file, which names
/// another file instead, in the key with the suffix `_file`.
const SECRETS: [&str; 5] = ["passphrase", "password", "pin", "secret_id", "token"];

/// All settings that were given, and the default store and root.
pub(super) struct Source {
    /// The settings.
    pub(super) tree: Tree,
    /// Secrets from the environment, by their keys: they do not pass through the tree.
    pub(super) secrets: Vec<(String, SecretBytes)>,
    /// The names of the variables that were read.
    pub(super) variables: BTreeSet<String>,
}

/// The variable that sets `key`: `KMS_PROXY__ROOT__0__KIND` for `root.0.kind`.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"))
}

impl Source {
    /// Reads both, the variables over the file.
    ///
    /// # Errors
    /// [`Error`].
    pub(super) fn read(
        file: Option<(&Path, &str)>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Error> {
        let mut tree = file.map_or(Ok(toml::Table::new()), parse).map(Tree::from)?;
        if let Some(key) =
            tree.find(&|table| SECRETS.into_iter().find(|key| table.contains_key(*key)))
        {
            let variable = variable(&key);
            let detail = format!("a secret must not be in the file; give {key}_file or {variable}");
            return Err(Error::Setting { key, from: None, detail });
        }
        let variables = variables.into_iter();
        let variables =
            variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        let (mut variables, others): (Vec<_>, Vec<_>) =
            variables.partition(|(name, _)| name.starts_with(PREFIX));
        for (name, value) in others {
            if let Some(detail) = variables::complaint(&name, &value.to_string_lossy()) {
                return Err(Error::Setting { key: name, from: None, detail });
            }
        }
        // In the order of the indices, so that the tables of a list are appended one by one.
        variables.sort_by_cached_key(|(name, _)| {
            name.split("__")
                .map(|part| (part.parse::<usize>().ok(), part.to_owned()))
                .collect::<Vec<_>>()
        });
        let (mut names, mut secrets) = (BTreeSet::new(), Vec::new());
        for (name, value) in variables {
            let key = name.strip_prefix(PREFIX).unwrap_or_default().to_ascii_lowercase();
            let path: Vec<_> = key.split("__").collect();
            if path.last().is_some_and(|last| SECRETS.contains(last)) {
                secrets.push((path.join("."), SecretBytes::new(value.into_encoded_bytes())));
            } else {
                let wrong = |key: String, detail: &str| Error::Setting {
                    key,
                    from: Some(name.clone()),
                    detail: detail.to_owned(),
                };
                let value =
                    value.into_string().map_err(|_| wrong(path.join("."), "not valid UTF-8"))?;
                tree.set(&path, value).map_err(|error| wrong(error.key(), &error.detail()))?;
            }
            names.insert(name);
        }
        add_defaults(&mut tree);
        Ok(Self { tree, secrets, variables: names })
    }
}

fn parse((path, text): (&Path, &str)) -> Result<toml::Table, Error> {
    // The `Display` of the error quotes the line, which may contain a secret; the message does not.
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        Error::Syntax { path: path.to_owned(), line, detail: error.message().to_owned() }
    })
}

/// Adds the store and the root that need no setup.
fn add_defaults(tree: &mut Tree) {
    let text = |text: &str| Tree::Text(text.to_owned());
    if let Some(store) = tree.table("store") {
        store.entry("kind".to_owned()).or_insert_with(|| text("file"));
    }
    if let Tree::Table(sections) = tree {
        sections.entry("root".to_owned()).or_insert_with(|| {
            let local = [("kind", "local"), ("name", "local")];
            let local = local.map(|(key, value)| (key.to_owned(), text(value)));
            Tree::List(vec![Tree::Table(local.into())])
        });
    }
}
