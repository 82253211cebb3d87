//! The items of the checklist in docs/production.md: their names, sections and advice. It must not
//! know how they are found.

use clap::ValueEnum;

/// What can be missing. The names are stable, and in the order of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(in crate::cli) enum Check {
    RootLocal,
    RootPassphrase,
    RootForgeable,
    RootPlain,
    RootToken,
    StoreSingle,
    StoreMembers,
    StorePlain,
    StoreAnonymous,
    ArchiveNone,
    ArchiveContinue,
    ArchiveUnwritable,
    TlsNone,
    TlsExpiry,
    TlsName,
    AuthNone,
    CredentialPermanent,
    ClientBroad,
    SecretReadable,
    AuditNone,
    AuditContinue,
    AuditUnwritable,
    MetricsNone,
    TracesPlain,
    TracesMany,
    ClientUnlimited,
    DrainNone,
}

impl Check {
    /// The name that users see, such as `root-local`.
    pub(super) fn name(self) -> String {
        // Every value has one.
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The section of docs/production.md.
    pub(super) fn section(self) -> &'static str {
        match self {
            Self::RootLocal
            | Self::RootPassphrase
            | Self::RootForgeable
            | Self::RootPlain
            | Self::RootToken => "root",
            Self::StoreSingle | Self::StoreMembers | Self::StorePlain | Self::StoreAnonymous => {
                "store"
            }
            Self::ArchiveNone | Self::ArchiveContinue | Self::ArchiveUnwritable => "archive",
            Self::TlsNone | Self::TlsExpiry | Self::TlsName => "tls",
            Self::AuthNone
            | Self::CredentialPermanent
            | Self::ClientBroad
            | Self::SecretReadable => "identities",
            Self::AuditNone | Self::AuditContinue | Self::AuditUnwritable => "audit-log",
            Self::MetricsNone | Self::TracesPlain | Self::TracesMany => "alerts",
            Self::ClientUnlimited | Self::DrainNone => "limits",
        }
    }

    /// What to do.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::RootLocal | Self::RootPassphrase => "use AWS KMS, an HSM, Vault or OpenBao",
            Self::RootForgeable => "use an AES key of a Managed HSM, with algorithm = \"A256KW\"",
            Self::RootPlain => "use https://",
            Self::RootToken => "name a file that an agent renews in token_file, or use AppRole",
            Self::StoreSingle => "use etcd, and name all of its three or five members",
            Self::StoreMembers => "name each of three or five members once",
            Self::StorePlain => "use https:// for all members",
            Self::StoreAnonymous => {
                "set store.username or store.tls.cert, for a user who may use the prefix alone"
            }
            Self::ArchiveNone => "add an [[archive]], or make a backup after each rotation",
            Self::ArchiveContinue => "set archive_policy.on_failure = \"wait\"",
            Self::ArchiveUnwritable => {
                "make it for the user of the service, with the file kms-proxy-archive in it"
            }
            Self::TlsNone => "set server.tls",
            Self::TlsExpiry => "replace the certificate",
            Self::TlsName => "use a certificate with the names by which clients call the service",
            Self::AuthNone => "set auth.mode = \"required\", and a [[client]] for each caller",
            Self::CredentialPermanent => "use a certificate or a JWT, or replace it regularly",
            Self::ClientBroad => "name the chains that it needs in client.allow",
            Self::SecretReadable => "run `chmod go-rwx` on it, or give it to the service's group",
            Self::AuditNone => "set audit.file",
            Self::AuditContinue => "set audit.on_failure = \"refuse\"",
            Self::AuditUnwritable => "make its directory for the user of the service",
            Self::MetricsNone => {
                "set server.admin_listen, or give a client `read` on all chains, for Prometheus"
            }
            Self::TracesPlain => "use https://, or a collector on this machine",
            Self::TracesMany => "set traces.sample_ratio to 0.1 or less",
            Self::ClientUnlimited => "set its max_in_flight",
            Self::DrainNone => "set it to the time in which the load balancer notices a stop",
        }
    }
}
