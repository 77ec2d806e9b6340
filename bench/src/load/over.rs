//! What callers speak: HTTP/1.1 with TLS or without, or HTTP/2.

use std::sync::Arc;

use rustls::ClientConfig;

/// What the callers speak.
#[derive(Debug, Clone)]
pub(crate) enum Over {
    Plain,
    /// HTTP/1.1.
    Tls(Arc<ClientConfig>),
    /// So many streams on each connection; the same request and `Pace::Closed` only.
    Http2(Arc<ClientConfig>, usize),
}

impl Over {
    pub(super) fn tls(&self) -> Option<&Arc<ClientConfig>> {
        match self {
            Self::Plain => None,
            Self::Tls(config) | Self::Http2(config, _) => Some(config),
        }
    }

    /// Requests at once on a connection.
    pub(crate) fn streams(&self) -> usize {
        match self {
            Self::Plain | Self::Tls(_) => 1,
            Self::Http2(_, streams) => *streams,
        }
    }
}
