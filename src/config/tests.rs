//! What a user sees of the configuration: precedence, messages, and what never shows.

mod change_tests;
mod invalidate_tests;
mod secret_tests;
mod state_ttl_tests;
mod value_tests;

use std::{fs, path::PathBuf, time::Duration};

use super::{
    setting_spec::{SETTINGS, Setter},
    *,
};

const REFERENCE: &str = include_str!("../../config/jobcache.toml");

/// A file that lasts as long as its test.
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
    // Each test thread has a name of its own.
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

#[test]
fn the_reference_file_gives_every_knob_at_its_default() {
    let mut problems = Vec::new();
    let settings = file::parse(REFERENCE, "jobcache.toml", &mut problems).settings;
    assert_eq!(problems, Vec::<String>::new());
    let mut config = Config::default();
    for knob in SETTINGS {
        let setting = settings.iter().find(|setting| setting.knob.key == knob.key);
        let Some(setting) = setting else {
            assert_eq!(knob.default, "", "{} is missing", knob.key);
            let name = knob.key.rsplit('.').next().unwrap();
            assert!(REFERENCE.contains(&format!("\n# {name} = ")), "{}", knob.key);
            continue;
        };
        assert_eq!(setting.value, knob.split(knob.default), "{}", knob.key);
        knob.apply(&mut config, &setting.value).unwrap();
    }
    assert_eq!(config, Config::default());
    assert_eq!(load(&[], &[], REFERENCE).unwrap().config, Config::default());
}

#[test]
fn the_reference_file_names_every_variable_and_flag() {
    for knob in SETTINGS {
        for name in knob.env {
            assert!(REFERENCE.contains(name), "{name}");
        }
        let flag = knob.flag.map(|flag| format!("# --{flag}"));
        assert!(flag.is_none_or(|flag| REFERENCE.contains(&flag)), "{}", knob.key);
    }
}

#[test]
fn a_default_passes_its_own_limits_and_sets_what_default_says() {
    for knob in SETTINGS.iter().filter(|knob| !knob.default.is_empty()) {
        let mut config = Config::default();
        knob.apply(&mut config, &knob.split(knob.default)).unwrap();
        assert_eq!(config, Config::default(), "{}", knob.key);
    }
}

#[test]
fn names_are_unique() {
    let mut names: Vec<_> = SETTINGS.iter().flat_map(|knob| knob.env.iter().copied()).collect();
    names.extend(SETTINGS.iter().map(|knob| knob.key));
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

/// The TTL that comes out of a flag, a variable and a file, each perhaps missing.
#[track_caller]
fn ttl(flag: &str, var: &str, file: &str, expected: u64) {
    let flag: Vec<_> =
        Some(("ttl", flag)).into_iter().filter(|(_, text)| !text.is_empty()).collect();
    let file = if file.is_empty() { String::new() } else { format!("ttl.default = {file:?}") };
    let config = load(&flag, &[("JOBCACHE_TTL", var)], &file).unwrap().config;
    assert_eq!(config.ttl, Duration::from_secs(expected));
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
    assert_eq!(config.routes, ["/a/{id}", "/b/{id}"]);
    assert_eq!(config.credentials.headers, ["x-me"]);
}

#[test]
fn the_file_may_be_named_by_a_variable() {
    let temp = Temp::new("by-variable.toml", "max_body = 7");
    let vars = [("JOBCACHE_CONFIG", temp.path())];
    let config = Config::load(Flags::default(), env(&vars)).unwrap().config;
    assert_eq!(config.max_body, 7);
}

#[test]
fn a_secret_may_come_from_a_file_that_ends_in_a_newline() {
    let temp = Temp::new("secret", "0123456789abcdef\n");
    let vars = [("JOBCACHE_WEBHOOK_SECRET_FILE", temp.path()), ("JOBCACHE_ADMIN", "0.0.0.0:9090")];
    let config = Config::load(Flags::default(), env(&vars)).unwrap().config;
    assert_eq!(config.webhook_secret, [Secret::new("0123456789abcdef")]);
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
fn a_variable_that_nobody_knows_is_a_warning() {
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
            ignored("JOBCACHE_SOMETHING_ELSE", "`jobcache man` lists those that there are"),
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
    let names = ["JOBCACHE_PORT", "JOBCACHE_PORT_8080_TCP_ADDR", "JOBCACHE_ADMIN_SERVICE_HOST"];
    let vars = names.map(|name| (name, "tcp://10.0.0.1:8080"));
    assert_eq!(load(&[], &vars, "").unwrap().warnings, Vec::<String>::new());
}

#[test]
fn a_message_names_knob_value_origin_limit_and_default() {
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
         log = \"loud\" (from JOBCACHE_LOG): \"loud\" is no level: must be one of off, error, warn, \
         info, debug, trace or a list such as \"info,jobcache=debug\"; the default is info\n  \
         max_body = 0 (from FILE:1): must be between 1B and 64MiB; the default is 1MiB"
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
        "FILE:1: is not TOML: string values must be quoted, expected literal string",
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
fn an_admin_address_that_others_reach_needs_a_secret() {
    refuses(
        "admin = '0.0.0.0:9090'",
        "admin = \"0.0.0.0:9090\" (from FILE:1) can be reached from other machines, which needs a \
         secret: set JOBCACHE_WEBHOOK_SECRET (or JOBCACHE_WEBHOOK_SECRET_FILE), or listen on \
         127.0.0.1",
    );
    load(&[], &[], "admin = '0.0.0.0:9090'\nwebhook_secret = '0123456789abcdef'").unwrap();
    load(&[], &[], "admin = '127.0.0.2:9090'").unwrap();
}

#[test]
fn a_parameter_changes_the_answer_or_does_not() {
    refuses(
        "query.allow = ['a', 'b']\nquery.ignore = ['b']",
        "\"b\" is named by query.allow = [\"a\", \"b\"] (from FILE:1) and by query.ignore = [\"b\"] \
         (from FILE:2): it changes the answer or does not",
    );
}

#[test]
fn addresses_must_not_meet() {
    refuses(
        "listen = '127.0.0.1:9090'",
        "admin = \"127.0.0.1:9090\" (the default) is the same address as listen = \
         \"127.0.0.1:9090\" (from FILE:1): give each its own port",
    );
    refuses(
        "upstream.url = 'http://localhost:8080'",
        "upstream.url = \"http://localhost:8080\" (from FILE:1) is an address of jobcache itself: \
         name the one of your backend",
    );
    load(&[], &[], "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'").unwrap();
}

#[test]
fn what_is_told_of_the_store_must_fit_its_url() {
    let refuses = |vars: &[(&str, &str)], part: &str| {
        let error = load(&[], vars, "").unwrap_err();
        assert!(error.contains(part), "{error}");
    };
    let ca = ("JOBCACHE_STORE_TLS_CA", "/ca.pem");
    refuses(&[ca], "speaks no TLS: begin it with rediss://, or drop it");
    assert!(load(&[], &[ca, ("REDIS_URL", "rediss://a")], "").is_ok());
    let mixed = ("JOBCACHE_STORE_SENTINEL_TLS", "true");
    refuses(&[mixed], "names no sentinels: use redis-sentinel://");
    assert!(load(&[], &[ca, mixed, ("REDIS_URL", "redis-sentinel://a/m")], "").is_ok());
    refuses(&[("JOBCACHE_STORE_TLS_KEY", "/k")], "needs store.tls.cert beside it");
    let password = ("JOBCACHE_STORE_PASSWORD", "p");
    let file = ("JOBCACHE_STORE_PASSWORD_FILE", "/p");
    refuses(&[password, file], "are both set: keep one");
    refuses(&[password, ("REDIS_URL", "redis://:p@a")], "says who we are, and so do");
    refuses(&[file, ("REDIS_URL", "redis-sentinel://:p@a/m")], "says who we are, and so do");
}

#[test]
fn a_body_must_fit_the_memory_store() {
    refuses(
        "max_body = '2MiB'\n[store]\nmemory_max = '1MiB'\nurl = 'memory://'",
        "max_body = \"2MiB\" (from FILE:1) is larger than store.memory_max = \"1MiB\" (from \
         FILE:3): such a body never fits",
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

#[test]
fn every_other_knob_is_one_value() {
    let tables = SETTINGS.iter().filter(|knob| knob.takes_pairs());
    assert_eq!(tables.map(|knob| knob.key).collect::<Vec<_>>(), ["ttl.states.map"]);
    let lists = SETTINGS.iter().filter(|knob| matches!(knob.set, Setter::Many(_)));
    assert_eq!(
        lists.map(|knob| knob.key).collect::<Vec<_>>(),
        [
            "routes",
            "query.allow",
            "query.ignore",
            "server.trusted_proxies",
            "credentials.headers",
            "credentials.cookies",
            "warm.headers"
        ]
    );
}
