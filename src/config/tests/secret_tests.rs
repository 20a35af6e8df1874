//! A secret shows in no output and in no message.

use super::{Config, Secret, env, flags, load};

const NEW: &str = "0123456789abcdef";
const OLD: &str = "a,secret,with,commas";

const SECRETS: [&str; 2] = ["hunter2hunter2", "swordfish"];

#[track_caller]
fn hides(text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{text}");
    }
}

#[test]
fn secrets_are_in_no_output() {
    let vars = [
        ("JOBCACHE_WEBHOOK_SECRET", "hunter2hunter2hunter2"),
        ("REDIS_URL", "redis://me:swordfish@cache:6379/1"),
        ("JOBCACHE_WARM_AUTHORIZATION", "Bearer swordfish"),
        ("JOBCACHE_WARM_HEADERS", "Host: a, X-Api-Key: hunter2hunter2"),
    ];
    let loaded = load(&[], &vars, "").unwrap();
    hides(&format!("{loaded:?} {:#?}", loaded.config));
    hides(&loaded.to_toml());
    assert_eq!(loaded.config.store.url.to_string(), "redis://***@cache:6379/1");
    let vars = [
        ("REDIS_URL", "redis-sentinel://h/m"),
        ("JOBCACHE_STORE_PASSWORD", "swordfish"),
        ("JOBCACHE_STORE_SENTINEL_PASSWORD", "swordfish"),
    ];
    let loaded = load(&[], &vars, "").unwrap();
    hides(&format!("{loaded:?} {}", loaded.to_toml()));
}

#[test]
fn secrets_are_in_no_message() {
    for url in [
        "redis-sentinel://:swordfish@a",
        "redis-sentinel://u:x/swordfish@a/m",
        "redis://:swordfish@a/x",
        "redis://:x/swordfish@a",
        "redis://:12/swordfish@a",
        "redis://u:p@swordfish/x@a",
        "redis://u:p@swordfish@a/x",
        "redis://:1#swordfish@a",
        "redis://u:1?swordfish@a",
        "redis://a/x?password=swordfish",
        "redis://:swordfish",
        "redis://me:swordfish/1",
        "redis-sentinel://me:swordfish",
        "redis://u:p@a?password=x@swordfish",
        ":swordfish",
        "me:swordfish",
        "me:swordfish@a",
        "unix:///a?passwd=swordfish",
        "http://me:swordfish@a",
    ] {
        for name in ["REDIS_URL", "UPSTREAM_URL"] {
            hides(&load(&[], &[(name, url)], "").unwrap_err());
        }
    }
    for text in ["hunter2hunter2hunter2\u{e9}", "hunter2hunter2hunter2 hunter2hunter2"] {
        hides(&load(&[], &[("JOBCACHE_WEBHOOK_SECRET", text)], "").unwrap_err());
    }
    for headers in ["swordfish", "x y: swordfish", "Authorization: swordfish", "a: swordfish\u{e9}"]
    {
        hides(&load(&[], &[("JOBCACHE_WARM_HEADERS", headers)], "").unwrap_err());
    }
    hides(&load(&[], &[("JOBCACHE_WARM_AUTHORIZATION", "swordfish\n")], "").unwrap_err());
    hides(&load(&[], &[], "webhook_secret = \"hunter2hunter2").unwrap_err());
    hides(&load(&[], &[], "webhook_secret = hunter2hunter2").unwrap_err());
    hides(&load(&[], &[], "store = { url = 'redis://:swordfish@a'").unwrap_err());
    hides(&load(&[], &[], "webhook_secret = ['hunter2hunter2']").unwrap_err());
    hides(&load(&[], &[], "webhook_secret = { a = 'hunter2hunter2' }").unwrap_err());
}

#[test]
fn there_may_be_several_webhook_secrets_and_how_many_is_shown() {
    let both = [NEW, OLD].map(Secret::new).to_vec();
    let check = |vars: &[(&str, &str)], file: &str, shown: &str| {
        let loaded = load(&[], vars, file).unwrap();
        assert_eq!(loaded.config.webhook_secret, both[..shown.matches("***").count()], "{file}");
        let line = format!("webhook_secret = {shown} ");
        assert!(loaded.to_toml().contains(&line), "{}", loaded.to_toml());
    };
    check(&[], &format!("webhook_secret = '{NEW}'"), r#""***""#);
    check(&[], &format!("webhook_secret = ['{NEW}']"), r#""***""#);
    let two = r#"["***", "***"]"#;
    check(&[], &format!("webhook_secret = ['{NEW}', '{OLD}']"), two);
    check(&[], &format!("webhook_secret = '{NEW} {OLD}'"), two);
    check(&[("JOBCACHE_WEBHOOK_SECRET", &format!("{NEW} {OLD}"))], "", two);
    let mounted = super::Temp::new("secrets", &format!("{NEW}\n{OLD}\n"));
    check(&[("JOBCACHE_WEBHOOK_SECRET_FILE", mounted.path())], "", two);
    let error = load(&[], &[], "webhook_secret = []").unwrap_err();
    assert!(error.contains("must name 1 to 8 secrets"), "{error}");
}

/// A message shows the value that it complains about: of a URL only the login and the query are secret.
#[test]
fn a_url_that_is_wrong_is_shown_without_its_login() {
    let cases = [
        ("foo", "foo"),
        ("localhost:8000", "localhost:8000"),
        ("api.internal:80/", "api.internal:80/"),
        ("10.0.0.1:8000/v1", "10.0.0.1:8000/v1"),
        ("[::1]:6379", "[::1]:6379"),
        ("ftp://a.example:21/x", "ftp://a.example:21/x"),
        ("redis:/localhost", "redis:/localhost"),
        ("unix:jobs.sock", "unix:jobs.sock"),
        ("htp://me:swordfish@a.example/x", "htp://***@a.example/x"),
        ("me:swordfish@a:80", "***@a:80"),
        ("localhost:8000?swordfish", "localhost:8000?***"),
        ("me:swordfish", "***"),
        ("htp://me:swordfish", "htp://***"),
        ("htp://u:1?swordfish@a", "htp://***"),
    ];
    for (name, setting) in [("UPSTREAM_URL", "upstream.url"), ("REDIS_URL", "store.url")] {
        for (url, shown) in cases {
            let error = load(&[], &[(name, url)], "").unwrap_err();
            assert!(error.contains(&format!("{setting} = \"{shown}\"")), "{shown}: {error}");
        }
    }
    let error = load(&[("upstream", "foo")], &[], "").unwrap_err();
    assert!(error.contains("upstream.url = \"foo\" (from --upstream)"), "{error}");
}

/// The configured address does not matter then.
#[test]
fn an_open_socket_of_the_service_manager_needs_the_secret_as_well() {
    let open = [("admin", "0.0.0.0:9090".parse().unwrap())];
    let load = |vars: &[(&str, &str)]| {
        Config::load_over(&open, flags(&[("admin", "127.0.0.1:9090")]), env(vars))
    };
    let error = load(&[]).unwrap_err().to_string();
    assert!(error.contains("(from a socket of the service manager) can be reached"), "{error}");
    let loaded = load(&[("JOBCACHE_WEBHOOK_SECRET", "0123456789abcdef")]).unwrap();
    assert_eq!(loaded.config.admin, open[0].1.into());
}
