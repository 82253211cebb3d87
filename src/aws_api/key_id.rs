//! How callers name keys, and which chain each name means.

use std::collections::HashMap;
use std::sync::Arc;

use crate::id::ChainName;

use super::arn::Arn;
use super::config::Config;

/// A key that a caller named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) chain: ChainName,
    /// The ARN that responses contain: the caller's, if they named the key by its ARN.
    pub(super) arn: Arc<str>,
    /// The key of KMS that the chain takes the place of.
    pub(super) kms: Option<Arc<str>>,
}

/// The names of all keys.
pub(super) struct Keys {
    /// The start of the ARN of every resource of `aws_api.account`: up to `key/`.
    own: Arc<str>,
    mapped: Vec<Mapped>,
    /// Indices into `mapped` by ARN, id, alias, and the alias' ARN.
    names: HashMap<String, usize>,
}

struct Mapped {
    chain: ChainName,
    arn: Arc<str>,
    aliases: Vec<String>,
}

impl Keys {
    /// The keys of `config`, which was checked.
    pub(super) fn new(config: &Config) -> Self {
        let own = Arn::of_key(config.region(), &config.account, "");
        let (mut mapped, mut names) = (Vec::new(), HashMap::new());
        for key in &config.key {
            let Some(arn) = config.arn(key) else { continue };
            let index = mapped.len();
            let aliases = key.aliases.iter();
            let arns = aliases.clone().filter_map(|alias| arn.with_alias(alias));
            names.extend(arns.map(|arn| (arn.as_str().to_owned(), index)));
            names.extend(aliases.map(|alias| (alias.clone(), index)));
            names.extend(arn.key().map(|id| (id.to_owned(), index)));
            names.insert(arn.as_str().to_owned(), index);
            mapped.push(Mapped {
                chain: key.chain.clone(),
                arn: arn.text(),
                aliases: key.aliases.clone(),
            });
        }
        let own = own.strip_suffix("key/").unwrap_or_default().into();
        Self { own, mapped, names }
    }

    /// The key that a caller names. Whether its chain exists is not known here.
    pub(super) fn find(&self, key_id: &str) -> Option<Key> {
        let mapped = self.names.get(key_id).and_then(|&index| self.mapped.get(index));
        let is_key_arn = key_id.starts_with("arn:") && key_id.contains(":key/");
        let arn = is_key_arn.then(|| Arc::from(key_id));
        if let Some(mapped) = mapped {
            return Some(Key {
                chain: mapped.chain.clone(),
                arn: arn.unwrap_or_else(|| Arc::clone(&mapped.arn)),
                kms: Some(Arc::clone(&mapped.arn)),
            });
        }
        let name = match key_id.strip_prefix(&*self.own) {
            Some(resource) => {
                resource.strip_prefix("key/").or_else(|| resource.strip_prefix("alias/"))?
            }
            None => key_id.strip_prefix("alias/").unwrap_or(key_id),
        };
        let chain = ChainName::new(name).ok().filter(|chain| !self.is_mapped(chain))?;
        let arn = arn.unwrap_or_else(|| self.arn(&chain));
        Some(Key { chain, arn, kms: None })
    }

    /// The key of KMS with this ARN, if it is mapped to a chain.
    pub(super) fn find_kms(&self, arn: &str) -> Option<Key> {
        self.find(arn).filter(|key| key.kms.as_deref() == Some(arn))
    }

    /// The ARN of a chain: that of its first key, or one made of its name.
    pub(super) fn arn(&self, chain: &ChainName) -> Arc<str> {
        match self.mapped.iter().find(|mapped| mapped.chain == *chain) {
            Some(mapped) => Arc::clone(&mapped.arn),
            None => [&*self.own, "key/", chain.as_str()].concat().into(),
        }
    }

    /// The ARNs of a chain's keys.
    pub(super) fn arns(&self, chain: &ChainName) -> Vec<Arc<str>> {
        let of_chain = self.mapped.iter().filter(|mapped| mapped.chain == *chain);
        let arns: Vec<_> = of_chain.map(|mapped| Arc::clone(&mapped.arn)).collect();
        if arns.is_empty() { vec![self.arn(chain)] } else { arns }
    }

    /// The aliases of a chain's keys, each with the ARNs of the alias and of its key.
    pub(super) fn aliases(&self, chain: &ChainName) -> Vec<Alias> {
        let of_chain = self.mapped.iter().filter(|mapped| mapped.chain == *chain);
        let mut aliases: Vec<_> = of_chain
            .flat_map(|mapped| {
                mapped.aliases.iter().map(|alias| Alias::new(alias, Arc::clone(&mapped.arn)))
            })
            .collect();
        if !self.is_mapped(chain) {
            aliases.push(Alias::new(&format!("alias/{chain}"), self.arn(chain)));
        }
        aliases
    }

    /// Whether any key of KMS is mapped to this chain.
    pub(super) fn is_mapped(&self, chain: &ChainName) -> bool {
        self.mapped.iter().any(|mapped| mapped.chain == *chain)
    }

    /// The chains of all mapped keys.
    pub(super) fn mapped_chains(&self) -> impl Iterator<Item = &ChainName> {
        self.mapped.iter().map(|mapped| &mapped.chain)
    }
}

/// An alias of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alias {
    pub(super) name: String,
    pub(super) arn: String,
    pub(super) key: Arc<str>,
}

impl Alias {
    fn new(name: &str, key: Arc<str>) -> Self {
        let start = key.split(":key/").next().unwrap_or_default();
        Self { name: name.to_owned(), arn: format!("{start}:{name}"), key }
    }
}

/// The partition of an ARN.
pub(super) fn partition(arn: &str) -> &str {
    arn.split(':').nth(1).unwrap_or_default()
}

/// The account of an ARN.
pub(super) fn account(arn: &str) -> &str {
    arn.split(':').nth(4).unwrap_or_default()
}

/// The id of a key in its ARN.
pub(super) fn id(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str =
        "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    fn keys() -> Keys {
        let text = format!(
            "enabled = true\nregion = 'eu-central-1'\n[[key]]\nkey_id = '{ARN}'\n\
             aliases = ['alias/orders', 'alias/team/orders']\nchain = 'orders-2'\n\
             [[key]]\nkey_id = 'mrk-1'\nchain = 'orders-2'\n"
        );
        let config: Config = toml::from_str(&text).unwrap();
        assert_eq!(config.check(), Ok(()));
        Keys::new(&config)
    }

    #[test]
    fn a_mapped_key_has_its_id_arn_and_aliases_and_no_other_name() {
        let keys = keys();
        let start = "arn:aws:kms:eu-central-1:111122223333";
        for name in [
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            ARN,
            "alias/orders",
            "alias/team/orders",
            &format!("{start}:alias/orders"),
            &format!("{start}:alias/team/orders"),
        ] {
            let key = keys.find(name).unwrap();
            assert_eq!((key.chain.as_str(), &*key.arn), ("orders-2", ARN), "{name}");
            assert_eq!(key.kms.as_deref(), Some(ARN));
        }
        for name in [
            "orders-2",
            "alias/orders-2",
            "arn:aws:kms:eu-central-1:000000000000:key/orders-2",
            &ARN.replace("eu-central-1", "eu-west-1"),
            &ARN.replace("1111", "1112"),
            "",
            "alias/",
            "alias/a/b",
            "ORDERS",
        ] {
            assert_eq!(keys.find(name), None, "{name}");
        }
        assert!(keys.find_kms(ARN).is_some() && keys.find_kms("alias/orders").is_none());
        let mrk = keys.find("mrk-1").unwrap();
        assert_eq!(&*mrk.arn, "arn:aws:kms:eu-central-1:000000000000:key/mrk-1");
    }

    #[test]
    fn a_chain_without_a_key_is_its_name_an_alias_and_an_arn() {
        let keys = keys();
        let arn = "arn:aws:kms:eu-central-1:000000000000:key/bills";
        for name in ["bills", "alias/bills", arn, &arn.replace(":key/", ":alias/")] {
            let key = keys.find(name).unwrap();
            assert_eq!((key.chain.as_str(), &*key.arn, key.kms), ("bills", arn, None), "{name}");
        }
        assert_eq!(keys.find_kms(arn), None);
    }

    #[test]
    fn a_chain_lists_its_arns_and_aliases() {
        let keys = keys();
        let chain = ChainName::new("orders-2").unwrap();
        assert_eq!(&*keys.arn(&chain), ARN);
        assert_eq!(keys.arns(&chain).len(), 2);
        let aliases = keys.aliases(&chain);
        assert_eq!(aliases.len(), 2);
        assert_eq!(aliases[0].arn, "arn:aws:kms:eu-central-1:111122223333:alias/orders");
        let other = ChainName::new("bills").unwrap();
        let [alias] = &keys.aliases(&other)[..] else { panic!() };
        assert_eq!(alias.name, "alias/bills");
        assert_eq!((id(ARN), id(&alias.key)), ("1234abcd-12ab-34cd-56ef-1234567890ab", "bills"));
    }

    #[test]
    fn partitions_follow_the_region() {
        for (region, start) in [
            ("eu-west-1", "arn:aws:kms:eu-west-1:"),
            ("cn-north-1", "arn:aws-cn:kms:cn-north-1:"),
            ("us-gov-west-1", "arn:aws-us-gov:kms:us-gov-west-1:"),
        ] {
            assert!(Arn::of_key(region, "000000000000", "a").starts_with(start), "{region}");
        }
        assert_eq!(Arn::parse("arn:aws:kms:r:000000000000:key/a").unwrap().region(), "r");
        for bad in ["arn:aws:kms:r:0:key/a", "arn:aws:kms:r:000000000000:grant/a", "arn", "a"] {
            assert_eq!(Arn::parse(bad), None, "{bad}");
        }
    }
}
