//! The names of jobs, and how the ids in paths are read.
//!
//! `job_id/spellings.rs` has what is done where it is not known how the API reads ids ([`Ids::Auto`]). An API
//! that compares ids as text ([`Ids::Opaque`]) has one spelling for each id apart from
//! percent-encoding. Writes still count for every reading.

mod spellings;

use std::{borrow::Cow, fmt, sync::Arc};

use percent_encoding::percent_decode_str;

pub use self::spellings::{
    MAX_DECODES, MAX_ID_LEN, is_canonical, is_plainly_canonical, is_word, possible_ids,
};
use self::spellings::{canonical_uuid, for_each_decoding, without_format_suffix};
use super::policy::Bypass;

/// Length of the longest key without its prefix, in bytes.
pub const MAX_KEY_LEN: usize = 512;

/// Characters that some readers of a path decode again, or end a segment or an id at.
const UNCLEAR: [char; 6] = ['/', '\\', ';', '%', '?', '#'];

/// The name of a job: its key in the store without the prefix.
///
/// Cheap to clone. Two of them name the same key if and only if they are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId {
    text: Arc<str>,
    prefix: u8,
}

impl JobId {
    /// Names the job with this key under the `prefix`th of the configured prefixes.
    pub fn new(key: &str, prefix: u8) -> Self {
        Self { text: key.into(), prefix }
    }

    /// Returns the key without its prefix.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the position of the prefix among the configured ones.
    pub fn prefix(&self) -> usize {
        self.prefix.into()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How an API reads the ids in its paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ids {
    /// Not known: only a spelling that every parser leaves as it is is cached.
    #[default]
    Auto,
    /// As text: any segment is an id.
    Opaque,
}

impl Ids {
    /// Returns the word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Opaque => "opaque",
        }
    }

    /// Returns the id that a read names with a segment.
    ///
    /// # Errors
    ///
    /// Returns why a read of it is not cached.
    pub fn read(self, segment: &str) -> Result<Cow<'_, str>, Bypass> {
        match self {
            Self::Opaque => as_text(segment).ok_or(Bypass::Spelling),
            Self::Auto if !is_canonical(segment) => Err(Bypass::Spelling),
            Self::Auto if is_word(segment) => Err(Bypass::Word),
            Self::Auto => Ok(Cow::Borrowed(segment)),
        }
    }

    /// Returns the text of another variable than `{id}`. Where it is not known how the API reads it, a
    /// number in another spelling (`007`) is not cached: a write of `7` would not name it. Words and
    /// every spelling of a UUID are.
    ///
    /// # Errors
    ///
    /// Returns why a read of it is not cached.
    pub fn read_other(self, segment: &str) -> Result<Cow<'_, str>, Bypass> {
        let text = as_text(segment).ok_or(Bypass::Spelling)?;
        let is_named = |id: String| possible_texts(&id).iter().any(|named| *named == text);
        let is_read = self == Self::Opaque
            || is_canonical(&text)
            || possible_ids(&text).into_iter().all(is_named);
        if is_read { Ok(text) } else { Err(Bypass::Spelling) }
    }

    /// Returns every id that a write may name with a segment, the most literal first.
    pub fn readings(self, segment: &str) -> Vec<String> {
        match self {
            Self::Auto => possible_ids(segment),
            Self::Opaque => possible_texts(segment),
        }
    }

    /// Whether an id names a job and not, as a word does, something next to the jobs.
    pub fn names_job(self, id: &str) -> bool {
        self == Self::Opaque || !is_word(id)
    }
}

/// Returns the text of a segment, decoded, if every reader gets the same: one that decodes twice, cuts
/// off parameters or takes `\` for a slash as well. `None` also for what no key may have.
pub fn as_text(segment: &str) -> Option<Cow<'_, str>> {
    let text = if segment.contains('%') {
        percent_decode_str(segment).decode_utf8().ok()?
    } else {
        Cow::Borrowed(segment)
    };
    is_text(&text).then_some(text)
}

/// Returns whether a key may have this text.
pub fn is_key(text: &str) -> bool {
    let is_plain = |c: char| !c.is_control() && !matches!(c, '{' | '}');
    (1..=MAX_KEY_LEN).contains(&text.len()) && text.chars().all(is_plain)
}

fn is_text(text: &str) -> bool {
    is_key(text) && !text.contains(UNCLEAR) && text.trim() == text && !matches!(text, "." | "..")
}

/// Returns every text that a reader may take from a segment: decoded at every depth, without
/// parameters, without a format suffix, with `+` and space exchanged, in lower and in upper case, and
/// what parsers of UUIDs and numbers read.
fn possible_texts(segment: &str) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut add = |text: &str| {
        if is_text(text) && !texts.iter().any(|known| known == text) {
            texts.push(text.to_owned());
        }
    };
    for_each_decoding(segment, |text| {
        let bare = text.split([';', '?', '#']).next().unwrap_or_default();
        for spelling in [text, bare] {
            add(spelling.trim());
            add(&spelling.trim().replace('+', " "));
            add(&spelling.trim().replace(' ', "+"));
            without_format_suffix(spelling).into_iter().for_each(&mut add);
        }
    });
    for id in possible_ids(segment) {
        add(&id);
        if let Some(uuid) = canonical_uuid(&id) {
            add(&uuid.replace('-', ""));
        }
    }
    for text in texts.clone() {
        for case in [text.to_ascii_lowercase(), text.to_ascii_uppercase()] {
            if !texts.contains(&case) {
                texts.push(case);
            }
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    #[track_caller]
    fn check_text(segment: &str, want: Option<&str>) {
        assert_eq!(as_text(segment).as_deref(), want, "{segment}");
    }

    #[test]
    fn a_text_is_decoded_once_if_all_readers_agree() {
        for text in ["7", "007", "rq:job:1", "a b", "20240101_1200", "stats", "é", "a+b", "a@b,c"]
        {
            check_text(text, (text != "a b").then_some(text).or(Some("a b")));
        }
        check_text("rq%3Ajob%3a1", Some("rq:job:1"));
        check_text("a%20b", Some("a b"));
        check_text("%C3%A9", Some("é"));
        check_text(&"a".repeat(MAX_KEY_LEN), Some(&"a".repeat(MAX_KEY_LEN)));
        for other in ["", ".", "..", "%2e", "a%2Fb", "a%5Cb", "a;v=1", "a%3Bb", "a%257", "%ff", "%"]
        {
            check_text(other, None);
        }
        for other in ["{a}", "a%7D", "a%00", "a%0A", "%20a", "a%3Fb", "a%23b"] {
            check_text(other, None);
        }
        check_text(&"a".repeat(MAX_KEY_LEN + 1), None);
    }

    #[test]
    fn another_variable_is_read_if_every_reading_names_it_back() {
        let hex = UUID.replace('-', "");
        for text in
            ["7", "acme", "Acme", "a:b", "2024-01-01", UUID, &hex, &UUID.to_uppercase(), "é"]
        {
            assert_eq!(Ids::Auto.read_other(text).as_deref(), Ok(text));
        }
        for text in ["007", "1_000", "7.0", "a;b", "a%2Fb"] {
            assert_eq!(Ids::Auto.read_other(text), Err(Bypass::Spelling), "{text}");
        }
        assert_eq!(Ids::Opaque.read_other("007").as_deref(), Ok("007"));
    }

    #[test]
    fn a_write_names_every_text_that_a_read_may_have_had() {
        let check = |segment: &str, id: &str| {
            let readings = Ids::Opaque.readings(segment);
            assert!(readings.iter().any(|reading| reading == id), "{segment}: {readings:?}");
        };
        for id in ["rq:job:1", "20240101_1200", "Ab-c", "a b", "a+b", "stats", "007"] {
            let encoded =
                percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
            check(&encoded.to_string(), id);
            check(id, id);
            check(&format!("{id};v=1"), id);
            check(&format!("{id}.json"), id);
        }
        check("a+b", "a b");
        check("ABC", "abc");
        check(UUID, &UUID.replace('-', ""));
        check(&UUID.replace('-', ""), UUID);
        check("007", "7");
        assert_eq!(Ids::Opaque.readings("acme"), ["acme", "ACME"]);
        assert_eq!(Ids::Opaque.readings("7"), ["7"]);
    }
}
