//! Values that jobcache derives: variables in addresses, quotes around places, and defaults that have to
//! fit the memory limit.

use std::path::PathBuf;

use super::{
    super::{Config, LoadedConfig, MemoryLimit, ProcessFacts, StoreUrl},
    env, flags, load, refuses_env,
};

#[test]
fn addresses_may_name_variables_in_flags_variables_and_the_file() {
    let port = ("PORT", "8081");
    let listen = |flag: &[(&'static str, &str)], vars: &[(&str, &str)], file: &str| {
        load(flag, vars, file).unwrap().config.listen.to_string()
    };
    assert_eq!(listen(&[("listen", "0.0.0.0:$PORT")], &[port], ""), "0.0.0.0:8081");
    assert_eq!(listen(&[], &[port, ("JOBCACHE_LISTEN", "[::]:${PORT}")], ""), "[::]:8081");
    assert_eq!(listen(&[], &[port], "listen = '127.0.0.1:$PORT'"), "127.0.0.1:8081");
    assert_eq!(
        listen(&[], &[("DIR", "/run/a")], "listen = 'unix:$DIR/b.sock'"),
        "unix:/run/a/b.sock"
    );
    assert_eq!(listen(&[], &[("PORT", "'81'")], "listen = '127.0.0.1:$PORT'"), "127.0.0.1:81");
    let admin = load(&[], &[("ADMIN_1", "91")], "admin = '127.0.0.1:${ADMIN_1}'").unwrap();
    assert_eq!(admin.config.admin.to_string(), "127.0.0.1:91");
    let toml = admin.to_toml();
    let line = toml.lines().find(|line| line.starts_with("admin")).unwrap();
    assert!(line.starts_with("admin = \"127.0.0.1:91\" "), "{line}");
    assert!(line.ends_with(" as \"127.0.0.1:${ADMIN_1}\""), "{line}");
}

#[test]
fn a_variable_that_is_not_set_is_a_mistake_that_names_it() {
    let given = "(from JOBCACHE_LISTEN): ";
    let default = "; the default is 127.0.0.1:8080";
    for (text, why) in [
        ("0.0.0.0:$PORT", "the environment variable PORT is not set"),
        ("0.0.0.0:${PORT_1}", "the environment variable PORT_1 is not set"),
        ("0.0.0.0:${PORT", "a } is missing"),
        ("0.0.0.0:$", "a $ must be followed by the name of a variable: $NAME or ${NAME}"),
        ("0.0.0.0:${PORT:-80}", "a $ must be followed by the name of a variable: $NAME or ${NAME}"),
    ] {
        let vars = [("JOBCACHE_LISTEN", text), ("PORT", "")];
        refuses_env(&vars, &format!("listen = {text:?} {given}{why}{default}"));
    }
    let vars = [("JOBCACHE_LISTEN", "0.0.0.0:$PORT"), ("PORT", "tcp://10.0.0.1:80")];
    let error = load(&[], &vars, "").unwrap_err();
    assert!(
        error.contains("listen = \"0.0.0.0:tcp://10.0.0.1:80\" (from JOBCACHE_LISTEN as "),
        "{error}"
    );
    // A source that loses is not expanded.
    let vars = [("JOBCACHE_LISTEN", "127.0.0.1:$PORT")];
    assert!(load(&[("listen", "127.0.0.1:80")], &vars, "").is_ok());
}

#[test]
fn quotes_and_white_space_of_an_env_file_are_no_part_of_a_place() {
    for redis in
        ["\"redis://:p@a/1\"", "'redis://:p@a/1'", " redis://:p@a/1 \r", "\" redis://:p@a/1\" "]
    {
        let vars = [
            ("REDIS_URL", redis),
            ("UPSTREAM_URL", "\"http://b\""),
            ("JOBCACHE_ADMIN", "'127.0.0.1:91'"),
        ];
        let config = load(&[], &vars, "").unwrap().config;
        assert_eq!(config.store.url, StoreUrl::Redis("redis://:p@a/1".to_owned()), "{redis}");
        assert_eq!(config.upstream.url, "http://b");
        assert_eq!(config.admin.to_string(), "127.0.0.1:91");
    }
    // Nothing between the quotes is nothing given.
    let vars = [("JOBCACHE_REDIS_URL", "\"\""), ("REDIS_URL", "redis://a")];
    assert_eq!(
        load(&[], &vars, "").unwrap().config.store.url,
        StoreUrl::Redis("redis://a".to_owned())
    );
    // Half a pair is a part of the value.
    assert!(load(&[], &[("REDIS_URL", "\"redis://a")], "").is_err());
}

/// Loads in a process with a memory limit.
fn limited(mib: usize, vars: &[(&str, &str)]) -> LoadedConfig {
    let memory = MemoryLimit { bytes: mib << 20, file: PathBuf::from("/limit") };
    let process = ProcessFacts { memory: Some(memory), ..ProcessFacts::default() };
    Config::load_with(&process, flags(&[]), env(vars)).unwrap()
}

#[test]
fn defaults_for_memory_fit_the_memory_limit() {
    let loaded = limited(96, &[]);
    let config = &loaded.config;
    let sizes = |config: &Config| {
        let limits = &config.cache.limits;
        [
            config.cache.near.max_bytes,
            config.store.memory_max,
            limits.max_captured,
            limits.max_inspected,
        ]
        .map(|bytes| bytes >> 20)
    };
    assert_eq!(sizes(config), [24, 256, 12, 4]);
    let memory = limited(96, &[("REDIS_URL", "memory://")]);
    assert_eq!(sizes(&memory.config), [24, 24, 12, 4]);
    let toml = loaded.to_toml();
    let line = toml.lines().find(|line| line.starts_with("near_max_bytes")).unwrap();
    assert!(line.ends_with("# 1/4 of the memory limit, 96MiB in /limit"), "{line}");
    assert_eq!(loaded.lowered[0], "near_max_bytes = \"24MiB\"");
    let counts = |config: &Config| (config.server.max_connections, config.server.max_requests);
    assert_eq!(counts(config), (2048, 2048));
    assert_eq!(counts(&limited(600, &[]).config), (10_000, 12_800));
    let generous = limited(8 << 10, &[]);
    assert_eq!((sizes(&generous.config), generous.lowered.len()), ([128, 256, 64, 16], 0));
    assert_eq!(generous.config, Config::default());
    // As small as the settings allow.
    assert_eq!(sizes(&limited(2, &[]).config), [1, 256, 1, 4]);
}

#[test]
fn a_given_value_wins_over_the_memory_limit_and_a_body_fits_into_the_memory_store() {
    let vars = [
        ("JOBCACHE_NEAR_MAX_BYTES", "128MiB"),
        ("JOBCACHE_MAX_BODY", "32MiB"),
        ("REDIS_URL", "memory://"),
    ];
    let config = limited(96, &vars).config;
    assert_eq!(config.cache.near.max_bytes, 128 << 20);
    assert_eq!(config.store.memory_max, 32 << 20);
}

#[test]
fn half_of_the_connections_may_wait_unless_memory_or_a_value_says_otherwise() {
    let waiting = |loaded: LoadedConfig| loaded.config.push.max_waiting;
    let given = |text: &str| load(&[], &[], text).unwrap();
    assert_eq!(waiting(given("")), 5000);
    assert_eq!(waiting(given("server.max_connections = 300")), 150);
    assert_eq!(waiting(given("server.max_connections = 90000")), 45_000);
    assert_eq!(waiting(given("server.max_connections = 1")), 1);
    assert_eq!(waiting(given("server.max_connections = 300\npush.max_waiting = 299")), 299);
    let toml = given("server.max_connections = 300").to_toml();
    let line = toml.lines().find(|line| line.starts_with("push.max_waiting")).unwrap();
    assert!(line.ends_with("# half of server.max_connections, 300"), "{line}");

    assert_eq!(waiting(limited(96, &[])), 1024);
    let many = limited(96, &[("JOBCACHE_SERVER_MAX_CONNECTIONS", "10000")]);
    let toml = many.to_toml();
    let line = toml.lines().find(|line| line.starts_with("push.max_waiting")).unwrap();
    assert!(line.ends_with("# one for each 96KiB of the memory limit, 96MiB in /limit"), "{line}");
    assert_eq!(waiting(many), 1024);
    assert_eq!(waiting(limited(96, &[("JOBCACHE_PUSH_MAX_WAITING", "9000")])), 9000);
}

#[test]
fn final_states_are_an_inline_table_a_table_or_variables() {
    let inline = "[push]\nmode = \"all\"\nfinal = { pointer = \"/a\", values = [\"x\", \"y\"] }";
    let table = "push.mode = \"all\"\n[push.final]\npointer = \"/a\"\nvalues = [\"x\", \"y\"]";
    let vars = [
        ("JOBCACHE_PUSH", "all"),
        ("JOBCACHE_PUSH_FINAL_POINTER", "/a"),
        ("JOBCACHE_PUSH_FINAL_VALUES", "x,y"),
    ];
    let inline = load(&[], &[], inline).unwrap().config;
    assert_eq!(inline, load(&[], &[], table).unwrap().config);
    assert_eq!(inline, load(&[], &vars, "").unwrap().config);
    assert_eq!(inline.push.final_states.values, ["x", "y"]);
    assert_eq!(load(&[("push", "all")], &[], "").unwrap().config.push.mode, inline.push.mode);
}
