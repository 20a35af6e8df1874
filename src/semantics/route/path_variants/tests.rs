//! Table tests of the path variants.

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

use super::{Effort, MAX_SETTLED, NamedJobs, Scope, Template, read_path};
use crate::semantics::{job_id::JobId, settings::RouteConfig};

fn named(path: &str, scope: Scope) -> (NamedJobs, Effort) {
    let templates = ["/jobs/{id}", "/api/v1/jobs/{id}", "/x/{id}/status"];
    let templates =
        templates.map(|path| Template::parse(&RouteConfig::at(path), 0).unwrap().into());
    let (mut named, mut effort) = (NamedJobs::default(), Effort::default());
    read_path(&templates, &[], path, scope, (&mut named, &mut effort));
    (named, effort)
}

fn words(ids: &[JobId]) -> Vec<String> {
    ids.iter().map(JobId::to_string).collect()
}

fn jobs(path: &str) -> Vec<String> {
    let (NamedJobs { jobs, elsewhere, .. }, _) = named(path, Scope::Place);
    let passed = elsewhere.ids.into_iter().filter(|job| !jobs.contains(job));
    words(&jobs.iter().cloned().chain(passed).collect::<Vec<_>>())
}

#[track_caller]
fn check_target(path: &str, place: &[&str], elsewhere: &[&str]) {
    let (named, _) = named(path, Scope::Target);
    let elsewhere_words = words(&named.elsewhere.ids);
    assert_eq!((words(&named.jobs), elsewhere_words), (list(place), list(elsewhere)), "{path}");
}

fn list(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

#[test]
fn every_id_in_a_segment_at_or_below_a_collection_is_named() {
    check_target("/jobs/7", &["7"], &[]);
    check_target("/jobs/7:cancel", &["7"], &[]);
    check_target("/jobs/7,8", &["7", "8"], &[]);
    check_target("/Jobs('7')", &["7"], &[]);
    check_target("/jobs(id=7)/cancel", &["7"], &[]);
    check_target("/api/v1/jobs;id=7", &["7"], &[]);
    check_target("/jobs%28%277%27%29", &["7"], &[]);
    check_target("/x(7)/status", &["7"], &[]);
    check_target("/jobs/aB1", &["aB1", "AB1", "ab1"], &[]);
    check_target("/jobs/stop/7,8", &["stop"], &["7", "8"]);
    check_target("/jobs/7/tasks/9:run", &["7"], &["9"]);
    check_target("/jobs/7/8/../9", &["7"], &["8", "9"]);
    check_target("/jobs/1/../2", &["2"], &["1"]);
    for path in ["/jobsite/7", "/jobs7", "/jobs-7", "/a/jobs/7:cancel", "/7", "/api/v1/7"] {
        check_target(path, &[], &[]);
    }
}

#[test]
fn a_path_behind_a_prefix_is_read_by_its_tail() {
    for (path, want) in [
        ("/backend/jobs/17", &["17"][..]),
        ("/a/b/c/jobs/17/steps/9", &["17"]),
        ("https://host/backend/x/17:run/status", &["17"]),
        ("/backend/17", &[]),
    ] {
        assert_eq!(words(&named(path, Scope::Tail).0.jobs), list(want), "{path}");
    }
    assert_eq!(jobs("/backend/jobs/17"), list(&[]));
}

#[test]
fn few_jobs_of_one_target_are_kept_fenced() {
    let list = (1..=20).map(|id| id.to_string()).collect::<Vec<_>>();
    let path = format!("/jobs/{}", list.join(","));
    let (named, _) = named(&path, Scope::Target);
    assert_eq!(named.jobs.len(), MAX_SETTLED);
    assert_eq!(words(&named.elsewhere.ids), list[MAX_SETTLED..]);
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
    for path in ["//jobs/7", "///jobs//7//", "\\jobs\\7", "/jobs%2F7", "/jobs%5c7", "/jobs%252f7"] {
        check(path, &["7"]);
    }
}

#[test]
fn dot_segments_are_resolved_before_and_after_decoding() {
    for path in ["/./jobs/./7", "/a/../jobs/7", "/../jobs/7", "/%2e/jobs/7", "/a/%2E%2e/jobs/7"] {
        check(path, &["7"]);
    }
    for path in ["/a/%252e%252e/jobs/7", "/a/..;x/jobs/7", "/a\\..\\jobs/7", "/a%2f..%2fjobs/7"] {
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
fn a_job_that_a_path_only_passes_is_not_kept_fenced() {
    let path = (0..99).fold(String::new(), |path, id| path + &format!("/jobs/{id}/../.."));
    let (named, _) = named(&format!("{path}/jobs/last1"), Scope::Target);
    assert_eq!(words(&named.jobs)[0], "last1");
    assert_eq!(named.elsewhere.ids.len(), 99);
}

#[test]
fn hostile_paths_are_read_with_a_bounded_effort() {
    for unit in [
        "%2e%2e/",
        "%25",
        "/jobs/7/..;",
        "\\..",
        "//",
        "/jobs/%2e",
        "/jobs/:/..",
        "/a",
        "/jobs/1/2/3",
        "/jobs/00,01/..",
    ] {
        let path = "/jobs/".to_owned() + &unit.repeat((64 << 10) / unit.len());
        for scope in [Scope::Place, Scope::Tail, Scope::Target] {
            named(&path, scope);
        }
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
