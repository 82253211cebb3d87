//! `[aws_api]` of the configuration.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::human_units;
use crate::id::ChainName;
use crate::root;

use super::arn::Arn;

/// The region where nothing names one.
const DEFAULT_REGION: &str = "us-east-1";

/// The longest time that decrypted old ciphertexts are kept.
const MAX_FORWARD_CACHE: Duration = Duration::from_secs(60 * 60);

/// `[aws_api]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether it is served, at `POST /` of `server.listen`.
    pub enabled: bool,
    /// The account in the ARNs of chains without a key: 12 digits.
    pub account: String,
    /// The region in ARNs and in the scope of signatures; see [`Config::region()`].
    pub region: Option<String>,
    /// What is forwarded to the real KMS.
    pub forward: Forward,
    /// How long decrypted old ciphertexts are kept; zero keeps none.
    #[serde(with = "human_units::duration")]
    pub forward_cache: Duration,
    /// A file with 32 random bytes, from which the secrets of access key ids are derived.
    pub secret_key_file: Option<PathBuf>,
    /// Each `[[aws_api.key]]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<Key>,
}

/// `aws_api.forward`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// Nothing.
    None,
    /// Old ciphertexts of mapped keys.
    #[default]
    Keys,
    /// Also other keys and operations.
    All,
}

/// `[[aws_api.key]]`: a key of KMS that programs refer to, and the chain that takes its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Its ARN, or its id in `account` and `region`.
    pub key_id: String,
    /// Its aliases, each `alias/NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The chain.
    pub chain: ChainName,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: false,
            account: "000000000000".to_owned(),
            region: None,
            forward: Forward::default(),
            forward_cache: Duration::ZERO,
            secret_key_file: None,
            key: Vec::new(),
        }
    }
}

impl Forward {
    /// The word that users read and write.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Keys => "keys",
            Self::All => "all",
        }
    }
}

impl Config {
    /// The region: by default `us-east-1`.
    #[must_use]
    pub fn region(&self) -> &str {
        self.region.as_deref().unwrap_or(DEFAULT_REGION)
    }

    /// Sets the region if it is not set: that of the first of `roots` in AWS KMS.
    pub(crate) fn set_default_region(&mut self, roots: &[root::Config]) {
        let first = roots.iter().find_map(|root| match root {
            root::Config::AwsKms(root) => Some(root),
            _ => None,
        });
        let region = first.and_then(|root| root.region()).filter(|region| is_region(region));
        let region = region.unwrap_or(DEFAULT_REGION);
        self.region.get_or_insert_with(|| region.to_owned());
    }

    /// The settings that calls are forwarded with: those of the first of `roots` in AWS KMS that is
    /// in this region, or the defaults. `None` if nothing can be forwarded.
    pub(crate) fn kms(&self, roots: &[root::Config]) -> Option<root::Config> {
        let is_forwarding = match self.forward {
            Forward::None => false,
            Forward::Keys => !self.key.is_empty(),
            Forward::All => true,
        };
        if !self.enabled || !is_forwarding {
            return None;
        }
        let is_here = |root: &&root::Config| match root {
            root::Config::AwsKms(root) => root.region() == Some(self.region()),
            _ => false,
        };
        Some(roots.iter().find(is_here).cloned().unwrap_or_else(|| {
            // Only the key of a root is used by its name.
            let mut settings = root::settings::AwsKms::new("aws-api", "alias/aws-api");
            settings.region = Some(self.region().to_owned());
            root::Config::AwsKms(settings)
        }))
    }

    /// The ARN of a mapped key; none if its `key_id` is neither an ARN of a key nor an id.
    pub(super) fn arn(&self, key: &Key) -> Option<Arn> {
        match Arn::parse(&key.key_id) {
            Some(arn) => arn.key().is_some().then_some(arn),
            None if key.key_id.contains('/') => None,
            None => {
                let arn = Arn::of_key(self.region(), &self.account, &key.key_id);
                Arn::parse(&arn).filter(|arn| arn.key() == Some(&key.key_id))
            }
        }
    }

    /// Checks what no setting can check alone.
    ///
    /// # Errors
    /// The key of the setting below `aws_api`, and what is wrong with it.
    pub fn check(&self) -> Result<(), (String, &'static str)> {
        let wrong = |key: &str, detail| Err((key.to_owned(), detail));
        if self.account.len() != 12 || !self.account.bytes().all(|b| b.is_ascii_digit()) {
            return wrong("account", "must be 12 digits");
        }
        if !is_region(self.region()) {
            return wrong("region", "must be written like eu-central-1");
        }
        if self.forward_cache > MAX_FORWARD_CACHE {
            return wrong("forward_cache", "must be at most 1h");
        }
        if !self.enabled && !self.key.is_empty() {
            return wrong("enabled", "there are keys, and the AWS KMS API is not enabled");
        }
        let mut names = BTreeSet::new();
        for (index, key) in self.key.iter().enumerate() {
            let wrong = |setting: &str, detail| Err((format!("key.{index}.{setting}"), detail));
            let Some(arn) = self.arn(key) else {
                return wrong("key_id", "must be the ARN or the id of a key");
            };
            if arn.region() != self.region() {
                return wrong("key_id", "must be a key of aws_api.region");
            }
            if !names.insert(arn.as_str().to_owned()) {
                return wrong("key_id", "another entry has this key");
            }
            for alias in &key.aliases {
                if arn.with_alias(alias).is_none() {
                    return wrong("aliases", "each must be alias/NAME");
                }
                if !names.insert(alias.clone()) {
                    return wrong("aliases", "another entry has this alias");
                }
            }
        }
        Ok(())
    }
}

/// Whether a region is written like `eu-central-1`.
fn is_region(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_defaults_are_a_disabled_api_that_forwards_old_ciphertexts_of_mapped_keys() {
        let config = config("");
        assert_eq!(config, Config::default());
        assert!(!config.enabled && config.forward == Forward::Keys && config.check().is_ok());
        assert_eq!((config.region(), config.account.as_str()), ("us-east-1", "000000000000"));
    }

    #[test]
    fn settings_that_cannot_be_meant_are_named() {
        let key = |text: &str| format!("enabled = true\nregion = 'eu-central-1'\n{text}");
        let arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd";
        let entry = |key_id: &str, rest: &str| format!("[[key]]\nkey_id = '{key_id}'\n{rest}\n");
        for (text, setting) in [
            ("account = '1'".to_owned(), "account"),
            ("account = '11112222333x'".to_owned(), "account"),
            ("region = ''".to_owned(), "region"),
            ("region = 'EU'".to_owned(), "region"),
            ("forward_cache = '61m'".to_owned(), "forward_cache"),
            (entry("a", "chain = 'a'"), "enabled"),
            (key(&entry("", "chain = 'a'")), "key.0.key_id"),
            (key(&entry("alias/a", "chain = 'a'")), "key.0.key_id"),
            (key(&entry("arn:aws:s3:::a", "chain = 'a'")), "key.0.key_id"),
            (key(&entry(&arn.replace("eu-", "us-"), "chain = 'a'")), "key.0.key_id"),
            (key(&entry(arn, "chain = 'a'").repeat(2)), "key.1.key_id"),
            (key(&entry(arn, "aliases = ['a']\nchain = 'a'")), "key.0.aliases"),
            (key(&entry(arn, "aliases = ['alias/a', 'alias/a']\nchain = 'a'")), "key.0.aliases"),
        ] {
            assert_eq!(config(&text).check().unwrap_err().0, setting, "{text}");
        }
        let text = format!("[[key]]\nkey_id = '{arn}'\naliases = ['alias/a']\nchain = 'a'");
        assert_eq!(config(&key(&text)).check(), Ok(()));
        assert_eq!(config(&key("[[key]]\nkey_id = 'mrk-1234'\nchain = 'a'")).check(), Ok(()));
    }
}
