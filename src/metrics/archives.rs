//! The metrics of archives: whether they are available, what they do not hold yet, and what was
//! restored from them.

use prometheus::{IntCounter, IntGaugeVec};

use super::register::Register;

/// The metrics of archives. Those with a label `archive` exist for configured archives only.
pub struct Archives {
    /// 1 if the last call of the archive succeeded.
    pub up: IntGaugeVec,
    /// Records that the archive does not hold yet, or holds in an older state.
    pub pending: IntGaugeVec,
    /// KEKs that were restored to the store.
    pub restored: IntCounter,
    /// KEKs that became primary before the archives held them.
    pub unarchived: IntCounter,
}

impl Archives {
    pub(super) fn new(register: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            up: register.int_gauge_vec(
                "kms_proxy_archive_up",
                "Whether the last call of the archive succeeded.",
                &["archive"],
            )?,
            pending: register.int_gauge_vec(
                "kms_proxy_archive_pending",
                "Records of KEKs and chains that the archive lacks, or has in an older state.",
                &["archive"],
            )?,
            restored: register.counter(
                "kms_proxy_archive_restored_keks_total",
                "KEKs that the store lacked and that were restored from an archive.",
            )?,
            unarchived: register.counter(
                "kms_proxy_unarchived_promotions_total",
                "KEKs that became primary before the required archives held them.",
            )?,
        })
    }
}
