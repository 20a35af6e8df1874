//! The blocks of `docs/job-apis.md`: each is loaded, and caches what its section says.

use jobcache::{
    config::{Config, Flags},
    semantics::route::Routes,
};

use crate::support::Process;

const PAGE: &str = include_str!("../../../docs/job-apis.md");

/// Variables without which no configuration is valid.
const REQUIRED: [(&str, &str); 2] =
    [("REDIS_URL", "redis://127.0.0.1:1"), ("UPSTREAM_URL", "http://127.0.0.1:1")];

/// Returns the blocks of a section in this language.
fn blocks(title: &str, language: &str) -> Vec<String> {
    let section = PAGE.split("\n## ").find(|section| section.lines().next() == Some(title));
    let section = section.unwrap_or_else(|| panic!("no section '{title}'"));
    let fence = format!("```{language}\n");
    let blocks = section.split(&fence).skip(1).filter_map(|rest| rest.split_once("```"));
    blocks.map(|(block, _)| block.to_owned()).collect()
}

/// Returns the file that the blocks of a section make together.
pub(super) fn recipe(title: &str) -> String {
    blocks(title, "toml").concat()
}

fn load(file: &str) -> Config {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("jobcache.toml");
    std::fs::write(&path, file).expect("a file written");
    let path = path.to_str().expect("a readable path").to_owned();
    let flags = Flags { config: Some(path), ..Flags::default() };
    let env = REQUIRED.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Config::load(flags, env).unwrap_or_else(|error| panic!("{file}\n{error}")).config
}

/// Checks the keys of reads with these paths; none = the read passes.
#[track_caller]
fn check(file: &str, reads: &[(&str, Option<&str>)]) -> Routes {
    let routes = Routes::new(&load(file).api).expect("valid routes");
    for (path, key) in reads {
        let job = routes.job_at(path).map(|job| job.id().as_str().to_owned());
        assert_eq!(job.as_deref(), *key, "{path} with\n{file}");
    }
    routes
}

#[track_caller]
fn check_write(routes: &Routes, path: &str, keys: &[&str]) {
    let scope = routes.named_by_path(path);
    let mut named: Vec<_> = scope.jobs.iter().map(ToString::to_string).collect();
    named.sort_unstable();
    for key in keys {
        assert!(named.iter().any(|known| known == key), "{path}: {named:?}");
    }
}

#[test]
fn every_block_is_a_valid_file() {
    let mut count = 0;
    for section in PAGE.split("\n## ").skip(1) {
        let title = section.lines().next().expect("a title");
        for block in blocks(title, "toml") {
            load(&block);
            count += 1;
        }
    }
    assert!(count >= 8, "{count}");
}

#[test]
fn what_the_sections_say_is_cached_is_cached_under_the_key_that_they_name() {
    let routes = check(
        &recipe("Django and Django REST framework"),
        &[("/jobs/17/", Some("17")), ("/jobs/17", None), ("/jobs/", None), ("/jobs/x/", None)],
    );
    check_write(&routes, "/jobs/17", &["17"]);
    check_write(&routes, "/jobs/17/cancel/", &["17"]);
    check(
        &recipe("FastAPI and Starlette"),
        &[("/t/acme/jobs/17", Some("acme:17")), ("/t/acme/jobs/latest", None)],
    );
    let [parsed, opaque] = blocks("Flask", "toml").try_into().expect("two blocks");
    let hex = "/jobs/0f8fad5bd9cb469fa16570867728950e";
    check(&parsed, &[("/jobs/7", Some("7")), (hex, None), ("/jobs/20240101_1200", None)]);
    check(&opaque, &[(hex, Some(&hex[6..])), ("/jobs/20240101_1200", Some("20240101_1200"))]);
    check(
        &recipe("Celery, RQ and other queues"),
        &[
            ("/tasks/rq:job:1", Some("rq:job:1")),
            ("/tasks/report@2024", Some("report@2024")),
            ("/tasks/nightly", Some("nightly")),
        ],
    );
    check(
        &recipe("Express and other Node frameworks"),
        &[("/jobs/rq%3Ajob%3A1", Some("rq:job:1")), ("/jobs/stats", None)],
    );
    check(
        &recipe("Asynchronous APIs: 202, 303, 404, 410"),
        &[("/jobs/e17", Some("e17")), ("/jobs/e17/", None)],
    );
}

#[test]
fn both_formats_of_a_path_of_rails_are_one_job() {
    let reads = [("/jobs/7", Some("7")), ("/jobs/7.json", Some("7")), ("/jobs/7.xml", None)];
    let routes = check(&recipe("Rails"), &reads);
    for path in ["/jobs/7", "/jobs/7.json", "/jobs/7/cancel", "/jobs/7/cancel.json"] {
        check_write(&routes, path, &["7"]);
    }
}

#[test]
fn the_flags_and_the_variables_of_the_page_say_the_same() {
    let [block] = blocks("The same as flags and variables", "sh").try_into().expect("a block");
    let (flags, variables) = block.trim().split_once('\n').expect("two lines");
    let words = |line: &str| -> Vec<String> {
        line.replace('\'', "").split(' ').map(str::to_owned).collect()
    };
    let flags = words(flags.strip_prefix("jobcache ").expect("the program"));
    let variables = words(variables.strip_suffix(" jobcache").expect("the program"));
    let variables: Vec<_> = variables.iter().map(|word| word.split_once('=').unwrap()).collect();
    let set = |args: &[String], variables: &[(&str, &str)]| -> Vec<String> {
        let args = ["check"].into_iter().chain(args.iter().map(String::as_str));
        let (code, out, error) =
            Process::output(&args.collect::<Vec<_>>(), &[&REQUIRED, variables].concat());
        assert_eq!(code, 0, "{error}");
        let is_given = |line: &&str| {
            ["routes =", "ids =", "statuses =", "except ="].iter().any(|key| line.starts_with(key))
        };
        let value = |line: &str| line.split(" # ").next().unwrap_or_default().trim().to_owned();
        out.lines().filter(is_given).map(value).collect()
    };
    let (by_flags, by_variables) = (set(&flags, &[]), set(&[], &variables));
    assert_eq!(by_flags.len(), 4, "{by_flags:?}");
    assert_eq!(by_flags, by_variables);
}
