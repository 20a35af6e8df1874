//! JSON pointers (RFC 6901), with `*` for every element of an array and every member of an object.

use serde_json::Value;

/// Tokens of a pointer at most.
const MAX_TOKENS: usize = 32;

/// Where in a JSON document ids are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pointer(Vec<Token>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A member's name, or an element's index.
    Name(String),
    /// Every one. So a member that is called `*` cannot be named alone.
    Every,
}

impl Pointer {
    /// The pointer, or why it is none.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        // "a sequence of zero or more reference tokens, each prefixed by a '/'" RFC 6901 3.
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let tokens = text.strip_prefix('/').ok_or("begin it with '/', as in '/job/id'")?;
        if tokens.split('/').count() > MAX_TOKENS {
            return Err("it is longer than 32 steps");
        }
        tokens.split('/').map(Token::parse).collect::<Result<_, _>>().map(Self)
    }

    /// Calls `found` with every value that it leads to.
    pub(super) fn find(&self, document: &Value, found: &mut impl FnMut(&Value)) {
        follow(&self.0, document, found);
    }
}

impl Token {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text == "*" {
            return Ok(Self::Every);
        }
        // "Because the characters '~' (%x7E) and '/' (%x2F) have special meanings in JSON Pointer,
        // '~' needs to be encoded as '~0' and '/' needs to be encoded as '~1'" RFC 6901 3.
        let mut escapes = text.split('~').skip(1);
        if escapes.any(|rest| !rest.starts_with(['0', '1'])) {
            return Err("write '~' as '~0' and '/' within a name as '~1'");
        }
        // "by first transforming any occurrence of the sequence '~1' to '/', and then transforming
        // any occurrence of the sequence '~0' to '~'" RFC 6901 4.
        Ok(Self::Name(text.replace("~1", "/").replace("~0", "~")))
    }
}

/// As deep as the pointer is long.
fn follow(tokens: &[Token], value: &Value, found: &mut impl FnMut(&Value)) {
    let Some((token, rest)) = tokens.split_first() else { return found(value) };
    match (token, value) {
        (Token::Name(name), Value::Object(members)) => {
            if let Some(value) = members.get(name) {
                follow(rest, value, found);
            }
        }
        (Token::Name(name), Value::Array(elements)) => {
            if let Some(value) = index(name).and_then(|index| elements.get(index)) {
                follow(rest, value, found);
            }
        }
        (Token::Every, Value::Object(members)) => {
            for value in members.values() {
                follow(rest, value, found);
            }
        }
        (Token::Every, Value::Array(elements)) => {
            for value in elements {
                follow(rest, value, found);
            }
        }
        _ => {}
    }
}

/// "note that leading zeros are not allowed" RFC 6901 4.
fn index(name: &str) -> Option<usize> {
    let canonical = name == "0" || !name.starts_with(['0', '+']);
    name.parse().ok().filter(|_| canonical)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Pointer;

    #[track_caller]
    fn check(pointer: &str, want: &[Value]) {
        let document = json!({
            "foo": ["bar", "baz"], "": 0, "a/b": 1, "m~n": 8, "*": "star",
            "jobs": [{ "id": 1 }, { "id": "two" }, {}, 3], "deep": { "x": { "id": 5 } },
        });
        let mut got = Vec::new();
        Pointer::parse(pointer).unwrap().find(&document, &mut |value| got.push(value.clone()));
        let want: Vec<Value> = if pointer.is_empty() { vec![document] } else { want.to_vec() };
        assert_eq!(got, want, "{pointer}");
    }

    #[test]
    fn a_pointer_leads_where_the_rfc_says() {
        check("", &[]);
        check("/foo", &[json!(["bar", "baz"])]);
        check("/foo/0", &[json!("bar")]);
        check("/", &[json!(0)]);
        check("/a~1b", &[json!(1)]);
        check("/m~0n", &[json!(8)]);
        for nowhere in ["/foo/2", "/foo/-", "/foo/01", "/foo/+1", "/foo/x", "/none", "/foo/0/x"] {
            check(nowhere, &[]);
        }
    }

    #[test]
    fn a_star_is_every_element_and_every_member() {
        check("/jobs/*/id", &[json!(1), json!("two")]);
        check("/foo/*", &[json!("bar"), json!("baz")]);
        check("/deep/*/id", &[json!(5)]);
        check("/*/x/id", &[json!(5)]);
        check("/a~1b/*", &[]);
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        for bad in ["id", "job/id", "$.id", "/a~", "/a~2", "/~x/b"] {
            assert!(Pointer::parse(bad).is_err(), "{bad}");
        }
        assert!(Pointer::parse(&"/a".repeat(33)).is_err());
        assert!(Pointer::parse(&"/*".repeat(32)).is_ok());
    }
}
