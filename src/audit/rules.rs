//! Which calls are recorded in which detail: `[[audit.rule]]`.

use serde::{Deserialize, Serialize};

use crate::id::ChainName;
use crate::metrics::Operation;
use crate::wildcard;

/// In which detail calls are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Not at all.
    None,
    /// One line a second for each client, chain, KEK, operation and outcome.
    Count,
    /// One line for each call, and for each item of a batch.
    Full,
}

/// A rule. What it does not name, it does not restrict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The operations.
    #[serde(default = "all")]
    pub operations: Vec<OperationName>,
    /// The chains, as patterns.
    #[serde(default = "all")]
    pub chains: Vec<ChainPattern>,
    /// The clients, as patterns.
    #[serde(default = "all")]
    pub clients: Vec<ClientPattern>,
    /// The detail.
    pub level: Level,
}

/// The name of an operation, or `*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct OperationName(String);

/// A pattern of names of chains, in which `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ChainPattern(String);

/// A pattern of names of clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientPattern(String);

/// What matches everything.
trait All {
    fn all() -> Self;
}

impl All for OperationName {
    fn all() -> Self {
        Self("*".to_owned())
    }
}

impl All for ChainPattern {
    fn all() -> Self {
        Self("*".to_owned())
    }
}

impl All for ClientPattern {
    fn all() -> Self {
        Self("*".to_owned())
    }
}

fn all<T: All>() -> Vec<T> {
    vec![T::all()]
}

impl TryFrom<String> for OperationName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_known = text == "*" || Operation::ALL.iter().any(|it| it.as_str() == text);
        is_known.then_some(Self(text)).ok_or_else(|| {
            format!("expected * or one of {}", Operation::ALL.map(Operation::as_str).join(", "))
        })
    }
}

impl TryFrom<String> for ChainPattern {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        // It can match a name if it is one with a letter for each `*`.
        match ChainName::new(&text.replace('*', "a")) {
            Ok(_) => Ok(Self(text)),
            Err(_) => Err("it is the name of a chain, in which * stands for any characters"),
        }
    }
}

/// The rules in force.
#[derive(Debug)]
pub(super) struct Rules {
    rules: Vec<Rule>,
    /// The level of each operation for which it depends on neither chain nor client.
    fixed: [Option<Level>; Operation::ALL.len()],
}

impl Rules {
    /// Those of the configuration, or the default ones: encrypts are counted, and all other calls
    /// are recorded in full. What no rule matches is recorded in full.
    pub(super) fn new(mut rules: Vec<Rule>) -> Self {
        if rules.is_empty() {
            rules.push(Rule {
                operations: vec![OperationName(Operation::Encrypt.as_str().to_owned())],
                chains: all(),
                clients: all(),
                level: Level::Count,
            });
        }
        let fixed = Operation::ALL.map(|operation| {
            let first = rules.iter().find(|rule| rule.names(Some(operation)));
            match first {
                None => Some(Level::Full),
                Some(rule) => rule.is_for_all().then_some(rule.level),
            }
        });
        Self { rules, fixed }
    }

    /// The level of a call. A call without an operation, a chain or a client matches only `*`.
    pub(super) fn level(
        &self,
        operation: Option<Operation>,
        chain: Option<&str>,
        client: Option<&str>,
    ) -> Level {
        let fixed = operation.and_then(|operation| *self.fixed.get(operation as usize)?);
        fixed.unwrap_or_else(|| {
            let (chain, client) = (chain.unwrap_or_default(), client.unwrap_or_default());
            let is_match = |rule: &&Rule| rule.names(operation) && rule.is_for(chain, client);
            self.rules.iter().find(is_match).map_or(Level::Full, |rule| rule.level)
        })
    }
}

impl Rule {
    fn names(&self, operation: Option<Operation>) -> bool {
        let name = operation.map(Operation::as_str);
        self.operations.iter().any(|it| it.0 == "*" || name == Some(&*it.0))
    }

    fn is_for(&self, chain: &str, client: &str) -> bool {
        self.chains.iter().any(|it| wildcard::matches(&it.0, chain))
            && self.clients.iter().any(|it| wildcard::matches(&it.0, client))
    }

    /// Whether it restricts neither chains nor clients.
    fn is_for_all(&self) -> bool {
        self.chains.iter().any(|it| it.0 == "*") && self.clients.iter().any(|it| it.0 == "*")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        Rules::new(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn by_default_encrypts_are_counted_and_everything_else_is_recorded() {
        let rules = rules("[]");
        for operation in Operation::ALL {
            let is_encrypt = operation == Operation::Encrypt;
            let expected = if is_encrypt { Level::Count } else { Level::Full };
            assert_eq!(rules.level(Some(operation), Some("a"), None), expected);
        }
        assert_eq!(rules.level(None, None, None), Level::Full);
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = rules(
            r#"[
            {"operations":["encrypt","decrypt"],"chains":["logs-*"],"level":"none"},
            {"operations":["decrypt"],"chains":["orders"],"clients":["batch-*"],"level":"count"},
            {"operations":["*"],"clients":["auditor"],"level":"full"},
            {"level":"count"}]"#,
        );
        for (operation, chain, client, level) in [
            (Some(Operation::Encrypt), Some("logs-1"), None, Level::None),
            (Some(Operation::Rewrap), Some("logs-1"), None, Level::Count),
            (Some(Operation::Decrypt), Some("orders"), Some("batch-7"), Level::Count),
            (Some(Operation::Decrypt), Some("orders"), Some("auditor"), Level::Full),
            (Some(Operation::Decrypt), Some("orders"), None, Level::Count),
            (Some(Operation::Encrypt), None, None, Level::Count),
            (None, Some("logs-1"), None, Level::Count),
            (None, None, Some("auditor"), Level::Full),
        ] {
            assert_eq!(rules.level(operation, chain, client), level, "{operation:?} {chain:?}");
        }
    }

    #[test]
    fn a_rule_for_everyone_hides_only_the_rules_after_it() {
        let rules = rules(
            r#"[
            {"operations":["decrypt"],"chains":["a"],"level":"none"},
            {"operations":["encrypt","decrypt"],"level":"count"},
            {"operations":["*"],"clients":["auditor"],"level":"none"}]"#,
        );
        let level = |operation, chain| rules.level(Some(operation), Some(chain), Some("auditor"));
        assert_eq!(level(Operation::Encrypt, "a"), Level::Count);
        assert_eq!(level(Operation::Decrypt, "a"), Level::None);
        assert_eq!(level(Operation::Decrypt, "b"), Level::Count);
        assert_eq!(level(Operation::Rewrap, "a"), Level::None);
        assert_eq!(rules.level(Some(Operation::Rewrap), None, None), Level::Full);
    }
}
