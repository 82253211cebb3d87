//! The names of a key in Azure: `key_id`, and the id of a version in a response. It makes no call.

use reqwest::Url;

use crate::loopback::is_loopback;

/// A key without a version.
pub(super) struct KeyId {
    /// `https://HOST/keys/NAME`.
    pub(super) url: String,
    pub(super) host: String,
    /// The one text of this key: Azure does not distinguish the case of names.
    pub(super) text: String,
    parsed: Url,
}

impl KeyId {
    /// Reads `key_id`. Errors do not repeat it, since it may contain a password.
    pub(super) fn parse(key_id: &str) -> Result<Self, String> {
        let wrong =
            || "key_id: it is the URL of a key, https://VAULT.vault.azure.net/keys/NAME".to_owned();
        let url = Url::parse(key_id).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        let parsed = url.ok_or_else(wrong)?;
        let host = parsed.host_str().ok_or_else(wrong)?.to_owned();
        let parts: Vec<_> = parsed.path().split('/').collect();
        let is_name = |name: &str| {
            (1..=127).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        match parts[..] {
            ["", "keys", name] if is_name(name) => {
                let url = parsed.as_str().to_owned();
                Ok(Self { text: url.to_ascii_lowercase(), url, host, parsed })
            }
            ["", "keys", _, _] => {
                Err("key_id: it names one version; leave out what follows the name".to_owned())
            }
            _ => Err(wrong()),
        }
    }

    /// The version in `kid`, if it is one of this key.
    pub(super) fn version(&self, kid: &str) -> Option<[u8; 16]> {
        let kid = Url::parse(kid).ok()?;
        let (path, version) = kid.path().rsplit_once('/')?;
        let is_same = kid.host_str() == self.parsed.host_str()
            && path.eq_ignore_ascii_case(self.parsed.path());
        let mut bytes = [0; 16];
        let decoded = base16ct::lower::decode(version, &mut bytes).ok()?;
        (is_same && decoded.len() == 16).then_some(bytes)
    }

    pub(super) fn is_plain(&self) -> bool {
        self.parsed.scheme() == "http"
    }

    /// Whether tokens and KEKs cross a network without TLS.
    pub(super) fn is_in_the_open(&self) -> bool {
        self.is_plain() && !is_loopback(&self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "https://orders.vault.azure.net/keys/kms-proxy";

    #[test]
    fn a_key_is_named_by_its_url() {
        for good in [KEY, "https://h.managedhsm.azure.net/keys/A", "http://127.0.0.1:1/keys/a"] {
            assert_eq!(KeyId::parse(good).unwrap().url, good);
        }
        for bad in [
            "",
            "kms-proxy",
            "https://orders.vault.azure.net/",
            "https://orders.vault.azure.net/keys/",
            "https://orders.vault.azure.net/secrets/a",
            "https://orders.vault.azure.net/keys/a%2fb",
            "https://orders.vault.azure.net/keys/../a",
            "https://planted@orders.vault.azure.net/keys/a",
            "ftp://orders.vault.azure.net/keys/a",
        ] {
            let error = KeyId::parse(bad).err().unwrap();
            assert!(error.starts_with("key_id: it is the URL"), "{bad}: {error}");
        }
        let version = format!("{KEY}/00112233445566778899aabbccddeeff");
        assert!(KeyId::parse(&version).err().unwrap().contains("names one version"));
    }

    #[test]
    fn a_key_has_one_text_however_it_is_spelled() {
        for same in [
            KEY,
            "HTTPS://Orders.Vault.Azure.NET/keys/kms-proxy",
            "https://orders.vault.azure.net:443/keys/KMS-Proxy",
            "https://orders.vault.azure.net/./keys/kms-proxy",
        ] {
            assert_eq!(KeyId::parse(same).unwrap().text, KEY);
        }
        for other in ["http://orders.vault.azure.net/keys/kms-proxy", &format!("{KEY}2")] {
            assert_ne!(KeyId::parse(other).unwrap().text, KEY);
        }
    }

    #[test]
    fn a_version_of_another_key_is_noticed() {
        let key = KeyId::parse(KEY).unwrap();
        let version = "00112233445566778899aabbccddeeff";
        assert_eq!(key.version(&format!("{KEY}/{version}")).unwrap()[1], 0x11);
        for bad in [
            KEY.to_owned(),
            format!("{KEY}/0011"),
            format!("{KEY}x/{version}"),
            format!("{}/{version}", KEY.replace("orders", "other")),
        ] {
            assert_eq!(key.version(&bad), None, "{bad}");
        }
    }
}
