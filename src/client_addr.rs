//! Peer and trusted proxies to client address.

use std::fmt;
use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

mod forwarded;

const FORWARDED_FOR: &str = "x-forwarded-for";
const FORWARDED: HeaderName = header::FORWARDED;

/// The address at the other end of the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddr(IpAddr);

impl PeerAddr {
    /// An IPv4 address that came in over an IPv6 socket is the IPv4 address (RFC 4291, 2.5.5.2).
    #[must_use]
    pub fn new(ip: IpAddr) -> Self {
        Self(ip.to_canonical())
    }

    #[must_use]
    pub fn ip(self) -> IpAddr {
        self.0
    }

    /// What counts as one address: see [`network`].
    #[must_use]
    pub fn network(self) -> IpAddr {
        network(self.0)
    }
}

/// A household or a rented machine has a whole /64 of IPv6 to try from (RFC 6177).
#[must_use]
pub fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (!0 << 64)).into(),
    }
}

/// Whom a request is counted for: the peer, or who a trusted proxy says it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddr {
    ip: IpAddr,
    peer: PeerAddr,
    shared: bool,
}

impl ClientAddr {
    #[must_use]
    pub fn ip(self) -> IpAddr {
        self.ip
    }

    #[must_use]
    pub fn peer(self) -> PeerAddr {
        self.peer
    }

    /// True where the peer's own `X-Forwarded-For` may be passed on.
    #[must_use]
    pub fn through_proxy(self) -> bool {
        self.ip != self.peer.ip()
    }

    /// True for an address that many people seem to come from: a trusted proxy, or the gateway of
    /// our own container. Counting failures by it would let one caller lock out the others.
    #[must_use]
    pub fn is_shared(self) -> bool {
        self.shared
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip.fmt(f)
    }
}

/// An address as text, without an allocation.
#[derive(Debug, Clone, Copy)]
pub struct IpText {
    /// The longest is an IPv6 address with an IPv4 address in it.
    text: [u8; 45],
    length: usize,
}

impl From<IpAddr> for IpText {
    fn from(ip: IpAddr) -> Self {
        let mut text = Self { text: [0; 45], length: 0 };
        match ip {
            // Shorter than what the library does for both, and on every request's way.
            IpAddr::V4(ip) => {
                for (place, octet) in ip.octets().into_iter().enumerate() {
                    if place > 0 {
                        text.push(b'.');
                    }
                    if octet >= 100 {
                        text.push(b'0' + octet / 100);
                    }
                    if octet >= 10 {
                        text.push(b'0' + octet / 10 % 10);
                    }
                    text.push(b'0' + octet % 10);
                }
            }
            IpAddr::V6(ip) => {
                let mut rest = text.text.as_mut_slice();
                // There is room for every address.
                let _ = write!(rest, "{ip}");
                text.length = 45 - rest.len();
            }
        }
        text
    }
}

impl IpText {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.text.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.length).unwrap_or_default()
    }
}

/// Whether an address is reached over the internet: given out for that, and neither private, nor for
/// documentation, nor for one link (IANA's registries of special-purpose addresses).
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let special = match ip.octets() {
                // "this network", carriers' own (RFC 6598), protocol assignments, benchmarks
                [0, ..] | [192, 0, 0, _] | [198, 18 | 19, ..] => true,
                [100, second, ..] => second & 0xc0 == 64,
                [first, ..] => first >= 224,
            };
            let local = ip.is_private() || ip.is_loopback() || ip.is_link_local();
            !special && !local && !ip.is_documentation()
        }
        // What is not in 2000::/3 has not been given out.
        IpAddr::V6(ip) => match ip.segments() {
            [0x2001, 0x0db8, ..] => false,
            [first, ..] => first & 0xe000 == 0x2000,
        },
    }
}

/// The proxies whose `X-Forwarded-For` and `Forwarded` are believed; nobody by default.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies {
    nets: Vec<IpNet>,
    container_gateway: Option<IpAddr>,
}

impl TrustedProxies {
    #[must_use]
    pub fn new(nets: Vec<IpNet>, container_gateway: Option<IpAddr>) -> Self {
        Self { nets, container_gateway }
    }

    fn trusts(&self, ip: IpAddr) -> bool {
        self.nets.iter().any(|net| net.contains(&ip))
    }

    /// The right-most hop of `X-Forwarded-For` or `Forwarded` that is not a trusted proxy; the peer
    /// where the peer is not one, or where that hop cannot be read. A proxy writes one of the two and
    /// may pass on a caller's other one, so two that do not name the same client name nobody.
    #[must_use]
    pub fn client_addr(&self, peer: PeerAddr, headers: &HeaderMap) -> ClientAddr {
        let direct = ClientAddr { ip: peer.ip(), peer, shared: self.is_shared(peer.ip()) };
        if !self.trusts(peer.ip()) {
            return direct;
        }
        let by_list = self.first_stranger(peer, hops_from_the_right(headers));
        let named = if !headers.contains_key(FORWARDED) {
            by_list
        } else if !headers.contains_key(FORWARDED_FOR) {
            self.first_stranger(peer, forwarded_from_the_right(headers))
        } else if by_list == self.first_stranger(peer, forwarded_from_the_right(headers)) {
            by_list
        } else {
            // Who tries that is counted with all who do, and is not exempt as the proxy itself is.
            return ClientAddr { shared: false, ..direct };
        };
        ClientAddr { ip: named, peer, shared: self.is_shared(named) }
    }

    fn first_stranger(&self, peer: PeerAddr, hops: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
        let mut ip = peer.ip();
        for hop in hops {
            let Some(hop) = hop else { break };
            ip = hop;
            if !self.trusts(hop) {
                break;
            }
        }
        ip
    }

    /// True for an address that many people seem to come from, see [`ClientAddr::is_shared`].
    #[must_use]
    pub fn is_shared(&self, ip: IpAddr) -> bool {
        self.trusts(ip) || self.container_gateway == Some(ip)
    }
}

/// `None` for a hop that is not an address: what stands left of it cannot be believed.
fn hops_from_the_right(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let lines: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
    lines
        .into_iter()
        .rev()
        .flat_map(|line| line.as_bytes().rsplit(|&b| b == b','))
        .map(|hop| std::str::from_utf8(hop).ok().and_then(address))
}

fn forwarded_from_the_right(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let lines: Vec<_> = headers.get_all(FORWARDED).iter().collect();
    lines.into_iter().rev().flat_map(|line| forwarded::hops(line.as_bytes()).into_iter().rev())
}

/// An address with or without a port, IPv6 with or without brackets.
fn address(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let bare = hop.strip_prefix('[').and_then(|rest| rest.split(']').next());
    let ip = bare.unwrap_or(hop).parse().ok();
    let ip = ip.or_else(|| hop.parse::<std::net::SocketAddr>().ok().map(|addr| addr.ip()));
    ip.map(|ip: IpAddr| ip.to_canonical())
}

/// The default gateway of the container that we run in: with a published port and user-land
/// proxying, everybody seems to come from it. `None` outside a container.
#[must_use]
pub fn container_gateway() -> Option<IpAddr> {
    let marked =
        ["/.dockerenv", "/run/.containerenv"].iter().any(|f| std::fs::exists(f).unwrap_or(false));
    if !marked {
        return None;
    }
    default_gateway(&std::fs::read_to_string("/proc/net/route").ok()?)
}

/// Reads the default route from `/proc/net/route`: hexadecimal, little-endian (proc(5)).
fn default_gateway(routes: &str) -> Option<IpAddr> {
    routes.lines().skip(1).find_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let (destination, gateway) = (columns.next()?, columns.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        (destination == "00000000" && gateway != 0).then(|| IpAddr::from(gateway.to_le_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_the_library_writes_it() {
        for text in [
            "0.0.0.0",
            "192.0.2.10",
            "255.255.255.255",
            "::",
            "2001:db8::1",
            "1111:2222:3333:4444:5555:6666:7777:8888",
            "::ffff:255.255.255.255",
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpText::from(ip).as_bytes(), ip.to_string().as_bytes(), "{text}");
        }
        for octet in 0..=u8::MAX {
            let ip = IpAddr::from([octet, 9, 10, u8::MAX - octet]);
            assert_eq!(IpText::from(ip).as_bytes(), ip.to_string().as_bytes());
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn proxies(nets: &[&str]) -> TrustedProxies {
        TrustedProxies::new(nets.iter().map(|net| net.parse().unwrap()).collect(), None)
    }

    fn client(trusted: &[&str], peer: &str, forwarded: &[&str]) -> IpAddr {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(FORWARDED_FOR, line.parse().unwrap());
        }
        proxies(trusted).client_addr(PeerAddr::new(ip(peer)), &headers).ip()
    }

    #[test]
    fn nobody_is_believed_by_default() {
        assert_eq!(client(&[], "192.0.2.1", &["6.6.6.6"]), ip("192.0.2.1"));
    }

    #[test]
    fn the_right_most_hop_that_is_not_a_proxy_is_the_client() {
        let nets = ["10.0.0.0/8", "fd00::/8"];
        assert_eq!(
            client(&nets, "10.0.0.1", &["6.6.6.6, 198.51.100.7, 10.2.3.4"]),
            ip("198.51.100.7")
        );
        assert_eq!(client(&nets, "10.0.0.1", &["6.6.6.6", "198.51.100.7"]), ip("198.51.100.7"));
        assert_eq!(client(&nets, "fd00::1", &["[2001:db8::9]:443"]), ip("2001:db8::9"));
        assert_eq!(client(&nets, "10.0.0.1", &["198.51.100.7:8080"]), ip("198.51.100.7"));
    }

    #[test]
    fn what_stands_left_of_a_hop_that_cannot_be_read_is_not_believed() {
        let nets = ["10.0.0.0/8"];
        assert_eq!(client(&nets, "10.0.0.1", &["6.6.6.6, unknown"]), ip("10.0.0.1"));
        assert_eq!(client(&nets, "10.0.0.1", &["6.6.6.6, x, 10.0.0.2"]), ip("10.0.0.2"));
        assert_eq!(client(&nets, "10.0.0.1", &[]), ip("10.0.0.1"));
    }

    /// `X-Forwarded-For` and `Forwarded`, as they come through a proxy; who is counted as shared.
    fn both(list: &str, forwarded: &str) -> (IpAddr, bool) {
        let mut headers = HeaderMap::new();
        for (name, value) in [(FORWARDED_FOR, list), ("forwarded", forwarded)] {
            if !value.is_empty() {
                headers.append(name, value.parse().unwrap());
            }
        }
        let client = proxies(&["10.0.0.0/8"]).client_addr(PeerAddr::new(ip("10.0.0.1")), &headers);
        (client.ip(), client.is_shared())
    }

    #[test]
    fn forwarded_names_the_client_as_the_list_does() {
        let through = "for=6.6.6.6, for=\"198.51.100.7:80\", for=10.2.3.4";
        assert_eq!(both("", through), (ip("198.51.100.7"), false));
        assert_eq!(both("", "for=6.6.6.6, for=_hidden"), (ip("10.0.0.1"), true));
        assert_eq!(both("", "for=6.6.6.6;for=6.6.6.7"), (ip("10.0.0.1"), true));
        assert_eq!(both("198.51.100.7", "for=198.51.100.7"), (ip("198.51.100.7"), false));
    }

    #[test]
    fn two_headers_that_contradict_each_other_name_nobody() {
        // One of them the proxy wrote, the other the caller; nobody knows which.
        for (list, forwarded) in [
            ("198.51.100.7", "for=6.6.6.6"),
            ("6.6.6.6", "for=198.51.100.7"),
            ("198.51.100.7", "for=_x"),
            ("198.51.100.7", "for=10.0.0.9"),
        ] {
            assert_eq!(both(list, forwarded), (ip("10.0.0.1"), false), "{list} {forwarded}");
        }
    }

    #[test]
    fn an_ipv4_caller_on_an_ipv6_socket_is_an_ipv4_caller() {
        assert_eq!(PeerAddr::new(ip("::ffff:192.0.2.1")).ip(), ip("192.0.2.1"));
        assert_eq!(
            client(&["10.0.0.0/8"], "::ffff:10.0.0.1", &["::ffff:192.0.2.1"]),
            ip("192.0.2.1")
        );
    }

    #[test]
    fn a_proxy_and_the_containers_gateway_are_shared_addresses() {
        let proxies =
            TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap()], Some(ip("172.17.0.1")));
        let shared =
            |peer| proxies.client_addr(PeerAddr::new(ip(peer)), &HeaderMap::new()).is_shared();
        assert!(shared("10.0.0.1") && shared("172.17.0.1") && !shared("192.0.2.1"));
    }

    #[test]
    fn a_public_address_is_one_of_the_internet() {
        let public = ["8.8.8.8", "100.63.0.1", "100.128.0.1", "172.32.0.1", "192.0.1.1", "2a00::1"];
        assert!(public.iter().all(|it| is_public(ip(it))));
        for not in [
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.1.1",
            "172.16.0.1",
            "192.0.2.2",
            "192.168.1.1",
            "198.19.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "2001:db8::1",
            "ff02::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!is_public(ip(not)), "{not}");
        }
        assert!(is_public(ip("::ffff:8.8.8.8")));
    }

    #[test]
    fn the_default_gateway_is_read_from_the_kernels_table() {
        let table = "Iface\tDestination\tGateway \tFlags\n\
                     eth0\t000011AC\t00000000\t0001\n\
                     eth0\t00000000\t010011AC\t0003\n";
        assert_eq!(default_gateway(table), Some(ip("172.17.0.1")));
        assert_eq!(default_gateway("Iface\n"), None);
        assert_eq!(default_gateway(""), None);
    }

    proptest::proptest! {
        #[test]
        fn any_header_gives_an_address(line in "[ -~]{0,80}") {
            let mut headers = HeaderMap::new();
            headers.append("forwarded", line.parse().unwrap());
            let _ = proxies(&["10.0.0.0/8"]).client_addr(PeerAddr::new(ip("10.0.0.1")), &headers);
            headers.append(FORWARDED_FOR, line.parse().unwrap());
            let _ = proxies(&["10.0.0.0/8"]).client_addr(PeerAddr::new(ip("10.0.0.1")), &headers);
        }
    }
}
