//! The operations on keys: those that read them, and RotateKeyOnDemand.
//!
//! KMS has tags, grants and policies for each key. A chain has none: its lists are empty, and the
//! policy is the one that KMS gives to new keys, which leaves the decision to others.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::metrics::Operation as Permission;
use crate::service::KekInfo;

use super::error::{Code, Error};
use super::forward::Forward;
use super::identity::Caller;
use super::key_id::{self, Key};
use super::operation::Served;
use super::page::Page;
use super::request::{self, Look, SYMMETRIC};
use super::{Answer, Api, response};

/// The one policy that KMS has for a key.
const POLICY: &str = "default";

/// A day in seconds.
const DAY: u64 = 24 * 60 * 60;

impl Api {
    /// Does an operation that is served.
    pub(super) async fn serve(
        &self,
        caller: &Caller,
        operation: Served,
        body: Bytes,
    ) -> Result<Answer, Error> {
        // Boxed, since a large future is copied from layer to layer.
        match operation {
            Served::Encrypt => Box::pin(self.encrypt(caller, body)).await,
            Served::Decrypt => Box::pin(self.decrypt(caller, body)).await,
            Served::GenerateDataKey | Served::GenerateDataKeyWithoutPlaintext => {
                Box::pin(self.generate_data_key(caller, operation, body)).await
            }
            Served::ReEncrypt => Box::pin(self.re_encrypt(caller, body)).await,
            Served::GenerateRandom => self.generate_random(caller, &body),
            Served::ListKeys => self.list_keys(caller, &body),
            Served::ListAliases => Box::pin(self.list_aliases(caller, body)).await,
            Served::DescribeKey
            | Served::GetKeyRotationStatus
            | Served::ListKeyRotations
            | Served::ListResourceTags
            | Served::ListGrants
            | Served::ListKeyPolicies
            | Served::GetKeyPolicy
            | Served::RotateKeyOnDemand => Box::pin(self.on_key(caller, operation, body)).await,
        }
    }

    /// The key that a caller names; `None` for one that only KMS can know.
    pub(super) async fn find(&self, key_id: &str) -> Option<Key> {
        let key = self.keys.find(key_id)?;
        // Every id of a key of KMS could be the name of a chain.
        let is_chain = key.kms.is_some()
            || self.forwarder.mode() != Forward::All
            || self.service.may_exist(&key.chain).await;
        is_chain.then_some(key)
    }

    /// Checks that the chain of a key exists, as far as that can be known.
    pub(super) async fn must_exist(&self, key: &Key) -> Result<(), Error> {
        match self.service.may_exist(&key.chain).await {
            true => Ok(()),
            false => Err(Error::unknown_key()),
        }
    }

    /// An operation on one key.
    async fn on_key(
        &self,
        caller: &Caller,
        operation: Served,
        body: Bytes,
    ) -> Result<Answer, Error> {
        let look: Look<'_> = request::parse(&body)?;
        let Some(key) = self.find(look.key_id()?).await else {
            return self.forward_served(caller, operation, &body).await;
        };
        caller.check(operation.name(), operation.permission(), &key)?;
        if operation != Served::RotateKeyOnDemand {
            self.service.check_exists(&key.chain).await?;
        }
        let answer = match operation {
            Served::DescribeKey => json!({ "KeyMetadata": self.metadata(&key).await? }),
            Served::GetKeyRotationStatus => self.rotation_status(&key).await?,
            Served::ListKeyRotations => self.rotations(&key, &look).await?,
            Served::ListResourceTags => Page::of(&look, 50, 50, Vec::new())?.json("Tags"),
            Served::ListGrants => Page::of(&look, 50, 100, Vec::new())?.json("Grants"),
            Served::ListKeyPolicies => {
                let names = vec![(POLICY.to_owned(), json!(POLICY))];
                Page::of(&look, 100, 1000, names)?.json("PolicyNames")
            }
            Served::GetKeyPolicy => policy(&key, &look)?,
            _ => {
                self.service.rotate(Some(key.chain.as_str())).await?;
                json!({ "KeyId": &*key.arn })
            }
        };
        Ok(Answer::Json(response::write(&answer)))
    }

    fn list_keys(&self, caller: &Caller, body: &[u8]) -> Result<Answer, Error> {
        let look: Look<'_> = request::parse(body)?;
        caller.check_some(Served::ListKeys.name(), Permission::Read)?;
        let chains = self.service.chain_names().into_iter();
        let chains = chains.filter(|chain| caller.may(Permission::Read, chain.as_str()));
        let keys = chains.flat_map(|chain| self.keys.arns(&chain)).map(|arn| {
            let key = json!({ "KeyId": key_id::id(&arn), "KeyArn": &*arn });
            (arn.to_string(), key)
        });
        let page = Page::of(&look, 100, 1000, keys.collect())?;
        Ok(Answer::Json(response::write(&page.json("Keys"))))
    }

    async fn list_aliases(&self, caller: &Caller, body: Bytes) -> Result<Answer, Error> {
        let look: Look<'_> = request::parse(&body)?;
        let operation = Served::ListAliases.name();
        let (chains, of_key) = match look.optional_key_id()? {
            None => {
                caller.check_some(operation, Permission::Read)?;
                (self.service.chain_names(), None)
            }
            Some(key_id) => {
                let Some(key) = self.find(key_id).await else {
                    return self.forward_served(caller, Served::ListAliases, &body).await;
                };
                caller.check(operation, Permission::Read, &key)?;
                self.service.check_exists(&key.chain).await?;
                (vec![key.chain], Some(key.arn))
            }
        };
        let chains = chains.iter().filter(|chain| caller.may(Permission::Read, chain.as_str()));
        let aliases = chains.flat_map(|chain| self.keys.aliases(chain));
        let aliases = aliases.filter(|alias| of_key.as_ref().is_none_or(|arn| *arn == alias.key));
        let aliases = aliases.map(|alias| {
            let target = key_id::id(&alias.key);
            let item =
                json!({ "AliasName": alias.name, "AliasArn": alias.arn, "TargetKeyId": target });
            (alias.arn, item)
        });
        let page = Page::of(&look, 50, 100, aliases.collect())?;
        Ok(Answer::Json(response::write(&page.json("Aliases"))))
    }

    async fn metadata(&self, key: &Key) -> Result<Value, Error> {
        // Programs look at their key when they start. Without the store, the date is missing.
        let keks = self.keks(key).await.unwrap_or_default();
        let mut metadata = json!({
            "AWSAccountId": key_id::account(&key.arn),
            "KeyId": key_id::id(&key.arn),
            "Arn": &*key.arn,
            "Enabled": true,
            "Description": format!("the chain {} of kms-proxy", key.chain),
            "KeyUsage": "ENCRYPT_DECRYPT",
            "KeyState": "Enabled",
            "Origin": "AWS_KMS",
            "KeyManager": "CUSTOMER",
            "CustomerMasterKeySpec": SYMMETRIC,
            "KeySpec": SYMMETRIC,
            "EncryptionAlgorithms": [SYMMETRIC],
            "MultiRegion": false,
        });
        let created_at = keks.iter().map(|kek| kek.created_at).min();
        if let (Some(created_at), Some(members)) = (created_at, metadata.as_object_mut()) {
            members.insert("CreationDate".to_owned(), created_at.into());
        }
        Ok(metadata)
    }

    async fn rotation_status(&self, key: &Key) -> Result<Value, Error> {
        let name = key.chain.as_str();
        let (chain, page) = self.service.chain_with_keks(name, None, 1).await?;
        let age = chain.limits.rotate_after_age;
        let mut status = json!({
            "KeyId": &*key.arn,
            "KeyRotationEnabled": true,
            "RotationPeriodInDays": age.div_ceil(DAY),
        });
        let keks = if page.next.is_some() { self.keks(key).await? } else { page.items };
        let primary = keks.iter().find(|kek| Some(kek.kek_id) == chain.primary);
        let promoted_at = primary.and_then(|kek| kek.promoted_at);
        if let (Some(promoted_at), Some(members)) = (promoted_at, status.as_object_mut()) {
            members.insert("NextRotationDate".to_owned(), (promoted_at + age).into());
        }
        Ok(status)
    }

    /// The promotions of KEKs after the first.
    async fn rotations(&self, key: &Key, look: &Look<'_>) -> Result<Value, Error> {
        let keks = self.keks(key).await?;
        let promoted = keks.iter().filter_map(|kek| Some((kek.promoted_at?, kek.kek_id)));
        let mut promoted: Vec<_> = promoted.collect();
        promoted.sort_unstable();
        let rotations = promoted.into_iter().skip(1).map(|(at, kek_id)| {
            let rotation =
                json!({ "KeyId": &*key.arn, "RotationDate": at, "RotationType": "AUTOMATIC" });
            (format!("{at:020}-{kek_id}"), rotation)
        });
        Ok(Page::of(look, 100, 1000, rotations.collect())?.json("Rotations"))
    }

    /// All KEKs of a key's chain.
    async fn keks(&self, key: &Key) -> Result<Vec<KekInfo>, Error> {
        let (mut keks, mut after) = (Vec::new(), None);
        loop {
            let (_, page) =
                self.service.chain_with_keks(key.chain.as_str(), after, usize::MAX).await?;
            keks.extend(page.items);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(keks),
            }
        }
    }
}

fn policy(key: &Key, look: &Look<'_>) -> Result<Value, Error> {
    if look.policy_name().is_some_and(|name| name != POLICY) {
        return Err(Error::new(Code::NotFound, "a key has one policy, whose name is default"));
    }
    let (partition, account) = (key_id::partition(&key.arn), key_id::account(&key.arn));
    let policy = json!({
        "Version": "2012-10-17",
        "Id": "kms-proxy",
        "Statement": [{
            "Sid": "AccessIsSetInTheConfigurationOfKmsProxy",
            "Effect": "Allow",
            "Principal": { "AWS": format!("arn:{partition}:iam::{account}:root") },
            "Action": "kms:*",
            "Resource": "*",
        }],
    });
    Ok(json!({ "Policy": policy.to_string(), "PolicyName": POLICY }))
}
