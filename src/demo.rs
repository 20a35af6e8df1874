//! `jobcache demo`: what jobcache does, to be watched in one terminal without any set-up.
//!
//! It starts a sample jobs API (`api`) with a pipeline behind it (`pipeline`), a real sidecar in
//! front of it ([`crate::run`]), and a crowd of pollers (`pollers`) that ask the sidecar. Whatever
//! it shows (`show`) is measured on the spot (`figures`): what was polled, what the API had to
//! read all the same, and whether any answer was older than the last acknowledged purge.
//!
//! It is no benchmark: pollers, sidecar and API share one process and its cores.

mod api;
mod client;
mod figures;
mod pipeline;
mod pollers;
mod show;

use std::{
    env,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinSet,
    time::sleep,
};

use self::{
    api::Jobs,
    figures::Figures,
    pipeline::Webhook,
    pollers::Poller,
    show::{Show, Stage, StoreState},
};
use crate::{
    Listeners, RunError,
    config::{Config, Flags, InvalidConfig, RawValue, StoreUrl},
    server::Server,
};

/// Jobs of the sample API.
const JOBS: usize = 20;
/// Where clients and operators connect unless told otherwise, as in a real sidecar.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// Shortest time between two polls of one poller.
const MIN_EVERY: Duration = Duration::from_millis(10);
/// The variables of the webhook's secret, the only setting that the demo takes from outside.
const SECRET: &str = "JOBCACHE_WEBHOOK_SECRET";

/// Shows what jobcache does: a sample API, a sidecar and pollers, without any set-up.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Redis to use; without it the store of this process
    #[arg(long, value_name = "URL", default_value = "memory://", hide_default_value = true)]
    pub redis_url: String,
    /// Simulated frontends (each takes two open files)
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub pollers: u16,
    /// How often each of them polls
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = every)]
    pub every: Duration,
    /// Ends after this time, such as 5m; without it, on Ctrl-C
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Where clients connect [default: 127.0.0.1:8080, or a free port where that is taken]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Where operators connect [default: 127.0.0.1:9090, or a free port where that is taken]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
}

/// Why the demo could not run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A socket.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The settings.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// The sidecar.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The Redis that it was given.
    #[error(
        "{0} does not answer, or not to this login: start Redis there, or leave out --redis-url for the \
         store of this process"
    )]
    Store(StoreUrl),
    /// Standard output.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
}

/// Runs the demo until `shutdown`, or for as long as `args` says, and closes with a summary.
///
/// Ends quietly when nobody reads its output any more.
pub async fn run(args: Args, shutdown: impl Future<Output = ()>) -> Result<(), DemoError> {
    let proxy = Port::bind(args.listen, LISTEN).await?;
    let admin = Port::bind(args.admin, ADMIN).await?;
    let api = Port::bind(Some((Ipv4Addr::LOCALHOST, 0).into()), LISTEN).await?;
    let config = configure(&args, &proxy, &admin, &api)?;
    let jobs = Arc::new(Jobs::new(JOBS));
    let figures = Arc::new(Figures::default());
    let stage = stage(&args, &config, &proxy, &admin, &api);
    let store = config.store.url.clone();
    let webhook = Webhook::new(stage.admin, config.webhook_secret.first().cloned());

    let _backend = start_api(api.listener, &config, Arc::clone(&jobs));
    let (stop, stopped) = oneshot::channel::<()>();
    let listeners = Listeners { proxy: proxy.listener.into(), admin: admin.listener.into() };
    let mut sidecar = pin!(crate::run(config, listeners, async {
        // Also when the sender is gone.
        let _ = stopped.await;
    }));

    let mut crowd = JoinSet::new();
    let mut show = Show::new(&stage, Arc::clone(&figures), Arc::clone(&jobs));
    let watched = async {
        if StoreState::of(&stage).await == StoreState::Down {
            return Err(DemoError::Store(store));
        }
        show.open().map_err(DemoError::Output)?;
        pipeline::start(&mut crowd, &jobs, &figures, &webhook).await;
        Poller::start(&mut crowd, &stage, &jobs, &figures);
        show.follow().await.map_err(DemoError::Output)
    };
    let watched = tokio::select! {
        // First, so that Ctrl-C counts from the first line on.
        biased;
        () = until(args.duration, shutdown) => Ok(()),
        ended = &mut sidecar => return Ok(ended?),
        broken = watched => broken.map(|never| match never {}),
    };
    // With their connections gone the sidecar has nothing to wait for.
    crowd.shutdown().await;
    let _ = stop.send(());
    sidecar.await?;
    quietly(watched.and_then(|()| show.close().map_err(DemoError::Output)))
}

/// Until `shutdown`, or for as long as this.
async fn until(duration: Option<Duration>, shutdown: impl Future<Output = ()>) {
    match duration {
        Some(duration) => tokio::select! { () = shutdown => {}, () = sleep(duration) => {} },
        None => shutdown.await,
    }
}

/// That nobody reads any more is no error.
fn quietly(ended: Result<(), DemoError>) -> Result<(), DemoError> {
    match ended {
        Err(DemoError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        ended => ended,
    }
}

/// The sample API, served until this is dropped.
fn start_api(listener: TcpListener, config: &Config, jobs: Arc<Jobs>) -> JoinSet<()> {
    let server = Server::new(listener, &config.server, Arc::default());
    let mut backend = JoinSet::new();
    backend.spawn(async move {
        let (_never, drain) = watch::channel(false);
        server
            .run(drain, Duration::ZERO, move |request, _, _| Arc::clone(&jobs).serve(request))
            .await;
    });
    backend
}

fn stage(args: &Args, config: &Config, proxy: &Port, admin: &Port, api: &Port) -> Stage {
    Stage {
        api: api.address,
        proxy: proxy.reachable(),
        admin: admin.reachable(),
        moved: [proxy, admin].into_iter().filter_map(Port::moved).collect(),
        jobs: JOBS,
        redis: (config.store.url != StoreUrl::Memory).then(|| args.redis_url.clone()),
        guarded: !config.webhook_secret.is_empty(),
        pollers: args.pollers,
        every: args.every,
    }
}

/// The settings of a real sidecar, through the checks that a real one passes.
fn configure(args: &Args, proxy: &Port, admin: &Port, api: &Port) -> Result<Config, InvalidConfig> {
    let flag = |name, value: String| (name, RawValue::One(value));
    let values = vec![
        flag("listen", proxy.address.to_string()),
        flag("admin", admin.address.to_string()),
        flag("upstream", format!("http://{}", api.address)),
        flag("redis-url", args.redis_url.clone()),
    ];
    let secret = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with(SECRET));
    Ok(Config::load(Flags { config: None, values }, secret)?.config)
}

/// A bound socket.
struct Port {
    listener: TcpListener,
    address: SocketAddr,
    /// What was taken, if it had to move.
    taken: Option<SocketAddr>,
}

impl Port {
    /// Binds what was asked for. Where nothing was, the usual address, or a free port beside it.
    async fn bind(asked: Option<SocketAddr>, usual: SocketAddr) -> Result<Self, DemoError> {
        let address = asked.unwrap_or(usual);
        let (bound, taken) = match TcpListener::bind(address).await {
            Err(error) if asked.is_none() && error.kind() == io::ErrorKind::AddrInUse => {
                (TcpListener::bind((usual.ip(), 0)).await, Some(usual))
            }
            bound => (bound, None),
        };
        let failed = |source| DemoError::Listen { address, source };
        let listener = bound.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, taken })
    }

    /// Where this process reaches it.
    fn reachable(&self) -> SocketAddr {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.address.port())
    }

    fn moved(&self) -> Option<(SocketAddr, SocketAddr)> {
        Some((self.taken?, self.address))
    }
}

fn every(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if every < MIN_EVERY { Err(format!("give at least {MIN_EVERY:?}")) } else { Ok(every) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_default_port_is_left_for_a_free_one_but_an_asked_one_is_an_error() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let taken = holder.local_addr().unwrap();
        let port = Port::bind(None, taken).await.unwrap();
        assert_eq!(port.moved(), Some((taken, port.address)));
        let error = Port::bind(Some(taken), LISTEN).await.err().unwrap().to_string();
        assert!(error.starts_with(&format!("cannot listen on {taken}: ")), "{error}");
    }
}
