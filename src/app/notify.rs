//! Notifications to systemd for a service with `Type=notify`: ready and stopping.
//! Without the variable `NOTIFY_SOCKET`, which systemd sets, nothing is sent.

use sd_notify::NotifyState;

/// The service answers. systemd then starts what comes after it.
pub(super) fn ready() {
    send(&[NotifyState::Ready]);
}

/// The service ends as soon as requests in flight are done.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be notified (NOTIFY_SOCKET)");
    }
}
