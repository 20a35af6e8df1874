//! `jobcache demo`: shows what jobcache does, in one terminal and without any set-up.
//!
//! The demo starts a sample jobs API (`api`) with a pipeline behind it, a real sidecar in front
//! of it ([`crate::run`]), and a crowd (`crowd`): pollers that poll the sidecar, and the pipeline. With
//! `--push` as many clients keep streams of events open (`follower`), for comparison. All output (`show`) is measured live (`figures`): the polls, the reads that still reached the API,
//! and whether any answer was older than the last acknowledged purge.
//!
//! The demo is not a benchmark: pollers, sidecar and API share one process and its cores.

mod api;
mod client;
mod crowd;
mod figures;
mod follower;
mod seen_changes;
mod show;
mod side_by_side;

use std::{
    env, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use self::{
    api::SampleJobs,
    crowd::PurgeClient,
    figures::Figures,
    show::{DemoSetup, Show},
};
use crate::{
    Listeners, RunError,
    config::{Config, Flags, InvalidConfig, PushMode, RawValue, StoreUrl},
    observe::metrics::Registry,
    server::{Server, ServerMetrics},
};

/// Number of jobs in the sample API.
const JOBS: usize = 20;
/// Default addresses for clients and operators, the same as those of a real sidecar.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// Connections, and places among the waiters of push, that the crowd leaves free.
const SPARE_PLACES: usize = 100;
/// Shortest polling interval of one poller.
const MIN_EVERY: Duration = Duration::from_millis(10);
/// Prefix of the variables that hold the webhook secret. The demo reads no other setting from the
/// environment.
const SECRET_PREFIX: &str = "JOBCACHE_WEBHOOK_SECRET";

/// Shows what jobcache does: a sample API, a sidecar and pollers, without any set-up.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Redis to use instead of the store in this process
    #[arg(long, value_name = "URL", default_value = "memory://", hide_default_value = true)]
    pub redis_url: String,
    /// Simulated frontends (each uses two file descriptors)
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub pollers: u16,
    /// How often each frontend polls
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = every)]
    pub every: Duration,
    /// Compare with as many frontends that keep a stream of events open instead of polling
    #[arg(long)]
    pub push: bool,
    /// Time after which the demo ends, such as 5m [default: until Ctrl-C]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Address for clients [default: 127.0.0.1:8080, or a free port if that is taken]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Address for operators [default: 127.0.0.1:9090, or a free port if that is taken]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
}

/// Reason why the demo could not run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// An address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The settings are not valid.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// The sidecar failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The given Redis is not available.
    #[error(
        "{0} does not answer, or refuses the login: start Redis there, or omit --redis-url to use the \
         store in this process"
    )]
    Store(StoreUrl),
    /// Standard output could not be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
}

/// Runs the demo until `shutdown`, or for `args.duration`, and prints a summary.
///
/// Returns `Ok` if the reader of standard output goes away.
pub async fn run(args: Args, shutdown: impl Future<Output = ()>) -> Result<(), DemoError> {
    let proxy = BoundSocket::bind(args.listen, LISTEN).await?;
    let admin = BoundSocket::bind(args.admin, ADMIN).await?;
    let api = BoundSocket::bind(Some((Ipv4Addr::LOCALHOST, 0).into()), LISTEN).await?;
    let config = configure(&args, &proxy, &admin, &api)?;
    let jobs = Arc::new(SampleJobs::new(if args.push { 2 * JOBS } else { JOBS }));
    let figures = Arc::new(Figures::default());
    let setup = setup(&args, &config, &proxy, &admin, &api);
    let store = config.store.url.clone();
    let webhook = PurgeClient::new(setup.admin, config.webhook.secrets.first().cloned());

    let _api = start_api(api.listener, &config, Arc::clone(&jobs));
    let stop = CancellationToken::new();
    let listeners = Listeners { proxy: proxy.listener.into(), admin: admin.listener.into() };
    let mut sidecar = pin!(crate::run(config, listeners, stop.cancelled()));

    let mut crowd = JoinSet::new();
    let mut show = Show::new(&setup, Arc::clone(&figures), Arc::clone(&jobs));
    let shown = async {
        if !crowd::is_store_up(&setup).await {
            return Err(DemoError::Store(store));
        }
        show.open().map_err(DemoError::Output)?;
        crowd::start_pipeline(&mut crowd, &jobs, &figures, &webhook).await;
        crowd::start_frontends(&mut crowd, &setup, &jobs, &figures);
        show.follow().await.map_err(DemoError::Output)
    };
    let result = tokio::select! {
        // First, so that Ctrl-C works from the first line on.
        biased;
        () = until(args.duration, shutdown) => Ok(()),
        result = &mut sidecar => return Ok(result?),
        result = shown => result.map(|never| match never {}),
    };
    // Once the pollers' connections are closed, the sidecar has nothing to drain.
    crowd.shutdown().await;
    stop.cancel();
    sidecar.await?;
    ignore_broken_pipe(result.and_then(|()| show.close().map_err(DemoError::Output)))
}

/// Returns at `shutdown` or after `duration`, whichever comes first.
async fn until(duration: Option<Duration>, shutdown: impl Future<Output = ()>) {
    let _ = timeout(duration.unwrap_or(Duration::MAX), shutdown).await;
}

/// Treats a closed standard output as a normal end.
fn ignore_broken_pipe(result: Result<(), DemoError>) -> Result<(), DemoError> {
    match result {
        Err(DemoError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Serves the sample API until the returned set is dropped.
fn start_api(listener: TcpListener, config: &Config, jobs: Arc<SampleJobs>) -> JoinSet<()> {
    let metrics = Arc::new(ServerMetrics::register(&mut Registry::default()));
    let server = Server::new(listener, &config.server, metrics);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (_never, drain) = watch::channel(false);
        server
            .run(drain, Duration::ZERO, move |request, _, _| Arc::clone(&jobs).serve(request))
            .await;
    });
    tasks
}

fn setup(
    args: &Args,
    config: &Config,
    proxy: &BoundSocket,
    admin: &BoundSocket,
    api: &BoundSocket,
) -> DemoSetup {
    DemoSetup {
        api: api.address,
        proxy: proxy.reachable(),
        admin: admin.reachable(),
        moved: [proxy, admin].into_iter().filter_map(BoundSocket::moved).collect(),
        jobs: JOBS,
        has_push: args.push,
        redis: (config.store.url != StoreUrl::Memory).then(|| args.redis_url.clone()),
        needs_secret: !config.webhook.secrets.is_empty(),
        pollers: args.pollers,
        every: args.every,
    }
}

/// Builds the settings of a real sidecar, with the checks that a real sidecar runs.
fn configure(
    args: &Args,
    proxy: &BoundSocket,
    admin: &BoundSocket,
    api: &BoundSocket,
) -> Result<Config, InvalidConfig> {
    let flag = |name, value: String| (name, RawValue::One(value));
    let values = vec![
        flag("listen", proxy.address.to_string()),
        flag("admin", admin.address.to_string()),
        flag("upstream", format!("http://{}", api.address)),
        flag("redis-url", args.redis_url.clone()),
    ];
    let secret = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with(SECRET_PREFIX));
    let mut config = Config::load(Flags { config: None, values }, secret)?.config;
    if args.push {
        let clients = usize::from(args.pollers);
        config.push.mode = PushMode::All;
        // The sample jobs start over when they are completed.
        config.push.final_states.values.clear();
        // Leaves places for a user.
        config.push.max_waiting = config.push.max_waiting.max(clients + SPARE_PLACES);
        let connections = &mut config.server.max_connections;
        *connections = (*connections).max(2 * (clients + SPARE_PLACES));
    }
    Ok(config)
}

/// A bound socket.
struct BoundSocket {
    listener: TcpListener,
    address: SocketAddr,
    /// The default address, if it was taken and a free port is used instead.
    taken: Option<SocketAddr>,
}

impl BoundSocket {
    /// Binds the requested address. Without one, binds the default address, or a free port if that
    /// is taken.
    async fn bind(requested: Option<SocketAddr>, default: SocketAddr) -> Result<Self, DemoError> {
        let address = requested.unwrap_or(default);
        let (bound, taken) = match TcpListener::bind(address).await {
            Err(error) if requested.is_none() && error.kind() == io::ErrorKind::AddrInUse => {
                (TcpListener::bind((default.ip(), 0)).await, Some(default))
            }
            bound => (bound, None),
        };
        let failed = |source| DemoError::Listen { address, source };
        let listener = bound.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, taken })
    }

    /// Address at which this process can reach the socket: loopback if it is bound to all
    /// interfaces.
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
    if every < MIN_EVERY { Err(format!("must be at least {MIN_EVERY:?}")) } else { Ok(every) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_default_port_is_left_for_a_free_one_but_an_asked_one_is_an_error() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let taken = holder.local_addr().unwrap();
        let port = BoundSocket::bind(None, taken).await.unwrap();
        assert_eq!(port.moved(), Some((taken, port.address)));
        let error = BoundSocket::bind(Some(taken), LISTEN).await.err().unwrap().to_string();
        assert!(error.starts_with(&format!("cannot listen on {taken}: ")), "{error}");
    }
}
