//! The operations of AWS KMS: which of them are served, and the permission that each needs.

use crate::metrics::Operation as Permission;

/// An operation that is served here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    Encrypt,
    Decrypt,
    GenerateDataKey,
    GenerateDataKeyWithoutPlaintext,
    ReEncrypt,
    GenerateRandom,
    DescribeKey,
    ListKeys,
    ListAliases,
    GetKeyRotationStatus,
    ListKeyRotations,
    ListResourceTags,
    ListGrants,
    ListKeyPolicies,
    GetKeyPolicy,
    RotateKeyOnDemand,
}

/// An operation that KMS has and that is not served here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Other {
    pub(super) name: &'static str,
    /// What a caller must be allowed, with all chains, before it is forwarded.
    pub(super) permission: Permission,
    /// What to do with a chain instead.
    pub(super) instead: &'static str,
}

/// An operation of AWS KMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Served(Served),
    Other(Other),
}

impl Served {
    pub(super) const ALL: [Self; 16] = [
        Self::Encrypt,
        Self::Decrypt,
        Self::GenerateDataKey,
        Self::GenerateDataKeyWithoutPlaintext,
        Self::ReEncrypt,
        Self::GenerateRandom,
        Self::DescribeKey,
        Self::ListKeys,
        Self::ListAliases,
        Self::GetKeyRotationStatus,
        Self::ListKeyRotations,
        Self::ListResourceTags,
        Self::ListGrants,
        Self::ListKeyPolicies,
        Self::GetKeyPolicy,
        Self::RotateKeyOnDemand,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "Encrypt",
            Self::Decrypt => "Decrypt",
            Self::GenerateDataKey => "GenerateDataKey",
            Self::GenerateDataKeyWithoutPlaintext => "GenerateDataKeyWithoutPlaintext",
            Self::ReEncrypt => "ReEncrypt",
            Self::GenerateRandom => "GenerateRandom",
            Self::DescribeKey => "DescribeKey",
            Self::ListKeys => "ListKeys",
            Self::ListAliases => "ListAliases",
            Self::GetKeyRotationStatus => "GetKeyRotationStatus",
            Self::ListKeyRotations => "ListKeyRotations",
            Self::ListResourceTags => "ListResourceTags",
            Self::ListGrants => "ListGrants",
            Self::ListKeyPolicies => "ListKeyPolicies",
            Self::GetKeyPolicy => "GetKeyPolicy",
            Self::RotateKeyOnDemand => "RotateKeyOnDemand",
        }
    }

    /// The permission that it needs. ReEncrypt needs `decrypt` with its source as well.
    pub(super) const fn permission(self) -> Permission {
        match self {
            Self::Encrypt | Self::ReEncrypt => Permission::Encrypt,
            Self::Decrypt => Permission::Decrypt,
            Self::GenerateDataKey
            | Self::GenerateDataKeyWithoutPlaintext
            | Self::GenerateRandom => Permission::Datakey,
            Self::RotateKeyOnDemand => Permission::Rotate,
            Self::DescribeKey
            | Self::ListKeys
            | Self::ListAliases
            | Self::GetKeyRotationStatus
            | Self::ListKeyRotations
            | Self::ListResourceTags
            | Self::ListGrants
            | Self::ListKeyPolicies
            | Self::GetKeyPolicy => Permission::Read,
        }
    }
}

const ACCESS: &str =
    "who may use a chain is set by [[client]] allow in the configuration of kms-proxy";
const CHAINS: &str = "make a chain with PUT /v1/chains/NAME of kms-proxy";
const DISABLE: &str =
    "disable KEKs of the chain with POST /v1/chains/NAME/keks/ID/disable of kms-proxy";
const ENABLE: &str =
    "enable KEKs of the chain with POST /v1/chains/NAME/keks/ID/enable of kms-proxy";
const DESTROY: &str =
    "disable and destroy KEKs of the chain with POST /v1/chains/NAME/keks/ID/destroy of kms-proxy";
const NAMES: &str =
    "the names of keys are set by [[aws_api.key]] in the configuration of kms-proxy";
const ROTATION: &str = "when KEKs are replaced is set by PUT /v1/chains/NAME of kms-proxy";
const NONE: &str =
    "a chain of kms-proxy is a symmetric key for encryption and has no such operation";

/// All other operations.
pub(super) const OTHERS: [(&str, Permission, &str); 38] = [
    ("CancelKeyDeletion", Permission::Manage, ENABLE),
    ("ConnectCustomKeyStore", Permission::Manage, NONE),
    ("CreateAlias", Permission::Manage, NAMES),
    ("CreateCustomKeyStore", Permission::Manage, NONE),
    ("CreateGrant", Permission::Manage, ACCESS),
    ("CreateKey", Permission::Manage, CHAINS),
    ("DeleteAlias", Permission::Manage, NAMES),
    ("DeleteCustomKeyStore", Permission::Manage, NONE),
    ("DeleteImportedKeyMaterial", Permission::Manage, DESTROY),
    ("DeriveSharedSecret", Permission::Decrypt, NONE),
    ("DescribeCustomKeyStores", Permission::Read, NONE),
    ("DisableKey", Permission::Manage, DISABLE),
    ("DisableKeyRotation", Permission::Manage, ROTATION),
    ("DisconnectCustomKeyStore", Permission::Manage, NONE),
    ("EnableKey", Permission::Manage, ENABLE),
    ("EnableKeyRotation", Permission::Manage, ROTATION),
    ("GenerateDataKeyPair", Permission::Datakey, NONE),
    ("GenerateDataKeyPairWithoutPlaintext", Permission::Datakey, NONE),
    ("GenerateMac", Permission::Encrypt, NONE),
    ("GetParametersForImport", Permission::Manage, NONE),
    ("GetPublicKey", Permission::Read, NONE),
    ("ImportKeyMaterial", Permission::Manage, NONE),
    ("ListRetirableGrants", Permission::Read, ACCESS),
    ("PutKeyPolicy", Permission::Manage, ACCESS),
    ("ReplicateKey", Permission::Manage, NONE),
    ("RetireGrant", Permission::Manage, ACCESS),
    ("RevokeGrant", Permission::Manage, ACCESS),
    ("ScheduleKeyDeletion", Permission::Manage, DESTROY),
    ("Sign", Permission::Encrypt, NONE),
    ("TagResource", Permission::Manage, NONE),
    ("UntagResource", Permission::Manage, NONE),
    ("UpdateAlias", Permission::Manage, NAMES),
    ("UpdateCustomKeyStore", Permission::Manage, NONE),
    ("UpdateKeyDescription", Permission::Manage, NONE),
    ("UpdatePrimaryRegion", Permission::Manage, NONE),
    ("Verify", Permission::Decrypt, NONE),
    ("VerifyMac", Permission::Decrypt, NONE),
    ("GetKeyLastUsage", Permission::Read, NONE),
];

impl Operation {
    /// The operation that `X-Amz-Target` names: `TrentService.NAME`.
    pub(super) fn of_target(target: &str) -> Option<Self> {
        let name = target.strip_prefix("TrentService.")?;
        if let Some(served) = Served::ALL.into_iter().find(|served| served.name() == name) {
            return Some(Self::Served(served));
        }
        let other = OTHERS.into_iter().find(|(other, ..)| *other == name);
        other.map(|(name, permission, instead)| Self::Other(Other { name, permission, instead }))
    }

    /// The permission that it needs, before anything else is known of the call.
    pub(super) const fn permission(self) -> Permission {
        match self {
            Self::Served(served) => served.permission(),
            Self::Other(other) => other.permission,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_target_names_one_operation() {
        let names: HashSet<_> = Served::ALL.iter().map(|served| served.name()).collect();
        let others: HashSet<_> = OTHERS.iter().map(|(name, ..)| *name).collect();
        assert_eq!((names.len(), others.len()), (Served::ALL.len(), OTHERS.len()));
        assert!(names.is_disjoint(&others));
        for name in names.into_iter().chain(others) {
            let found = Operation::of_target(&format!("TrentService.{name}")).unwrap();
            let found = match found {
                Operation::Served(served) => served.name(),
                Operation::Other(other) => other.name,
            };
            assert_eq!(found, name);
        }
        for bad in ["", "Encrypt", "TrentService.encrypt", "TrentService.", "Trent.Encrypt"] {
            assert_eq!(Operation::of_target(bad), None, "{bad}");
        }
    }
}
