//! The real executable over TLS: certificates that change while everybody asks.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::load::{Model, callers_over, connect, load, wait_for};
use crate::{House, KEY, text};

type Socket = StreamOwned<ClientConnection, TcpStream>;

/// Whose word counts, and callers who take it.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    config: Arc<ClientConfig>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(issuer.as_ref().der().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Every connection is to be shown a certificate.
        config.resumption = rustls::client::Resumption::disabled();
        Self { issuer, config: Arc::new(config) }
    }

    /// A new pair in the place of the one before, as certbot puts it there: two renames.
    fn renew(&self, house: &House) -> CertificateDer<'static> {
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        for (name, text) in [("gate.pem", cert.pem()), ("gate.key", key.serialize_pem())] {
            let beside = house.path("new");
            std::fs::write(&beside, text).unwrap();
            std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600)).unwrap();
            std::fs::rename(&beside, house.path(name)).unwrap();
        }
        cert.der().clone()
    }

    fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
        let host = "localhost".try_into().unwrap();
        let session = ClientConnection::new(Arc::clone(&self.config), host);
        Ok(StreamOwned::new(session.map_err(io::Error::other)?, connect(address)?))
    }

    /// The certificate that a caller is shown now.
    fn shown(&self, address: SocketAddr) -> CertificateDer<'static> {
        let mut socket = self.connect(address).unwrap();
        while socket.conn.is_handshaking() {
            socket.conn.complete_io(&mut socket.sock).unwrap();
        }
        socket.conn.peer_certificates().unwrap()[0].clone().into_owned()
    }
}

#[test]
fn without_a_certificate_or_an_authority_nobody_is_let_in() {
    let (house, authority) = (House::new(), Authority::new());
    std::fs::write(house.path("keys"), format!("{KEY} # anna\n")).unwrap();
    authority.renew(&house);
    // Whoever listens there first is told of first.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let serve = ["serve", "--listen", &listen, "--api-keys", "keys"];
    let config = "tls_cert = 'gate.pem'\ntls_key = 'gate.key'\n\
                  tls.client_auth = 'required'\ntls.client_ca = 'nothing.pem'\n";
    std::fs::write(house.path("ca.toml"), config).unwrap();
    for (flags, missing) in [
        (&["--tls-cert", "nothing.pem", "--tls-key", "gate.key"][..], "nothing.pem"),
        (&["--tls-cert", "gate.pem", "--tls-key", "nothing.key"], "nothing.key"),
        (&["--config", "ca.toml"], "nothing.pem"),
    ] {
        let out = house.run(&[&serve, flags].concat());
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        assert!(text(&out).contains(missing), "{}", text(&out));
        assert!(!text(&out).contains("cannot listen"), "{}", text(&out));
    }
}

#[test]
fn certificates_that_change_under_load_lose_nothing() {
    let (house, model, authority) = (House::new(), Model::start(), Authority::new());
    std::fs::write(house.path("keys"), format!("{KEY} # anna\n")).unwrap();
    authority.renew(&house);
    let upstream = format!("http://{}", model.address);
    let files = ["serve", "--listen", "127.0.0.1:0", "--tls-cert", "gate.pem"];
    let more = ["--tls-key", "gate.key", "--api-keys", "keys", "--upstream", &upstream];
    let mut gate = house.serve_as(&[&files[..], &more].concat());
    let address = gate.address.parse().unwrap();
    let (asked, changes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let enough = |asked| asked >= load() && changes.load(Ordering::SeqCst) >= 5;
    let connect = || authority.connect(address);
    let key = |_| KEY.to_owned();
    let lost = thread::scope(|scope| {
        let lost = scope.spawn(|| callers_over(connect, &asked, enough, key));
        // And others with a handshake for each request.
        let brief = scope.spawn(|| {
            let mut lost = Vec::new();
            while lost.is_empty() && !enough(asked.load(Ordering::SeqCst)) {
                lost = callers_over(connect, &AtomicUsize::new(0), |asked| asked >= 8, key);
            }
            lost
        });
        while !(lost.is_finished() || brief.is_finished()) {
            let next = authority.renew(&house);
            wait_for("the next certificate", || authority.shown(address) == next);
            changes.fetch_add(1, Ordering::SeqCst);
        }
        [lost.join().unwrap(), brief.join().unwrap()].concat()
    });
    assert!(lost.is_empty(), "{} of {asked:?}: {:?}", lost.len(), lost.first());
    gate.signal("TERM");
    assert_eq!(gate.wait(), Some(0));
}
