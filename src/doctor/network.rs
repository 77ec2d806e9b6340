//! The addresses of this machine: who reaches the backend past the gate, and whose logins travel in
//! the clear. Nothing but this machine's own addresses is asked.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::probe::{Probe, Silence, printable};
use super::{Finding, Subject};
use crate::client_addr::is_public;

/// This machine is soon there; only a firewall lets one wait.
const OWN: Duration = Duration::from_secs(2);

/// An address of this machine and the network that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnAddress {
    pub card: String,
    pub ip: IpAddr,
    pub prefix: u8,
}

impl OwnAddress {
    /// All of them but loopback, and those that are good for one link only.
    ///
    /// # Errors
    /// What the system says.
    pub fn all() -> io::Result<Vec<Self>> {
        let all = if_addrs::get_if_addrs()?.into_iter();
        let others = all.filter(|card| !card.is_loopback() && !card.is_link_local());
        Ok(others
            .map(|card| {
                let ip = card.ip();
                let prefix = match card.addr {
                    if_addrs::IfAddr::V4(v4) => v4.prefixlen,
                    if_addrs::IfAddr::V6(v6) => v6.prefixlen,
                };
                Self { card: card.name, ip, prefix }
            })
            .collect())
    }

    /// Who is there, in words.
    fn whom(&self) -> String {
        let card = printable(&self.card);
        if is_public(self.ip) {
            return format!("anyone on the internet (at {} on {card})", self.ip);
        }
        match IpNet::new(self.ip, self.prefix) {
            Ok(net) if net.prefix_len() < net.max_prefix_len() => {
                format!("anyone on {} ({card})", net.trunc())
            }
            Ok(_) | Err(_) => format!("whoever is behind {} ({card})", self.ip),
        }
    }
}

pub(super) async fn examine(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut ports = BTreeSet::new();
    for (host, port) in subject.backends_at() {
        if ports.insert(port) {
            findings.extend(past_the_gate(subject, port).await);
        }
        findings.extend(elsewhere(subject, host));
    }
    if ports.is_empty() {
        findings
            .push(Finding::ok(BYPASS, "the model server's socket is a file: no network has it"));
    }
    findings.push(in_the_clear(subject));
    findings.extend(callers(subject));
    findings
}

/// Who reaches what listens at a backend's port on this machine.
async fn past_the_gate(subject: &Subject<'_>, port: u16) -> Vec<Finding> {
    let mut open = Vec::new();
    for address in &subject.addresses {
        if lets_anybody_in(subject, SocketAddr::new(address.ip, port)).await {
            open.push(address);
        }
    }
    way_round(subject, port, &open)
}

/// Asks without the backend's key: that is nobody's business but the backend's. Whatever takes
/// connections there and is no guard is taken for the backend, or another one.
async fn lets_anybody_in(subject: &Subject<'_>, at: SocketAddr) -> bool {
    let version = Probe::at(at, subject.patience.min(OWN)).get("/api/version").await;
    match version {
        Ok(reply) => !matches!(reply.status(), 401 | 403),
        Err(Silence::NoConnection(_)) => false,
        Err(
            Silence::Late(_) | Silence::Closed | Silence::NoHttp(_) | Silence::WantsCertificate,
        ) => true,
    }
}

const BYPASS: &str = "bypass";

/// Whoever reaches the backend needs no login.
fn way_round(subject: &Subject<'_>, port: u16, open: &[&OwnAddress]) -> Vec<Finding> {
    let mut findings: Vec<_> = open
        .iter()
        .map(|address| {
            let whom = address.whom();
            let found =
                format!("{whom} reaches the model server directly, unless a firewall stops them");
            match is_public(address.ip) {
                true => Finding::fail(BYPASS, found),
                false => Finding::warn(BYPASS, found),
            }
        })
        .collect();
    if let Some(last) = findings.pop() {
        findings.push(last.advise(format!(
            "they need no login there. Bind it to loopback: OLLAMA_HOST=127.0.0.1:{port} (in \
             `systemctl edit ollama`: Environment=\"OLLAMA_HOST=127.0.0.1:{port}\"); of a container \
             publish no port, or `127.0.0.1:{port}:11434`"
        )));
    } else if subject.container_gateway.is_some() {
        let found = "from in a container only its own addresses can be asked, and nobody is there";
        findings.push(Finding::skip(BYPASS, found).advise(format!(
            "no compose file should publish port {port}; on the host, `portcullis doctor` sees more"
        )));
    } else {
        let count = subject.addresses.len();
        let them = if count == 1 { "1 address".to_owned() } else { format!("{count} addresses") };
        let found =
            format!("nobody gets through on the {them} of this machine's networks, port {port}");
        findings.push(Finding::ok(BYPASS, found));
    }
    findings
}

/// A backend on another machine is reached over a network, and by others on it.
fn elsewhere(subject: &Subject<'_>, host: &str) -> Option<Finding> {
    let is_own = |ip: IpAddr| subject.addresses.iter().any(|own| own.ip == ip);
    let is_here = match host.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback() || is_own(ip),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    };
    if is_here {
        return None;
    }
    let found = format!(
        "the model server is not on this machine but at {host}, where others may reach it too"
    );
    Some(
        Finding::skip(BYPASS, found).advise(
            "let its firewall take this machine alone; in a compose file give it no `ports:`",
        ),
    )
}

/// Where logins can be read on the way, as far as the configuration tells.
fn in_the_clear(subject: &Subject<'_>) -> Finding {
    let own = &subject.addresses;
    const WHAT: &str = "plain HTTP";
    if subject.state.tls().is_some() {
        return Finding::ok(WHAT, "the gate speaks TLS");
    }
    if subject.listens().all(|at| at.ip().is_loopback()) {
        return Finding::ok(WHAT, "the gate listens for this machine alone");
    }
    if subject.container_gateway.is_some() {
        let found = "the host decides who reaches a published port";
        return Finding::skip(WHAT, found)
            .advise("without TLS before it, publish it as `127.0.0.1:8880:8880`");
    }
    let reached = |at: SocketAddr| -> Vec<IpAddr> {
        if !at.ip().is_unspecified() {
            return vec![at.ip()];
        }
        // A socket for any IPv6 address takes IPv4 as well.
        own.iter().map(|own| own.ip).filter(|ip| at.is_ipv6() || ip.is_ipv4()).collect()
    };
    let public = subject.listens().find_map(|at| {
        let ip = reached(at).into_iter().find(|ip| is_public(*ip))?;
        Some(SocketAddr::new(ip, at.port()))
    });
    match public {
        Some(at) => {
            let found = format!("logins to {at} cross the internet over plain HTTP");
            Finding::warn(WHAT, found).advise(
                "whoever is on the way reads passwords and keys. Give the gate a certificate \
                 (`tls_cert` and `tls_key`), or put something that speaks TLS before it",
            )
        }
        None => Finding::ok(
            WHAT,
            "no address of this machine is public; a router may still forward to it",
        ),
    }
}

/// Whether limits per address would hit everybody at once.
fn callers(subject: &Subject<'_>) -> Option<Finding> {
    const WHAT: &str = "callers";
    if !subject.config().trusted_proxies.is_empty() {
        return None;
    }
    if subject.listens().all(|at| at.ip().is_loopback()) {
        return Some(Finding::ok(WHAT, "all seem to come from this machine").advise(
            "if a proxy stands before the gate, name it in `trusted_proxies`, here [\"127.0.0.1\"]: \
             or limits per address hit everybody at once",
        ));
    }
    let gateway = subject.container_gateway?;
    let found = format!("all may seem to come from {gateway}, this container's gateway");
    Some(Finding::ok(WHAT, found).advise(
        "limits per address leave that one out. If a proxy stands before the gate, name it in \
         `trusted_proxies`: then each caller has an address",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::doctor::Verdict;
    use crate::gateway::State;

    fn own(card: &str, ip: &str, prefix: u8) -> OwnAddress {
        OwnAddress { card: card.to_owned(), ip: ip.parse().unwrap(), prefix }
    }

    fn config(listen: &[&str], upstream: &str) -> State {
        let mut config = Config::builtin();
        config.listen = listen.iter().map(|at| at.parse().unwrap()).collect();
        config.backends[0].url = upstream.parse().unwrap();
        State::new(config, None).unwrap()
    }

    fn subject<'a>(
        state: &'a State,
        addresses: &[OwnAddress],
        gateway: Option<&str>,
    ) -> Subject<'a> {
        Subject {
            state,
            gate: None,
            model: None,
            addresses: addresses.to_vec(),
            container_gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            patience: Duration::ZERO,
        }
    }

    #[test]
    fn who_can_go_round_is_told_by_network() {
        for (address, whom) in [
            (own("eth0", "192.168.1.7", 24), "anyone on 192.168.1.0/24 (eth0)"),
            (own("eth0", "fd12:3::7", 64), "anyone on fd12:3::/64 (eth0)"),
            (own("wg0", "10.8.0.2", 32), "whoever is behind 10.8.0.2 (wg0)"),
            (own("eth0", "8.8.4.4", 24), "anyone on the internet (at 8.8.4.4 on eth0)"),
            (own("eth0", "2a00::1", 64), "anyone on the internet (at 2a00::1 on eth0)"),
        ] {
            assert_eq!(address.whom(), whom);
        }
    }

    #[test]
    fn an_ollama_that_is_open_to_a_network_is_a_warning_and_to_the_internet_a_failure() {
        let config = config(&["127.0.0.1:8880"], "http://127.0.0.1:11434");
        let (near, far) = (own("eth0", "192.168.1.7", 24), own("eth1", "8.8.4.4", 24));
        let subject = subject(&config, &[near.clone(), far.clone()], None);
        let findings = way_round(&subject, 11434, &[&near, &far]);
        let verdicts: Vec<_> = findings.iter().map(|it| it.verdict).collect();
        assert_eq!(verdicts, [Verdict::Warn, Verdict::Fail]);
        // The cure is the same, so it is told once.
        assert!(findings[0].advice.is_none());
        assert!(findings[1].advice.as_ref().unwrap().contains("OLLAMA_HOST=127.0.0.1:11434"));
        let findings = way_round(&subject, 11434, &[]);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].verdict, Verdict::Ok);
        assert!(findings[0].found.contains("2 addresses"), "{}", findings[0].found);
    }

    #[test]
    fn what_cannot_be_seen_from_here_is_said() {
        let here = own("eth0", "172.18.0.3", 16);
        let away = config(&["0.0.0.0:8880"], "http://ollama:11434");
        let subject = subject(&away, &[here], Some("172.18.0.1"));
        let findings = way_round(&subject, 11434, &[]);
        assert_eq!(findings[0].verdict, Verdict::Skip);
        assert!(findings[0].found.contains("container"), "{}", findings[0].found);
        let other = elsewhere(&subject, "ollama").unwrap();
        assert!(other.found.contains("at ollama"), "{}", other.found);
    }

    #[test]
    fn a_backend_on_an_address_of_this_machine_is_here() {
        let own = [own("eth0", "192.168.1.7", 24)];
        let config = config(&["127.0.0.1:8880"], "http://127.0.0.1:11434");
        for here in ["127.0.0.1", "localhost", "::1", "192.168.1.7"] {
            assert_eq!(elsewhere(&subject(&config, &own, None), here), None, "{here}");
        }
        for away in ["192.168.1.8", "gpu-box", "fd00::1"] {
            assert!(elsewhere(&subject(&config, &own, None), away).is_some(), "{away}");
        }
    }

    #[test]
    fn logins_in_the_clear_are_judged_by_what_listens_and_what_is_public() {
        let private = own("eth0", "192.168.1.7", 24);
        let public = own("eth0", "8.8.4.4", 24);
        let public_v6 = own("eth0", "2a00::1", 64);
        for (listen, addresses, gateway, verdict) in [
            (&["127.0.0.1:8880", "[::1]:8880"][..], vec![public.clone()], None, Verdict::Ok),
            (&["0.0.0.0:8880"], vec![private.clone()], None, Verdict::Ok),
            (&["0.0.0.0:8880"], vec![private.clone(), public.clone()], None, Verdict::Warn),
            (&["127.0.0.1:1", "8.8.4.4:8880"], vec![public.clone()], None, Verdict::Warn),
            (&["192.168.1.7:8880"], vec![private.clone(), public.clone()], None, Verdict::Ok),
            (&["0.0.0.0:8880"], vec![private.clone(), public_v6.clone()], None, Verdict::Ok),
            (&["[::]:8880"], vec![private.clone(), public_v6], None, Verdict::Warn),
            (&["[::]:8880"], vec![public], None, Verdict::Warn),
            (&["0.0.0.0:8880"], vec![private], Some("172.18.0.1"), Verdict::Skip),
        ] {
            let config = config(listen, "http://127.0.0.1:11434");
            let finding = in_the_clear(&subject(&config, &addresses, gateway));
            assert_eq!(finding.verdict, verdict, "{listen:?} {addresses:?} {}", finding.found);
        }
    }

    #[test]
    fn one_address_for_everybody_is_told_unless_proxies_are_named() {
        let found = |listen: &str, trusted: &[&str], gateway| {
            let mut config = Config::builtin();
            config.listen = vec![listen.parse().unwrap()];
            config.trusted_proxies = trusted.iter().map(|net| net.parse().unwrap()).collect();
            callers(&subject(&State::new(config, None).unwrap(), &[], gateway))
        };
        let local = found("127.0.0.1:8880", &[], None).unwrap();
        assert!(local.found.contains("this machine"), "{}", local.found);
        let contained = found("0.0.0.0:8880", &[], Some("172.18.0.1")).unwrap();
        assert!(contained.found.contains("172.18.0.1"), "{}", contained.found);
        assert_eq!(found("127.0.0.1:8880", &["127.0.0.1/32"], None), None);
        assert_eq!(found("0.0.0.0:8880", &[], None), None);
    }

    #[test]
    fn this_machines_addresses_are_without_loopback() {
        let all = OwnAddress::all().unwrap();
        assert!(all.iter().all(|own| !own.ip.is_loopback()), "{all:?}");
        assert!(all.iter().all(|own| own.prefix > 0 && !own.card.is_empty()), "{all:?}");
    }
}
