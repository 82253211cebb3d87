//! What the answers mean: a plan of the configuration. It knows the grammar of answers, and no file
//! format. Whether the values can be used is checked on the configuration that is made of them.

use std::path::Path;

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    Root,
    Store,
    Archive,
    Tls,
    Identities,
    Audit,
}

/// The answers. The default needs nothing else, so that each answer can be checked alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) root: Root,
    pub(super) store: Store,
    pub(super) archive: Option<Archive>,
    pub(super) tls: Option<Tls>,
    pub(super) identities: Identities,
    pub(super) audit: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Root {
    AwsKms {
        key_id: String,
    },
    AzureKeyVault {
        key_id: String,
    },
    GcpKms {
        key_id: String,
    },
    VaultTransit {
        address: String,
        key: String,
        token_file: String,
    },
    Pkcs11 {
        module: String,
        token: String,
        key: String,
        pin_file: String,
    },
    Passphrase {
        file: String,
    },
    #[default]
    Local,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Store {
    Etcd {
        endpoints: Vec<String>,
    },
    File {
        path: String,
    },
    #[default]
    Inline,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) cert: String,
    pub(super) key: String,
    pub(super) client_ca: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Identities {
    Token,
    Jwt {
        issuer: String,
        audience: String,
        subject: String,
        jwks: String,
    },
    Certificate {
        san: String,
    },
    #[default]
    None,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Archive {
    pub(super) kind: &'static str,
    /// The path of a directory, or the URL of a bucket.
    pub(super) place: String,
}

impl Plan {
    /// Puts the answer to a question into the plan.
    ///
    /// # Errors
    /// What was expected instead.
    pub(super) fn set(&mut self, topic: Topic, answer: &str) -> Result<(), String> {
        match topic {
            Topic::Root => self.root = root(answer)?,
            Topic::Store => self.store = store(answer)?,
            Topic::Archive => self.archive = archive(answer)?,
            Topic::Tls => self.tls = tls(answer)?,
            Topic::Identities => self.identities = identities(answer)?,
            Topic::Audit => self.audit = (answer != "none").then(|| answer.to_owned()),
        }
        Ok(())
    }

    /// The client whose token is generated.
    pub(super) fn token_client(&self) -> Option<&'static str> {
        match self.identities {
            Identities::Token => Some("app"),
            Identities::Jwt { .. } | Identities::Certificate { .. } => Some("operator"),
            Identities::None => None,
        }
    }

    /// The file for the passphrase, if it does not exist yet.
    pub(super) fn missing_passphrase(&self) -> Option<&str> {
        match &self.root {
            Root::Passphrase { file } if Path::new(file).symlink_metadata().is_err() => Some(file),
            _ => None,
        }
    }
}

fn root(answer: &str) -> Result<Root, String> {
    if answer == "local" {
        return Ok(Root::Local);
    }
    let (kind, rest) = answer.split_once(':').unwrap_or((answer, ""));
    match kind {
        "aws-kms" => parts(rest, "aws-kms:KEY_ID").map(|[key_id]| Root::AwsKms { key_id }),
        "azure-key-vault" => {
            parts(rest, "azure-key-vault:URL").map(|[key_id]| Root::AzureKeyVault { key_id })
        }
        "gcp-kms" => parts(rest, "gcp-kms:KEY").map(|[key_id]| Root::GcpKms { key_id }),
        "vault-transit" => parts(rest, "vault-transit:URL,KEY,TOKEN_FILE")
            .map(|[address, key, token_file]| Root::VaultTransit { address, key, token_file }),
        "pkcs11" => parts(rest, "pkcs11:MODULE,TOKEN,KEY,PIN_FILE")
            .map(|[module, token, key, pin_file]| Root::Pkcs11 { module, token, key, pin_file }),
        "passphrase" => parts(rest, "passphrase:FILE").map(|[file]| Root::Passphrase { file }),
        _ => Err("expected aws-kms:.., azure-key-vault:.., gcp-kms:.., vault-transit:.., \
                  pkcs11:.., passphrase:FILE or local"
            .to_owned()),
    }
}

fn store(answer: &str) -> Result<Store, String> {
    let (kind, rest) = answer.split_once(':').unwrap_or((answer, ""));
    match kind {
        "inline" if rest.is_empty() => Ok(Store::Inline),
        "file" => parts(rest, "file:DIR").map(|[path]| Store::File { path }),
        "etcd" if !rest.is_empty() => {
            let endpoints = rest.split(',').map(|url| url.trim().to_owned()).collect();
            Ok(Store::Etcd { endpoints })
        }
        _ => Err("expected etcd:URL,URL,.., file:DIR or inline".to_owned()),
    }
}

fn tls(answer: &str) -> Result<Option<Tls>, String> {
    if answer == "none" {
        return Ok(None);
    }
    let expected = "CERT,KEY, or CERT,KEY,CLIENT_CA, or none";
    if answer.split(',').count() == 3 {
        let [cert, key, client_ca] = parts(answer, expected)?;
        return Ok(Some(Tls { cert, key, client_ca: Some(client_ca) }));
    }
    let [cert, key] = parts(answer, expected)?;
    Ok(Some(Tls { cert, key, client_ca: None }))
}

fn identities(answer: &str) -> Result<Identities, String> {
    let (kind, rest) = answer.split_once(':').unwrap_or((answer, ""));
    match kind {
        "none" if rest.is_empty() => Ok(Identities::None),
        "token" if rest.is_empty() => Ok(Identities::Token),
        "jwt" => parts(rest, "jwt:ISSUER,AUDIENCE,SUBJECT,JWKS").map(
            |[issuer, audience, subject, jwks]| Identities::Jwt { issuer, audience, subject, jwks },
        ),
        "certificate" => {
            parts(rest, "certificate:NAME").map(|[san]| Identities::Certificate { san })
        }
        _ => Err("expected token, jwt:.., certificate:NAME or none".to_owned()),
    }
}

fn archive(answer: &str) -> Result<Option<Archive>, String> {
    let place = answer.to_owned();
    Ok(match answer.split_once(':') {
        None if answer == "none" => None,
        Some(("s3", _)) => Some(Archive { kind: "s3", place }),
        Some(("gs", _)) => Some(Archive { kind: "gcs", place }),
        Some(("az", _)) => Some(Archive { kind: "azure", place }),
        Some(("dir", path)) if !path.is_empty() => {
            Some(Archive { kind: "dir", place: path.to_owned() })
        }
        _ => {
            let expected = "expected s3://.., gs://.., az://.., dir:PATH or none";
            return Err(expected.to_owned());
        }
    })
}

/// Exactly `N` parts between commas, none of them empty.
fn parts<const N: usize>(text: &str, expected: &str) -> Result<[String; N], String> {
    let parts: Vec<_> = text.split(',').map(|part| part.trim().to_owned()).collect();
    let parts = <[String; N]>::try_from(parts).ok();
    parts
        .filter(|parts| parts.iter().all(|part| !part.is_empty()))
        .ok_or_else(|| format!("expected {expected}"))
}
