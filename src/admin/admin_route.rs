//! The requests that the admin listener answers, and who may make each of them.
//!
//! A request is routed once, from its method and path. All else follows from the route:
//!
//! | request | access |
//! |---|---|
//! | `GET` of `/`, `/livez`, `/readyz`, `/metrics` | everyone |
//! | `GET /log` | every client |
//! | `GET` of `/status`, `/history`, `/events`; `GET` and `POST` of `/explain/<id>` | token |
//! | `PUT /log`, `POST /purge/<id>`, `PURGE <path of a job>` | token |
//! | `POST /purge` | token or signature |
//!
//! `HEAD` is answered where `GET` is, except for `/events` and `/explain`.

use hyper::{Method, StatusCode};

use super::reply::{Reply, error_reply, method_not_allowed};
use crate::semantics::route::Routes;

/// The list of pages for the 404 answer.
const PAGES: &str = "/, /livez, /readyz, /metrics, /status, /history, /events, /log, /explain/<id>, \
                     and POST /purge and /purge/<id>";

/// A request that has an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdminRoute<'p> {
    StatusPage,
    Live,
    Ready,
    Metrics,
    Status,
    History,
    Events,
    ShowLogFilter,
    SetLogFilter,
    /// `/explain/<id>`.
    Explain(&'p str),
    /// `POST /purge`: the body names the jobs.
    PurgeListed,
    /// `POST /purge/<id>`.
    PurgeOne(&'p str),
    /// `PURGE` with the path of a job.
    PurgePath(&'p str),
}

/// Why a request has no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoute {
    /// There is no such page.
    NotFound,
    /// The page accepts these methods only.
    MethodNotAllowed(&'static str),
}

/// Who may make a request. A token is needed only if a secret is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everyone, and under every host name, because probes and scrapes use names of their cluster.
    /// The answer names no job.
    Everyone,
    /// Every client, but no page of another site.
    EveryClient,
    /// A client with the secret as its bearer token.
    Token,
    /// A client with the token or with a signature of the body.
    TokenOrSignature,
}

impl<'p> AdminRoute<'p> {
    /// Routes a request.
    pub(super) fn of(method: &Method, path: &'p str) -> Result<Self, NoRoute> {
        let is_get = method == Method::GET;
        let is_read = is_get || method == Method::HEAD;
        let is_post = method == Method::POST;
        let when = |is_allowed: bool, allowed: &'static str, route: Self| {
            if is_allowed { Ok(route) } else { Err(NoRoute::MethodNotAllowed(allowed)) }
        };
        let page = |route: Self| when(is_read, "GET, HEAD", route);
        match path {
            "/" => page(Self::StatusPage),
            "/livez" => page(Self::Live),
            "/readyz" => page(Self::Ready),
            "/metrics" => page(Self::Metrics),
            "/status" => page(Self::Status),
            "/history" => page(Self::History),
            "/events" => when(is_get, "GET", Self::Events),
            "/log" if method == Method::PUT => Ok(Self::SetLogFilter),
            "/log" => when(is_read, "GET, HEAD, PUT", Self::ShowLogFilter),
            "/purge" => when(is_post, "POST", Self::PurgeListed),
            _ => {
                if let Some(id) = path.strip_prefix("/explain/") {
                    when(is_get || is_post, "GET, POST", Self::Explain(id))
                } else if method.as_str() == "PURGE" {
                    Ok(Self::PurgePath(path))
                } else if let Some(id) = path.strip_prefix("/purge/") {
                    when(is_post, "POST", Self::PurgeOne(id))
                } else {
                    Err(NoRoute::NotFound)
                }
            }
        }
    }

    /// Who may make this request.
    pub(super) fn access(self) -> Access {
        match self {
            Self::StatusPage | Self::Live | Self::Ready | Self::Metrics => Access::Everyone,
            Self::ShowLogFilter => Access::EveryClient,
            Self::PurgeListed => Access::TokenOrSignature,
            Self::Status
            | Self::History
            | Self::Events
            | Self::SetLogFilter
            | Self::Explain(_)
            | Self::PurgeOne(_)
            | Self::PurgePath(_) => Access::Token,
        }
    }

    /// The name of a purge in spans, without an id. Other requests (probes, scrapes) are not worth a
    /// span.
    pub(super) fn span_name(self, routes: &Routes) -> Option<&str> {
        match self {
            Self::PurgeListed => Some("/purge"),
            Self::PurgeOne(_) => Some("/purge/{id}"),
            Self::PurgePath(path) => routes.route_of(path),
            _ => None,
        }
    }
}

impl NoRoute {
    /// The answer to a request for `path`.
    pub(super) fn reply(self, path: &str) -> Reply {
        match self {
            Self::MethodNotAllowed(allowed) => method_not_allowed(allowed),
            Self::NotFound => {
                let error = format!("page {path:?} does not exist; the pages are {PAGES}");
                error_reply(StatusCode::NOT_FOUND, &error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route<'p>(method: &str, path: &'p str) -> Result<AdminRoute<'p>, NoRoute> {
        AdminRoute::of(&method.parse().unwrap(), path)
    }

    #[test]
    fn each_page_has_its_methods() {
        for (path, page) in [
            ("/", AdminRoute::StatusPage),
            ("/livez", AdminRoute::Live),
            ("/readyz", AdminRoute::Ready),
            ("/metrics", AdminRoute::Metrics),
            ("/status", AdminRoute::Status),
            ("/history", AdminRoute::History),
        ] {
            assert_eq!(route("GET", path), Ok(page));
            assert_eq!(route("HEAD", path), Ok(page));
            for other in ["POST", "PUT", "PURGE", "OPTIONS"] {
                assert_eq!(route(other, path), Err(NoRoute::MethodNotAllowed("GET, HEAD")));
            }
        }
        for (method, path, expected) in [
            ("GET", "/events", Ok(AdminRoute::Events)),
            ("HEAD", "/events", Err("GET")),
            ("GET", "/log", Ok(AdminRoute::ShowLogFilter)),
            ("HEAD", "/log", Ok(AdminRoute::ShowLogFilter)),
            ("PUT", "/log", Ok(AdminRoute::SetLogFilter)),
            ("POST", "/log", Err("GET, HEAD, PUT")),
            ("GET", "/explain/x1", Ok(AdminRoute::Explain("x1"))),
            ("POST", "/explain/", Ok(AdminRoute::Explain(""))),
            ("PURGE", "/explain/x1", Err("GET, POST")),
            ("HEAD", "/explain/x1", Err("GET, POST")),
            ("POST", "/purge", Ok(AdminRoute::PurgeListed)),
            ("PURGE", "/purge", Err("POST")),
            ("POST", "/purge/x1", Ok(AdminRoute::PurgeOne("x1"))),
            ("GET", "/purge/x1", Err("POST")),
            ("PURGE", "/purge/x1", Ok(AdminRoute::PurgePath("/purge/x1"))),
            ("PURGE", "/jobs/x1", Ok(AdminRoute::PurgePath("/jobs/x1"))),
        ] {
            let expected = expected.map_err(NoRoute::MethodNotAllowed);
            assert_eq!(route(method, path), expected, "{method} {path}");
        }
        for path in ["/stats", "/explain", "/livez/", "//", "/jobs/x1"] {
            assert_eq!(route("GET", path), Err(NoRoute::NotFound), "{path}");
        }
    }

    #[test]
    fn what_names_a_job_or_changes_something_needs_the_secret() {
        for (method, path, access) in [
            ("GET", "/metrics", Access::Everyone),
            ("GET", "/log", Access::EveryClient),
            ("PUT", "/log", Access::Token),
            ("GET", "/status", Access::Token),
            ("GET", "/events", Access::Token),
            ("POST", "/explain/x1", Access::Token),
            ("POST", "/purge/x1", Access::Token),
            ("PURGE", "/jobs/x1", Access::Token),
            ("POST", "/purge", Access::TokenOrSignature),
        ] {
            assert_eq!(route(method, path).unwrap().access(), access, "{method} {path}");
        }
    }

    #[test]
    fn the_answer_to_an_unknown_path_names_every_page() {
        let pages = PAGES.replace("and POST ", "").replace(" and ", ", ").replace("<id>", "x1");
        for path in pages.split(", ") {
            assert_ne!(route("GET", path), Err(NoRoute::NotFound), "{path}");
        }
    }
}
