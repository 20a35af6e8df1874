//! `GET /`: the status page.
//!
//! The page is one response with everything in it, so that it works where only this listener can be
//! reached. It contains no data: its script fetches `/status`, `/history` and `/events`, with the
//! webhook secret if one is configured. The page itself can therefore be open to all clients.
//!
//! Job ids come from clients. The script only ever inserts them as text, and the content security
//! policy enforces it: only the script with this hash runs, no string becomes markup
//! (`require-trusted-types-for`), and nothing is fetched from other hosts.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hmac_sha256::Hash;
use hyper::{
    StatusCode,
    http::{
        HeaderValue,
        header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY},
    },
};

use super::reply::{Reply, ReplyBody, typed_reply};

const HTML: &str = include_str!("status_page/index.html");
const STYLE: &str = include_str!("status_page/style.css");
/// The files form one script. Each may use what the files before it define.
const SCRIPT: &str = concat!(
    include_str!("status_page/shared.js"),
    include_str!("status_page/fetch_json.js"),
    include_str!("status_page/plots.js"),
    include_str!("status_page/status.js"),
    include_str!("status_page/comparison.js"),
    include_str!("status_page/explain_job.js"),
    include_str!("status_page/event_stream.js"),
    include_str!("status_page/refresh.js"),
);

/// The complete status page.
#[derive(Debug)]
pub(super) struct StatusPage {
    page: Bytes,
    policy: HeaderValue,
}

impl StatusPage {
    pub(super) fn new() -> Self {
        let page = HTML
            .replacen("<style></style>", &format!("<style>{STYLE}</style>"), 1)
            .replacen("<script></script>", &format!("<script>{SCRIPT}</script>"), 1);
        let policy = HeaderValue::from_str(&content_security_policy())
            // Cannot fail, because the policy is ASCII. The fallback disables the page.
            .unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"));
        Self { page: page.into(), policy }
    }

    pub(super) fn reply(&self) -> Reply {
        let page = ReplyBody::Complete(self.page.clone());
        let mut response = typed_reply(StatusCode::OK, "text/html; charset=utf-8", page);
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        response
    }
}

/// The content security policy. The only image is the icon, which is a `data:` URL.
fn content_security_policy() -> String {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Hash::hash(text.as_bytes())));
    let (script, style) = (hash(SCRIPT), hash(STYLE));
    format!(
        "default-src 'none'; script-src {script}; style-src {style}; img-src data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::policy::{Bypass, NoStore};

    #[test]
    fn the_page_and_the_documentation_say_what_each_reason_means() {
        let documentation = include_str!("../../docs/troubleshooting.md");
        let bypasses = Bypass::ALL.iter().map(|why| why.as_str());
        for why in bypasses.chain(NoStore::ALL.iter().map(|why| why.as_str())) {
            let entries = [format!("\n  {why}: ["), format!("\n  '{why}': [")];
            assert!(entries.iter().any(|entry| SCRIPT.contains(entry)), "{why} is not explained");
            let is_documented = [format!("`{why}`"), format!("detail={why}`")];
            assert!(is_documented.iter().any(|word| documentation.contains(word)), "{why}");
        }
    }

    #[test]
    fn every_part_has_its_place_in_the_page() {
        let page = String::from_utf8(StatusPage::new().page.into()).unwrap();
        for part in [STYLE, SCRIPT] {
            assert_eq!(page.matches(part).count(), 1);
        }
        assert!(!SCRIPT.contains("</script") && !STYLE.contains("</style"));
    }
}
