//! Errors of the store and of its cluster nodes, and the budget: how long a request waits for an
//! answer.

use std::{fmt, future::Future, io, time::Duration};

use futures_util::future::join_all;
use redis::{
    ErrorKind::{
        AuthenticationFailed, Extension, InvalidClientConfig, Io, Parse, Server,
        UnexpectedReturnType,
    },
    RedisError,
    ServerErrorKind::{Ask, ClusterDown, Moved, TryAgain},
};
use tokio::time::{Instant, error::Elapsed};

use super::diagnosis::{Diagnosis, Extent};
use crate::semantics::labels::labels;

labels! {
    /// A cluster node's refusal of a command for a slot that it does not serve alone; its word is
    /// the server's error code in lower case.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Redirect {
        /// The slot belongs to another node: the slot map is out of date.
        Moved = "moved",
        /// The slot is moving to this node, and the key is there already or does not exist.
        Ask(Option<NodeAddress>) = "ask",
        /// The slot is moving, and of several keys some are on each node.
        TryAgain = "tryagain",
        /// The node has lost the majority of the cluster, or the slot has no owner.
        Down = "clusterdown",
    }
}

labels! {
    /// The errors of the store as metrics and operators see them. The server's own words may contain
    /// its address, which only the log may show.
    pub enum StoreErrorKind {
        /// There is no trusted connection.
        Down = "down",
        /// An invalidation of the key is not confirmed yet.
        Pending = "pending",
        /// The server has just restarted or failed over.
        Grace = "grace",
        /// The server is too far away for the budget.
        Far = "far",
        /// The budget ran out.
        Timeout = "timeout",
        /// There was no connection, or not to a server to use.
        Lost = "lost",
        /// TLS could not be set up.
        Tls = "tls",
        /// The server answered with an error.
        Refused = "refused",
        /// A cluster node does not serve the slot.
        Redirected = "redirected",
    }
}

/// The result of an operation of the store.
pub(super) type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why the store gave no answer. None of these reaches a client.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No trusted connection: the breaker is open.
    #[error("the store is down")]
    Down,
    /// An invalidation of this key is not confirmed yet.
    #[error("an invalidation is pending")]
    Pending,
    /// The server has restarted or failed over, and others may still owe it invalidations.
    #[error("the server has just restarted or failed over")]
    Grace,
    /// The server is too far away for the budget.
    #[error("the store is too far away for store.budget")]
    Far,
    /// The budget ran out.
    #[error("the store did not answer within its budget")]
    Timeout,
    /// The server runs a script, and answers no commands meanwhile.
    #[error("the store is busy with a script")]
    Busy,
    /// The budget ran out, which says little about the server: more than half of it had been spent
    /// before this operation, or the server was sending a large reply.
    #[error("the budget was spent before the store could answer")]
    Spent,
    /// No connection was made.
    #[error("cannot connect to the store {0}")]
    Unreachable(String),
    /// A connection that was in use broke.
    #[error("the connection to the store broke: {0}")]
    Lost(String),
    /// The server answers, but is not one to use: a replica, another master, a server that loads
    /// its data.
    #[error("the store cannot be used: {0}")]
    Unusable(String),
    /// TLS could not be set up.
    #[error("TLS to the store failed: {0}")]
    Tls(String),
    /// The server answered with an error.
    #[error("the store refused: {0}")]
    Refused(String),
    /// The server, or what it said, shows what is wrong.
    #[error("{intro}{1}; {remedy}", intro = intro(*.0), remedy = .0.remedy())]
    Denied(Diagnosis, String),
    /// A cluster node does not serve the slot of the key.
    #[error("the cluster node answered {}{}", .0.as_str(), .0.remedy())]
    Redirected(Redirect),
    /// The journal of unconfirmed invalidations cannot be opened.
    #[error("cannot open the journal {}: {source}", path.display())]
    Journal {
        /// The path in `pending.journal`.
        path: std::path::PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl StoreError {
    /// Returns the same error for another key of the operation that has failed with it.
    pub(super) fn of_another_key(&self) -> Self {
        match self {
            Self::Timeout => Self::Timeout,
            Self::Busy => Self::Busy,
            Self::Spent => Self::Spent,
            Self::Down => Self::Down,
            Self::Far => Self::Far,
            other => Self::Lost(other.to_string()),
        }
    }
    /// Returns the label for metrics and operators.
    pub fn kind(&self) -> StoreErrorKind {
        match self {
            Self::Down => StoreErrorKind::Down,
            Self::Pending => StoreErrorKind::Pending,
            Self::Grace => StoreErrorKind::Grace,
            Self::Far => StoreErrorKind::Far,
            Self::Timeout | Self::Busy | Self::Spent => StoreErrorKind::Timeout,
            Self::Unreachable(_) | Self::Lost(_) | Self::Unusable(_) => StoreErrorKind::Lost,
            Self::Tls(_) => StoreErrorKind::Tls,
            Self::Refused(_) | Self::Journal { .. } => StoreErrorKind::Refused,
            Self::Redirected(_) => StoreErrorKind::Redirected,
            Self::Denied(diagnosis, _) => match diagnosis.extent() {
                Extent::Refuses => StoreErrorKind::Refused,
                Extent::Unusable | Extent::Unreachable => StoreErrorKind::Lost,
                Extent::Silent => StoreErrorKind::Timeout,
                Extent::Tls => StoreErrorKind::Tls,
            },
        }
    }

    /// The same error of an attempt to connect to a server, which says what to do about silence.
    pub(super) fn while_connecting(self, to: impl fmt::Display, within: Duration) -> Self {
        let Self::Timeout = self else { return self };
        Self::Denied(Diagnosis::NoAnswer, format!("{to}: no answer within {within:?}"))
    }

    /// What is wrong, if that is known.
    pub fn diagnosis(&self) -> Option<Diagnosis> {
        match self {
            Self::Denied(diagnosis, _) => Some(*diagnosis),
            Self::Redirected(Redirect::Down) => Some(Diagnosis::ClusterDown),
            _ => None,
        }
    }
}

/// The beginning of the text of an error.
fn intro(diagnosis: Diagnosis) -> &'static str {
    match diagnosis.extent() {
        Extent::Refuses => "the store refused: ",
        Extent::Unusable => "the store cannot be used: ",
        Extent::Tls => "TLS to the store failed: ",
        Extent::Unreachable | Extent::Silent => "cannot connect to the store ",
    }
}

impl Redirect {
    /// The remedy after the word, if one is needed.
    fn remedy(&self) -> String {
        match self {
            Self::Down => format!("; {}", Diagnosis::ClusterDown.remedy()),
            Self::Moved | Self::Ask(_) | Self::TryAgain => String::new(),
        }
    }
}

/// A server that is too far away for the budget of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FarStore {
    /// The smallest of several round trips.
    pub round_trip: Duration,
    /// `store.budget`.
    pub budget: Duration,
}

impl FarStore {
    /// Round trips of a read that misses, or that waits for two rounds of the read barrier.
    const TRIPS_OF_READ: u32 = 2;
    /// The same, with one more for the fill.
    const TRIPS_OF_MISS: u32 = 3;

    /// Returns `None` if the round trip fits into the budget.
    pub(super) fn of(round_trip: Duration, budget: Duration) -> Option<Self> {
        (round_trip * Self::TRIPS_OF_READ > budget).then_some(Self { round_trip, budget })
    }

    /// The setting with which the round trip fits, with time to spare.
    pub(super) fn remedy(&self) -> String {
        let millis = (self.round_trip * Self::TRIPS_OF_MISS).as_millis();
        format!("set store.budget to {}ms", (millis / 10 + 1) * 10)
    }
}

impl fmt::Display for FarStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { round_trip, budget } = self;
        write!(
            f,
            "Redis is too far away: a round trip takes {}ms, and a read needs {} of them within store.budget ({}ms), so reads go to the API; {}",
            round_trip.as_millis(),
            Self::TRIPS_OF_READ,
            budget.as_millis(),
            self.remedy()
        )
    }
}

/// The address at which a node is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeAddress {
    /// A host name, or an IP address without brackets.
    pub host: Box<str>,
    /// The port of the protocol that we speak, plain or TLS.
    pub port: u16,
}

impl NodeAddress {
    pub(super) fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// Parses `host:port` as in a redirection, where an IPv6 address has no brackets.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some(Self { host: host.into(), port: port.parse().ok()? })
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The time that one request may still spend on the store, over all its operations.
#[derive(Debug)]
pub struct Budget {
    whole: Duration,
    left: Duration,
}

impl Budget {
    /// Makes a budget of this much waiting.
    pub fn new(left: Duration) -> Self {
        Self { whole: left, left }
    }

    /// Returns the time that is left.
    pub fn left(&self) -> Duration {
        self.left
    }

    /// Deducts time that was spent elsewhere.
    pub fn charge(&mut self, spent: Duration) {
        self.left = self.left.saturating_sub(spent);
    }

    /// Waits for `operation` while the budget lasts, and deducts the time it took.
    pub(super) async fn spend<T>(
        &mut self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        let given = self.left;
        let result = tokio::time::timeout(given, operation).await;
        self.left = self.left.saturating_sub(started.elapsed());
        result.unwrap_or_else(|_| Err(self.timeout_error(given)))
    }

    /// Returns the error of an operation that did not finish within `given`. If that was less than
    /// half of the budget, the timeout says little about the store.
    pub(super) fn timeout_error(&self, given: Duration) -> StoreError {
        if given * 2 < self.whole { StoreError::Spent } else { StoreError::Timeout }
    }

    /// As [`Budget::spend`], for several operations at once; each has its own result.
    pub(super) async fn spend_each<T>(
        &mut self,
        operations: impl Iterator<Item = impl Future<Output = Result<T, StoreError>>>,
    ) -> Vec<Result<T, StoreError>> {
        let started = Instant::now();
        let given = self.left;
        let results = operations.map(|operation| tokio::time::timeout(given, operation));
        let results = join_all(results).await;
        self.left = self.left.saturating_sub(started.elapsed());
        let result =
            |result: Result<_, _>| result.unwrap_or_else(|_| Err(self.timeout_error(given)));
        results.into_iter().map(result).collect()
    }
}

/// The time that one write may still spend on the store: two budgets, over its begin and all its
/// ends, and at most one for each of them.
#[derive(Debug)]
pub struct WriteBudget {
    step: Duration,
    left: Duration,
}

impl WriteBudget {
    /// Makes two budgets of this much waiting each.
    pub fn new(step: Duration) -> Self {
        Self { step, left: 2 * step }
    }

    /// Returns the budget of the next step. A step that has no time left is sent all the same, and
    /// counts as unconfirmed.
    pub fn next_step(&self) -> Budget {
        Budget { whole: self.step, left: self.step.min(self.left) }
    }

    /// Deducts the time of a step.
    pub fn charge(&mut self, spent: Duration) {
        self.left = self.left.saturating_sub(spent);
    }
}

/// Timeout for connecting, and for operations that no client waits for: fills, releases, repeated
/// ends.
pub(super) const DETACHED_TIMEOUT: Duration = Duration::from_secs(1);
/// First and longest pause between two attempts to connect; doubles each time.
pub(super) const BACKOFF: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_secs(1));
/// Error of a script that accesses a key which is not on this node, or no longer there.
const NON_LOCAL: &str = "non local key";

/// Classifies errors by how they are handled: `Lost` and `Unusable` end the session, `Refused` does
/// not. What the words of the server tell is `Denied`.
impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        let words = words(&error);
        match error.kind() {
            // The `redis` crate has no kind for BUSY: a script has been running for too long, and
            // the server answers no commands.
            _ if error.code() == Some("BUSY") => Self::Busy,
            Server(Moved) => Self::Redirected(Redirect::Moved),
            Server(Ask) => {
                let to = error.redirect_node().and_then(|(to, _)| NodeAddress::parse(to));
                Self::Redirected(Redirect::Ask(to))
            }
            Server(TryAgain) => Self::Redirected(Redirect::TryAgain),
            Server(ClusterDown) => Self::Redirected(Redirect::Down),
            // A script in a migrating slot has deleted a key and then accesses it.
            Server(_) if words.contains(NON_LOCAL) => Self::Redirected(Redirect::TryAgain),
            Server(_) | Extension => match Diagnosis::of(&words) {
                Some(diagnosis) => Self::Denied(diagnosis, words),
                None => Self::Refused(words),
            },
            // The first two are replies that cannot be decoded. If the stream itself is corrupt, the
            // connection ends with it, and the next operation reports that. The last one is
            // permanent: the settings do not fit together.
            UnexpectedReturnType | Parse | InvalidClientConfig => Self::Refused(words),
            AuthenticationFailed => Self::Denied(Diagnosis::WrongLogin, words),
            Io => Self::Lost(words),
            // Most are `Client`: found before the command was sent, or in the replies to a login.
            // They say nothing about the operation, so it is safe to begin anew.
            _ => Self::Unusable(words),
        }
    }
}

/// What the server said, as it said it. Of several errors of a pipeline the first counts that tells
/// something.
pub(super) fn words(error: &RedisError) -> String {
    let Some(errors) = error.clone().into_server_errors() else { return error.to_string() };
    let said = errors.iter().map(|(_, error)| {
        let said = format!("{} {}", error.code(), error.details().unwrap_or_default());
        said.trim_end().trim_end_matches('.').to_owned()
    });
    let said: Vec<_> = said.collect();
    let telling = said.iter().find(|said| Diagnosis::of(said).is_some());
    telling.or(said.first()).cloned().unwrap_or_default()
}

/// A socket that was in use broke.
impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<Elapsed> for StoreError {
    fn from(_: Elapsed) -> Self {
        Self::Timeout
    }
}

#[cfg(test)]
mod tests {
    use redis::ErrorKind;

    use super::*;

    #[test]
    fn an_error_of_the_client_ends_the_session_and_one_of_its_settings_is_refused() {
        let error = |kind: ErrorKind| StoreError::from(RedisError::from((kind, "why")));
        assert!(matches!(error(ErrorKind::InvalidClientConfig), StoreError::Refused(_)));
        assert!(matches!(error(ErrorKind::Client), StoreError::Unusable(_)));
        assert!(matches!(error(ErrorKind::Io), StoreError::Lost(_)));
    }

    #[test]
    fn a_far_server_is_told_with_the_time_the_budget_and_the_value_to_set() {
        let far = |millis| {
            let round_trip = Duration::from_millis(millis);
            FarStore::of(round_trip, Duration::from_millis(50)).map(|far| far.to_string())
        };
        assert_eq!([far(0), far(16), far(25)], [None, None, None]);
        let told = far(40).unwrap();
        assert!(!told.contains("  "), "{told}");
        for word in ["40ms", "(50ms)", "set store.budget to 130ms"] {
            assert!(told.contains(word), "{word}: {told}");
        }
    }

    #[test]
    fn a_write_has_two_budgets_for_its_begin_and_all_its_ends() {
        let (step, short) = (Duration::from_millis(50), Duration::from_millis(1));
        let mut hung = WriteBudget::new(step);
        for left in [step, step, Duration::ZERO] {
            assert_eq!(hung.next_step().left(), left);
            hung.charge(left);
        }
        let mut well = WriteBudget::new(step);
        for _ in 0..3 {
            assert_eq!(well.next_step().left(), step);
            well.charge(short);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_counts_against_the_store_only_if_it_had_most_of_the_budget() {
        let mut budget = Budget::new(Duration::from_millis(20));
        let never = || std::future::pending::<Result<(), StoreError>>();
        assert!(matches!(budget.spend(never()).await, Err(StoreError::Timeout)));
        assert!(matches!(budget.spend(never()).await, Err(StoreError::Spent)));
        let each = budget.spend_each([never()].into_iter()).await;
        assert!(matches!(each[..], [Err(StoreError::Spent)]));
    }
}
