//! Credentials, by which callers are told apart.

use super::{DAY, SECOND, put};
use crate::config::{
    CredentialMode, Secret, parse,
    setting_spec::{SettingSection, Visibility, choice, list, number, text, time},
};

/// Headers that mark a request as that of a certain caller, unless configured otherwise: those that
/// clients send (`Authorization`, `Cookie`, API keys) and those that gateways write once they know
/// the caller. An unneeded header costs hits; a missing one shows a job to a stranger.
const IDENTITY_HEADERS: &str = "\
    authorization,proxy-authorization,cookie,x-api-key,api-key,apikey,x-auth-token,x-access-token,\
    x-session-token,x-session-id,\
    x-user-id,x-tenant-id,remote-user,remote-groups,remote-email,remote-name,x-remote-user,\
    x-webauth-user,x-authentik-username,x-forwarded-user,x-forwarded-email,x-forwarded-groups,\
    x-forwarded-preferred-username,x-forwarded-access-token,x-forwarded-client-cert,\
    x-auth-request-user,x-auth-request-email,x-auth-request-groups,\
    x-auth-request-preferred-username,x-auth-request-access-token,cf-access-jwt-assertion,\
    cf-access-authenticated-user-email,x-amzn-oidc-data,x-amzn-oidc-identity,\
    x-amzn-oidc-accesstoken,x-goog-iap-jwt-assertion,x-goog-authenticated-user-email,\
    x-goog-authenticated-user-id,x-ms-client-principal,x-ms-client-principal-id,\
    x-ms-client-principal-name";

pub(super) const CREDENTIALS: SettingSection = SettingSection {
    title: "Credentials",
    table: "credentials",
    intro: "How jobcache tells callers apart, and what a caller may get from the cache.",
    settings: &[
        choice(
            "credentials.mode",
            "partition",
            &[
                (CredentialMode::Partition.as_str(), |c| {
                    c.credentials.mode = CredentialMode::Partition;
                }),
                (CredentialMode::Shared.as_str(), |c| c.credentials.mode = CredentialMode::Shared),
                (CredentialMode::Bypass.as_str(), |c| c.credentials.mode = CredentialMode::Bypass),
            ],
        )
        .env(&["JOBCACHE_CREDENTIALS_MODE"])
        .help("What a request with a credential may get from the cache.")
        .note(
            "`partition`: only what the API itself has served to this credential since the job \
             changed; that costs one read of the API per credential. `shared`: the same as everyone; \
             use it only if a gateway in front has authorised every request. `bypass`: nothing; such \
             requests pass uncached.",
        )
        .see("security"),
        // Every request is searched for every header.
        list("credentials.headers", IDENTITY_HEADERS, (1, 64, "header"), |c, v| {
            put(&mut c.credentials.headers, parse::headers(v))
        })
        .env(&["JOBCACHE_CREDENTIALS_HEADERS"])
        .help("Headers by which the API, or a gateway in front of it, tells callers apart.")
        .note(
            "**Add your own.** Setting the list replaces it. An unneeded header costs hits; a missing \
             one shows a job to a stranger. The default has what clients send (`Authorization`, \
             cookies, API keys, session tokens) and what gateways write: Authelia and Apache \
             (`Remote-*`), Grafana's auth proxy, authentik, oauth2-proxy, nginx `auth_request`, Envoy, \
             Cloudflare Access, AWS load balancers, Google IAP, Azure App Service. Names with other \
             characters than letters, digits and hyphens, such as `api_key`, always count.",
        )
        .see("security"),
        list("credentials.cookies", "", (1, 64, "cookie"), |c, v| {
            put(&mut c.credentials.cookies, parse::cookies(v))
        })
        .env(&["JOBCACHE_CREDENTIALS_COOKIES"])
        .unset("all cookies", "[\"session\"]")
        .help("Cookies that identify the caller.")
        .note(
            "Name the session cookie if other cookies change from request to request. A cookie counts \
             if its name begins with one of these, in any case, also after `__Host-` and the like: the \
             parts of a long session (`session.0`, `sessionC1`) belong to that session. A response that \
             sets only other cookies is stored without them.",
        ),
        text("credentials.secret", "", "16 visible ASCII characters or more", |c, v| {
            put(&mut c.credentials.secret, parse::secret(v).map(Secret::new).map(Some))
        })
        .visibility(Visibility::Hidden)
        .env_file()
        .env(&["JOBCACHE_CREDENTIALS_SECRET"])
        .unset("a random key that the store keeps for all sidecars", "\"...\"")
        .help("Key of the fingerprints under which credentials are stored.")
        .note("Prefer the variables to the configuration file, so that the file holds no secret."),
        number("credentials.audience", "256", (1, 4096), |c, v| c.credentials.audience = v)
            .env(&["JOBCACHE_CREDENTIALS_AUDIENCE"])
            .help("Callers that may share one entry.")
            .note("Requests of further callers pass uncached."),
        time("credentials.recheck", "", (SECOND, DAY), |c, v| c.credentials.recheck = Some(v))
            .env(&["JOBCACHE_CREDENTIALS_RECHECK"])
            .unset("until the job changes or the TTL ends", "\"30s\"")
            .help("Time for which a caller is trusted after the API has served a job to it.")
            .note(
                "After that its next poll reads the API again, and a token that has expired or was \
                 revoked gets its 401. It costs one read of the API per caller each time.",
            )
            .see("security"),
    ],
};
