//! Settings that contradict each other.

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
    let ignore = load(&[], &vars, "").unwrap().config.credentials.ignore;
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
