//! `X-Forwarded-For` and `Forwarded`: only a trusted proxy is believed, and only what it says.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use portcullis::client_addr::{PeerAddr, TrustedProxies};

fuzz_target!(|value: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in value.split(|byte| *byte == b'\n') {
        let Ok(line) = HeaderValue::from_bytes(line) else { return };
        headers.append("x-forwarded-for", line);
    }
    let nets: Vec<ipnet::IpNet> = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap()).into();
    let proxies = TrustedProxies::new(nets.clone(), None);
    let stranger = PeerAddr::new(IpAddr::from([192, 0, 2, 1]));
    let client = proxies.client_addr(stranger, &headers);
    assert_eq!(client.ip(), stranger.ip(), "a stranger is not believed");
    assert!(!client.through_proxy());

    let proxy = PeerAddr::new(IpAddr::from([10, 0, 0, 1]));
    let client = proxies.client_addr(proxy, &headers).ip();
    let hops: Vec<Option<IpAddr>> =
        value.split(|byte| b"\n,".contains(byte)).map(|hop| address(hop)).collect();
    // From the right: proxies, then the client; nothing from behind a hop that cannot be read.
    let trusted = |ip: &IpAddr| nets.iter().any(|net| net.contains(ip));
    let readable = hops.iter().rev().take_while(|hop| hop.is_some()).flatten().copied();
    let mut readable: Vec<_> = readable.collect();
    readable.insert(0, proxy.ip());
    let stranger = readable.iter().find(|ip| !trusted(ip));
    assert_eq!(client, *stranger.or(readable.last()).unwrap());

    let mut other = HeaderMap::new();
    for line in value.split(|byte| *byte == b'\n') {
        let Ok(line) = HeaderValue::from_bytes(line) else { return };
        other.append("forwarded", line);
    }
    assert_eq!(proxies.client_addr(stranger_again(), &other).ip(), stranger_again().ip());
    let named = proxies.client_addr(proxy, &other).ip();
    other.extend(headers);
    let both = proxies.client_addr(proxy, &other).ip();
    assert_eq!(both, if client == named { client } else { proxy.ip() });
});

fn stranger_again() -> PeerAddr {
    PeerAddr::new(IpAddr::from([192, 0, 2, 1]))
}

fn address(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let plain = hop.parse::<IpAddr>().ok();
    let ip = plain.or_else(|| hop.parse::<SocketAddr>().ok().map(|it| it.ip()));
    let in_brackets = || hop.strip_prefix('[')?.split(']').next()?.parse().ok();
    ip.or_else(in_brackets).map(|ip| ip.to_canonical())
}
