//! `portcullis serve`: the gate, until it is told to stop.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow, bail};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::supervisor::{News, tell};
use crate::auth::Credential;
use crate::client_addr::container_gateway;
use crate::config::{self, Config, Given, ListenAddr, LogFormat, Role};
use crate::gateway::{Gateway, State};
use crate::live_file::mode_warning;
use crate::record::{Chain, Log, Outlet};
use crate::server::{self, HandedOver, Listener, Server};
use crate::tls::Tls;

/// What is still to be written when everything else has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(super) fn run(given: &Given) -> anyhow::Result<()> {
    let handed_over = HandedOver::from_env();
    let loaded = config::load(given).map_err(|problems| anyhow!("cannot start\n{problems}"))?;
    let events = start_events(loaded.config.log_format)?;
    for warning in &loaded.warnings {
        tracing::warn!(place = warning.place, "{}", warning.says);
    }
    make_room(&loaded.config);
    let runtime = runtime().context("could not start the runtime")?;
    let served = runtime.block_on(async {
        // Nobody is to come in while a certificate is missing.
        drop(Tls::new(&loaded.config, None).context("cannot start")?);
        let mut listeners = handed_over.listeners().context("a socket of the supervisor's")?;
        if listeners.is_empty() {
            listeners = listen(&loaded.config)?;
        }
        serve(loaded.config, listeners, Some(given)).await
    });
    events.flush(LAST_WORDS);
    served
}

/// A gate without files for its connections turns callers away sooner than it was told to.
fn make_room(config: &Config) {
    let most = usize::try_from(config.max_connections).unwrap_or(usize::MAX);
    if let Err(room) = server::make_room(most) {
        tracing::warn!(
            "the limit of open files has room for {room} connections, not for the {most} of \
             max_connections; raise it (`ulimit -n`, or LimitNOFILE= in a systemd unit), or lower \
             max_connections"
        );
    }
}

/// On one core nothing is to be handed from thread to thread, and a request costs a twentieth less
/// for it.
fn runtime() -> io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut builder = if cores == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    builder.enable_all().build()
}

/// Opens every address of the configuration.
pub(super) fn listen(config: &Config) -> anyhow::Result<Vec<Listener>> {
    open(&config.listen)
}

fn open(addresses: &[ListenAddr]) -> anyhow::Result<Vec<Listener>> {
    Server::bind(addresses).map_err(|(address, error)| {
        let kind = error.kind();
        let is_file = matches!(address, ListenAddr::Unix(_));
        let advice = if kind == io::ErrorKind::AddrInUse {
            "; another program listens there: choose another --listen"
        } else if kind == io::ErrorKind::AlreadyExists {
            "; a file that is no socket is in the way"
        } else if is_file {
            "; the folder has to be there, and our user has to be allowed to write in it"
        } else if kind == io::ErrorKind::PermissionDenied {
            "; ports below 1024 take root or CAP_NET_BIND_SERVICE"
        } else if kind == io::ErrorKind::AddrNotAvailable {
            "; no network card of this machine has that address"
        } else {
            ""
        };
        anyhow!("cannot listen on {address}: {error}{advice}")
    })
}

/// The addresses of all backends.
fn upstreams(state: &State) -> String {
    let urls = state.pool().backends().iter().map(|backend| backend.url().to_string());
    urls.collect::<Vec<_>>().join(", ")
}

/// Serves until a signal. `given` is where a reload looks again.
pub(super) async fn serve(
    config: Config,
    listeners: Vec<Listener>,
    given: Option<&Given>,
) -> anyhow::Result<()> {
    // Whoever reads that we listen may signal at once.
    let mut signals = Signals::new().context("could not listen for signals")?;
    let log = Log::start(io::stdout(), config.log_format).context("could not start the log")?;
    let redirect = open(config.redirect_listen.as_slice())?;
    let desk = open_desk(&config)?;
    let gateway = Arc::new(Gateway::new(config, log).context("cannot start")?);
    let upstream = upstreams(&gateway.state());
    let places: Vec<_> = listeners.iter().chain(&redirect).map(|it| it.address().clone()).collect();
    let mut server = Server::start(listeners, &gateway);
    for listener in redirect {
        server.redirect(listener);
    }
    for address in places {
        tracing::info!(%address, upstream, "listening");
    }
    for listener in desk {
        serve_desk(listener, &gateway, &mut server);
    }
    for (_, report) in gateway.state().auth().files().reports() {
        if let Some(warning) = mode_warning(&report.path) {
            tracing::warn!(file = %report.path.display(), "{warning}");
        }
    }
    say_tls(&gateway);
    say_parallel(&gateway);
    say_who_may_manage(&gateway);
    say_store(&gateway);
    tell(News::Ready);
    while let Told::Reload = signals.next().await {
        if let Some(given) = given {
            tell(News::Reloading);
            reload(&gateway, given);
            tell(News::Ready);
        }
    }
    let state = gateway.state();
    let (delay, timeout) = (state.config().drain_delay, state.config().drain_timeout);
    tell(News::Stopping);
    server.shutdown(delay, timeout, signals.stop()).await;
    if let Some(keys) = gateway.managed().cloned() {
        let _ = tokio::task::spawn_blocking(move || keys.keep_uses(Instant::now())).await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// The usual address may be another gate's of this machine; one that was asked for has to be free.
fn open_desk(config: &Config) -> anyhow::Result<Vec<Listener>> {
    let Some(address) = &config.admin else { return Ok(Vec::new()) };
    match Server::bind(std::slice::from_ref(address)) {
        Ok(desk) => Ok(desk),
        Err((_, error))
            if *address == config::ADMIN && error.kind() == io::ErrorKind::AddrInUse =>
        {
            tracing::warn!(
                "{address} is taken by another program, so this gate has no admin API; give it another \
                 address with --admin"
            );
            Ok(Vec::new())
        }
        // Once more, for what it says of it.
        Err(_) => open(std::slice::from_ref(address)),
    }
}

fn serve_desk(listener: Listener, gateway: &Gateway, server: &mut Server) {
    let address = listener.address().clone();
    let is_open = address.tcp().is_some_and(|it| !it.ip().is_loopback());
    if is_open && container_gateway().is_none() {
        tracing::warn!(
            %address, "the admin API can be asked from the network, in plain HTTP; listen on \
             127.0.0.1, and reach it by ssh -L or a VPN"
        );
    }
    match gateway.let_commands_in() {
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cli.key cannot be written; commands need a key"),
    }
    server.administer(listener);
    tracing::info!(%address, "the admin API listens");
}

enum Told {
    Reload,
    Stop,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.hangup.recv() => Told::Reload,
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
        }
    }

    async fn stop(&mut self) {
        while let Told::Reload = self.next().await {}
    }
}

fn reload(gateway: &Gateway, given: &Given) {
    let mut loaded = match config::load(given) {
        Ok(loaded) => loaded,
        Err(problems) => {
            tracing::error!("reload refused, the old configuration serves on:\n{problems}");
            return;
        }
    };
    let before = gateway.state();
    let stays = staying(before.config(), &loaded.config);
    // The ledger's days go on by it, so those of limits and reports do.
    loaded.config.time_zone = before.config().time_zone.clone();
    match gateway.reload(loaded.config) {
        Ok(()) => tracing::info!("configuration reloaded"),
        Err(error) => {
            tracing::error!("reload refused, the old configuration serves on: {}", Chain(&error));
            return;
        }
    }
    if !stays.is_empty() {
        tracing::warn!("changed, but counts only after a restart: {}", stays.join(", "));
    }
    for warning in loaded.warnings {
        tracing::warn!(place = warning.place, "{}", warning.says);
    }
    make_room(gateway.state().config());
    say_tls(gateway);
    say_parallel(gateway);
    say_who_may_manage(gateway);
}

/// What was changed and cannot change while the gate runs.
fn staying(old: &Config, new: &Config) -> Vec<&'static str> {
    let all = [
        ("`listen`", new.listen != old.listen),
        ("`redirect_listen`", new.redirect_listen != old.redirect_listen),
        ("`admin`", new.admin != old.admin),
        ("`log_format`", new.log_format != old.log_format),
        ("`data_dir`", new.data_dir != old.data_dir),
        ("`ledger`", new.ledger != old.ledger),
        ("`keep`", new.keep != old.keep),
        ("`time_zone`", new.time_zone != old.time_zone),
    ];
    all.into_iter().filter(|(_, is_changed)| *is_changed).map(|(name, _)| name).collect()
}

fn say_tls(gateway: &Gateway) {
    let state = gateway.state();
    let Some(tls) = state.tls() else { return };
    tls.announce(Instant::now(), SystemTime::now());
    for files in state.config().tls_pairs() {
        if let Some(warning) = mode_warning(&files.key) {
            tracing::warn!(file = %files.key.display(), "{warning}");
        }
    }
}

/// It decides who waits.
fn say_parallel(gateway: &Gateway) {
    for backend in gateway.state().pool().backends() {
        let name = backend.name();
        tracing::info!(backend = &**name, "of one model it gets {}", backend.parallel_told());
    }
}

fn say_store(gateway: &Gateway) {
    match gateway.managed() {
        None => tracing::info!(
            "without `data_dir` there are no managed keys, and nothing survives a restart"
        ),
        Some(keys) if keys.is_empty() => {
            let folder = keys.store().folder().display();
            tracing::info!(
                "no managed key yet; `portcullis key create NAME --data-dir {folder}` makes one"
            );
        }
        Some(keys) => {
            let folder = keys.store().folder().display();
            tracing::info!(keys = keys.len(), %folder, "managed keys read");
        }
    }
}

/// A drop-in for the guide's proxy lets every login manage models; whoever runs it should know.
fn say_who_may_manage(gateway: &Gateway) {
    let state = gateway.state();
    let names = state.auth().files().names();
    let roles = &state.config().roles;
    let may = names.iter().filter(|(name, _)| roles.role_of(name) >= Role::Operator).count();
    let of = |kind| names.iter().filter(|(_, credential)| *credential == kind).count();
    tracing::info!(
        passwords = of(Credential::Password),
        keys = of(Credential::Key),
        signing_keys = of(Credential::Signature),
        "credentials read"
    );
    if may > 0 {
        tracing::warn!(
            "{may} of {} credentials may delete and pull models; \
             `default_role = \"user\"` narrows that, [roles] names who still may",
            names.len()
        );
    }
}

/// Events go to stderr by way of a queue: a terminal that nobody reads delays nobody.
pub(super) fn start_events(format: LogFormat) -> anyhow::Result<Outlet> {
    let outlet = Outlet::start("events", io::stderr()).context("could not start the log")?;
    let queue = outlet.clone();
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(move || Posted(queue.clone()));
    let layer = match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // The h2 crate warns of what a peer sends, and of as much as it sends.
    let level =
        Targets::new().with_default(LevelFilter::INFO).with_target("h2", LevelFilter::ERROR);
    if tracing_subscriber::registry().with(layer.with_filter(level)).try_init().is_err() {
        bail!("the log was started twice");
    }
    // A panic's own text may hold what a caller sent.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "a panic was held off");
    }));
    Ok(outlet)
}

/// One event's bytes on their way into the queue.
struct Posted(Outlet);

impl io::Write for Posted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.post(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;
    use crate::config::LedgerMode;

    #[test]
    fn what_counts_only_after_a_restart_is_named() {
        let old = Config::builtin();
        assert!(staying(&old, &old).is_empty());
        let new = Config {
            keep: Duration::from_secs(86_400),
            ledger: LedgerMode::Durable,
            data_dir: Some("elsewhere".into()),
            time_zone: TimeZone::fixed(jiff::tz::offset(1)),
            ..Config::builtin()
        };
        assert_eq!(staying(&old, &new), ["`data_dir`", "`ledger`", "`keep`", "`time_zone`"]);
    }
}
