//! Logins that belong to a connection and not to a request: NTLM, Negotiate and Kerberos.
//!
//! After such a login the API takes every later request on the same connection for one of that user
//! (RFC 4559 6). So a connection with such a login must never carry requests of anyone else.
//!
//! Pure. `upstream` binds connections, and `proxy` keeps what is read over them out of the cache.

use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HeaderName, HeaderValue, PROXY_AUTHENTICATE, WWW_AUTHENTICATE},
};

/// Schemes that authenticate the connection.
const SCHEMES: [&[u8]; 3] = [b"ntlm", b"negotiate", b"kerberos"];

/// States that the connection stays authenticated after the response. Servers also send it with the
/// value `false`. Its presence alone counts here, because a server that sends it knows such logins.
pub(crate) const PERSISTENT_AUTH: HeaderName = HeaderName::from_static("persistent-auth");

/// A statement of a response about the identity of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionIdentity {
    /// Nothing.
    Unstated,
    /// The response asks for a login on this connection.
    Challenged,
    /// The connection has an identity.
    Established,
}

/// Whether a request carries a login of a scheme that authenticates the connection.
pub(crate) fn is_login(headers: &HeaderMap) -> bool {
    headers.get_all(AUTHORIZATION).iter().any(names_scheme)
}

/// Whether a member of a list of credentials or challenges begins with one of these schemes. "It
/// uses a case-insensitive token to identify the authentication scheme" RFC 9110 11.1.
pub(crate) fn names_scheme(value: &HeaderValue) -> bool {
    value.as_bytes().split(|&b| b == b',').any(|member| {
        let member = member.trim_ascii();
        let end = member.iter().position(|b| !b.is_ascii_alphanumeric());
        let scheme = &member[..end.unwrap_or(member.len())];
        SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme))
    })
}

/// Returns what a response says about the identity of its connection.
///
/// jobcache removes `Proxy-Authorization`, so no client can log in to a proxy through it. Such a
/// challenge is treated like the other one all the same.
pub(crate) fn identity_of(headers: &HeaderMap) -> ConnectionIdentity {
    if headers.contains_key(PERSISTENT_AUTH) {
        return ConnectionIdentity::Established;
    }
    let challenges = [WWW_AUTHENTICATE, PROXY_AUTHENTICATE];
    if challenges.iter().flat_map(|name| headers.get_all(name)).any(names_scheme) {
        return ConnectionIdentity::Challenged;
    }
    ConnectionIdentity::Unstated
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;

    use super::{ConnectionIdentity, identity_of, is_login};

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[track_caller]
    fn check_login(lines: &[(&'static str, &str)], want: bool) {
        assert_eq!(is_login(&headers(lines)), want, "{lines:?}");
    }

    #[test]
    fn a_login_is_known_by_its_scheme_in_any_letter_case() {
        for login in [
            "NTLM TlRMTVNTUAAB",
            "ntlm x",
            "Negotiate YII=",
            "NEGOTIATE\tYII=",
            "kErBeRoS x",
            "NTLM",
            "  NTLM  x",
            "NTLM=x",
            "Basic eDp5, Negotiate x",
        ] {
            check_login(&[("authorization", login)], true);
        }
        check_login(&[("authorization", "Basic x"), ("authorization", "NTLM y")], true);
        for other in ["Bearer NTLM", "Basic eDp5", "NTLMv2 x", "Digest realm=\"NTLM\"", "", "x"] {
            check_login(&[("authorization", other)], false);
        }
        check_login(&[("proxy-authorization", "NTLM x")], false);
    }

    #[test]
    fn a_response_states_an_identity_or_asks_for_one() {
        use ConnectionIdentity::{Challenged, Established, Unstated};
        let check = |lines: &[(&'static str, &str)], want| {
            assert_eq!(identity_of(&headers(lines)), want, "{lines:?}");
        };
        check(&[("www-authenticate", "Negotiate"), ("www-authenticate", "NTLM")], Challenged);
        check(&[("www-authenticate", "Basic realm=\"a\", ntlm")], Challenged);
        check(&[("proxy-authenticate", "NTLM")], Challenged);
        check(&[("www-authenticate", "Bearer realm=\"a\"")], Unstated);
        check(&[], Unstated);
        check(&[("www-authenticate", "NTLM x"), ("persistent-auth", "true")], Established);
        check(&[("persistent-auth", "false")], Established);
    }
}
