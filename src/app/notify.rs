//! Notifies systemd, for a service with `Type=notify`, when the service is ready and when it stops.
//! Nothing is sent unless systemd has set the variable `NOTIFY_SOCKET`.

use sd_notify::NotifyState;

/// The service is ready. systemd then starts the units that are ordered after it.
pub(super) fn ready() {
    send(&[NotifyState::Ready]);
}

/// The service stops once the requests in flight are finished.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be notified (NOTIFY_SOCKET)");
    }
}
