//! Id parts: the ids that a text of a request target may hold.
//!
//! APIs join an id with a verb (`7:cancel`), with other ids (`7,8`) or with quotes (`('7')`). Which
//! of these an API reads is not known here, so a text is cut at every character that no id in its
//! canonical spelling has, and at `~`. Every part counts that may be an id, in the case sent, in
//! lower and in upper case. A part without a digit is a word (`cancel`) and no id.
//!
//! The parameters of a query, by which a write may name jobs, are taken apart here too.

use std::{borrow::Cow, collections::HashSet};

use percent_encoding::percent_decode_str;

use super::{namer::Namer, path_pattern::is_cut};
use crate::semantics::job_id::{
    Ids, JobId, MAX_DECODES, is_canonical, is_key, is_plainly_canonical, is_word,
};

/// Largest number of jobs that one body or one target may name. Each costs a fence and an
/// invalidation.
pub const MAX_NAMED: usize = 1_000;

/// Most parts at `~` of which every contiguous range is tried: `~` may stand inside an id.
const MAX_TILDE_PARTS: usize = 4;

/// Most parts of a text of which every contiguous range is tried, where an id may be any text.
const MAX_RANGE_PARTS: usize = 8;

/// Most effort for reading one target, in units of about a nanosecond. An honest target costs a few
/// thousand.
const MAX_EFFORT: usize = 800_000;

/// Units for one reading of a part, without its bytes.
const PART_COST: usize = 250;

/// Units for a part that is not in its canonical spelling, because more parsers look at it.
const SPELLING_COST: usize = 750;

/// Units for a byte of a part. Parsers copy it several times.
const PART_BYTE_COST: usize = 8;

/// Units for a text, and for a part of it, whatever they are. Both may be empty, or a word.
const TEXT_COST: usize = 60;
const WORD_COST: usize = 60;

/// The CPU that was spent on reading one target, in units.
#[derive(Debug, Default)]
pub(super) struct Effort {
    spent: usize,
    is_cut_off: bool,
}

impl Effort {
    /// Spends some units. Returns whether there were as many; otherwise the reading is cut off.
    pub(super) fn spend(&mut self, units: usize) -> bool {
        self.spent = self.spent.saturating_add(units);
        self.is_cut_off |= self.spent > MAX_EFFORT;
        self.spent <= MAX_EFFORT
    }

    /// Records that a limit kept something from being read.
    pub(super) fn cut_off(&mut self) {
        self.is_cut_off = true;
    }

    /// Whether something was left unread. It may name any job.
    pub(super) fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }
}

/// The jobs that the texts of one target name, without repeats.
#[derive(Debug, Default)]
pub(super) struct NamedIds {
    /// The first found first.
    pub(super) ids: Vec<JobId>,
    known: HashSet<JobId>,
    /// Whether there were more jobs than are invalidated one by one.
    pub(super) has_more: bool,
    /// Whether one names further jobs that the target cannot list.
    pub(super) has_unlisted: bool,
}

impl NamedIds {
    /// Adds every job that some part of a text may name, at every depth of percent-encoding.
    pub(super) fn add_text(&mut self, namer: &Namer, text: &str, effort: &mut Effort) {
        let mut text = Cow::Borrowed(text);
        for _ in 0..=MAX_DECODES {
            if !effort.spend(TEXT_COST + text.len()) {
                return;
            }
            let template = &namer.template;
            match template.ids {
                Ids::Auto => for_each_part(&text, &mut |part| {
                    if !effort.spend(WORD_COST) {
                        return;
                    }
                    for text in template.id_texts(part) {
                        self.add_part(namer, text, effort);
                    }
                }),
                Ids::Opaque => {
                    self.add_readings(namer, &text, effort);
                    for_each_range(&text, &mut |part| {
                        for text in template.id_texts(part) {
                            self.add_range(namer, text, effort);
                        }
                    });
                }
            }
            if !text.contains('%') {
                return;
            }
            let decoded = percent_decode_str(&text).decode_utf8_lossy();
            if decoded == text {
                return;
            }
            text = Cow::Owned(decoded.into_owned());
        }
    }

    /// Adds a job.
    pub(super) fn add(&mut self, job: JobId) {
        if self.ids.len() >= MAX_NAMED {
            self.has_more |= !self.known.contains(&job);
        } else if self.known.insert(job.clone()) {
            self.ids.push(job);
        }
    }

    fn add_part(&mut self, namer: &Namer, part: &str, effort: &mut Effort) {
        // An encoded character is cut or read in the decoded text.
        if part.contains('%') {
            return;
        }
        if !part.contains('.') {
            return self.add_stem(namer, part, effort);
        }
        // Rails takes any suffix for a format. There may be thousands, so this is a loop.
        let mut stems = vec![part];
        let mut rest = part;
        while let Some((stem, suffix)) = rest.rsplit_once('.')
            && suffix.bytes().all(|byte| byte.is_ascii_alphabetic())
            && effort.spend(WORD_COST + stem.len())
        {
            stems.push(stem);
            rest = stem;
        }
        for stem in stems.into_iter().rev() {
            self.add_stem(namer, stem, effort);
        }
    }

    /// Adds a part without its suffixes, in the case sent, in lower and in upper case.
    fn add_stem(&mut self, namer: &Namer, part: &str, effort: &mut Effort) {
        let has_digit = part.bytes().any(|byte| byte.is_ascii_digit());
        if !has_digit && is_word(&part.to_ascii_lowercase()) {
            return;
        }
        self.add_readings(namer, part, effort);
        // A UUID or a number in its usual format has no other case.
        if is_plainly_canonical(part) {
            return;
        }
        if part.bytes().any(|byte| byte.is_ascii_lowercase()) {
            self.add_readings(namer, &part.to_ascii_uppercase(), effort);
        }
        if part.bytes().any(|byte| byte.is_ascii_uppercase()) {
            self.add_readings(namer, &part.to_ascii_lowercase(), effort);
        }
    }

    /// Adds a part of a text that is an id as it is or before a suffix, in the case sent, in lower and in
    /// upper case.
    fn add_range(&mut self, namer: &Namer, part: &str, effort: &mut Effort) {
        if self.has_more || !effort.spend(PART_COST + PART_BYTE_COST * part.len()) {
            return;
        }
        let stem = part.rsplit_once('.').map(|(stem, _)| stem);
        self.has_unlisted |= namer.has_unlisted;
        for id in [Some(part), stem].into_iter().flatten().filter(|id| is_key(id)) {
            for id in [id, &id.to_ascii_lowercase(), &id.to_ascii_uppercase()] {
                namer.for_each_job(id, |job| self.add(job));
            }
        }
    }

    fn add_readings(&mut self, namer: &Namer, part: &str, effort: &mut Effort) {
        // Every parser reads a canonical spelling as itself.
        let is_cheap = namer.template.ids == Ids::Auto && is_canonical(part);
        let cost = if is_cheap { PART_COST } else { SPELLING_COST };
        if self.has_more || !effort.spend(cost + PART_BYTE_COST * part.len()) {
            return;
        }
        let ids = namer.template.ids;
        let mut add = |id: &str| {
            if ids.names_job(id) {
                self.has_unlisted |= namer.has_unlisted;
                namer.for_each_job(id, |job| self.add(job));
            }
        };
        if is_cheap {
            add(part);
        } else {
            ids.readings(part).iter().for_each(|id| add(id));
        }
    }
}

/// Calls `each` with every part of a text that may be an id.
fn for_each_part(text: &str, each: &mut impl FnMut(&str)) {
    for run in text.split(|c: char| c != '~' && is_cut(c)).filter(|run| !run.is_empty()) {
        if !run.contains('~') {
            each(run);
            continue;
        }
        let parts: Vec<&str> = run.split('~').collect();
        if parts.len() > MAX_TILDE_PARTS {
            each(run);
            parts.into_iter().for_each(&mut *each);
            continue;
        }
        for from in 0..parts.len() {
            for to in from + 1..=parts.len() {
                each(&parts[from..to].join("~"));
            }
        }
    }
}

/// Calls `each` with every part of a text that may be an id which is any text: every contiguous range
/// of the parts that [`is_cut`] leaves.
fn for_each_range(text: &str, each: &mut impl FnMut(&str)) {
    let starts = |at: usize| at == 0 || text[..at].ends_with(is_cut);
    let parts: Vec<(usize, usize)> = text
        .match_indices(|c: char| !is_cut(c))
        .filter(|(at, _)| starts(*at))
        .map(|(at, _)| (at, text[at..].find(is_cut).map_or(text.len(), |length| at + length)))
        .collect();
    let most = if parts.len() > MAX_RANGE_PARTS { 1 } else { parts.len() };
    for (at, &(start, _)) in parts.iter().enumerate() {
        for &(_, end) in parts[at..].iter().take(most) {
            each(&text[start..end]);
        }
    }
}

pub(super) fn path_and_query(target: &str) -> (&str, Option<&str>) {
    target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)))
}

/// Returns the parameters of a query as it was sent, each as name and value. A parameter without a
/// `=` is a value without a name.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split(['&', ';']).filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or(("", pair)))
}

/// Whether a parameter has one of these names, in any letter case. `ids[]` and `ids[0]` are lists
/// named `ids`.
pub(super) fn is_named<S: AsRef<str>>(name: &str, names: &[S]) -> bool {
    let decoded = percent_decode_str(name).decode_utf8_lossy();
    let name = decoded.split('[').next().unwrap_or_default();
    names.iter().any(|given| given.as_ref().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::{is_named, parameters, *};
    use crate::semantics::{route::template::Template, settings::RouteConfig};

    fn named(text: &str) -> NamedIds {
        named_with(Ids::Auto, text)
    }

    fn named_with(ids: Ids, text: &str) -> NamedIds {
        let mut named = NamedIds::default();
        named.add_text(&namer(ids), text, &mut Effort::default());
        named
    }

    fn namer(ids: Ids) -> Namer {
        let route = RouteConfig { ids: Some(ids), ..RouteConfig::at("/jobs/{id}") };
        Namer::new(&Template::parse(&route, 0).unwrap().into(), &[])
    }

    #[track_caller]
    fn check(text: &str, want: &[&str]) {
        let ids = named(text).ids;
        assert_eq!(ids.iter().map(JobId::as_str).collect::<Vec<_>>(), want, "{text}");
    }

    #[test]
    fn a_text_is_cut_wherever_an_id_may_end() {
        check("7", &["7"]);
        check("7:cancel", &["7"]);
        check("('7')", &["7"]);
        check("(id=7,rev='8')", &["7", "8"]);
        for cut in ":;,@!$&'()*+=|".chars() {
            check(&format!("7{cut}stop"), &["7"]);
            check(&format!("stop{cut}8"), &["8"]);
        }
        check("[\"7\", \"8\"]", &["7", "8"]);
        check("/jobs/7", &["7"]);
        check("a-1.b_2", &["a-1.b_2", "A-1.B_2"]);
    }

    #[test]
    fn a_tilde_may_stand_inside_an_id_or_between_two() {
        check("7~8", &["7", "7~8", "8"]);
        check("7~8:stop", &["7", "7~8", "8"]);
        check("1~2~3~4~5", &["1~2~3~4~5", "1", "2", "3", "4", "5"]);
    }

    #[test]
    fn an_id_counts_in_every_case_and_in_every_spelling() {
        check("Ab1", &["Ab1", "AB1", "ab1"]);
        check("007", &["7"]);
        check("7.json", &["7"]);
        check("1_000", &["1000"]);
        let uuid = "0f8fad5b-d9cb-469f-a165-70867728950e";
        check(&uuid.to_uppercase(), &[uuid]);
        check(&format!("urn:uuid:{{{uuid}}}"), &[uuid]);
        check(&uuid.replace('-', ""), &[uuid]);
    }

    #[test]
    fn percent_encoding_is_read_at_every_depth() {
        check("7%3Acancel", &["7"]);
        check("7%253Acancel", &["7"]);
        check("%28%277%27%29", &["7"]);
        check("%37", &["7"]);
        check("7%2C8", &["7", "8"]);
    }

    #[test]
    fn what_cannot_be_an_id_is_no_name() {
        for text in ["", "cancel", "a,b;c", "('x')", "...", "~", "%", "é"] {
            check(text, &[]);
        }
        check(&format!("x{}", "7".repeat(128)), &[]);
    }

    #[test]
    fn the_ids_are_bounded() {
        let list = |ids: std::ops::RangeInclusive<usize>| {
            ids.map(|id| id.to_string()).collect::<Vec<_>>().join(",")
        };
        let most = named(&list(1..=MAX_NAMED));
        assert!(!most.has_more && most.ids.len() == MAX_NAMED);
        let more = named(&format!("{},1,2", list(1..=MAX_NAMED + 1)));
        assert!(more.has_more && more.ids.len() == MAX_NAMED);
    }

    #[test]
    fn any_number_of_suffixes_is_cut_off() {
        check("7.tar.gz", &["7", "7.tar", "7.TAR", "7.tar.gz", "7.TAR.GZ"]);
        let mut effort = Effort::default();
        let text = format!("7{}", ".a".repeat(1 << 16));
        NamedIds::default().add_text(&namer(Ids::Auto), &text, &mut effort);
        assert!(effort.is_cut_off());
    }

    #[test]
    fn texts_and_parts_that_name_nothing_count_too() {
        for (text, times) in [("", 1 << 14), ("a", 1 << 14), (&"a,".repeat(1 << 14), 1)] {
            let mut effort = Effort::default();
            let mut named = NamedIds::default();
            (0..times).for_each(|_| named.add_text(&namer(Ids::Auto), text, &mut effort));
            assert!(effort.is_cut_off() && named.ids.is_empty());
        }
    }

    #[test]
    fn the_effort_is_bounded() {
        for text in ["1,".repeat(1 << 16), "0a~".repeat(1 << 16), "%2531".repeat(1 << 16)] {
            let mut effort = Effort::default();
            NamedIds::default().add_text(&namer(Ids::Auto), &text, &mut effort);
            assert!(effort.is_cut_off());
        }
    }

    #[test]
    fn a_query_is_read_as_names_and_values() {
        let got: Vec<_> = parameters("id=7&ids=8;x&a=b=c&").collect();
        assert_eq!(got, [("id", "7"), ("ids", "8"), ("", "x"), ("a", "b=c")]);
    }

    #[test]
    fn a_name_counts_encoded_and_as_a_list() {
        let names = ["ids".to_owned()];
        for name in ["ids", "Ids", "ids[]", "ids%5B0%5D", "%69ds"] {
            assert!(is_named(name, &names), "{name}");
        }
        for name in ["", "id", "idsx"] {
            assert!(!is_named(name, &names), "{name}");
        }
    }
}
