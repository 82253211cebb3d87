//! Settings before they have types: a tree merged from the file and the environment.
//!
//! It knows no setting by name. Its errors name the key and what is expected there, and never
//! contain the value, since any value may be a misplaced secret.

use std::collections::BTreeMap;
use std::fmt::Display;

/// Settings by their keys.
pub(super) type Table = BTreeMap<String, Tree>;

/// A setting, or a group of them. Without `Debug`: some are secrets.
pub(super) enum Tree {
    /// A section, or one table of a list.
    Table(Table),
    /// A list.
    List(Vec<Tree>),
    /// A value from the file that is neither a table nor an array.
    Typed(toml::Value),
    /// A value from the environment: it is parsed as the type of its setting.
    Text(String),
}

/// A setting that is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Error {
    /// The parts of the key, the innermost first.
    path: Vec<String>,
    /// What is wrong, without the value.
    detail: String,
    /// The known keys of the table in which an unknown one was found.
    known: Vec<&'static str>,
}

impl Error {
    pub(super) fn new(detail: impl Into<String>) -> Self {
        Self { path: Vec::new(), detail: detail.into(), known: Vec::new() }
    }

    /// `key` is not one of `known`.
    pub(super) fn unknown(key: &str, known: &[&'static str]) -> Self {
        Self { known: known.to_vec(), ..Self::new("no such key") }.within(key)
    }

    /// The same error in a table that has the key `tag` too.
    pub(super) fn with_known(mut self, tag: &'static str) -> Self {
        if !self.known.is_empty() && matches!(&self.path[..], [key] if key != tag) {
            self.known.insert(0, tag);
        }
        self
    }

    /// What is wrong and what is expected, without the value.
    pub(super) fn detail(&self) -> String {
        match &self.known[..] {
            [] => self.detail.clone(),
            [known] => format!("{}; expected {known}", self.detail),
            known => format!("{}; expected one of {}", self.detail, known.join(", ")),
        }
    }

    /// The same error, seen from the table that holds `key`.
    pub(super) fn within(mut self, key: &str) -> Self {
        self.path.push(key.to_owned());
        self
    }

    /// The key with its section, such as `root.0.kind`; empty at the top.
    pub(super) fn key(&self) -> String {
        self.path.iter().rev().map(String::as_str).collect::<Vec<_>>().join(".")
    }
}

impl From<toml::Table> for Tree {
    fn from(table: toml::Table) -> Self {
        Self::Table(table.into_iter().map(|(key, value)| (key, value.into())).collect())
    }
}

impl From<toml::Value> for Tree {
    fn from(value: toml::Value) -> Self {
        match value {
            toml::Value::Table(table) => table.into(),
            toml::Value::Array(items) => Self::List(items.into_iter().map(Self::from).collect()),
            value => Self::Typed(value),
        }
    }
}

impl Tree {
    /// Sets `text` at `path`. Creates the tables on the way, and appends a table to a list when the
    /// path has the next free index.
    pub(super) fn set(&mut self, path: &[&str], text: String) -> Result<(), Error> {
        let Some((key, rest)) = path.split_first() else {
            *self = Self::Text(text);
            return Ok(());
        };
        let set = match self {
            Self::Table(table) => {
                table.entry((*key).to_owned()).or_insert_with(|| Self::none(rest)).set(rest, text)
            }
            Self::List(items) => match key.parse::<usize>() {
                Ok(index) if index <= items.len() => {
                    if index == items.len() {
                        items.push(Self::none(rest));
                    }
                    items.get_mut(index).map_or(Ok(()), |item| item.set(rest, text))
                }
                _ => Err(Error::new(format!("the next index is {}", items.len()))),
            },
            Self::Typed(_) | Self::Text(_) => Err(Error::new("not a table")),
        };
        set.map_err(|error| error.within(key))
    }

    /// An empty value to set `path` in: a list if an index comes next, else a table.
    fn none(path: &[&str]) -> Self {
        match path.first().map(|key| key.parse::<usize>()) {
            Some(Ok(_)) => Self::List(Vec::new()),
            _ => Self::Table(BTreeMap::new()),
        }
    }

    /// The table at `key`, created if absent; `None` if the value there is not a table.
    pub(super) fn table(&mut self, key: &str) -> Option<&mut Table> {
        let Self::Table(table) = self else { return None };
        match table.entry(key.to_owned()).or_insert_with(|| Self::Table(BTreeMap::new())) {
            Self::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The full key of what `matching` finds in one of the tables.
    pub(super) fn find(
        &self,
        matching: &impl Fn(&Table) -> Option<&'static str>,
    ) -> Option<String> {
        let found =
            |(key, tree): (String, &Self)| tree.find(matching).map(|rest| format!("{key}.{rest}"));
        match self {
            Self::Table(table) => matching(table)
                .map(str::to_owned)
                .or_else(|| table.iter().map(|(key, tree)| (key.clone(), tree)).find_map(found)),
            Self::List(items) => {
                items.iter().enumerate().map(|(i, tree)| (i.to_string(), tree)).find_map(found)
            }
            Self::Typed(_) | Self::Text(_) => None,
        }
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.key(), self.detail())
    }
}

impl std::error::Error for Error {}
