//! The head of a hit as text, for who writes it past hyper: two numbers are put in, nothing is made
//! anew.
//!
//! It is what hyper's server sends for the same headers over HTTP/1.1, to the byte. Headers that hyper
//! does more with than to write them are not spelled here, nor what has no `Date`, which it would add:
//! such an entry is left to it.

use hyper::http::{
    HeaderMap, StatusCode,
    header::{AGE, CACHE_STATUS, CONNECTION, DATE, TRAILER, TRANSFER_ENCODING, UPGRADE},
};

use super::{DIGITS, write_number};

/// A head, but for two numbers.
#[derive(Debug)]
pub(super) struct Spelled {
    text: Box<[u8]>,
    /// Where the numbers go, in the order of their places.
    places: [(usize, Number); 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Age,
    Ttl,
}

impl Spelled {
    /// Of the headers of a hit whose `Age` and last member of `Cache-Status` end in a number that is
    /// yet to be put in.
    pub(super) fn new(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        let special = [CONNECTION, TRAILER, TRANSFER_ENCODING, UPGRADE];
        if status != StatusCode::OK
            || !headers.contains_key(DATE)
            || special.iter().any(|name| headers.contains_key(name))
        {
            return None;
        }
        let mut text = b"HTTP/1.1 200 OK\r\n".to_vec();
        let mut places = Vec::with_capacity(2);
        let mut members = headers.get_all(CACHE_STATUS).iter().count();
        for (name, value) in headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            if *name == AGE {
                places.push((text.len(), Number::Age));
            } else {
                text.extend_from_slice(value.as_bytes());
            }
            if *name == CACHE_STATUS {
                members -= 1;
                if members == 0 {
                    places.push((text.len(), Number::Ttl));
                }
            }
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        Some(Self { text: text.into(), places: places.try_into().ok()? })
    }

    /// Writes the head with its numbers.
    pub(super) fn write(&self, to: &mut Vec<u8>, age: u64, ttl: u64) {
        to.reserve(self.text.len() + 2 * DIGITS);
        let mut from = 0;
        for (place, number) in self.places {
            to.extend_from_slice(&self.text[from..place]);
            let mut digits = [0; DIGITS];
            let number = if number == Number::Age { age } else { ttl };
            let start = write_number(&mut digits, number);
            to.extend_from_slice(&digits[start..]);
            from = place;
        }
        to.extend_from_slice(&self.text[from..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One header a line.
    #[track_caller]
    fn check(status: u16, lines: &str, want: Option<&str>) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines.lines().filter_map(|line| line.split_once(": ")) {
            let name: hyper::header::HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        let spelled = Spelled::new(StatusCode::from_u16(status).unwrap(), &headers);
        let mut text = vec![];
        let text = spelled.map(|spelled| {
            spelled.write(&mut text, 7, u64::MAX);
            String::from_utf8(text).unwrap().replace("\r\n", "|")
        });
        assert_eq!(text.as_deref(), want, "{lines}");
    }

    #[test]
    fn two_numbers_are_put_in_wherever_they_stand() {
        check(
            200,
            "date: d\nage: 0\nx: y\ncache-status: ttl=",
            Some("HTTP/1.1 200 OK|date: d|age: 7|x: y|cache-status: ttl=18446744073709551615||"),
        );
        check(
            200,
            "cache-status: a\ncache-status: ttl=\nage: 0\ndate: d",
            Some(
                "HTTP/1.1 200 OK|cache-status: a|cache-status: ttl=18446744073709551615|age: 7|\
                 date: d||",
            ),
        );
    }

    #[test]
    fn what_hyper_would_not_just_write_is_left_to_it() {
        check(200, "age: 0\ncache-status: ttl=", None);
        check(201, "date: d\nage: 0\ncache-status: ttl=", None);
        check(200, "date: d\nage: 0\ncache-status: ttl=\nconnection: close", None);
        check(200, "date: d\ncache-status: ttl=", None);
    }
}
