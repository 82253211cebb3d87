//! ARNs of keys and aliases of AWS KMS: reading and writing them. It knows no chain.

use std::sync::Arc;

/// An ARN of KMS: `arn:PARTITION:kms:REGION:ACCOUNT:RESOURCE`, with a key or an alias as resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Arn {
    text: Arc<str>,
    /// Where region and resource are in the text.
    region: (usize, usize),
    resource: usize,
}

impl Arn {
    /// Reads an ARN.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let ["arn", partition, "kms", region, account, resource] = parts[..] else { return None };
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"/_.-".contains(&b);
        let name = ["key/", "alias/"].iter().find_map(|kind| resource.strip_prefix(kind))?;
        let is_sound = !partition.is_empty() && !region.is_empty() && !name.is_empty();
        if !is_sound || account.len() != 12 || !resource.bytes().all(fits) || text.len() > 2048 {
            return None;
        }
        let start = "arn:".len() + partition.len() + ":kms:".len();
        let region = (start, start + region.len());
        Some(Self { text: text.into(), region, resource: text.len() - resource.len() })
    }

    /// The ARN of a key, as text that is not checked.
    pub(super) fn of_key(region: &str, account: &str, id: &str) -> Arc<str> {
        let partition = match region.split('-').next() {
            Some("cn") => "aws-cn",
            _ if region.starts_with("us-gov-") => "aws-us-gov",
            _ => "aws",
        };
        format!("arn:{partition}:kms:{region}:{account}:key/{id}").into()
    }

    pub(super) fn text(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn region(&self) -> &str {
        self.text.get(self.region.0..self.region.1).unwrap_or_default()
    }

    /// The id, if it is a key's.
    pub(super) fn key(&self) -> Option<&str> {
        self.resource().strip_prefix("key/")
    }

    /// The ARN of an alias in the same account and region.
    pub(super) fn with_alias(&self, alias: &str) -> Option<Self> {
        let start = self.text.get(..self.resource)?;
        alias.strip_prefix("alias/")?;
        Self::parse(&format!("{start}{alias}"))
    }

    fn resource(&self) -> &str {
        self.text.get(self.resource..).unwrap_or_default()
    }
}
