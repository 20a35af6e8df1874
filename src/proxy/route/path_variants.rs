//! Path variants: every way in which an upstream may read a path.
//!
//! Gateways and frameworks decode, resolve dot segments, merge slashes, take `\` for `/` and cut
//! off `;parameters`, each in its own order. That order is not guessed. Every path is walked by the
//! letter of RFC 3986 and with every combination of these liberties. The results of each walk are
//! walked again, decoded and undecoded. A job counts if a walk ends at or below it. It also counts
//! if a walk merely passes it (`/jobs/7/../8`): a reader that resolves less would have stopped
//! there.

use std::sync::Arc;

use percent_encoding::percent_decode_str;

use super::{invalidation_rules::InvalidationRule, template::Template};
use crate::cache::job_id::{JobId, possible_ids};

/// Number of readers in front of the last one: a gateway and a framework.
const MAX_READERS: usize = 2;

/// Largest number of texts that one round of readers leaves, the most literal first. Each costs at
/// most 8 walks, all linear. Only a path made for the purpose has more; other paths have one or
/// two.
const MAX_TEXTS: usize = 36;

/// Largest number of jobs of one path; those that a walk ends at come first. An upstream acts on
/// one job per path. An honest path has one or two variants, and only a path made for the purpose
/// (`/jobs/1/../2/../3/..`) has more than these. It could outdate nothing but the write of its own
/// sender.
pub(super) const MAX_JOBS: usize = 32;

/// Largest number of ids that are examined because a walk passed them, so that a path full of
/// invalid ids costs little.
const MAX_PASSED: usize = 256;

/// The jobs and rules that the variants of a path name.
#[derive(Debug, Default)]
pub(super) struct NamedJobs {
    /// The jobs without repeats, from the most literal reading first, at most [`MAX_JOBS`].
    pub(super) jobs: Vec<JobId>,
    /// Whether some reading matches a whole template, even if its id is invalid.
    pub(super) is_job_path: bool,
    /// The rules that match some reading, without repeats. Their `{id}` is among the jobs.
    pub(super) rules: Vec<Arc<InvalidationRule>>,
}

impl NamedJobs {
    /// Adds the jobs and rules of another path.
    pub(super) fn merge(&mut self, other: Self) {
        other.jobs.into_iter().for_each(|job| add(&mut self.jobs, job));
        let new = |rule: &Arc<InvalidationRule>| !self.rules.contains(rule);
        let rules: Vec<_> = other.rules.into_iter().filter(new).collect();
        self.rules.extend(rules);
    }
}

/// Reads a path, or an absolute URL, in every way.
pub(super) fn jobs_named(
    templates: &[Template],
    rules: &[&Arc<InvalidationRule>],
    path: &str,
) -> NamedJobs {
    let named = NamedJobs::default();
    let passed = Vec::new();
    let mut search = Search { templates, rules, named, passed, passes_left: MAX_PASSED };
    if is_literal(path) {
        search.record_end(&path.split('/').skip(1).collect::<Vec<_>>());
        return search.named;
    }
    let mut texts = origin_forms(path);
    for _ in 0..=MAX_READERS {
        let mut next_texts = Vec::new();
        for text in &texts {
            search.read(text, &mut next_texts);
        }
        texts = next_texts;
    }
    let Search { mut named, passed, .. } = search;
    for job in passed {
        add(&mut named.jobs, job);
    }
    named
}

/// Whether all readers read a path alike, as is so for nearly every path: nothing in it can be
/// decoded, resolved, merged, replaced or cut off.
fn is_literal(path: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    path.starts_with('/')
        && !path.ends_with('/')
        && path.bytes().all(is_plain)
        && !path.contains("//")
        && !path.contains("/.")
}

/// Returns the paths that `target` may stand for: the target itself, and what follows its
/// authority.
fn origin_forms(target: &str) -> Vec<String> {
    let target = target.trim().split(['?', '#']).next().unwrap_or_default();
    let is_scheme = |scheme: &str| !scheme.is_empty() && !scheme.contains('/');
    let after_scheme = match target.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => Some(rest),
        // `//jobs/7` may be a path with an empty segment or an authority with a path.
        _ => target.strip_prefix("//"),
    };
    let after_authority = after_scheme.and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    [Some(target), after_authority].into_iter().flatten().map(str::to_owned).collect()
}

/// The liberties that a walk takes with its text. Servers take each of them with or without the
/// others.
#[derive(Clone, Copy)]
struct Liberties {
    /// Merges slashes. RFC 3986 5.2.4 keeps empty segments.
    merged: bool,
    /// Cuts off parameters.
    cut: bool,
    /// Reads `\` as `/`.
    turned: bool,
}

impl Liberties {
    /// Returns the combinations that may make a difference to a text, the one without any liberty
    /// first.
    fn of(text: &str) -> impl Iterator<Item = Self> {
        let choices = |matters: bool| if matters { &[false, true][..] } else { &[false] };
        let cuts = choices(text.contains(';'));
        let turns = choices(text.contains('\\'));
        let both = [false, true].into_iter();
        both.flat_map(move |merged| {
            cuts.iter()
                .flat_map(move |&cut| turns.iter().map(move |&turned| Self { merged, cut, turned }))
        })
    }
}

/// A search through the variants of a path, and what it has found.
struct Search<'t> {
    templates: &'t [Template],
    rules: &'t [&'t Arc<InvalidationRule>],
    named: NamedJobs,
    /// The jobs that a walk passed without ending at or below them.
    passed: Vec<JobId>,
    /// The number of passed ids that may still be examined.
    passes_left: usize,
}

impl Search<'_> {
    /// Walks a text in every way. Adds the texts for the next round: the decoded text, the result
    /// of each walk decoded, and the result of each walk where it differs from the text.
    fn read(&mut self, text: &str, next_texts: &mut Vec<String>) {
        let walks: Vec<_> =
            Liberties::of(text).map(|liberties| self.walk(text, liberties)).collect();
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let encoded = text.contains('%').then_some(text);
        let walked = walks.iter().map(|walk| decoded(walk));
        let texts = encoded.map(decoded).into_iter().chain(walked).chain(walks.iter().cloned());
        for next in texts {
            if next_texts.len() >= MAX_TEXTS {
                return;
            }
            if next != text && !next_texts.contains(&next) {
                next_texts.push(next);
            }
        }
    }

    /// Resolves the dot segments of a text and records the jobs on the way. Returns the resulting
    /// path.
    fn walk(&mut self, text: &str, liberties: Liberties) -> String {
        let separators: &[char] = if liberties.turned { &['/', '\\'] } else { &['/'] };
        let mut stack: Vec<&str> = Vec::new();
        for segment in text.strip_prefix(separators).unwrap_or(text).split(separators) {
            let bare = segment.split(';').next().unwrap_or_default();
            let segment = if liberties.cut { bare } else { segment };
            match segment {
                "." => {}
                "" if liberties.merged => {}
                ".." => {
                    self.record_passed(&stack);
                    stack.pop();
                }
                _ => stack.push(segment),
            }
        }
        self.record_end(&stack);
        format!("/{}", stack.join("/"))
    }

    /// Records the jobs that a walk is about to leave.
    fn record_passed(&mut self, stack: &[&str]) {
        for template in self.templates.iter().filter(|t| t.id_position() + 1 == stack.len()) {
            let Some(id) = template.id_at_or_above(stack).filter(|_| self.passes_left > 0) else {
                continue;
            };
            self.passes_left -= 1;
            for job in possible_ids(id) {
                add(&mut self.passed, job);
            }
        }
    }

    /// Records the jobs that a walk ended at or below, and the rules that match.
    fn record_end(&mut self, stack: &[&str]) {
        for template in self.templates {
            for job in template.id_at_or_above(stack).into_iter().flat_map(possible_ids) {
                add(&mut self.named.jobs, job);
            }
            self.named.is_job_path |= template.is_whole(stack);
        }
        for rule in self.rules.iter().filter(|rule| rule.matches(stack)) {
            for job in rule.id(stack).into_iter().flat_map(possible_ids) {
                add(&mut self.named.jobs, job);
            }
            if !self.named.rules.contains(rule) {
                self.named.rules.push(Arc::clone(rule));
            }
        }
    }
}

fn add(jobs: &mut Vec<JobId>, job: JobId) {
    if jobs.len() < MAX_JOBS && !jobs.contains(&job) {
        jobs.push(job);
    }
}

#[cfg(test)]
mod tests {
    /// The shortcut must find what the full search does.
    #[test]
    fn a_literal_path_has_one_reading() {
        for literal in ["/jobs/7", "/a/b-c/d.e/~f", "/jobs/7/cancel"] {
            assert!(super::is_literal(literal), "{literal}");
        }
        for other in [
            "",
            "/",
            "jobs/7",
            "/jobs/7/",
            "//jobs/7",
            "/jobs//7",
            "/jobs/./7",
            "/jobs/..",
            "/.a",
            "/jobs/%37",
            "/jobs/7;a",
            "/jobs\\7",
            "/jobs/7 ",
            "http://a/jobs/7",
            "/jobs/7?a",
            "/jöbs/7",
        ] {
            assert!(!super::is_literal(other), "{other}");
        }
    }

    use super::{MAX_JOBS, Template, jobs_named};
    use crate::cache::job_id::JobId;

    fn jobs(path: &str) -> Vec<String> {
        let templates = ["/jobs/{id}", "/api/v1/jobs/{id}", "/x/{id}/status"];
        let templates = templates.map(|template| Template::parse(template).unwrap());
        jobs_named(&templates, &[], path).jobs.iter().map(JobId::to_string).collect()
    }

    #[track_caller]
    fn check(path: &str, want: &[&str]) {
        assert_eq!(jobs(path), want, "{path}");
    }

    #[test]
    fn a_job_and_what_is_below_it_name_it() {
        check("/jobs/7", &["7"]);
        check("/jobs/7/", &["7"]);
        check("/jobs/7/cancel/now", &["7"]);
        check("/x/7", &["7"]);
        check("/api/v1/jobs/7", &["7"]);
        for path in ["", "/", "*", "/jobs", "/jobs/", "/jobsite/7", "/api/v1/7", "/a/jobs/7"] {
            check(path, &[]);
        }
    }

    #[test]
    fn ids_are_read_in_every_spelling() {
        check("/jobs/007", &["7"]);
        check("/jobs/%37", &["7"]);
        check("/jobs/%2537/x", &["7"]);
        check("/jobs/7;v=1/x", &["7"]);
        check("/jobs/7.json", &["7"]);
        let uuid = "0f8fad5b-d9cb-469f-a165-70867728950e";
        check(&format!("/jobs/%7B{}%7d", uuid.to_uppercase()), &[uuid]);
    }

    #[test]
    fn literals_are_read_in_every_spelling() {
        for path in ["/Jobs/7", "/JOBS/7", "/%6aobs/7", "/%6Aobs/7", "/%256Aobs/7", "/jobs;v=1/7"] {
            check(path, &["7"]);
        }
        for path in
            ["//jobs/7", "///jobs//7//", "\\jobs\\7", "/jobs%2F7", "/jobs%5c7", "/jobs%252f7"]
        {
            check(path, &["7"]);
        }
    }

    #[test]
    fn dot_segments_are_resolved_before_and_after_decoding() {
        for path in ["/./jobs/./7", "/a/../jobs/7", "/../jobs/7", "/%2e/jobs/7", "/a/%2E%2e/jobs/7"]
        {
            check(path, &["7"]);
        }
        for path in ["/a/%252e%252e/jobs/7", "/a/..;x/jobs/7", "/a\\..\\jobs/7", "/a%2f..%2fjobs/7"]
        {
            check(path, &["7"]);
        }
        // RFC 3986 makes `..` remove the empty segment; with merged slashes it removes `jobs`.
        check("/jobs//../7", &["7"]);
        // Resolved before decoding these are /jobs/7, decoded first /7.
        check("/jobs/%2e/../7", &["7"]);
        check("/%6aobs/%2e/../7", &["7"]);
        check("/%6aobs/%2e;x/..;x/7", &["7"]);
        // Parameters are cut off and empty segments kept, and the other way round.
        check("/jobs//..;x/7", &["7"]);
        check("/jobs/..;x/..//7", &["7"]);
        check("/jobs//..\\7", &["7"]);
        // A reader that resolves is followed by one that merges slashes or takes `\` for `/`.
        // Neither decodes.
        check("/x//..//7/8", &["7"]);
        check("/jobs/a/..\\7", &["a", "7"]);
        check("/x//./;//..;x/7//..;x///\\ju", &["7", "ju"]);
        check("/jobs/7/../8", &["8", "7"]);
        check("/jobs/7/%2e%2e/8", &["7", "8"]);
        check("/jobs/7/..", &["7"]);
        check("/jobs/7/../..", &["7"]);
    }

    #[test]
    fn absolute_urls_are_read_without_their_authority_and_query() {
        check("https://host:1/jobs/7?x=/jobs/8#/jobs/9", &["7"]);
        check("//host/jobs/7", &["7"]);
        check("https://host", &[]);
        check("https://jobs/7", &[]);
        check("/a://jobs/7", &[]);
        check(" /jobs/7 ", &["7"]);
    }

    #[test]
    fn a_path_of_many_jobs_is_cut_off() {
        let path = (0..1000).fold(String::new(), |path, id| path + &format!("/jobs/{id}/../.."));
        assert_eq!(jobs(&path).len(), MAX_JOBS);
        assert_eq!(jobs(&format!("{path}/jobs/last"))[0], "last");
    }

    #[test]
    fn hostile_paths_are_read_in_linear_time() {
        for unit in ["%2e%2e/", "%25", "/jobs/7/..;", "\\..", "//", "/jobs/%2e", "/jobs/:/..", "/a"]
        {
            jobs(&unit.repeat((64 << 10) / unit.len()));
        }
    }

    /// Spells `/jobs/7/cancel` in a way that an upstream that decodes, then normalises, still
    /// understands.
    fn disguised(rng: &mut fastrand::Rng) -> String {
        let mut path = String::new();
        for segment in ["jobs", "7", "cancel"] {
            for _ in 0..rng.usize(..3) {
                path.push_str(rng.choice(["/.", "/a/..", "/", "\\", "/a;b/..;c"]).unwrap());
            }
            path.push(rng.choice(['/', '\\']).unwrap());
            let upper = rng.bool();
            path.push_str(&if upper { segment.to_uppercase() } else { segment.to_owned() });
            path.push_str(rng.choice(["", ";v=1", ";"]).unwrap());
        }
        for _ in 0..rng.usize(..3) {
            path = encoded(&path, rng);
        }
        path
    }

    fn encoded(path: &str, rng: &mut fastrand::Rng) -> String {
        let encode = |(at, c): (usize, char)| match rng.u8(..4) {
            // The request target begins with a literal slash.
            0 if at > 0 => format!("%{:02x}", u32::from(c)),
            1 if at > 0 => format!("%{:02X}", u32::from(c)),
            _ => c.to_string(),
        };
        path.chars().enumerate().map(encode).collect()
    }

    #[test]
    fn no_disguise_hides_a_job() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let path = disguised(&mut rng);
            assert!(jobs(&path).contains(&"7".to_owned()), "{path}");
        }
    }
}
