//! Settings that contradict each other, and the tables of a file: `[[invalidate]]` and states.

use super::*;

#[test]
fn an_admin_address_that_others_reach_needs_a_secret() {
    refuses(
        "admin = '0.0.0.0:9090'",
        "admin = \"0.0.0.0:9090\" (from FILE:1) can be reached from other machines and needs a \
         secret: set JOBCACHE_WEBHOOK_SECRET or JOBCACHE_WEBHOOK_SECRET_FILE, or listen on \
         127.0.0.1",
    );
    load(&[], &[], "admin = '0.0.0.0:9090'\nwebhook_secret = '0123456789abcdef'").unwrap();
    load(&[], &[], "admin = '127.0.0.2:9090'").unwrap();
}

#[test]
fn a_parameter_changes_the_answer_or_does_not() {
    refuses(
        "query.allow = ['a', 'b']\nquery.ignore = ['b']",
        "\"b\" is in both query.allow = [\"a\", \"b\"] (from FILE:1) and query.ignore = [\"b\"] \
         (from FILE:2): keep it in one of them",
    );
}

#[test]
fn an_ignored_header_is_no_credential() {
    refuses(
        "credentials.headers = ['X-Token', 'x-b']\ncredentials.ignore = ['x-a', 'x-token']",
        "\"x-token\" is in both credentials.headers = [\"X-Token\", \"x-b\"] (from FILE:1) and \
         credentials.ignore = [\"x-a\", \"x-token\"] (from FILE:2): keep it in one of them",
    );
    for name in ["Authorization", "cookie", "X-Consumer-Username", "x_user_id", "Client-Cert"] {
        let file = format!("credentials.headers = ['x-a']\ncredentials.ignore = ['{name}']");
        let error = load(&[], &[], &file).unwrap_err();
        let name = name.to_lowercase();
        assert!(error.contains(&format!("\"{name}\" in credentials.ignore")), "{error}");
        assert!(error.contains("remove it there"), "{error}");
    }
    let vars = [("JOBCACHE_CREDENTIALS_IGNORE", "X-Poll-Nonce,x-attempt")];
    let ignore = load(&[], &vars, "").unwrap().config.cache.credentials.ignore;
    assert_eq!(ignore, ["x-poll-nonce", "x-attempt"]);
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
         set it to the address of the API",
    );
    load(&[], &[], "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'").unwrap();
}

#[test]
fn settings_of_the_store_must_fit_its_url() {
    let refuses = |vars: &[(&str, &str)], part: &str| {
        let error = load(&[], vars, "").unwrap_err();
        assert!(error.contains(part), "{error}");
    };
    let ca = ("JOBCACHE_STORE_TLS_CA", "/ca.pem");
    refuses(&[ca], "does not use TLS: begin it with rediss://, or remove store.tls");
    assert!(load(&[], &[ca, ("REDIS_URL", "rediss://a")], "").is_ok());
    let mixed = ("JOBCACHE_STORE_SENTINEL_TLS", "true");
    refuses(&[mixed], "names no sentinels: begin it with redis-sentinel://");
    assert!(load(&[], &[ca, mixed, ("REDIS_URL", "redis-sentinel://a/m")], "").is_ok());
    refuses(&[("JOBCACHE_STORE_TLS_KEY", "/k")], "needs store.tls.cert too");
    let password = ("JOBCACHE_STORE_PASSWORD", "p");
    let file = ("JOBCACHE_STORE_PASSWORD_FILE", "/p");
    refuses(&[password, file], "are both set: keep one");
    refuses(
        &[password, ("REDIS_URL", "redis://:p@a")],
        "has a user or password, and store.username",
    );
    refuses(
        &[file, ("REDIS_URL", "redis-sentinel://:p@a/m")],
        "has a user or password, and store.username",
    );
}

#[test]
fn a_body_must_fit_the_memory_store() {
    refuses(
        "max_body = '2MiB'\n[store]\nmemory_max = '1MiB'\nurl = 'memory://'",
        "max_body = \"2MiB\" (from FILE:1) is larger than store.memory_max = \"1MiB\" (from \
         FILE:3): such a body never fits; lower the one or raise the other",
    );
}

const TWO: &str = r#"
settle = "2s"

[[invalidate]]
methods = ["POST"]
path = "/uploads/{id}/finish"
request = ["/job_id", "/jobs/*/id"]
response = ["/a\"b"]
query = ["id", "ids"]
max_body = "8KiB"
on_miss = "ignore"

[[invalidate]]
path = "/jobs"
all = true
"#;

#[test]
fn rules_are_read_in_their_order() {
    let config = load(&[], &[], TWO).unwrap().config;
    let list = |items: &[&str]| items.iter().map(ToString::to_string).collect::<Vec<_>>();
    let first = InvalidateRule {
        methods: list(&["POST"]),
        path: "/uploads/{id}/finish".to_owned(),
        request: list(&["/job_id", "/jobs/*/id"]),
        response: list(&["/a\"b"]),
        query: list(&["id", "ids"]),
        all: false,
        max_body: 8 << 10,
        on_miss: OnMiss::Ignore,
    };
    let second =
        InvalidateRule { path: "/jobs".to_owned(), all: true, ..InvalidateRule::default() };
    assert_eq!(config.api.invalidate, [first, second]);
    assert_eq!(config.cache.settle, Duration::from_secs(2));
}

#[test]
fn the_effective_configuration_shows_them() {
    let loaded = load(&[], &[], TWO).unwrap();
    let toml = loaded.to_toml();
    assert!(toml.ends_with("\n[[invalidate]]\npath = \"/jobs\"\nall = true\n"), "{toml}");
    assert_eq!(load(&[], &[], &toml).unwrap().config, loaded.config);
}

#[test]
fn a_bad_rule_is_refused_with_its_line_and_number() {
    refuses(
        "[[invalidate]]\npath = '/a/{id}'\n[[invalidate]]\npath = '/b'",
        "FILE:3: [[invalidate]] number 2: it names no job; give it {id} in its path, request or \
         response with JSON pointers, query with parameters, or all = true",
    );
    refuses(
        "[[invalidate]]\npath = '/a/{id}'\nmethod = ['PUT']",
        "FILE:3: [[invalidate]] number 1: method is not a known key; did you mean methods?",
    );
    refuses(
        "[[invalidate]]\npath = '/a/{id}'\nmethods = 'PUT'",
        "FILE:3: [[invalidate]] number 1: methods = \"PUT\": must be a list, such as [\"a\", \"b\"]",
    );
    refuses(
        "[[invalidate]]\npath = ['/a/{id}']",
        "FILE:2: [[invalidate]] number 1: path = [\"/a/{id}\"]: must be one value, not a list",
    );
    refuses(
        "[[invalidate]]\npath = '/a/{id}'\nmax_body = '2MiB'",
        "FILE:3: [[invalidate]] number 1: max_body = \"2MiB\": must be between 1B and 1MiB",
    );
    refuses(
        "[[invalidate]]\npath = '/a/{id}'\nrequest = [['/b']]",
        "FILE:3: [[invalidate]] number 1: request cannot be a date, or a list of lists or tables",
    );
    for wrong in ["invalidate = 7", "[invalidate]\npath = '/a/{id}'", "invalidate = ['/a']"] {
        let error = load(&[], &[], wrong).map(|loaded| loaded.config).unwrap_err();
        assert!(
            error.contains(
                "invalidate must be a list of tables: begin each of them with [[invalidate]]"
            ),
            "{error}"
        );
    }
}

/// The lines of a file that is commented out.
fn uncommented(text: &str) -> String {
    let is_toml = |line: &&str| line.starts_with("[[") || line.contains(" = ");
    let lines = text.lines().filter_map(|line| line.strip_prefix("# ")).filter(is_toml);
    lines.fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn the_example_of_the_reference_file_can_be_used_and_names_the_defaults() {
    let at = REFERENCE.find("# [[invalidate]]").unwrap();
    let rules = load(&[], &[], &uncommented(&REFERENCE[at..])).unwrap().config.api.invalidate;
    let [rule] = &rules[..] else { panic!("{rules:?}") };
    let default = InvalidateRule::default();
    assert_eq!((rule.all, rule.max_body), (default.all, default.max_body));
    assert!(
        ![&rule.methods, &rule.request, &rule.response, &rule.query]
            .iter()
            .any(|list| list.is_empty())
    );
}

#[test]
fn the_examples_of_the_page_can_be_used() {
    let start = PURGING.find("```toml\n[[invalidate]]").unwrap() + "```toml\n".len();
    let (example, _) = PURGING[start..].split_once("```").unwrap();
    assert_eq!(load(&[], &[], example).unwrap().config.api.invalidate.len(), 4);
}

#[test]
fn states_are_a_table_in_a_file_and_pairs_in_a_variable() {
    let want = [("completed", 300), ("a=b", 60), ("1", 10)]
        .map(|(state, seconds)| (state.to_owned(), Duration::from_secs(seconds)));
    for file in [
        "ttl.states.map = { completed = '300s', 'a=b' = '1m', 1 = '10s' }",
        "[ttl.states]\nmap.completed = '300s'\nmap.'a=b' = '1m'\nmap.1 = '10s'",
        "[ttl]\nstates.pointer = '/status'\n[ttl.states.map]\ncompleted = '5m'\n'a=b' = '60s'\n1 = '10s'",
    ] {
        let loaded = load(&[], &[], file).unwrap();
        let mut map = loaded.config.cache.lifetimes.states.map.clone();
        map.sort_by_key(|(_, ttl)| std::cmp::Reverse(*ttl));
        assert_eq!(map, want, "{file}");
        assert_eq!(load(&[], &[], &loaded.to_toml()).unwrap().config, loaded.config);
    }
    let vars = [("JOBCACHE_TTL_STATES_MAP", "completed=300s, a=b=1m, 1 = 10s,")];
    assert_eq!(load(&[], &vars, "").unwrap().config.cache.lifetimes.states.map, want);
    assert_eq!(load(&[], &[], "ttl.states.map = {}").unwrap().config, Config::default());
}

#[test]
fn states_that_cannot_be_read_are_refused() {
    let refuses = |file: &str, value: &str, why: &str| {
        refuses(file, &format!("ttl.states.map = {value} (from FILE:1): {why}"));
    };
    refuses("ttl.states.map = '/a'", "\"/a\"", "must be a table, such as { a = \"b\" }");
    refuses("ttl.states.map = ['a']", "[\"a\"]", "must be a table, such as { a = \"b\" }");
    let limit = "must be between 1s and 1day";
    let value = "{ \"a\" = \"0s\" }";
    refuses("ttl.states.map.a = '0s'", value, &format!("the time of \"a\", \"0s\", {limit}"));
    let unit = "must be a time with its unit, such as \"50ms\", \"5s\" or \"5m\"";
    let value = "{ \"a\" = \"10\" }";
    refuses("ttl.states.map.a = 10", value, &format!("the time of \"a\", \"10\", {unit}"));
    refuses_env(
        &[("JOBCACHE_TTL_STATES_MAP", "a=1s,a=2s")],
        "ttl.states.map = { \"a\" = \"1s\", \"a\" = \"2s\" } (from JOBCACHE_TTL_STATES_MAP): \
         \"a\" is named twice",
    );
}

#[test]
fn a_table_within_the_states_is_refused() {
    refuses(
        "[ttl.states.map]\na = { b = '1s' }",
        "FILE:1: ttl.states.map cannot be a date, or a list of lists or tables",
    );
}
