//! The table with the user's own keys: how it is written, and what is refused.

use std::time::Duration;

use super::{super::Config, load, refuses, refuses_env};

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
        let mut map = loaded.config.states.map.clone();
        map.sort_by_key(|(_, ttl)| std::cmp::Reverse(*ttl));
        assert_eq!(map, want, "{file}");
        assert_eq!(load(&[], &[], &loaded.to_toml()).unwrap().config, loaded.config);
    }
    let vars = [("JOBCACHE_TTL_STATES_MAP", "completed=300s, a=b=1m, 1 = 10s,")];
    assert_eq!(load(&[], &vars, "").unwrap().config.states.map, want);
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
