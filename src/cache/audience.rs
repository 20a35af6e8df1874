//! Who may be given an entry.
//!
//! The **representation** is what a request says about the form of the answer rather than about who
//! asks: the path it came by, the host names and the negotiated form. An upstream may answer
//! differently by any of them, so an entry is only for the representations it was read for.

use hyper::http::{
    HeaderName,
    header::{ACCEPT, ACCEPT_LANGUAGE, FORWARDED, HOST, ORIGIN},
    request::Parts,
};

/// 128 bits of BLAKE3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

const REPRESENTATION: [HeaderName; 9] = [
    HOST,
    ORIGIN,
    ACCEPT,
    ACCEPT_LANGUAGE,
    FORWARDED,
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
];

impl Fingerprint {
    /// The representation that a request asks for.
    pub fn representation(head: &Parts) -> Self {
        let mut hasher = blake3::Hasher::new();
        add(&mut hasher, head.uri.path().as_bytes());
        // An absolute-form target or an HTTP/2 `:authority` takes the place of Host.
        if let Some(authority) = head.uri.authority() {
            add(&mut hasher, HOST.as_str().as_bytes());
            add(&mut hasher, authority.as_str().as_bytes());
        }
        let skipped = head.uri.authority().map(|_| HOST);
        for name in REPRESENTATION.iter().filter(|name| Some(*name) != skipped.as_ref()) {
            for value in head.headers.get_all(name) {
                add(&mut hasher, name.as_str().as_bytes());
                add(&mut hasher, value.as_bytes());
            }
        }
        let mut print = [0; 16];
        hasher.finalize_xof().fill(&mut print);
        Self(print)
    }

    /// As it stands in an entry: 32 hexadecimal digits.
    pub fn to_hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Length first, so that no two lists of parts read the same.
fn add(hasher: &mut blake3::Hasher, part: &[u8]) {
    hasher.update(&(part.len() as u64).to_le_bytes());
    hasher.update(part);
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn print(path: &str, headers: &[(&str, &str)]) -> Fingerprint {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Fingerprint::representation(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn each_part_of_a_representation_tells_it_apart() {
        let plain = print("/jobs/x", &[("host", "a")]);
        assert_eq!(plain, print("/jobs/x", &[("host", "a"), ("user-agent", "curl")]));
        assert_eq!(plain, print("http://a/jobs/x", &[("host", "ignored")]));
        for other in [
            print("/api/v1/jobs/x", &[("host", "a")]),
            print("/jobs/x", &[("host", "b")]),
            print("/jobs/x", &[("host", "a"), ("origin", "b")]),
            print("/jobs/x", &[("host", "a"), ("accept", "text/html")]),
            print("/jobs/x", &[("host", "a"), ("accept-language", "de")]),
            print("/jobs/x", &[("host", "a"), ("x-forwarded-proto", "https")]),
            print("http://b/jobs/x", &[("host", "a")]),
        ] {
            assert_ne!(plain, other);
        }
    }

    #[test]
    fn a_repeated_header_is_not_its_values_joined() {
        assert_ne!(
            print("/jobs/x", &[("accept", "a"), ("accept", "b")]),
            print("/jobs/x", &[("accept", "a, b")])
        );
    }
}
