//! What a supervisor such as systemd is told (sd_notify(3)).

/// How far the gate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// Every listener is open, and requests are answered.
    Ready,
    /// The configuration is being read anew; `Ready` follows.
    Reloading,
    Stopping,
}

/// Tells it, if there is a supervisor who wants to know.
#[cfg(target_os = "linux")]
pub(super) fn tell(news: News) {
    use sd_notify::NotifyState;

    let told = match news {
        News::Ready => sd_notify::notify(&[NotifyState::Ready]),
        // systemd takes a reload only with the time at which it began.
        News::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
        News::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = told {
        tracing::warn!(%error, "the supervisor could not be told");
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn tell(_: News) {}
