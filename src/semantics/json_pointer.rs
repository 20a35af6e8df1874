//! JSON pointers (RFC 6901): to one value in the bytes of a document, or to many values in a parsed
//! document.
//!
//! [`JsonPointer::scalar`] reads only what lies on the path. Everything else is checked and skipped,
//! and nothing is built, so a large body costs one pass over its bytes. [`JsonPointer::find`] serves
//! several pointers into one document, which is then worth parsing once.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Longest pointer, in bytes. This also bounds the number of steps.
const MAX_LEN: usize = 256;

/// The token for all elements and members.
const EVERY: &str = "*";

/// A path to a place in a JSON document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPointer {
    tokens: Vec<String>,
}

const RELATIVE: &str = "is not a JSON pointer (RFC 6901); begin it with '/', as in '/job/id'";
const ESCAPE: &str =
    "is not a JSON pointer (RFC 6901); write '~' as '~0' and '/' within a name as '~1'";
const TOO_LONG: &str = "is too long for a JSON pointer; use at most 256 bytes";

/// Formats the pointer as it is written, with its escapes.
impl fmt::Display for JsonPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = |token: &String| token.replace('~', "~0").replace('/', "~1");
        self.tokens.iter().try_for_each(|name| write!(f, "/{}", token(name)))
    }
}

impl JsonPointer {
    /// Parses a pointer such as `/status` or `/items/0/state`. The empty pointer is the whole
    /// document. An error continues a sentence that begins with the text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        // "a sequence of zero or more reference tokens, each prefixed by a '/'" RFC 6901 3
        if text.is_empty() {
            return Ok(Self { tokens: Vec::new() });
        }
        let tokens = text.strip_prefix('/').ok_or(RELATIVE)?;
        if text.len() > MAX_LEN {
            return Err(TOO_LONG);
        }
        Ok(Self { tokens: tokens.split('/').map(token).collect::<Result<_, _>>()? })
    }

    /// Returns a pointer to a member of the document.
    pub fn member(name: &str) -> Self {
        Self::members([name])
    }

    /// Returns a pointer through `names`, each a member of the one before.
    pub fn members<const N: usize>(names: [&str; N]) -> Self {
        Self { tokens: names.map(str::to_owned).into() }
    }

    /// Returns the string, boolean or integer at the pointer as text. Returns `None` if there is no
    /// value or another kind of value there, or if `json` is not JSON. Of several members with one
    /// name the last one counts, as in JavaScript and Python.
    pub fn scalar(&self, json: &[u8]) -> Option<String> {
        let mut document = serde_json::Deserializer::from_slice(json);
        let scalar = Step(&self.tokens).deserialize(&mut document).ok()?;
        document.end().ok()?;
        scalar
    }

    /// Calls `found` with every value that the pointer leads to. `*` stands for every element of an
    /// array and every member of an object, so a member called `*` cannot be named alone.
    pub fn find(&self, document: &Value, found: &mut impl FnMut(&Value)) {
        follow(&self.tokens, document, found);
    }
}

fn token(text: &str) -> Result<String, &'static str> {
    // "Because the characters '~' (%x7E) and '/' (%x2F) have special meanings in JSON Pointer,
    // '~' needs to be encoded as '~0' and '/' needs to be encoded as '~1'" RFC 6901 3
    let mut escapes = text.split('~').skip(1);
    if escapes.any(|rest| !rest.starts_with(['0', '1'])) {
        return Err(ESCAPE);
    }
    // "by first transforming any occurrence of the sequence '~1' to '/', and then transforming
    // any occurrence of the sequence '~0' to '~'" RFC 6901 4
    Ok(text.replace("~1", "/").replace("~0", "~"))
}

/// "an unsigned base-10 integer value [..] without leading zeros" RFC 6901 4
fn index(token: &str) -> Option<usize> {
    let digits = token.bytes().all(|b| b.is_ascii_digit());
    let canonical = digits && (token == "0" || !token.starts_with('0'));
    token.parse().ok().filter(|_| canonical)
}

/// Recurses at most once per token, and never deeper than the document.
fn follow(tokens: &[String], value: &Value, found: &mut impl FnMut(&Value)) {
    let Some((token, rest)) = tokens.split_first() else { return found(value) };
    let follow_rest = |value| follow(rest, value, found);
    match value {
        Value::Object(members) if token == EVERY => members.values().for_each(follow_rest),
        Value::Array(elements) if token == EVERY => elements.iter().for_each(follow_rest),
        Value::Object(members) => {
            members.get(token).map(follow_rest);
        }
        Value::Array(elements) => {
            index(token).and_then(|index| elements.get(index)).map(follow_rest);
        }
        _ => {}
    }
}

/// The tokens that are still to be followed.
struct Step<'p>(&'p [String]);

impl Step<'_> {
    fn end(&self, scalar: &(impl ToString + ?Sized)) -> Option<String> {
        self.0.is_empty().then(|| scalar.to_string())
    }
}

impl<'de> DeserializeSeed<'de> for Step<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, document: D) -> Result<Self::Value, D::Error> {
        document.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Step<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.end(text))
    }

    fn visit_bool<E: Error>(self, boolean: bool) -> Result<Self::Value, E> {
        Ok(self.end(&boolean))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(self.end(&number))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(self.end(&number))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let wanted = self.0.split_first().and_then(|(token, rest)| Some((index(token)?, rest)));
        let mut found = None;
        for at in 0.. {
            let element = match wanted {
                Some((index, rest)) if index == at => {
                    items.next_element_seed(Step(rest))?.map(|scalar| found = scalar)
                }
                _ => items.next_element::<IgnoredAny>()?.map(drop),
            };
            if element.is_none() {
                break;
            }
        }
        Ok(found)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let Some((token, rest)) = self.0.split_first() else {
            return IgnoredAny.visit_map(members).map(|_| None);
        };
        let mut found = None;
        while let Some(wanted) = members.next_key_seed(Name(token))? {
            if wanted {
                found = members.next_value_seed(Step(rest))?;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Compares the name of a member with this one.
struct Name<'p>(&'p str);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, name: D) -> Result<bool, D::Error> {
        name.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{ESCAPE, JsonPointer, MAX_LEN, RELATIVE, TOO_LONG};

    #[track_caller]
    fn check(pointer: &str, json: &str, want: Option<&str>) {
        let got = JsonPointer::parse(pointer).unwrap().scalar(json.as_bytes());
        assert_eq!(got.as_deref(), want, "{pointer:?} in {json}");
    }

    #[test]
    fn strings_booleans_and_integers_are_found() {
        check("/status", r#"{"id":1,"status":"running","log":[{}]}"#, Some("running"));
        check("/status", r#" {"status" : "caf\u00e9" } "#, Some("café"));
        check("/done", r#"{"done":true}"#, Some("true"));
        check("/n", r#"{"n":-7}"#, Some("-7"));
        check("/n", r#"{"n":18446744073709551615}"#, Some("18446744073709551615"));
        check("/a/0/b", r#"{"a":[{"b":"x"},{"b":"y"}]}"#, Some("x"));
        check("/a/1/b", r#"{"a":[{"b":"x"},{"b":"y"}]}"#, Some("y"));
        check("", r#""running""#, Some("running"));
        check("/", r#"{"":"x"}"#, Some("x"));
    }

    #[test]
    fn tokens_are_unescaped_in_the_order_of_the_standard() {
        check("/a~1b", r#"{"a/b":"x"}"#, Some("x"));
        check("/a~0b", r#"{"a~b":"x"}"#, Some("x"));
        check("/~01", r#"{"~1":"x","/":"y"}"#, Some("x"));
        check("/a%2fb", r#"{"a%2fb":"x"}"#, Some("x"));
        check("/st\u{61}tus", r#"{"st\u0061tus":"x"}"#, Some("x"));
    }

    #[test]
    fn what_is_not_there_or_no_scalar_is_not_found() {
        check("/status", "{}", None);
        check("/status", r#"{"Status":"x"}"#, None);
        check("/status/x", r#"{"status":"x"}"#, None);
        check("/status", r#"{"a":{"status":"x"}}"#, None);
        for value in ["null", "1.5", "{}", "[]", "[\"x\"]", "1e3", "99999999999999999999"] {
            check("/status", &format!(r#"{{"status":{value}}}"#), None);
        }
        check("", r#"{"status":"x"}"#, None);
        check("/a/2", r#"{"a":["x","y"]}"#, None);
        check("/a/00", r#"{"a":["x"]}"#, None);
        check("/a/-", r#"{"a":["x"]}"#, None);
        check("/a/+0", r#"{"a":["x"]}"#, None);
    }

    #[test]
    fn of_members_with_one_name_the_last_counts() {
        check("/a", r#"{"a":"x","a":"y"}"#, Some("y"));
        check("/a/b", r#"{"a":{"b":"x"},"a":1}"#, None);
    }

    #[test]
    fn in_what_is_not_json_nothing_is_found() {
        for json in ["", "status", r#"{"status":"x""#, r#"{"status":"x"} x"#, r#"{"status":"x",}"#]
        {
            check("/status", json, None);
        }
        check("/status", r#"{"status":"x","rest":[1,}"#, None);
        check("/a", &"[".repeat(100_000), None);
        let invalid = JsonPointer::member("status").scalar(b"{\"status\":\"\xff\"}");
        assert_eq!(invalid, None);
    }

    #[test]
    fn a_pointer_begins_with_a_slash_and_knows_two_escapes() {
        for text in ["status", "a/b", "#/status", "$.id"] {
            assert_eq!(JsonPointer::parse(text), Err(RELATIVE), "{text:?}");
        }
        for text in ["/~", "/a~", "/a~2", "/~x", "/~x/b", "/~é"] {
            assert_eq!(JsonPointer::parse(text), Err(ESCAPE), "{text:?}");
        }
        assert!(JsonPointer::parse(&"/".repeat(MAX_LEN)).is_ok());
        assert_eq!(JsonPointer::parse(&"/".repeat(MAX_LEN + 1)), Err(TOO_LONG));
        assert_eq!(JsonPointer::parse("/status"), Ok(JsonPointer::member("status")));
    }

    #[track_caller]
    fn check_found(pointer: &str, want: &[Value]) {
        let document = json!({
            "foo": ["bar", "baz"], "": 0, "a/b": 1, "m~n": 8, "*": "star",
            "jobs": [{ "id": 1 }, { "id": "two" }, {}, 3], "deep": { "x": { "id": 5 } },
        });
        let mut got = Vec::new();
        JsonPointer::parse(pointer).unwrap().find(&document, &mut |value| got.push(value.clone()));
        let want: Vec<Value> = if pointer.is_empty() { vec![document] } else { want.to_vec() };
        assert_eq!(got, want, "{pointer}");
    }

    #[test]
    fn a_pointer_leads_where_the_rfc_says() {
        check_found("", &[]);
        check_found("/foo", &[json!(["bar", "baz"])]);
        check_found("/foo/0", &[json!("bar")]);
        check_found("/", &[json!(0)]);
        check_found("/a~1b", &[json!(1)]);
        check_found("/m~0n", &[json!(8)]);
        for nowhere in ["/foo/2", "/foo/-", "/foo/01", "/foo/+1", "/foo/x", "/none", "/foo/0/x"] {
            check_found(nowhere, &[]);
        }
    }

    #[test]
    fn a_star_is_every_element_and_every_member() {
        check_found("/jobs/*/id", &[json!(1), json!("two")]);
        check_found("/foo/*", &[json!("bar"), json!("baz")]);
        check_found("/deep/*/id", &[json!(5)]);
        check_found("/*/x/id", &[json!(5)]);
        check_found("/a~1b/*", &[]);
    }

    #[test]
    fn to_one_place_a_star_is_a_name() {
        check("/*", r#"{"a":"x","*":"y"}"#, Some("y"));
        check("/a/*", r#"{"a":["x"]}"#, None);
    }
}
