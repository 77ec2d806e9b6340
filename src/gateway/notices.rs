//! What the operator should know about where callers come from: told once, and at the most daily.
//!
//! It is asked for every request, so it costs a load or two once it has made up its mind.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::auth::{Credential, Identity, Name};
use crate::client_addr::{ClientAddr, is_public};
use crate::gateway::{Door, Link};

/// So many requests, of so many names, all from one address, are no coincidence.
const REQUESTS: u32 = 50;
const NAMES: usize = 3;
/// Past this many requests of fewer names they are just one household.
const ENOUGH: u32 = 10_000;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// A secret came in the clear over the internet.
    InTheClear(Credential),
    /// Everybody seems to come from one private address.
    OneAddress,
}

impl Notice {
    pub(super) fn tell(self, client: IpAddr) {
        match self {
            Self::InTheClear(credential) => tracing::warn!(
                %client, %credential,
                "a login came from a public address over plain HTTP, readable on the way; put TLS before this gate"
            ),
            Self::OneAddress => tracing::warn!(
                %client,
                "all callers seem to come from this one address, so limits per address hit everybody at once; \
                 if it is a proxy or a container's network, name it in trusted_proxies"
            ),
        }
    }
}

/// What has been noticed so far; outlives a reload.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// Seconds of uptime at which a login in the clear may be told again.
    clear_again: AtomicU64,
    crowd: Crowd,
}

impl Notices {
    /// A caller was let in; `uptime`, asked only where it matters, is how
    /// long the gate has lived.
    pub(super) fn met(
        &self,
        client: ClientAddr,
        link: &Link,
        who: &Identity,
        uptime: impl FnOnce() -> Duration,
    ) -> Option<Notice> {
        let clear = is_in_the_clear(link).then(|| who.credential());
        self.seen(client, who.name(), clear, uptime)
    }

    fn seen(
        &self,
        client: ClientAddr,
        name: &Name,
        clear: Option<Credential>,
        uptime: impl FnOnce() -> Duration,
    ) -> Option<Notice> {
        if client.is_shared() || client.ip().is_loopback() {
            return None;
        }
        if is_public(client.ip()) {
            self.crowd.is_settled.store(true, Ordering::Relaxed);
            let credential = clear.filter(|_| !client.through_proxy())?;
            let is_new = self.is_new_in_the_clear(credential, uptime());
            return is_new.then_some(Notice::InTheClear(credential));
        }
        self.crowd.is_one_address(client.ip(), name).then_some(Notice::OneAddress)
    }

    /// A signature, or a certificate, gives nothing away that could be used elsewhere.
    fn is_new_in_the_clear(&self, credential: Credential, uptime: Duration) -> bool {
        match credential {
            Credential::Password | Credential::Key => {}
            Credential::Signature | Credential::Certificate => return false,
        }
        let (now, again) = (uptime.as_secs(), self.clear_again.load(Ordering::Relaxed));
        let next = now + DAY.as_secs();
        now >= again
            && self
                .clear_again
                .compare_exchange(again, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

fn is_in_the_clear(link: &Link) -> bool {
    match link.door {
        // Whoever announces connections may have ended their TLS.
        Door::Plain | Door::Redirect => !link.is_announced,
        Door::Admin | Door::Tls(_) => false,
    }
}

/// Whether everybody comes from the same address; settled by the first who does not.
#[derive(Debug, Default)]
struct Crowd {
    is_settled: AtomicBool,
    /// Digests, of which none is 0; that two of them are alike by chance does no harm.
    address: AtomicU64,
    names: [AtomicU64; NAMES],
    requests: AtomicU32,
}

impl Crowd {
    /// True once, if at all.
    fn is_one_address(&self, ip: IpAddr, name: &Name) -> bool {
        if self.is_settled.load(Ordering::Relaxed) {
            return false;
        }
        let address = match ip {
            IpAddr::V4(ip) => digest(&ip.octets()),
            IpAddr::V6(ip) => digest(&ip.octets()),
        };
        if !takes(&self.address, address) {
            self.is_settled.store(true, Ordering::Relaxed);
            return false;
        }
        let name = digest(name.as_ref());
        let _ = self.names.iter().any(|slot| takes(slot, name));
        let requests = self.requests.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let crowded = self.names.iter().all(|slot| slot.load(Ordering::Relaxed) != 0);
        if requests < REQUESTS || !crowded && requests < ENOUGH {
            return false;
        }
        !self.is_settled.swap(true, Ordering::Relaxed) && crowded
    }
}

/// Whether the slot holds this value, now that it was offered to it.
fn takes(slot: &AtomicU64, value: u64) -> bool {
    let held = slot.load(Ordering::Relaxed);
    held == value
        || held == 0
            && slot
                .compare_exchange(0, value, Ordering::Relaxed, Ordering::Relaxed)
                .map_or_else(|held| held == value, |_| true)
}

/// FNV-1a.
fn digest(bytes: &[u8]) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64;
    let hash = bytes
        .iter()
        .fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::HeaderMap;

    use super::*;
    use crate::client_addr::{PeerAddr, TrustedProxies};

    fn client(peer: &str, trusted: &[&str], forwarded: Option<&str>) -> ClientAddr {
        let mut headers = HeaderMap::new();
        if let Some(forwarded) = forwarded {
            headers.insert("x-forwarded-for", forwarded.parse().unwrap());
        }
        let nets = trusted.iter().map(|net| net.parse().unwrap()).collect();
        let gateway = Some("172.18.0.1".parse().unwrap());
        let peer = PeerAddr::new(peer.parse().unwrap());
        TrustedProxies::new(nets, gateway).client_addr(peer, &headers)
    }

    fn seen(notices: &Notices, from: ClientAddr, name: &str) -> Option<Notice> {
        notices.seen(from, &name.into(), Some(Credential::Password), || Duration::ZERO)
    }

    /// What so many requests of these names in turn gave rise to.
    fn crowd(notices: &Notices, from: &str, names: &[&str], requests: usize) -> Vec<Notice> {
        let from = client(from, &[], None);
        names.iter().cycle().take(requests).filter_map(|name| seen(notices, from, name)).collect()
    }

    #[test]
    fn a_secret_in_the_clear_from_the_internet_is_told_once_a_day() {
        let (notices, far) = (Notices::default(), client("203.0.114.7", &[], None));
        let at = |seconds| {
            notices
                .seen(far, &"anna".into(), Some(Credential::Key), || Duration::from_secs(seconds))
        };
        let told = Some(Notice::InTheClear(Credential::Key));
        assert_eq!(
            [at(5), at(6), at(86_404), at(86_405), at(86_406)],
            [told, None, None, told, None]
        );
    }

    #[test]
    fn what_is_no_secret_or_not_in_the_clear_is_not_told() {
        let notices = Notices::default();
        let far = client("203.0.114.7", &[], None);
        let signed = notices.seen(far, &"a".into(), Some(Credential::Signature), || Duration::ZERO);
        assert_eq!(signed, None, "a signature can be read by anybody");
        let hidden = notices.seen(far, &"a".into(), None, || Duration::ZERO);
        assert_eq!(hidden, None, "TLS");
        let proxied = client("10.0.0.1", &["10.0.0.0/8"], Some("203.0.114.7"));
        assert_eq!(seen(&notices, proxied, "anna"), None, "the proxy may have had TLS");
        let public_proxy = client("203.0.114.7", &["203.0.114.7/32"], None);
        assert_eq!(seen(&notices, public_proxy, "anna"), None, "a trusted proxy");
        for near in ["127.0.0.1", "192.168.1.2", "fd00::1"] {
            assert_eq!(seen(&notices, client(near, &[], None), "anna"), None, "{near}");
        }
    }

    #[test]
    fn only_a_plain_connection_that_nobody_announced_is_in_the_clear() {
        let peer = "203.0.114.7:1".parse().unwrap();
        for (is_announced, door, clear) in [
            (false, Door::Plain, true),
            (true, Door::Plain, false),
            (false, Door::Tls(None), false),
            (true, Door::Tls(None), false),
        ] {
            assert_eq!(is_in_the_clear(&Link { peer, is_announced, door }), clear);
        }
    }

    #[test]
    fn three_names_in_fifty_requests_from_one_private_address_are_told_once() {
        let notices = Notices::default();
        let names = ["anna", "bert", "cleo"];
        assert_eq!(crowd(&notices, "192.168.65.1", &names, 49), []);
        assert_eq!(crowd(&notices, "192.168.65.1", &names, 1), [Notice::OneAddress]);
        assert_eq!(crowd(&notices, "192.168.65.1", &names, 500), []);
    }

    #[test]
    fn two_names_or_two_addresses_are_no_crowd() {
        let notices = Notices::default();
        assert_eq!(crowd(&notices, "192.168.65.1", &["anna", "bert"], 500), [], "a household");
        assert_eq!(crowd(&notices, "192.168.65.1", &["cleo"], 1), [Notice::OneAddress]);
        for other in ["192.168.65.2", "8.8.8.8"] {
            let notices = Notices::default();
            crowd(&notices, "192.168.65.1", &["anna"], 10);
            crowd(&notices, other, &["bert"], 1);
            assert_eq!(
                crowd(&notices, "192.168.65.1", &["anna", "bert", "cleo"], 500),
                [],
                "{other}"
            );
        }
    }

    #[test]
    fn looking_ends_where_nothing_is_found() {
        let notices = Notices::default();
        let enough = usize::try_from(ENOUGH).unwrap();
        assert_eq!(crowd(&notices, "192.168.65.1", &["anna", "bert"], enough), []);
        assert_eq!(crowd(&notices, "192.168.65.1", &["anna", "bert", "cleo"], 500), []);
    }

    #[test]
    fn a_proxy_a_containers_gateway_and_this_machine_are_no_crowd() {
        for from in [
            client("10.0.0.1", &["10.0.0.0/8"], None),
            client("172.18.0.1", &[], None),
            client("127.0.0.1", &[], None),
        ] {
            let notices = Notices::default();
            for name in ["anna", "bert", "cleo"].iter().cycle().take(500) {
                assert_eq!(seen(&notices, from, name), None, "{from}");
            }
        }
    }

    #[test]
    fn a_notice_names_the_address_and_the_kind_of_login() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&written);
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || Sink(Arc::clone(&sink)))
            .finish();
        let far = "203.0.114.7".parse().unwrap();
        tracing::subscriber::with_default(subscriber, || {
            Notice::InTheClear(Credential::Password).tell(far);
        });
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(written.contains("WARN") && written.contains("over plain HTTP"), "{written}");
        assert!(written.contains("client=203.0.114.7 credential=password"), "{written}");
    }

    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
