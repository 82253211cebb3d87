//! Permissions of a client: operations on the chains whose names match a glob.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use crate::id::ChainName;
use crate::metrics::Operation;
use crate::wildcard;

/// A pattern of chain names: `*` matches any characters, including none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Glob(String);

/// A set of operations, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<Word>")]
pub struct Operations(u8);

/// `[[client]] allow`: operations that are allowed on some chains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// The chains.
    pub chains: Vec<Glob>,
    /// The operations.
    pub operations: Operations,
}

impl Allow {
    /// Whether it allows `operation` on `chain`, which comes from the caller and may be invalid.
    pub(super) fn allows(&self, operation: Operation, chain: &str) -> bool {
        self.operations.contains(operation) && self.chains.iter().any(|glob| glob.matches(chain))
    }
}

impl Glob {
    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether every chain matches.
    pub(super) fn is_all(&self) -> bool {
        self.0.bytes().all(|b| b == b'*')
    }

    /// Whether `name` matches.
    fn matches(&self, name: &str) -> bool {
        wildcard::matches(&self.0, name)
    }
}

impl TryFrom<String> for Glob {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        // A pattern can match a name if it is one with a letter for each `*`.
        match ChainName::new(&text.replace('*', "a")) {
            Ok(_) => Ok(Self(text)),
            Err(_) => Err("it is the name of a chain, in which * stands for any characters"),
        }
    }
}

/// The name of an operation.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Word(Operation);

impl TryFrom<String> for Word {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let found = Operation::ALL.into_iter().find(|operation| operation.as_str() == text);
        found.map(Self).ok_or_else(|| {
            let words = Operation::ALL.map(Operation::as_str).join(", ");
            format!("expected one of {words}")
        })
    }
}

impl From<Vec<Word>> for Operations {
    fn from(words: Vec<Word>) -> Self {
        Self(words.into_iter().fold(0, |bits, Word(operation)| bits | bit(operation)))
    }
}

impl Serialize for Operations {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

impl Operations {
    /// Whether `operation` is among them.
    #[must_use]
    pub fn contains(self, operation: Operation) -> bool {
        self.0 & bit(operation) != 0
    }

    /// Their names, in the order of [`Operation::ALL`].
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let own = Operation::ALL.into_iter().filter(move |&operation| self.contains(operation));
        own.map(Operation::as_str)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const fn bit(operation: Operation) -> u8 {
    1 << operation as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_must_be_able_to_match_a_name() {
        for good in ["orders", "orders-*", "*", "a*b*c", "**a**"] {
            assert!(Glob::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "Orders", "a?", "a b", "[a]", "-*", &"*".repeat(64)] {
            assert!(Glob::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_operation_is_allowed_with_the_chains_of_its_own_line() {
        let read = |text: &str| toml::from_str::<Allow>(text).unwrap();
        let allow = read("chains = ['a', 'b-*']\noperations = ['encrypt', 'read']");
        for operation in Operation::ALL {
            let named = matches!(operation, Operation::Encrypt | Operation::Read);
            assert_eq!(allow.allows(operation, "b-1"), named, "{operation:?}");
            assert!(!allow.allows(operation, "c"));
        }
        assert_eq!(allow.operations.names().collect::<Vec<_>>(), ["encrypt", "read"]);
        assert!(toml::from_str::<Allow>("chains = ['a']\noperations = ['all']").is_err());
    }
}
