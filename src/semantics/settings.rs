//! The settings of the pure parts: how callers are distinguished, which reads are cached, and for how
//! long.

use std::time::Duration;

use super::{json_pointer::JsonPointer, secret::Secret};

/// How callers are distinguished, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialsConfig {
    /// Treatment of requests with a credential.
    pub mode: CredentialMode,
    /// Header names in lower case.
    pub headers: Vec<String>,
    /// Names in lower case of further headers that say nothing about the caller.
    pub ignore: Vec<String>,
    /// Names of the cookies that count; if it is empty, all of them count.
    pub cookies: Vec<String>,
    /// Key of the fingerprints. Without one, the sidecars share a key that the store keeps.
    pub secret: Option<Secret>,
    /// Most pairs of credential and variant that the audience of an entry may hold.
    pub audience: usize,
    /// Time for which a pair is trusted after the upstream has served an entry to it; none = as long
    /// as the entry is kept.
    pub recheck: Option<Duration>,
}

/// Treatment of requests with a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialMode {
    /// Only what the upstream itself has served to this credential.
    Partition,
    /// The same as everyone: a gateway in front has authorised the request.
    Shared,
    /// Nothing: the request passes uncached.
    Bypass,
}

impl CredentialMode {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::Shared => "shared",
            Self::Bypass => "bypass",
        }
    }
}

/// Query parameters of reads. A read with any other parameter passes uncached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryConfig {
    /// Names of parameters that do not change the answer.
    pub ignore: Vec<String>,
    /// Names of parameters that change only its form.
    pub allow: Vec<String>,
}

/// Lifetimes of entries by the state of the job, which the body states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateTtlConfig {
    /// Place of the state in the body.
    pub pointer: JsonPointer,
    /// Each state, as text, and its lifetime; if it is empty, states do not matter.
    pub map: Vec<(String, Duration)>,
}

/// Further jobs that a write changes, where its path does not name them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidateRule {
    /// Methods of the write; if it is empty, every unsafe one.
    pub methods: Vec<String>,
    /// Template of the path: `{id}` is the id of the job, `{any_name}` is any segment.
    pub path: String,
    /// JSON pointers to ids in the request.
    pub request: Vec<String>,
    /// JSON pointers to ids in the response.
    pub response: Vec<String>,
    /// Names of query parameters that carry ids.
    pub query: Vec<String>,
    /// The write changes every job.
    pub all: bool,
    /// Largest body that is searched, in bytes.
    pub max_body: usize,
    /// Treatment of a write in which the rule does not find every job.
    pub on_miss: OnMiss,
}

/// Treatment of a write with a body in which a rule does not find every job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnMiss {
    /// If the API accepts it, it counts as a write that changes every job.
    #[default]
    All,
    /// The write changes only the jobs that were found.
    Ignore,
}

impl Default for InvalidateRule {
    fn default() -> Self {
        Self {
            methods: Vec::new(),
            path: String::new(),
            request: Vec::new(),
            response: Vec::new(),
            query: Vec::new(),
            all: false,
            max_body: 64 << 10,
            on_miss: OnMiss::All,
        }
    }
}
