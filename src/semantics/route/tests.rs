//! Table tests of the routes.

use hyper::{Request, Response, http::request::Builder};

use super::{MAX_TEMPLATES, Route, Routes, WriteTarget};
use crate::{
    config::{ApiConfig, QueryConfig},
    semantics::{
        job_id::{Ids, JobId},
        settings::RouteConfig,
    },
};

const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

fn routes() -> Routes {
    Routes::parse(&["/jobs/{id}", "/api/v1/jobs/{id}", "/x/{id}/status"]).unwrap()
}

fn words(jobs: &[JobId]) -> String {
    jobs.iter().map(JobId::as_str).collect::<Vec<_>>().join(" ")
}

/// `request` is the method and target, then one header per line.
#[track_caller]
fn check(request: &str, want: &str) {
    check_with(&routes(), request, want);
}

#[track_caller]
fn check_with(routes: &Routes, request: &str, want: &str) {
    let mut lines = request.split('\n');
    let (method, target) = lines.next().unwrap().split_once(' ').unwrap();
    let head = Request::builder().method(method).uri(target);
    let with_header = |head: Builder, line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        head.header(name, value)
    };
    let built = lines.fold(head, with_header).body(()).unwrap();
    let got = match routes.classify(&built) {
        Route::Read(job) => format!("read: {}", job.key),
        Route::Write(scope) if scope.elsewhere.is_empty() => {
            format!("write: {}", words(&scope.jobs))
        }
        Route::Write(scope) => {
            format!("write: {} and {}", words(&scope.jobs), words(&scope.elsewhere))
        }
        Route::Pass(why) => format!("pass: {why}"),
    };
    assert_eq!(got, want, "{request}");
}

#[test]
fn a_plain_get_or_head_of_a_job_is_a_read() {
    check("GET /jobs/7", "read: 7");
    check("HEAD /jobs/7", "read: 7");
    check("GET http://host:1/jobs/a.b_c~d-1", "read: a.b_c~d-1");
    check("GET /jobs/abcdefab-cdef-abcd-efab-cdefabcdefab?", "pass: query");
    check(&format!("GET /api/v1/jobs/{UUID}"), &format!("read: {UUID}"));
    check("GET /x/7/status", "read: 7");
    check("GET /jobs/7\ncontent-length: 0\ncache-control: no-store\ncookie: a", "read: 7");
    check("GET /jobs/7\nif-none-match: \"a\"\naccept-encoding: gzip", "read: 7");
}

#[test]
fn other_paths_pass() {
    for path in ["/", "/jobs", "/jobs/", "/jobsite", "/jobs7", "/jobs/7/logs", "/x/7", "/a/jobs/7"]
    {
        check(&format!("GET {path}"), "pass: path");
    }
    check("POST /jobs", "pass: path");
    check("POST /", "pass: path");
    check("DELETE /a/jobs/7", "pass: path");
}

#[test]
fn other_spellings_of_a_job_path_pass() {
    for path in ["/jobs/007", "/jobs/%37", "/jobs/7/", "//jobs/7", "/jobs//7", "/Jobs/7"] {
        check(&format!("GET {path}"), "pass: spelling");
    }
    for path in ["/a/../jobs/7", "/jobs/./7", "/jobs/7;v=1", "/jobs/a:b", "/jobs%2F7", "/jobs/7.0"]
    {
        check(&format!("GET {path}"), "pass: spelling");
    }
    check(&format!("GET /jobs/{}", UUID.to_uppercase()), "pass: spelling");
    check("POST /jobs/a:b", "pass: spelling");
    check("GET http://host//jobs/7?", "pass: spelling");
}

#[test]
fn a_query_passes_a_read_even_an_empty_one() {
    check("GET /jobs/7?a=b", "pass: query");
    check("GET /jobs/7?", "pass: query");
    check("HEAD /jobs/7?fresh", "pass: query");
}

#[test]
fn a_query_that_the_upstream_ignores_is_none() {
    let ignore = vec!["_".to_owned()];
    let query = QueryConfig { ignore, ..QueryConfig::default() };
    let paths = vec!["/jobs/{id}".to_owned()];
    let routes = Routes::new(&ApiConfig { paths, query, ..ApiConfig::default() }).unwrap();
    check_with(&routes, "GET /jobs/7?_=1", "read: 7");
    check_with(&routes, "HEAD /jobs/7?_=1&_=2", "read: 7");
    check_with(&routes, "GET /jobs/7?_=1&fields=a", "pass: query");
    check_with(&routes, "GET /jobs/7?", "pass: query");
    check_with(&routes, "GET /jobs/07?_=1", "pass: spelling");
    check_with(&routes, "GET /jobs/7?_=1\nrange: bytes=0-1", "pass: range");
    check_with(&routes, "POST /jobs/7?_=a", "write: 7");
}

#[test]
fn methods_that_neither_read_nor_change_pass() {
    check("OPTIONS /jobs/7", "pass: method");
    check("TRACE /jobs/7", "pass: method");
    check("OPTIONS *", "pass: method");
    check("CONNECT host:443", "pass: method");
    check("CONNECT host:443\nx-http-method-override: DELETE", "pass: method");
}

#[test]
fn a_read_with_a_body_passes() {
    check("GET /jobs/7\ncontent-length: 5", "pass: request-body");
    check("GET /jobs/7\ncontent-length: 00", "pass: request-body");
    check("GET /jobs/7\ncontent-length: 0\ncontent-length: 5", "pass: request-body");
    check("GET /jobs/7\ntransfer-encoding: chunked", "pass: request-body");
    check("GET /jobs/7\nauthorization: nTlM T1", "pass: bound-connection");
    check("HEAD /jobs/7\nauthorization: Negotiate T1", "pass: bound-connection");
    check("GET /jobs/7\nauthorization: Bearer T1", "read: 7");
}

#[test]
fn an_upgrade_passes_unless_it_offers_h2c() {
    check("GET /jobs/7\nconnection: Upgrade\nupgrade: websocket", "pass: upgrade");
    check("GET /ws\nconnection: Upgrade\nupgrade: websocket", "pass: upgrade");
    check("GET /jobs/7\nconnection: Upgrade, HTTP2-Settings\nupgrade: h2c", "read: 7");
    check("GET /jobs/7\nupgrade: websocket", "read: 7");
}

#[test]
fn a_method_that_is_not_known_passes() {
    check("GET /jobs/7\nx-method: CANCEL", "pass: method-override");
    check("GET /jobs/7\nx-http-verb: VERSION-CONTROL", "pass: method-override");
    check("GET /jobs/7\nx-method: cancel", "read: 7");
    check("GET /jobs/7\nx-cancel: CANCEL", "read: 7");
}

#[test]
fn another_url_in_any_header_names_jobs() {
    check("POST /\nx-override-path: /jobs/7", "write: 7");
    check("POST /\nx-override-path: 7", "pass: path");
    check("GET /jobs/7\nx-envoy-original-path: /jobs/8", "read: 7");
}

#[test]
fn ranges_and_preconditions_pass() {
    check("GET /jobs/7\nrange: bytes=0-1", "pass: range");
    check("GET /jobs/7\nif-match: \"a\"", "pass: precondition");
    check("GET /jobs/7\nif-unmodified-since: x", "pass: precondition");
    check("GET /jobs/7\nif-range: \"a\"", "pass: precondition");
}

#[test]
fn an_overridden_method_counts() {
    for name in ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"] {
        check(&format!("GET /jobs/7\n{name}: DELETE"), "write: 7");
        check(&format!("HEAD /jobs/7\n{name}: get\n{name}: patch"), "write: 7");
        check(&format!("GET /jobs/7\n{name}: frobnicate"), "write: 7");
        check(&format!("OPTIONS /jobs/7/x\n{name}: PUT"), "write: 7");
        check(&format!("GET /jobs/7?a=b\n{name}: PUT"), "write: 7");
        check(&format!("GET /a\n{name}: DELETE"), "pass: path");
        check(&format!("GET /jobs/7\n{name}: head"), "pass: method-override");
        check(&format!("GET /jobs/7\n{name}: "), "pass: method-override");
        check(&format!("POST /jobs/7\n{name}: GET"), "write: 7");
    }
}

#[test]
fn an_overridden_url_counts() {
    for name in ["X-Original-URL", "X-Rewrite-URL"] {
        check(&format!("GET /jobs/7\n{name}: /jobs/8"), "pass: url-override");
        check(&format!("GET /a\n{name}: /jobs/8"), "pass: path");
        check(&format!("POST /jobs/7\n{name}: /jobs/8?a=b"), "write: 7 8");
        check(&format!("POST /jobs/7\n{name}: /jobs/07"), "write: 7");
        check(&format!("POST /a\n{name}: https://host/jobs/8#x"), "write: 8");
        check(&format!("POST /a\n{name}: /b"), "pass: path");
    }
}

#[test]
fn every_other_method_on_or_below_a_job_is_a_write() {
    for method in ["POST", "PUT", "PATCH", "DELETE", "PURGE", "PROPFIND", "get", "X"] {
        check(&format!("{method} /jobs/7"), "write: 7");
        check(&format!("{method} /jobs/7/cancel?now=yes"), "write: 7");
    }
    check("POST /jobs/7/a/b/c", "write: 7");
    check("POST http://host/api/v1/jobs/abc/", "write: abc");
    check("POST /x/7", "write: 7");
    check("POST /x/7/other", "write: 7");
    check("POST /x/7/status/y", "write: 7");
    check("POST /jobs/7\nconnection: upgrade\nupgrade: websocket", "write: 7");
    check("POST /jobs/7\nrange: bytes=0-1\ncontent-length: 5", "write: 7");
}

#[test]
fn an_id_that_is_a_word_passes() {
    for word in ["stats", "latest", "next", "x", "a-b"] {
        check(&format!("GET /jobs/{word}"), "pass: word");
        check(&format!("GET /x/{word}/status?a"), "pass: word");
    }
    check("GET /jobs/stats.json", "pass: spelling");
}

#[test]
fn a_write_names_jobs_anywhere_in_its_target() {
    check("DELETE /jobs?id=7", "write:  and 7");
    check("DELETE /jobs?ids=7,8&ids=9", "write:  and 7 8 9");
    check("DELETE /jobs/7?also=7&with=8", "write: 7 and 8");
    check("POST /jobs/7:cancel", "write: 7");
    check("POST /jobs('7')", "write: 7");
    check("POST /jobs/stop/7", "write: stop and 7");
    check("PUT /jobs/Ab1", "write: Ab1 AB1 ab1");
    check("POST /a\nx-rewrite-url: /jobs?id=8", "write:  and 8");
    for other in ["POST /a?id=7", "POST /?id=7", "POST /jobsite?id=7", "POST /jobs?id=seven"] {
        check(other, "pass: path");
    }
}

#[test]
fn more_jobs_than_are_invalidated_one_by_one_are_too_many() {
    let scope = |count: usize| {
        let ids: Vec<_> = (1..=count).map(|id| id.to_string()).collect();
        let uri = format!("/jobs?ids={}", ids.join(","));
        match routes().classify(&Request::delete(uri).body(()).unwrap()) {
            Route::Write(scope) => (scope.too_many, scope.elsewhere.len()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(scope(1000), (false, 1000));
    assert_eq!(scope(1001), (true, 1000));
}

#[test]
fn jobs_are_found_in_paths_and_urls() {
    let named = |path: &str| words(&routes().named_by_path(path).all_jobs());
    assert_eq!(named("/jobs/007/x"), "7");
    assert_eq!(named("https://host/api/v1/jobs/7?a=/jobs/8"), "7");
    assert_eq!(named("/a"), "");
    assert_eq!(named(""), "");
}

#[track_caller]
fn check_refused(templates: &[&str], want: &str) {
    assert_eq!(Routes::parse(templates).map_err(|error| error.to_string()), Err(want.to_owned()));
}

#[test]
fn a_bad_template_is_refused_with_the_mend() {
    check_refused(&[], "no route given; give at least one such as '/jobs/{id}'");
    let check = |template: &str, want: &str| {
        check_refused(&[template], &format!("route '{template}': {want}"));
    };
    check("jobs/{id}", "it is not absolute; begin it with '/'");
    check("/jobs", "it has no variable {id} for the job, as in '/jobs/{id}'");
    check("/jobs/{job_id}", "name the variable of the job {id}: '/jobs/{id}'");
    check("/t/{t}/jobs/{pk}/", "name the variable of the job {id}: '/t/{t}/jobs/{id}/'");
    check("/{id}/{id}", "it has the variable {id} twice; give one of them another name");
    let place = "use one or more of A-Z a-z 0-9 . _ ~ - : ; , @ ! $ & ' ( ) * + = |, with at most one \
                 variable such as {id}, and not '.' or '..'";
    check("//jobs/{id}", &format!("its segment 1 is ''; {place}"));
    check("/../{id}", &format!("its segment 1 is '..'; {place}"));
    check("/a b/{id}", &format!("its segment 1 is 'a b'; {place}"));
    check("/j%6Fbs/{id}", &format!("its segment 1 is 'j%6Fbs'; {place}"));
    check(
        "/a/{x}-{id}",
        "its segment 2 is '{x}-{id}'; give each segment at most one variable, such as '{id}'",
    );
    let query = "leave out the query: query.allow and query.ignore are about it";
    check("/jobs/{id}?a=b", &format!("its segment 2 is '{{id}}?a=b'; {query}"));
    let count = MAX_TEMPLATES + 1;
    let many: Vec<String> = (0..count).map(|n| format!("/r{n}/{{id}}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    check_refused(&many, "65 routes given, at most 64 are allowed; remove some");
    assert!(Routes::parse(&many[1..]).is_ok());
    check_refused(
        &["/t/{tenant}/jobs/{id}", "/t/{org}/jobs/{id}"],
        "the routes '/t/{tenant}/jobs/{id}' and '/t/{org}/jobs/{id}' have the same paths; remove one, \
         also if one is in routes and the other in [[route]]",
    );
}

#[test]
fn a_write_names_its_destination_too() {
    check("MOVE /jobs/7\ndestination: /jobs/8", "write: 7 8");
    check("COPY /files/7\ndestination: https://api.example/jobs/8?x", "write: 8");
    check("POST /files/7\ndestination: /jobs/8", "pass: path");
    check("GET /jobs/7\ndestination: /jobs/8", "read: 7");
}

#[test]
fn the_location_of_an_answer_names_jobs_in_its_path_and_query() {
    let named = |location: &str| {
        let request = Request::post("/jobs").body(()).unwrap();
        let answer = Response::builder().status(201).header("location", location).body(()).unwrap();
        words(&routes().location_targets(&WriteTarget::of(&request), &answer).all_jobs())
    };
    assert_eq!(named("/jobs/17"), "17");
    assert_eq!(named("/jobs?id=17"), "17");
    assert_eq!(named("https://api.example/backend/jobs/17?at=8"), "17 8");
    assert_eq!(named("?id=17"), "17");
    assert_eq!(named("/elsewhere?id=17"), "");
}

#[test]
fn a_method_may_be_named_in_every_spelling_of_cgi_and_in_the_query() {
    for name in ["x_http_method", "x_http_method_override", "x-method.override"] {
        check(&format!("GET /jobs/7\n{name}: DELETE"), "write: 7");
        check(&format!("GET /jobs/7\n{name}: GET"), "pass: method-override");
    }
    check("POST /a\nx_original_url: /jobs/8", "write: 8");
    check("GET /jobs/7\nx_rewrite_url: /jobs/8", "pass: url-override");
    check("GET /jobs/7?_method=DELETE", "write: 7");
    check("GET /jobs/7?a=b&_method=get", "pass: query");
}

fn routes_of(tables: Vec<RouteConfig>) -> Routes {
    Routes::new(&ApiConfig { tables, ..ApiConfig::default() }).unwrap()
}

#[test]
fn a_path_that_is_never_cached_counts_in_every_spelling_of_a_read() {
    let route = RouteConfig {
        ids: Some(Ids::Opaque),
        except: vec!["/t/{tenant}/jobs/latest".to_owned()],
        ..RouteConfig::at("/t/{tenant}/jobs/{id}/")
    };
    let routes = routes_of(vec![route]);
    check_with(&routes, "GET /t/acme/jobs/late/", "read: acme:late");
    for id in ["latest", "LATEST", "l%61test", "%4Catest"] {
        check_with(&routes, &format!("GET /t/acme/jobs/{id}/"), "pass: except");
    }
}

#[test]
fn a_write_names_an_id_with_or_without_the_literal_text_around_it() {
    let path = "/exports/job-{id}.json";
    for ids in [Ids::Auto, Ids::Opaque] {
        let routes = routes_of(vec![RouteConfig { ids: Some(ids), ..RouteConfig::at(path) }]);
        let seven = JobId::new("7", 0);
        for target in [
            "/exports/job-7.json",
            "/exports/job-7.json:retry",
            "/exports/job-7:cancel",
            "/exports/JOB-7",
            "/exports/7",
            "/exports/job-6,job-7",
            "/exports?ids=job-6,job-7",
            "/exports('job-7')",
            "/exports/job-7.json/../x",
        ] {
            let request = Request::delete(target.parse::<hyper::Uri>().unwrap()).body(()).unwrap();
            let Route::Write(scope) = routes.classify(&request) else { panic!("{target}") };
            assert!(scope.all_jobs().contains(&seven), "{target}: {scope:?}");
        }
    }
}

#[test]
fn a_write_names_the_job_of_its_path_if_variables_follow_the_id() {
    let routes = Routes::parse(&["/a/{x}/n/{id}/runs/{run}"]).unwrap();
    check_with(&routes, "GET /a/b/n/7/runs/3", "read: b:7:3");
    let written = |target: &str| {
        let Route::Write(scope) = routes.classify(&Request::put(target).body(()).unwrap()) else {
            panic!("{target}")
        };
        assert!(scope.has_unlisted && !scope.too_many, "{target}");
        scope.all_jobs()
    };
    assert!(written("/a/b/n/7/runs/3").contains(&JobId::new("b:7:3", 0)));
    assert!(written("/A/B/n/7/runs/3/").contains(&JobId::new("b:7:3", 0)));
    assert!(written("/a/b/n/7/cancel").is_empty());
}

#[test]
fn the_path_of_a_job_is_not_that_of_another() {
    let route = |path: &str, key: &str| RouteConfig {
        key: Some(key.to_owned()),
        ids: Some(Ids::Opaque),
        ..RouteConfig::at(path)
    };
    let routes = routes_of(vec![
        RouteConfig::at("/jobs/{id}"),
        RouteConfig::at("/t/{tenant}/jobs/{id}"),
        route("/x/{a}/{id}", "x{id}-{a}"),
    ]);
    let check = |key: &str, want: Option<&str>| {
        assert_eq!(routes.path_of(&JobId::new(key, 0)).as_deref(), want, "{key}");
    };
    check("7", Some("/jobs/7"));
    check("a:7", Some("/jobs/a:7"));
    check("x7-a b", Some("/jobs/x7-a%20b"));
    check("latest", Some("/jobs/latest"));
    check("", None);
    let routes =
        routes_of(vec![route("/{kind}/x{id}", "{kind}:{id}"), route("/jobs/{id}", "j{id}")]);
    let check = |key: &str, want: Option<&str>| {
        assert_eq!(routes.path_of(&JobId::new(key, 0)).as_deref(), want, "{key}");
    };
    check("jobs:7", Some("/jobs/x7"));
    check("j7", Some("/jobs/7"));
    check("jx7", None);
}

#[test]
fn a_target_that_is_too_long_to_be_read_in_every_way_counts_for_all_jobs() {
    let long = "a".repeat(60_000);
    for headers in [
        format!("X-Original-URL: /%6aobs/7;{long}"),
        format!("X-1-Path: /x;{long}\nX-Original-URL: /jobs/7/"),
        format!("X-1-Path: /x;\\{long}\nX-2-Path: /x/..%2Fjobs/7"),
        format!("X-Original-URL: /{}jobs/7", "%2e%2e;\\x/".repeat(6_000)),
    ] {
        let mut request = Request::put("/other");
        for line in headers.lines() {
            let (name, value) = line.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        let request = request.body(()).unwrap();
        let Route::Write(scope) = routes().classify(&request) else { panic!("{headers:.40}") };
        let names_seven = scope.all_jobs().contains(&JobId::new("7", 0));
        assert!(scope.too_many || names_seven, "{headers:.40}");
    }
}
