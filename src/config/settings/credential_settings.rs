//! Credentials, which tell callers apart.

use crate::config::{
    CredentialMode, Secret, parse,
    setter::put,
    setting_spec::{DAY, SECOND, SettingSection, Visibility, choice, list, number, text, time},
};

/// Headers that are credentials unless configured otherwise: those that clients send (`Authorization`,
/// `Cookie`, API keys) and those that known gateways write once they know the caller. Any other header
/// tells callers apart too, but as part of the variant, which nothing waives. Grouped by gateway, as in
/// the note of the setting.
pub(in crate::config) const IDENTITY_HEADERS: &str = "\
    authorization,proxy-authorization,cookie,x-api-key,api-key,apikey,x-auth-token,\
    x-access-token,x-session-token,x-session-id,\
    x-user-id,x-tenant-id,\
    remote-user,remote-groups,remote-email,remote-name,x-remote-user,x-webauth-user,\
    x-authentik-username,x-authentik-groups,x-authentik-entitlements,x-authentik-email,\
    x-authentik-name,x-authentik-uid,x-authentik-jwt,\
    x-forwarded-user,x-forwarded-email,x-forwarded-groups,x-forwarded-preferred-username,\
    x-forwarded-access-token,x-auth-request-user,x-auth-request-email,x-auth-request-groups,\
    x-auth-request-preferred-username,x-auth-request-access-token,\
    client-cert,client-cert-chain,x-forwarded-client-cert,x-forwarded-tls-client-cert,\
    x-forwarded-tls-client-cert-info,ssl-client-cert,ssl-client-verify,ssl-client-subject-dn,\
    ssl-client-issuer-dn,x-ssl-client-cert,x-ssl-client-cn,x-ssl-client-dn,x-ssl-client-sha1,\
    x-ssl-client-verify,x-client-cert,x-client-cert-dn,x-client-cert-san,x-client-cert-hash,\
    x-client-cert-serial-number,x-client-cert-spiffe,x-client-cert-chain,x-client-cert-leaf,\
    x-amzn-mtls-clientcert,x-amzn-mtls-clientcert-chain,x-amzn-mtls-clientcert-leaf,\
    x-amzn-mtls-clientcert-issuer,x-amzn-mtls-clientcert-serial-number,\
    x-amzn-mtls-clientcert-subject,x-amzn-mtls-clientcert-validity,x-arr-clientcert,\
    cf-client-cert-der-base64,cf-client-cert-sha256,\
    x-envoy-downstream-service-cluster,x-envoy-downstream-service-node,x-envoy-peer-metadata,\
    x-envoy-peer-metadata-id,l5d-client-id,dapr-api-token,dapr-caller-app-id,\
    x-amzn-lattice-identity,x-amzn-source-vpc,\
    x-consumer-id,x-consumer-custom-id,x-consumer-username,x-consumer-groups,\
    x-credential-identifier,x-credential-username,x-anonymous-consumer,x-authenticated-scope,\
    x-authenticated-userid,x-authenticated-groups,x-userinfo,x-id-token,x-tyk-authorization,\
    x-jwt-assertion,x-gravitee-api-key,x-ibm-client-id,x-ibm-client-secret,\
    cf-access-jwt-assertion,cf-access-authenticated-user-email,cf-access-client-id,\
    cf-access-client-secret,cf-access-token,tailscale-user-login,tailscale-user-name,\
    tailscale-user-profile-pic,tailscale-app-capabilities,tailscale-user,tailscale-login,\
    tailscale-name,tailscale-tailnet,tailscale-profile-picture,x-pomerium-jwt-assertion,\
    x-pomerium-claim-email,x-pomerium-claim-groups,x-pomerium-claim-name,x-pomerium-claim-sub,\
    x-pomerium-claim-user,x-vercel-oidc-token,x-vercel-protection-bypass,\
    x-amzn-oidc-data,x-amzn-oidc-identity,x-amzn-oidc-accesstoken,x-amz-security-token,\
    x-goog-iap-jwt-assertion,x-goog-authenticated-user-email,x-goog-authenticated-user-id,\
    x-goog-api-key,x-serverless-authorization,x-apigateway-api-userinfo,\
    x-endpoint-api-userinfo,x-endpoint-api-project-id,x-endpoint-api-consumer-type,\
    x-endpoint-api-consumer-number,x-appengine-user-id,x-appengine-user-email,\
    x-appengine-user-nickname,x-appengine-user-is-admin,x-appengine-user-organization,\
    x-appengine-inbound-appid,x-firebase-appcheck,\
    ocp-apim-subscription-key,x-ms-client-principal,x-ms-client-principal-id,\
    x-ms-client-principal-name,x-ms-client-principal-idp,x-ms-token-aad-access-token,\
    x-ms-token-aad-id-token,x-functions-key,x-functions-clientid,x-zumo-auth,\
    private-token,job-token,deploy-token,x-gitlab-token,x-hasura-admin-secret,\
    x-hasura-access-key,x-hasura-role,x-hasura-user-id,x-hasura-org-id,x-hasura-allowed-roles,\
    x-hasura-default-role,x-vault-token,x-consul-token,x-nomad-token,\
    impersonate-user,impersonate-group,impersonate-uid";

pub(super) const CREDENTIALS: SettingSection = SettingSection {
    title: "Credentials",
    intro: "How jobcache tells callers apart, and what a caller may get from the cache.",
    settings: &[
        choice(
            "credentials.mode",
            "partition",
            &[
                (CredentialMode::Partition.as_str(), |c| {
                    c.cache.credentials.mode = CredentialMode::Partition;
                }),
                (CredentialMode::Shared.as_str(), |c| c.cache.credentials.mode = CredentialMode::Shared),
                (CredentialMode::Bypass.as_str(), |c| c.cache.credentials.mode = CredentialMode::Bypass),
            ],
        )
        .help("What a request with a credential may get from the cache.")
        .note(
            "`partition`: only what the API itself has served to this credential since the job \
             changed; that costs one read of the API per credential. `shared`: the same as everyone; \
             use it only if a gateway in front has authorised every request. `bypass`: nothing; such \
             requests pass uncached.",
        )
        .see("security"),
        list("credentials.headers", IDENTITY_HEADERS, (1, 512, "header"), |c, v| {
            put(&mut c.cache.credentials.headers, parse::headers(v))
        })
        .help("Headers that are credentials: what clients send, and what gateways write.")
        .note(
            "Setting the list replaces it. A response that says `public` or `s-maxage`, and \
             `credentials.mode = \"shared\"`, waive credentials. Any other header that is not known to \
             say nothing about the caller tells callers apart as well, and is never waived. So a \
             header that is missing here shows a job to nobody. The default has `Authorization`, \
             cookies, API keys, session tokens, certificates of clients (RFC 9440, Envoy, nginx ingress, \
             Traefik, HAProxy, ALB, Google, Azure, Cloudflare), and what these write or take: \
             Authelia, Apache, Grafana, authentik, oauth2-proxy, nginx `auth_request`, Istio, Linkerd, \
             Dapr, VPC Lattice, Kong, APISIX, Tyk, WSO2, Gravitee, IBM API Connect, Cloudflare Access, \
             Tailscale, Pomerium, Vercel, AWS, Google Cloud, Azure, GitLab, Hasura, Vault, Consul, Nomad, \
             Kubernetes. Another spelling that some upstreams read as one of them, such as `x_api_key`, \
             is one of them.",
        )
        .see("security"),
        list("credentials.ignore", "", (0, 64, "header"), |c, v| {
            put(&mut c.cache.credentials.ignore, parse::headers(v))
        })
        .unset("none", "[\"X-Poll-Nonce\"]")
        .help("Further headers that say nothing about the caller, and on which no answer depends.")
        .note(
            "Every request header tells callers apart, except those on a built-in list: what browsers \
             say about themselves, conditions, addresses of clients, ids of requests, trace contexts. \
             Name a header here if it changes from request to request and the API's answer does not \
             depend on it; jobcache warns about such headers by name. Never name one that identifies \
             the caller or selects what is in the answer: jobs would be shown to strangers. Default \
             credentials are refused here.",
        )
        .see("security"),
        list("credentials.cookies", "", (1, 64, "cookie"), |c, v| {
            put(&mut c.cache.credentials.cookies, parse::cookies(v))
        })
        .unset("all cookies", "[\"session\"]")
        .help("Cookies that identify the caller.")
        .note(
            "Name the session cookie if other cookies change from request to request. A cookie counts \
             if its name begins with one of these, in any case, also after `__Host-` and the like: the \
             parts of a long session (`session.0`, `sessionC1`) belong to that session. A response that \
             sets only other cookies is stored without them.",
        ),
        text("credentials.secret", "", "16 visible ASCII characters or more", |c, v| {
            put(&mut c.cache.credentials.secret, parse::secret(v).map(Secret::new).map(Some))
        })
        .visibility(Visibility::Hidden)
        .env_file()
        .unset("a random key that the store keeps for all sidecars", "\"...\"")
        .help("Key of the fingerprints under which credentials are stored.")
        .note("Prefer the variables to the configuration file, so that the file holds no secret."),
        number("credentials.audience", "256", (1, 4096), |c, v| c.cache.credentials.audience = v)
            .help("Callers that may share one entry.")
            .note("Requests of further callers pass uncached."),
        time("credentials.recheck", "", (SECOND, DAY), |c, v| c.cache.credentials.recheck = Some(v))
            .unset("until the job changes or the TTL ends", "\"30s\"")
            .help("Time for which a caller is trusted after the API has served a job to it.")
            .note(
                "After that its next poll reads the API again, and a token that has expired or was \
                 revoked gets its 401. It costs one read of the API per caller each time.",
            )
            .see("security"),
    ],
};
