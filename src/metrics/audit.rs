//! The metrics of the audit log.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

use super::register::Register;

/// The metrics of the audit log. There are none without an audit log, except the counters.
pub struct Audit {
    /// Lines that were handed to the operating system.
    pub written: IntCounter,
    /// Lines that are in no log although the calls succeeded.
    pub lost: IntCounter,
    /// Lines of calls that were refused since their lines could not be written.
    pub refused: IntCounter,
    /// Lines of refused callers beyond the limit.
    pub omitted: IntCounter,
    /// Without labels; vectors, since there is no value without an audit log.
    queue: IntGaugeVec,
    up: IntGaugeVec,
}

impl Audit {
    pub(super) fn new(register: &Register<'_>) -> Result<Self, prometheus::Error> {
        let lines: IntCounterVec = register.counter_vec(
            "kms_proxy_audit_lines_total",
            "Lines of the audit log: written, lost, refused with their calls, or omitted.",
            &["outcome"],
        )?;
        let [written, lost, refused, omitted] =
            ["written", "lost", "refused", "omitted"].map(|it| lines.with_label_values(&[it]));
        Ok(Self {
            written,
            lost,
            refused,
            omitted,
            queue: register.int_gauge_vec(
                "kms_proxy_audit_queue",
                "Bytes of audit lines that wait to be written.",
                &[],
            )?,
            up: register.int_gauge_vec(
                "kms_proxy_audit_up",
                "Whether the audit log takes lines.",
                &[],
            )?,
        })
    }

    /// Sets the bytes that wait to be written.
    pub fn set_queue(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.queue.with_label_values(&[] as &[&str]).set(bytes);
    }

    /// Sets whether the log takes lines.
    pub fn set_up(&self, is_up: bool) {
        self.up.with_label_values(&[] as &[&str]).set(i64::from(is_up));
    }
}
