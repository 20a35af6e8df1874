//! Zstandard (RFC 8878), the only compression of bodies in the store.
//!
//! Uses the reference implementation, a C library that is linked into the binary, at level 1. The next
//! levels do not compress the sample of benches/README.md any better, and `ruzstd`, which is pure Rust,
//! takes several times as long.

use bytes::Bytes;
use hyper::{
    HeaderMap,
    header::{ACCEPT_ENCODING, CACHE_CONTROL, HeaderName, HeaderValue},
};

use crate::semantics::headers::ETAG_SUFFIX;

/// Name of the coding.
pub(super) const ZSTD: HeaderValue = HeaderValue::from_static("zstd");

/// Compression level.
const LEVEL: i32 = 1;

/// Greatest decompressed length: the upper limit of the setting `max_body`. A value in the store is
/// never decompressed to more.
const MAX_BODY_BYTES: usize = 64 << 20;

/// Greatest weight (a qvalue of 1), in thousandths.
const FULL_WEIGHT: u16 = 1_000;

/// Headers that describe the exact bytes of the content, and would be wrong for compressed ones (RFC
/// 9530 2, RFC 1864).
const BYTE_DIGEST_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
];

/// Coding in which a client is sent a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coding {
    /// As the upstream sent it.
    #[default]
    Identity,
    /// Compressed, if the store holds the body compressed.
    Zstd,
}

impl Coding {
    /// Returns the coding that a request asks for: Zstandard if it is named, with no lower weight than
    /// identity.
    ///
    /// `*` does not count as naming it: clients that send `*` rarely support every coding, and a server
    /// may always send a body without one (RFC 9110 12.5.3).
    pub fn of_request(request: &HeaderMap) -> Self {
        let (mut zstd, mut identity) = (0, None);
        for (name, weight) in members(request, &ACCEPT_ENCODING) {
            if name.eq_ignore_ascii_case(b"zstd") {
                zstd = weight.unwrap_or(0);
            } else if name.eq_ignore_ascii_case(b"identity") {
                identity = Some(weight.unwrap_or(FULL_WEIGHT));
            }
        }
        // "no-transform [..] indicates that the client is asking for intermediaries to avoid transforming
        // the content" RFC 9111 5.2.1.6
        let welcome = zstd > 0 && identity.is_none_or(|identity| identity <= zstd);
        if welcome && !forbids_transform(request) { Self::Zstd } else { Self::Identity }
    }
}

/// Returns whether a body with these headers may be compressed.
///
/// "The no-transform response directive indicates that an intermediary (regardless of whether it
/// implements a cache) MUST NOT transform the content" RFC 9111 5.2.2.6
pub(super) fn may_be_compressed(response: &HeaderMap) -> bool {
    !forbids_transform(response)
        && !BYTE_DIGEST_HEADERS.iter().any(|name| response.contains_key(name))
}

/// Compresses a body; `None` if that makes it no smaller.
pub(super) fn compress(body: &[u8]) -> Option<Bytes> {
    // The capacity makes compression fail if the result is no smaller than the body.
    let mut coded = Vec::with_capacity(body.len().checked_sub(1)?);
    zstd_safe::compress(&mut coded, body, LEVEL).ok()?;
    coded.shrink_to_fit();
    Some(coded.into())
}

/// Decompresses a body; `None` if it does not have exactly this length.
pub(super) fn decompress(coded: &[u8], length: usize) -> Option<Bytes> {
    if length > MAX_BODY_BYTES {
        return None;
    }
    // The capacity makes decompression fail if the result is longer.
    let mut body = Vec::with_capacity(length);
    zstd_safe::decompress(&mut body, coded).ok()?;
    (body.len() == length).then(|| body.into())
}

/// Returns the `ETag` of the compressed body.
///
/// "content codings are a property of the representation data, so a strong entity tag for a
/// content-encoded representation has to be distinct from the entity tag of an unencoded
/// representation" RFC 9110 8.8.3.3. A weak tag may stay the same.
pub(super) fn compressed_etag(identity: &HeaderValue) -> HeaderValue {
    let tag = identity.as_bytes();
    if tag.starts_with(b"W/") {
        return identity.clone();
    }
    let coded = match tag.strip_suffix(b"\"") {
        Some(open) => [open, ETAG_SUFFIX.as_bytes(), b"\""].concat(),
        None => [tag, ETAG_SUFFIX.as_bytes()].concat(),
    };
    // Conversion never fails: only visible characters are added to a valid value.
    HeaderValue::from_bytes(&coded).unwrap_or_else(|_| identity.clone())
}

fn forbids_transform(headers: &HeaderMap) -> bool {
    let mut directives = members(headers, &CACHE_CONTROL);
    directives.any(|(name, _)| name.eq_ignore_ascii_case(b"no-transform"))
}

/// Returns the members of a list field, each with its weight in thousandths, or `None` for a weight
/// that cannot be parsed. The caller treats such a weight so that the body stays uncompressed.
fn members<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = (&'h [u8], Option<u16>)> {
    let lines = headers.get_all(name).into_iter();
    lines.flat_map(|line| line.as_bytes().split(|b| *b == b',')).map(|member| {
        let mut parts = member.splitn(2, |b| *b == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        (name, parts.next().map_or(Some(FULL_WEIGHT), weight))
    })
}

/// Parses `weight = OWS ";" OWS "q=" qvalue` of RFC 9110 12.4.2. A coding has no other parameter, and
/// no space is allowed around the `=`. So `q =0` is not a weight, and must not count as acceptance.
fn weight(parameter: &[u8]) -> Option<u16> {
    thousandths(parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="))?)
}

/// Parses `qvalue = ( "0" [ "." 0*3DIGIT ] ) / ( "1" [ "." 0*3("0") ] )` of RFC 9110 12.4.2, in
/// thousandths.
fn thousandths(value: &[u8]) -> Option<u16> {
    let (whole, digits) = match value {
        [whole, b'.', digits @ ..] if digits.len() <= 3 => (whole, digits),
        [whole] => (whole, &[][..]),
        _ => return None,
    };
    let digit = |b: u8| b.is_ascii_digit().then(|| u16::from(b - b'0'));
    let mut weight = digit(*whole)?;
    for place in 0..3 {
        weight = weight * 10 + digits.get(place).map_or(Some(0), |b| digit(*b))?;
    }
    (weight <= FULL_WEIGHT).then_some(weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lines: &[(&'static str, &'static str)], want: Coding) {
        let line = |&(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let headers: HeaderMap = lines.iter().map(line).collect();
        assert_eq!(Coding::of_request(&headers), want, "{lines:?}");
    }

    #[test]
    fn the_coding_is_for_those_who_name_it_and_like_it_as_well_as_none() {
        let accepts = |value, want| check(&[("accept-encoding", value)], want);
        check(&[], Coding::Identity);
        accepts("", Coding::Identity);
        accepts("zstd", Coding::Zstd);
        accepts("gzip, deflate, br, ZSTD", Coding::Zstd);
        accepts("gzip;q=1.0 , zstd ; q=0.5", Coding::Zstd);
        accepts("gzip, deflate, br", Coding::Identity);
        accepts("*", Coding::Identity);
        accepts("zstd;q=0", Coding::Identity);
        accepts("zstd;q=0.000", Coding::Identity);
        accepts("zstd;q=0.001", Coding::Zstd);
        accepts("zstd;q=0.5, identity", Coding::Identity);
        accepts("zstd;q=0.5, identity;q=0.5", Coding::Zstd);
        accepts("identity;q=0, zstd;q=0.1", Coding::Zstd);
        for broken in ["zstd;q=2", "zstd;q=x", "zstd;q=0.1234", "zstd;q=", "zstdx", "x-zstd"] {
            accepts(broken, Coding::Identity);
        }
        for broken in ["zstd;q =0", "zstd;q= 0", "zstd; q = 1", "zstd;level=1", "zstd;q=1;x"] {
            accepts(broken, Coding::Identity);
        }
        accepts("zstd;q=0.9, identity;q =0", Coding::Identity);
        check(&[("accept-encoding", "gzip"), ("accept-encoding", "zstd")], Coding::Zstd);
        check(&[("accept-encoding", "zstd"), ("cache-control", "No-Transform")], Coding::Identity);
    }

    #[test]
    fn a_body_comes_back_and_no_other_is_made_of_it() {
        let body = b"{\"status\":\"running\"}".repeat(1_000);
        let coded = compress(&body).unwrap();
        assert!(coded.len() < body.len() / 10);
        assert_eq!(decompress(&coded, body.len()).as_deref(), Some(&body[..]));
        for other in [0, 1, body.len() - 1, body.len() + 1, MAX_BODY_BYTES + 1, usize::MAX] {
            assert_eq!(decompress(&coded, other), None, "{other}");
        }
        assert_eq!(decompress(&coded[..coded.len() - 1], body.len()), None);
        assert_eq!(decompress(b"{}", 2), None);
        assert_eq!(decompress(b"", 0), Some(Bytes::new()));
    }

    #[test]
    fn what_gets_no_smaller_is_left_as_it_is() {
        let mut state = 1_u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        let noise: Vec<u8> = noise.take(4_096).collect();
        assert_eq!(compress(&noise), None);
        assert_eq!(compress(b""), None);
        assert_eq!(compress(b"{}"), None);
    }

    #[test]
    fn a_strong_tag_tells_the_coding() {
        for (identity, coded) in
            [("\"a\"", "\"a-jobcache-zstd\""), ("W/\"a\"", "W/\"a\""), ("a", "a-jobcache-zstd")]
        {
            assert_eq!(compressed_etag(&HeaderValue::from_static(identity)), coded);
        }
    }
}
