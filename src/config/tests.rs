//! The configuration as a user sees it: precedence, messages, documents, and values that never show.

mod constraint_tests;
mod derived_tests;
mod generated_tests;
mod store_url_tests;
mod value_tests;

use std::{fs, path::PathBuf, time::Duration};

use super::*;

const REFERENCE: &str = include_str!("../../config/jobcache.toml");
const PAGE: &str = include_str!("../../docs/settings.md");
const PURGING: &str = include_str!("../../docs/purging.md");

/// A file that is removed at the end of its test.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str, text: &str) -> Self {
        let name = format!("jobcache-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn flags(values: &[(&'static str, &str)]) -> Flags {
    let value = |text: &str| RawValue::One(text.to_owned());
    Flags { config: None, values: values.iter().map(|(name, text)| (*name, value(text))).collect() }
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

/// Loads with a file of the given text; messages call it `FILE`.
fn load(
    flag: &[(&'static str, &str)],
    vars: &[(&str, &str)],
    file: &str,
) -> Result<LoadedConfig, String> {
    // Each test thread has its own name.
    let thread = std::thread::current().name().unwrap().replace(':', "-");
    let temp = Temp::new(&format!("{thread}.toml"), file);
    let flags = Flags { config: Some(temp.path().to_owned()), ..flags(flag) };
    Config::load(flags, env(vars)).map_err(|error| error.to_string().replace(temp.path(), "FILE"))
}

/// Expects a file with one mistake and its message.
#[track_caller]
fn refuses(file: &str, message: &str) {
    let error = load(&[], &[], file).map(|loaded| loaded.config).unwrap_err();
    assert_eq!(error, format!("the configuration has 1 mistake\n  {message}"));
}

/// Expects an environment with one mistake and its message.
#[track_caller]
fn refuses_env(vars: &[(&str, &str)], message: &str) {
    let error = load(&[], vars, "").map(|loaded| loaded.config).unwrap_err();
    assert_eq!(error, format!("the configuration has 1 mistake\n  {message}"));
}

#[test]
fn nothing_given_is_the_default() {
    let loaded = Config::load(Flags::default(), []).unwrap();
    assert_eq!((loaded.config, loaded.warnings), (Config::default(), Vec::new()));
}

/// The TTL that comes out of a flag, a variable and a file, each perhaps missing.
#[track_caller]
fn ttl(flag: &str, var: &str, file: &str, expected: u64) {
    let flag: Vec<_> =
        Some(("ttl", flag)).into_iter().filter(|(_, text)| !text.is_empty()).collect();
    let file = if file.is_empty() { String::new() } else { format!("ttl.default = {file:?}") };
    let config = load(&flag, &[("JOBCACHE_TTL", var)], &file).unwrap().config;
    assert_eq!(config.cache.lifetimes.ttl, Duration::from_secs(expected));
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
    ttl("10s", "20s", "30s", 10);
    ttl("10s", "", "30s", 10);
    ttl("", "20s", "30s", 20);
    ttl("", "", "30s", 30);
    ttl("", "", "", 300);
}

#[track_caller]
fn store_url(vars: &[(&str, &str)], expected: &str) {
    let config = load(&[], vars, "").unwrap().config;
    assert_eq!(config.store.url, StoreUrl::Redis(expected.to_owned()));
}

#[test]
fn our_own_variables_win_over_the_common_ones() {
    let common = ("REDIS_URL", "redis://common");
    store_url(&[common], "redis://common");
    store_url(&[common, ("JOBCACHE_REDIS_URL", "redis://own")], "redis://own");
    store_url(&[common, ("JOBCACHE_REDIS_URL", "")], "redis://common");
    let vars = [("UPSTREAM_URL", "http://common"), ("JOBCACHE_UPSTREAM", "http://own/")];
    assert_eq!(load(&[], &vars, "").unwrap().config.upstream.url, "http://own");
}

#[test]
fn a_list_in_a_variable_is_separated_by_commas() {
    let vars = [("JOBCACHE_ROUTES", "/a/{id}, /b/{id},"), ("JOBCACHE_CREDENTIALS_HEADERS", "X-Me")];
    let config = load(&[], &vars, "routes = ['/c/{id}']").unwrap().config;
    assert_eq!(config.api.paths, ["/a/{id}", "/b/{id}"]);
    assert_eq!(config.cache.credentials.headers, ["x-me"]);
}

#[test]
fn the_file_may_be_named_by_a_variable() {
    let temp = Temp::new("by-variable.toml", "max_body = 7");
    let vars = [("JOBCACHE_CONFIG", temp.path())];
    let config = Config::load(Flags::default(), env(&vars)).unwrap().config;
    assert_eq!(config.cache.limits.max_body, 7);
}

#[test]
fn a_secret_may_come_from_a_file_that_ends_in_a_newline() {
    let temp = Temp::new("secret", "0123456789abcdef\n");
    let vars = [("JOBCACHE_WEBHOOK_SECRET_FILE", temp.path()), ("JOBCACHE_ADMIN", "0.0.0.0:9090")];
    let config = Config::load(Flags::default(), env(&vars)).unwrap().config;
    assert_eq!(config.webhook.secrets, [Secret::new("0123456789abcdef")]);
    let url = Temp::new("url", "redis://:pw@cache\n");
    store_url(&[("REDIS_URL_FILE", url.path())], "redis://:pw@cache");
}

#[test]
fn a_secret_by_file_that_cannot_be_had_is_refused() {
    refuses_env(
        &[("REDIS_URL_FILE", "/nowhere/url")],
        "REDIS_URL_FILE = \"/nowhere/url\": cannot be read: No such file or directory (os error 2)",
    );
    refuses_env(
        &[("REDIS_URL_FILE", "/dev/null")],
        "REDIS_URL_FILE = \"/dev/null\": the file is empty",
    );
    refuses_env(
        &[("REDIS_URL_FILE", "/dev/zero")],
        "REDIS_URL_FILE = \"/dev/zero\": cannot be read: it is larger than 1048576 bytes",
    );
    refuses_env(
        &[("REDIS_URL_FILE", "/x"), ("REDIS_URL", "redis://x")],
        "REDIS_URL and REDIS_URL_FILE are both set: keep one of them",
    );
}

#[test]
fn an_unknown_variable_is_a_warning() {
    let vars = [
        ("JOBCACHE_LISTE", "x"),
        ("JOBCACHE_STORE_URL", "x"),
        ("JOBCACHE_ROUTE", "x"),
        ("JOBCACHE_SOMETHING_ELSE", "x"),
        ("JOBCACHE_EMPTY", ""),
        ("HOME", "/"),
    ];
    let ignored = |name: &str, hint: &str| {
        format!("the environment variable {name} is unknown and ignored; {hint}")
    };
    assert_eq!(
        load(&[], &vars, "").unwrap().warnings,
        [
            ignored("JOBCACHE_LISTE", "did you mean JOBCACHE_LISTEN?"),
            ignored("JOBCACHE_ROUTE", "did you mean JOBCACHE_ROUTES?"),
            ignored("JOBCACHE_SOMETHING_ELSE", "`jobcache man` lists all variables"),
            ignored("JOBCACHE_STORE_URL", "did you mean JOBCACHE_REDIS_URL?"),
        ]
    );
}

#[test]
fn a_name_cannot_forge_a_line_of_a_log() {
    let loaded = load(&[], &[("JOBCACHE_X\nERROR", "x")], "").unwrap();
    let bad = load(&[], &[], "\"a\\nb\" = 1\n[[invalidate]]\npath = '/{id}'\n\"c\\rd\" = 1");
    let problems = bad.unwrap_err();
    assert_eq!(problems.lines().count(), 3, "{problems}");
    assert!(!loaded.warnings[0].contains('\n') && !problems.contains('\r'), "{problems}");
}

#[test]
fn a_misspelt_variable_is_told_where_it_may_be_why_the_rest_is_refused() {
    let vars = [("JOBCACHE_ADMIN", "0.0.0.0:9090"), ("JOBCACHE_WEBHOOK_SECRT", "0123456789abcdef")];
    let error = load(&[], &vars, "").unwrap_err();
    let last = error.lines().last().unwrap();
    assert_eq!(
        last,
        "  warning: the environment variable JOBCACHE_WEBHOOK_SECRT is unknown and ignored; did you \
         mean JOBCACHE_WEBHOOK_SECRET?"
    );
}

#[test]
fn variables_that_kubernetes_makes_up_are_no_warning() {
    let names = [
        "JOBCACHE_SERVICE_HOST",
        "JOBCACHE_SERVICE_PORT_HTTP",
        "JOBCACHE_PORT",
        "JOBCACHE_PORT_8080_TCP_ADDR",
        "JOBCACHE_ADMIN_SERVICE_HOST",
    ];
    let vars = names.map(|name| (name, "tcp://10.0.0.1:8080"));
    assert_eq!(load(&[], &vars, "").unwrap().warnings, Vec::<String>::new());
    for name in ["JOBCACHE_PORT", "JOBCACHE_REUSE_PORT", "JOBCACHE_REDIS_PORT"] {
        assert_eq!(load(&[], &[(name, "1")], "").unwrap().warnings.len(), 1, "{name}");
    }
}

#[test]
fn a_message_names_setting_value_origin_limit_and_default() {
    let limit = "must be between 1ms and 10s; the default is 50ms";
    refuses_env(
        &[("JOBCACHE_STORE_BUDGET", "0s")],
        &format!("store.budget = \"0s\" (from JOBCACHE_STORE_BUDGET): {limit}"),
    );
    refuses(
        "listen = '127.0.0.1:80'\n\n[store]\nbudget = '1h'",
        &format!("store.budget = \"1h\" (from FILE:4): {limit}"),
    );
    let error = Config::load(flags(&[("store-budget", "20s")]), []).unwrap_err();
    assert_eq!(error.problems, [format!("store.budget = \"20s\" (from --store-budget): {limit}")]);
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let error = load(&[("ttl", "0s")], &[("JOBCACHE_LOG", "loud")], "max_body = 0\nrouts = []");
    assert_eq!(
        error.unwrap_err(),
        "the configuration has 4 mistakes\n  \
         FILE:2: routs is not a known key; did you mean routes?\n  \
         ttl.default = \"0s\" (from --ttl): must be between 1s and 1day; the default is 300s\n  \
         log = \"loud\" (from JOBCACHE_LOG): \"loud\" is not a level: must be one of off, error, warn, \
         info, debug, trace or a list such as \"info,jobcache=debug\"; the default is info\n  \
         max_body = 0 (from FILE:1): must be between 1B and 64MiB; the default is 256KiB"
    );
}

#[test]
fn an_unknown_key_is_refused_with_what_was_meant() {
    let refuses = |file: &str, key: &str, near: &str| {
        refuses(file, &format!("FILE:1: {key} is not a known key{near}"));
    };
    refuses("listn = '1'", "listn", "; did you mean listen?");
    refuses("upstream = 'http://a'", "upstream", "; did you mean upstream.url?");
    refuses("redis_url = 'x'", "redis_url", "; did you mean store.url?");
    refuses("ttl = '300s'", "ttl", "; did you mean ttl.default?");
    refuses("stor.budget = '1s'", "stor.budget", "; did you mean store.budget?");
    refuses(
        "server.max_conections = 1",
        "server.max_conections",
        "; did you mean server.max_connections?",
    );
    let top = "; verify belongs at the top of the file, before the first [table]";
    refuses("store.verify = 0.01", "store.verify", top);
    refuses("[listeners]", "listeners", "");
    refuses("listen.port = 1", "listen.port", "");
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    refuses(
        "routes = '/jobs/{id}'",
        "routes = \"/jobs/{id}\" (from FILE:1): must be a list, such as [\"a\", \"b\"]",
    );
    refuses(
        "listen = ['a']",
        "listen = [\"a\"] (from FILE:1): must be one value, not a list; the default is 127.0.0.1:8080",
    );
    refuses(
        "settle = 5",
        "settle = 5 (from FILE:1): must be a time with its unit, such as \"50ms\", \"5s\" or \"5m\"; \
         the default is 1s",
    );
    refuses("listen = 1979-05-27", "FILE:1: listen cannot be a date, or a list of lists or tables");
    refuses(
        "listen = \n",
        "FILE:1: is not valid TOML: string values must be quoted, expected literal string",
    );
}

#[test]
fn a_missing_file_is_refused() {
    let flags = Flags { config: Some("/nowhere.toml".to_owned()), ..Flags::default() };
    let error = Config::load(flags, []).unwrap_err();
    assert_eq!(
        error.problems,
        [
            r#"config = "/nowhere.toml" (from --config): cannot be read: No such file or directory (os error 2)"#
        ]
    );
}

#[test]
fn the_effective_configuration_says_where_a_value_came_from_and_can_be_loaded_again() {
    let vars = [("JOBCACHE_TTL", "20s"), ("REDIS_URL", "redis://cache/2")];
    let loaded = load(&[("listen", "127.0.0.1:81")], &vars, "max_body = 7").unwrap();
    let toml = loaded.to_toml();
    let line = |key: &str| toml.lines().find(|line| line.starts_with(key)).unwrap();
    let words = |key: &str| line(key).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words("listen"), "listen = \"127.0.0.1:81\" # --listen");
    assert_eq!(words("ttl"), "ttl.default = \"20s\" # JOBCACHE_TTL");
    assert_eq!(words("store.url"), "store.url = \"redis://cache/2\" # REDIS_URL");
    assert_eq!(words("settle"), "settle = \"1s\"");
    assert_eq!(load(&[], &[], &toml).unwrap().config, loaded.config);
}
