//! Table tests of the rules.

use hyper::Request;
use serde_json::json;

use super::*;
use crate::{
    config,
    semantics::{
        route::{Route, Routes, WriteScope},
        settings::{ApiConfig, RouteConfig},
    },
};

fn configured(path: &str) -> config::InvalidateRule {
    config::InvalidateRule {
        path: path.to_owned(),
        all: !path.contains("{id}"),
        ..config::InvalidateRule::default()
    }
}

fn templates() -> Vec<Arc<Template>> {
    vec![Template::parse(&RouteConfig::at("/jobs/{id}"), 0).unwrap().into()]
}

/// A rule that a write of `/jobs` matches.
fn matched(rule: &config::InvalidateRule) -> RuleMatch {
    let rule = InvalidationRule::parse(1, rule).unwrap().into();
    RuleMatch::of(&rule, &["jobs"], &templates()).unwrap()
}

fn list(items: &[&str]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn check_path(path: &str, segments: &[&str], want: Option<&str>) {
    let rule = InvalidationRule::parse(1, &configured(path)).unwrap();
    let got = rule.variables(segments).map(|_| rule.id(segments).unwrap_or("matches"));
    assert_eq!(got, want, "{path} {segments:?}");
}

#[test]
fn a_rule_matches_a_whole_path() {
    check_path("/uploads/{id}/finish", &["uploads", "7", "finish"], Some("7"));
    check_path("/uploads/{id}/finish", &["Uploads", "7", "FINISH"], Some("7"));
    check_path("/t/{tenant}/uploads/{id}", &["t", "a", "uploads", "7"], Some("7"));
    check_path("/jobs", &["jobs"], Some("matches"));
    for other in [&["jobs", "7"][..], &["job"], &["jobs", ""], &[]] {
        check_path("/jobs", other, None);
    }
    for other in [&["uploads", "", "finish"][..], &["uploads", "7"], &["uploads", "7", "x"]] {
        check_path("/uploads/{id}/finish", other, None);
    }
}

#[test]
fn an_id_may_have_literal_text_around_it() {
    check_path("/jobs/{id}:cancel", &["jobs", "7:cancel"], Some("7"));
    check_path("/jobs/{id}:cancel", &["jobs", "a:b:CANCEL"], Some("a:b"));
    check_path("/jobs('{id}')", &["Jobs('7')"], Some("7"));
    check_path("/jobs/v{id}.json", &["jobs", "v7.json"], Some("7"));
    check_path("/jobs:batchCancel", &["jobs:BATCHcancel"], Some("matches"));
    check_path("/", &[], Some("matches"));
    check_path("/jobs/batch", &["jobs", "batch.json"], Some("matches"));
    check_path("/jobs/batch", &["jobs.json", "batch"], None);
    check_path("/jobs/batch", &["jobs", "batch.7"], None);
    for other in ["7", ":cancel", "7:stop", "7:cancel2", "é"] {
        check_path("/jobs/{id}:cancel", &["jobs", other], None);
    }
}

#[track_caller]
fn check_method(methods: &[&str], method: &str, header: Option<&str>, want: bool) {
    check_method_in(methods, method, (None, header), want);
}

#[track_caller]
fn check_method_in(
    methods: &[&str],
    method: &str,
    (query, header): (Option<&str>, Option<&str>),
    want: bool,
) {
    let rule = config::InvalidateRule { methods: list(methods), ..configured("/jobs") };
    let rules = InvalidationRules::parse(&[rule], &templates()).unwrap();
    let mut headers = HeaderMap::new();
    if let Some(header) = header {
        headers.insert("x-http-method-override", header.parse().unwrap());
    }
    let matched = rules.matching(&method.parse().unwrap(), query, &headers).len() == 1;
    assert_eq!(matched, want, "{methods:?} {method} {query:?} {header:?}");
}

#[test]
fn a_rule_is_for_its_methods_also_for_those_that_a_header_or_the_query_names() {
    check_method(&[], "POST", None, true);
    check_method(&[], "FROBNICATE", None, true);
    check_method(&["PUT", "delete"], "DELETE", None, true);
    check_method(&["PUT"], "POST", None, false);
    check_method(&["PUT"], "POST", Some(" put "), true);
    check_method(&["PUT"], "POST", Some("DELETE"), false);
    check_method_in(&["PUT"], "POST", (Some("a=b&_method=put"), None), true);
    check_method_in(&["PUT"], "POST", (Some("_method=delete&method=card"), None), false);
}

#[track_caller]
fn check_ids(pointers: &[&str], body: &Value, want: &[&str]) {
    let rule =
        config::InvalidateRule { request: list(pointers), all: false, ..configured("/jobs") };
    let rule = matched(&rule);
    let jobs = rule.jobs(BodySide::Request, body);
    assert_eq!(jobs.iter().map(JobId::as_str).collect::<Vec<_>>(), want, "{pointers:?} {body}");
    assert_eq!(rule.jobs(BodySide::Response, body), []);
    assert_eq!(
        (rule.max_body(BodySide::Response), rule.max_body(BodySide::Request)),
        (None, Some(65_536))
    );
}

#[test]
fn strings_and_whole_numbers_are_ids_in_every_reading() {
    let body = json!({ "id": 7, "whole": 7.0, "vast": 1e300, "s": "007", "neg": -7, "max": u64::MAX, "list": ["a", 1.5, true, null, ["b"], {}, "c d"] });
    check_ids(&["/id"], &body, &["7"]);
    check_ids(&["/s"], &body, &["7"]);
    check_ids(&["/whole", "/vast"], &body, &["7"]);
    check_ids(&["/neg", "/max"], &body, &["-7", "18446744073709551615"]);
    check_ids(&["/list/*"], &body, &["a", "A"]);
    // RFC 8259 has one kind of number, and many upstreams read 7.0 as 7.
    check_ids(&["/0", "/1", "/2"], &json!([7.0, 1e3, -7.0]), &["7", "1000", "-7"]);
    check_ids(&["/list", "/none", ""], &body, &[]);
    check_ids(
        &[""],
        &json!("0F8FAD5B-D9CB-469F-A165-70867728950E"),
        &["0f8fad5b-d9cb-469f-a165-70867728950e"],
    );
}

#[test]
fn a_body_names_a_bounded_number_of_jobs() {
    let rule = config::InvalidateRule { request: list(&["/*"]), all: false, ..configured("/jobs") };
    let body: Value = (0..5_000).collect();
    assert_eq!(matched(&rule).jobs(BodySide::Request, &body).len(), MAX_NAMED + 1);
}

#[track_caller]
fn check_refused(change: impl FnOnce(&mut config::InvalidateRule), want: &str) {
    let mut rule = configured("/jobs");
    change(&mut rule);
    let error = InvalidationRule::parse(3, &rule).unwrap_err();
    assert_eq!(error, format!("[[invalidate]] number 3: {want}"));
}

#[test]
fn a_rule_that_cannot_work_is_refused_with_the_mend() {
    check_refused(
        |rule| rule.path.clear(),
        "it has no path; give it one such as path = \"/uploads/{id}/finish\"",
    );
    check_refused(
        |rule| rule.path = "jobs".into(),
        "path = \"jobs\": it is not absolute; begin it with '/'",
    );
    check_refused(
        |rule| rule.path = "/{id}/{id}".into(),
        "path = \"/{id}/{id}\": it has the variable {id} twice; give one of them another name",
    );
    check_refused(
        |rule| rule.methods = list(&["PO ST"]),
        "\"PO ST\" is not a method; give names such as \"POST\"",
    );
    check_refused(
        |rule| rule.methods = list(&["get"]),
        "get changes nothing; leave it out: GET, HEAD, OPTIONS and TRACE are never matched",
    );
    check_refused(
        |rule| (rule.all, rule.request) = (false, list(&["job_id"])),
        "\"job_id\" is not a JSON pointer (RFC 6901); begin it with '/', as in '/job/id'",
    );
    check_refused(
        |rule| rule.all = false,
        "it names no job; give it {id} in its path, request or response with JSON pointers, query \
         with parameters, or all = true",
    );
    check_refused(
        |rule| rule.response = list(&["/id"]),
        "all = true already drops every job; remove request, response and query",
    );
    check_refused(
        |rule| rule.query = list(&["ids"]),
        "all = true already drops every job; remove request, response and query",
    );
    check_refused(
        |rule| (rule.all, rule.query) = (false, list(&["ids", ""])),
        "query has an empty name; give the names of parameters, such as \"ids\"",
    );
    for segment in ["..", "a b", "{}", "{a b}", "{id", "{id}%3A", "a{id}b{c}", "*", ":id"] {
        let path = format!("/jobs/{segment}");
        let error =
            InvalidationRule::parse(1, &config::InvalidateRule { all: true, ..configured(&path) })
                .unwrap_err();
        let want =
            format!("[[invalidate]] number 1: path = {path:?}: its segment 2 is '{segment}'; ");
        assert!(error.starts_with(&want), "{error}");
    }
}

#[test]
fn rules_and_pointers_are_bounded() {
    let rules = vec![configured("/jobs"); MAX_RULES + 1];
    let error = InvalidationRules::parse(&rules, &templates()).unwrap_err();
    assert!(error.ends_with(": there are too many tables, at most 64 are allowed; remove some"));
    assert!(InvalidationRules::parse(&rules[1..], &templates()).is_ok());
    let many = vec!["/a".to_owned(); MAX_POINTERS + 1];
    check_refused(
        |rule| (rule.all, rule.request) = (false, many),
        "it has 33 pointers into one body, at most 32 are allowed; remove some",
    );
}

fn routes(invalidate: Vec<config::InvalidateRule>) -> Routes {
    let paths = list(&["/jobs/{id}"]);
    Routes::new(&ApiConfig { paths, invalidate, ..ApiConfig::default() }).unwrap()
}

/// `request` is the method and target, then optionally one header.
#[track_caller]
fn check_route(routes: &Routes, request: &str, want: &str) {
    let (line, header) = request.split_once('\n').unwrap_or((request, "x-none: "));
    let (method, target) = line.split_once(' ').unwrap();
    let (name, value) = header.split_once(": ").unwrap();
    let built = Request::builder().method(method).uri(target).header(name, value).body(()).unwrap();
    let got = match routes.classify(&built) {
        Route::Read(job) => format!("read: {}", job.key),
        Route::Write(WriteScope { jobs, rules, .. }) => {
            let by = (!rules.is_empty()).then(|| "by".to_owned());
            let rules = rules.iter().map(|rule| rule.number().to_string());
            let words = jobs.iter().map(JobId::to_string).chain(by).chain(rules);
            format!("write: {}", words.collect::<Vec<_>>().join(" "))
        }
        Route::Pass(why) => format!("pass: {why}"),
    };
    assert_eq!(got, want, "{request}");
}

#[test]
fn a_rule_makes_a_write_of_a_path_that_names_no_job() {
    let rule = |methods: &[&str], path: &str| config::InvalidateRule {
        methods: list(methods),
        all: true,
        ..configured(path)
    };
    let rules = [
        rule(&["DELETE"], "/jobs"),
        rule(&[], "/uploads/{id}/finish"),
        rule(&[], "/uploads/{upload}/finish"),
        rule(&["POST"], "/jobs/{id}/copy"),
    ];
    let routes = routes(rules.to_vec());
    let check = |request: &str, want| check_route(&routes, request, want);
    check("DELETE /jobs", "write: by 1");
    check("DELETE /jobs/?all=1", "write: by 1");
    check("DELETE /a/..//JOBS", "write: by 1");
    check("POST /jobs\nx-http-method-override: DELETE", "write: by 1");
    check("GET /jobs\nx-http-method-override: DELETE", "write: by 1");
    check("POST /a\nx-original-url: /uploads/7/finish", "write: 7 by 2 3");
    check("POST /uploads/007/finish", "write: 7 by 2 3");
    check("POST /uploads/a:b/finish", "write: by 2 3");
    check("POST /uploads/7,8/finish", "write: 7 8 by 2 3");
    check("POST /uploads/AB1/finish", "write: AB1 ab1 by 2 3");
    check("POST /jobs/7/copy", "write: 7 by 4");
    check("PUT /jobs/7/copy", "write: 7");
    check("POST /jobs", "pass: path");
    check("DELETE /jobs/7", "write: 7");
    check("POST /jobs?ids=7,8", "write: ");
    for safe in ["GET", "HEAD"] {
        check(&format!("{safe} /uploads/7/finish"), "pass: path");
    }
    check("OPTIONS /uploads/7/finish", "pass: method");
    check("TRACE /uploads/7/finish", "pass: method");
}

#[test]
fn a_rule_takes_ids_from_the_parameters_that_it_names() {
    let rule =
        config::InvalidateRule { query: list(&["id", "ids"]), all: false, ..configured("/batch") };
    let routes = routes(vec![rule]);
    let check = |request: &str, want| check_route(&routes, request, want);
    check("POST /batch?id=7&ids[]=8&ids[]=9", "write: 7 8 9 by 1");
    check("POST /batch?ids=7%2C8;id=9&page=4", "write: 7 8 9 by 1");
    check("POST /batch?page=4", "write: by 1");
    check("POST /batch", "write: by 1");
    check("POST /a\nx-original-url: /batch?id=7", "write: 7 by 1");
    check("POST /other?id=7", "pass: path");
}
