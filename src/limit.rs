//! Permit and now to a [`Ticket`]: how much at once, and whether it may go on. So far it counts what is
//! in flight, and ends what runs by a key that was taken away.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use crate::access::{Entry, Permit};
use crate::reject::Reject;
use crate::store::KeyId;

mod leash;

use leash::{Leash, Leashes};

const ENDED: Reject = Reject::BadCredentials("the key was revoked", None);

/// What is in flight now; survives a reload.
#[derive(Debug, Default, Clone)]
pub struct Limits {
    in_flight: Arc<AtomicUsize>,
    leashes: Leashes,
}

/// A request whose body may be sent; it counts as in flight.
#[derive(Debug)]
pub struct Entered {
    in_flight: Arc<AtomicUsize>,
    /// Of who came with a managed key.
    leash: Option<Box<Leash>>,
}

/// One admitted request; dropping it settles what was taken. Only [`Limits::admit`] makes one.
#[derive(Debug)]
pub struct Ticket {
    permit: Permit,
    entered: Entered,
}

impl Limits {
    #[must_use]
    pub fn enter(&self, may_send: &Entry) -> Entered {
        let key = may_send.reach().who().managed_key();
        let leash = key.map(|key| Box::new(self.leashes.take(key)));
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Entered { in_flight: Arc::clone(&self.in_flight), leash }
    }

    #[must_use]
    pub fn admit(&self, permit: Permit, entered: Entered) -> Ticket {
        Ticket { permit, entered }
    }

    /// Ends what runs by this key, which is for ever; how many requests that were.
    pub fn end(&self, key: KeyId) -> usize {
        self.leashes.end(key)
    }

    /// Requests between the login and the end of their answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

impl Ticket {
    #[must_use]
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Ready, with what the caller is told, once the request may not go on.
    pub fn poll_ended(&self, cx: &Context<'_>) -> Poll<Reject> {
        match &self.entered.leash {
            Some(leash) if leash.is_cut(cx) => Poll::Ready(ENDED),
            Some(_) | None => Poll::Pending,
        }
    }

    /// The work's own end, or that of the leave to do it.
    ///
    /// # Errors
    /// The work's, and 401 where the key was taken away.
    pub async fn unless_ended<T>(
        &self,
        mut work: Pin<&mut impl Future<Output = Result<T, Reject>>>,
    ) -> Result<T, Reject> {
        poll_fn(|cx| match self.poll_ended(cx) {
            Poll::Ready(ended) => Poll::Ready(Err(ended)),
            Poll::Pending => work.as_mut().poll(cx),
        })
        .await
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::IpAddr;
    use std::time::Instant;

    use http::{HeaderMap, HeaderValue, Method, header};

    use super::*;
    use crate::access::{Ground, Provenance, Rules, admit, authorize};
    use crate::api::Asked;
    use crate::auth::{Auth, Files, Memory, Presented};
    use crate::call::{BodyBounds, Call};
    use crate::client_addr::{PeerAddr, TrustedProxies};
    use crate::config::Config;

    /// For a key's owner who lists the models; there is no shorter way to a ticket.
    async fn ticket(limits: &Limits) -> Ticket {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("api_keys.txt");
        fs::write(&keys, "a-key # anna\n").unwrap();
        let mut config = Config::builtin();
        config.api_keys = Some(keys);
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer a-key"));
        let peer = PeerAddr::new(IpAddr::from([192, 0, 2, 1]));
        let client = TrustedProxies::default().client_addr(peer, &headers);
        let path = "/api/tags";
        let presented = Presented {
            headers: &headers,
            path_key: None,
            method: "GET",
            path,
            ts: None,
            certificate: None,
        };
        let auth = Auth::new(&config, Files::open(&config, None));
        let who = auth
            .authenticate(&Memory::new(1).unwrap(), client, presented, Instant::now())
            .await
            .unwrap();
        let asked = Asked::find(&Method::GET, path, &[]).unwrap();
        let cors = &config.cors;
        let provenance = Provenance { method: &Method::GET, headers: &headers, cors };
        let entry = admit(&Rules::new(&config), who, &asked, provenance).unwrap();
        let bounds = BodyBounds::new(1, 1024, std::time::Duration::ZERO);
        let parts = http::Request::new(()).into_parts().0;
        let mut call = Call::without_body(asked, &parts);
        let entered = limits.enter(&entry);
        let ground = Ground { bounds: &bounds, loaded_context: None };
        limits.admit(authorize(entry, &mut call, &ground).unwrap(), entered)
    }

    #[tokio::test]
    async fn a_request_counts_from_its_admission_until_its_ticket_is_dropped() {
        let limits = Limits::default();
        let first = ticket(&limits).await;
        let second = ticket(&limits).await;
        assert_eq!(limits.in_flight(), 2);
        drop(first);
        assert_eq!(limits.in_flight(), 1);
        drop(second);
        assert_eq!(limits.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_clone_counts_the_same_requests() {
        let limits = Limits::default();
        let ticket = ticket(&limits).await;
        let clone = limits.clone();
        drop(limits);
        assert_eq!(clone.in_flight(), 1);
        drop(ticket);
        assert_eq!(clone.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_ticket_says_whose_it_is() {
        let ticket = ticket(&Limits::default()).await;
        assert_eq!(ticket.permit().who().name().as_str(), "anna");
    }
}
