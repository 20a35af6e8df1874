//! The spellings of a write through a sidecar: where its request, or the answer to it, names the
//! job.

use hyper::{Method, Uri};

use super::ids::Ids;

/// The origin and the prefix of the API as its answers name them. No sidecar knows either.
const ORIGIN: &str = "https://api.example.com";
const PREFIX: &str = "/backend";
/// The path of a [rule](RULE).
const RULED: &str = "/batch";
/// A path that no route and no rule knows.
const UNKNOWN: &str = "/tasks";

/// The rule of the sidecars for writes to [`RULED`].
pub(super) const RULE: &str = "[[invalidate]]\nmethods = [\"POST\"]\npath = \"/batch\"\n\
                               request = [\"/id\"]\n";

/// How a write names its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Spelling {
    /// `PUT /jobs/7`
    Plain,
    /// `POST /jobs/7:cancel`
    Verb,
    /// `DELETE /jobs/7,8`, which changes two jobs.
    List,
    /// `DELETE /jobs?id=7`
    Query,
    /// `POST /jobs('7')`
    Quoted,
    /// `PUT /jobs/ABC9`. The API ignores case.
    UpperCase,
    /// `POST /jobs/cancel/7`
    BelowVerb,
    /// `POST /jobs`, answered with a `Location` on another origin.
    OtherOrigin,
    /// `POST /jobs`, answered with a `Location` under a prefix.
    Prefixed,
    /// `PUT /jobs/7`, answered before the upload has ended, and committed at its end.
    Upload,
    /// `POST /batch` with a body that the rule cannot read. It drops every job, so it is rare.
    Unreadable,
    /// `POST /tasks` with the job in the body, which no sidecar can know.
    Unknown,
}

/// A write without its number.
pub(super) struct Draft {
    pub(super) method: Method,
    pub(super) target: Uri,
    pub(super) body: String,
}

impl Spelling {
    /// Every spelling that a sidecar has to understand.
    pub(super) const ALL: &'static [Self] = &[
        Self::Plain,
        Self::Verb,
        Self::List,
        Self::Query,
        Self::Quoted,
        Self::UpperCase,
        Self::BelowVerb,
        Self::OtherOrigin,
        Self::Prefixed,
        Self::Upload,
        Self::Unreadable,
    ];

    /// Number of jobs that such a write changes.
    pub(super) fn jobs(self) -> usize {
        if self == Self::List { 2 } else { 1 }
    }

    /// Whether the jobs are fenced before the write is forwarded.
    pub(super) fn is_fenced(self) -> bool {
        !matches!(self, Self::OtherOrigin | Self::Prefixed | Self::Unreadable | Self::Unknown)
    }

    pub(super) fn draft(self, ids: Ids, jobs: &[u16]) -> Draft {
        let id = ids.id(jobs[0]);
        let (method, target) = match self {
            Self::Plain | Self::Upload => (Method::PUT, format!("/jobs/{id}")),
            Self::UpperCase => (Method::PUT, format!("/jobs/{}", id.to_uppercase())),
            Self::Verb => (Method::POST, format!("/jobs/{id}:cancel")),
            Self::List => (Method::DELETE, format!("/jobs/{id},{}", ids.id(jobs[1]))),
            Self::Query => (Method::DELETE, format!("/jobs?id={id}")),
            Self::Quoted => (Method::POST, format!("/jobs('{id}')")),
            Self::BelowVerb => (Method::POST, format!("/jobs/cancel/{id}")),
            Self::OtherOrigin | Self::Prefixed => (Method::POST, "/jobs".to_owned()),
            Self::Unreadable => (Method::POST, RULED.to_owned()),
            Self::Unknown => (Method::POST, UNKNOWN.to_owned()),
        };
        let body = match self {
            Self::OtherOrigin => format!("{ORIGIN}/jobs/{id}"),
            Self::Prefixed => format!("{PREFIX}/jobs/{id}"),
            Self::Upload => "first,second".to_owned(),
            Self::Unreadable => format!(r#"{{"progress":NaN,"id":"{id}"}}"#),
            Self::Unknown => format!(r#"{{"verb":"cancel","id":"{id}"}}"#),
            _ => String::new(),
        };
        Draft { method, target: target.parse().expect("a target"), body }
    }
}

/// What the upstream understands of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Understood {
    pub(super) jobs: Vec<u16>,
    /// The `Location` of the answer.
    pub(super) location: Option<String>,
}

impl Understood {
    /// Reads a request as the API does; `None` if it names no job.
    pub(super) fn of(ids: Ids, target: &Uri, body: &[u8]) -> Option<Self> {
        let path = target.path().to_lowercase();
        let body = std::str::from_utf8(body).ok()?;
        let named = match path.as_str() {
            "/jobs" if !body.is_empty() => {
                let (_, id) = body.rsplit_once('/')?;
                let jobs = vec![ids.job(id)?];
                return Some(Self { jobs, location: Some(body.to_owned()) });
            }
            "/jobs" => target.query()?.strip_prefix("id=")?,
            RULED | UNKNOWN => body.split_once(r#""id":""#)?.1.strip_suffix("\"}")?,
            path => within(path)?,
        };
        let jobs = named.split(',').map(|id| ids.job(id)).collect::<Option<_>>()?;
        Some(Self { jobs, location: None })
    }
}

/// Returns the ids in a path below the jobs.
fn within(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/jobs")?;
    if let Some(quoted) = rest.strip_prefix("('") {
        return quoted.strip_suffix("')");
    }
    let rest = rest.strip_prefix('/')?;
    let rest = rest.strip_prefix("cancel/").unwrap_or(rest);
    Some(rest.strip_suffix(":cancel").unwrap_or(rest))
}

/// Draws spellings: each of them once a round, in random order, but what drops every job in one of
/// several rounds only.
pub(super) struct Deck {
    spellings: &'static [Spelling],
    round: u32,
    left: Vec<Spelling>,
}

/// Rounds of a writer for each write that drops every job. It would hide what others fail to drop.
const ROUNDS: u32 = 8;

impl Deck {
    pub(super) fn new(spellings: &'static [Spelling], rng: &mut fastrand::Rng) -> Self {
        Self { spellings, round: rng.u32(..ROUNDS), left: Vec::new() }
    }

    pub(super) fn draw(&mut self, rng: &mut fastrand::Rng) -> Spelling {
        loop {
            if let Some(spelling) = self.left.pop() {
                return spelling;
            }
            self.round += 1;
            let is_rare = |spelling: &Spelling| *spelling == Spelling::Unreadable;
            let allows_rare = self.round.is_multiple_of(ROUNDS);
            let of_round = self.spellings.iter().filter(|it| allows_rare || !is_rare(it));
            self.left = of_round.copied().collect();
            rng.shuffle(&mut self.left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upstream_understands_every_spelling() {
        for ids in [Ids::Letters, Ids::Numbers] {
            for spelling in Spelling::ALL.iter().chain([&Spelling::Unknown]) {
                let jobs = &[7, 31][..spelling.jobs()];
                let Draft { target, body, .. } = spelling.draft(ids, jobs);
                let understood = Understood::of(ids, &target, body.as_bytes());
                let understood = understood.expect("a job");
                assert_eq!(understood.jobs, jobs, "{spelling:?}");
                let is_located = matches!(spelling, Spelling::OtherOrigin | Spelling::Prefixed);
                assert_eq!(understood.location.is_some(), is_located, "{spelling:?}");
            }
        }
    }
}
