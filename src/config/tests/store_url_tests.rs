//! URLs of the store.

use redis::IntoConnectionInfo;

use super::{
    super::{ClientTls, Config, KeyPair, RawValue, Secret, StoreUrl, TlsVerify, setting},
    value_tests::{bad, good},
};

#[test]
fn the_store_is_redis_or_memory() {
    let bad = |text: &str, why: &str| {
        let accepted = "must be redis://[user:password@]host[:port][/db] (rediss:// over TLS), \
                        redis-sentinel://[user:password@]host[:port],host[:port]/master[/db], \
                        redis-cluster://[user:password@]host[:port],host[:port], \
                        unix:///path/to/socket or memory://";
        bad("store.url", text, &format!("{accepted}; {why}"));
    };
    bad("localhost:6379", "the scheme is missing");
    bad("rediss://0.0.0.0", "0.0.0.0 and [::] are addresses for listening, not for connecting");
    bad("http://a", "no other scheme is supported");
    let celery = "Celery's sentinel:// does not name the master; use redis-sentinel://";
    bad("sentinel://a:26379;sentinel://b:26379", celery);
    bad("memory://x", "nothing may follow memory://");
    bad("redis://0.0.0.0", "0.0.0.0 and [::] are addresses for listening, not for connecting");
    bad("redis://a:x", "this is not a URL; percent-encode special characters of the password");
    let encode = "percent-encode special characters of the password";
    bad("redis://a/b", &format!("the database must be a number; {encode}"));
    bad("redis://a/0#x", &format!("nothing may follow the database; {encode}"));
    bad("redis://a/0?db=x", "db must be a number");
    bad("redis://u:12?x@a/0", &format!("this is not a URL; {encode}"));
    bad("unix://a/b", "write three slashes before the path of a socket: unix:///path");
    bad("unix:///", "the path is missing");
    bad("redis+socket://?db=1", "the path is missing");
    bad("unix:///a?db=x", "db must be a number");
    assert_eq!(good("store.url", "memory://").store.url, StoreUrl::Memory);
}

#[test]
fn sentinels_are_hosts_and_the_name_of_a_master() {
    let url = |text: &str| match good("store.url", text).store.url {
        StoreUrl::Sentinel(sentinels) => *sentinels,
        other => panic!("{other:?}"),
    };
    let host = |name: &str, port| (name.to_owned(), port);
    let full = url("rediss-sentinel://u:p%40@h1:1,h2,[::1]:3/mymaster/2");
    assert_eq!(full.hosts, [host("h1", 1), host("h2", 26379), host("::1", 3)]);
    assert_eq!((full.master.as_str(), full.database, full.is_tls), ("mymaster", 2, true));
    assert_eq!(full.login.username.as_deref(), Some("u"));
    assert_eq!(full.login.password.as_ref().map(Secret::expose), Some("p@"));
    assert_eq!(full.to_string(), "rediss-sentinel://u:***@h1:1,h2:26379,[::1]:3/mymaster/2");
    let short = url("redis-sentinel://h/m");
    assert_eq!((short.hosts.len(), short.is_tls, short.login.is_some()), (1, false, false));
    let many = format!("redis-sentinel://{}/m", vec!["h"; 17].join(","));
    for (text, why) in [
        ("redis-sentinel://h", "the name of the master is missing"),
        ("redis-sentinel://h/", "the name of the master is missing"),
        ("redis-sentinel://h/m/x", "the database must be a number"),
        ("redis-sentinel://u@h/m", "the user needs a password"),
        ("redis-sentinel://u:p/x@h/m", "percent-encode special characters of the password"),
        (
            "redis-sentinel://h,/m",
            "write each as host or host:port, with an IPv6 address in brackets",
        ),
        (
            "redis-sentinel://h:x/m",
            "write each as host or host:port, with an IPv6 address in brackets",
        ),
        (&many, "at most 16 sentinels: they report the others"),
    ] {
        let error = setting("store.url")
            .unwrap()
            .setter
            .apply(&mut Config::default(), &RawValue::One(text.to_owned()));
        let error = error.unwrap_err();
        assert!(error.ends_with(why), "{text}: {error}");
    }
}

#[test]
fn a_cluster_is_found_by_some_of_its_nodes() {
    let url = |text: &str| match good("store.url", text).store.url {
        StoreUrl::Cluster(seeds) => *seeds,
        other => panic!("{other:?}"),
    };
    let host = |name: &str, port| (name.to_owned(), port);
    let full = url("rediss-cluster://u:p%40@h1:1,h2,[::1]:3/0");
    assert_eq!(full.hosts, [host("h1", 1), host("h2", 6379), host("::1", 3)]);
    assert!(full.is_tls);
    assert_eq!(full.login.username.as_deref(), Some("u"));
    assert_eq!(full.login.password.as_ref().map(Secret::expose), Some("p@"));
    assert_eq!(full.to_string(), "rediss-cluster://u:***@h1:1,h2:6379,[::1]:3");
    let short = url("redis-cluster://h");
    assert_eq!((short.hosts.len(), short.is_tls, short.login.is_some()), (1, false, false));
    let many = format!("redis-cluster://{}", vec!["h"; 17].join(","));
    for (text, why) in [
        ("redis-cluster://h/1", "a cluster only has database 0"),
        ("redis-cluster://u@h", "the user needs a password"),
        ("redis-cluster://", "write each as host or host:port, with an IPv6 address in brackets"),
        ("redis-cluster://h,", "write each as host or host:port, with an IPv6 address in brackets"),
        (&many, "at most 16 nodes: they report the others"),
    ] {
        let value = RawValue::One(text.to_owned());
        let error =
            setting("store.url").unwrap().setter.apply(&mut Config::default(), &value).unwrap_err();
        assert!(error.ends_with(why), "{text}: {error}");
    }
}

#[test]
fn the_redis_client_takes_every_url_that_we_take() {
    let urls = "redis://a redis://a:1 redis://a/3 redis://a/ redis://:p@a redis://u:p%40@a:1/2 \
                redis://[::1]:1 valkey://a unix:///a redis+unix:///a/b.sock valkey+unix:///a \
                unix:///a?db=1&user=u&pass=p redis://10.0.0.1";
    for url in urls.split_whitespace() {
        assert_eq!(good("store.url", url).store.url, StoreUrl::Redis(url.to_owned()));
        assert!(url.into_connection_info().is_ok(), "{url}");
    }
}

#[test]
fn the_identity_of_a_store_names_address_and_database_and_no_login() {
    let identity = |text: &str| text.parse::<StoreUrl>().unwrap().identity();
    for text in ["redis://a", "redis://a:6379/", "redis://user:secret@a/0", "valkey://:secret@a"] {
        assert_eq!(identity(text), "redis://a:6379/0", "{text}");
    }
    assert_ne!(identity("redis://a/1"), identity("redis://a/2"));
    assert_eq!(identity("unix:///run/redis.sock?db=2&pass=secret"), "unix:///run/redis.sock?db=2");
    let cluster = identity("redis-cluster://user:secret@a,b:7000");
    assert_eq!(cluster, "redis-cluster://a:6379,b:7000");
}

#[test]
fn options_of_the_url_say_database_login_and_name() {
    for (text, expected) in [
        ("redis://a/1?db=2", "redis://a/2"),
        ("rediss://:p@a:1/1?db=2&ssl_cert_reqs=none", "rediss://:p@a:1/2"),
        ("redis://a/1?socket_timeout=5&frobnicate=1", "redis://a/1"),
        ("redis://a?username=u&password=p%20x", "redis://u:p%20x@a"),
        ("redis://:own@a?password=other", "redis://:own@a"),
        ("redis://", "redis://localhost"),
        ("redis://:p@/3", "redis://:p@localhost/3"),
        ("redis://:6380", "redis://localhost:6380"),
        ("REDIS://a", "redis://a"),
        ("redis+socket:///run/r.sock?virtual_host=/3", "unix:///run/r.sock?db=3"),
        ("socket:///run/r.sock", "unix:///run/r.sock"),
        ("redis+socket://:p%40@/run/r.sock?virtual_host=3", "unix:///run/r.sock?db=3&pass=p%40"),
        ("unix://u:p@/r.sock?db=1", "unix:///r.sock?db=1&user=u&pass=p"),
        ("unix:///r.sock?socket_timeout=5&password=p&db=1", "unix:///r.sock?db=1&pass=p"),
    ] {
        let url = good("store.url", text).store.url;
        assert_eq!(url, StoreUrl::Redis(expected.to_owned()), "{text}");
        assert!(expected.replace("rediss:", "redis:").into_connection_info().is_ok(), "{expected}");
    }
    let named = |text: &str| good("store.url", text).store.client_name;
    assert_eq!(named("redis://a?client_name=worker-7").as_deref(), Some("worker-7"));
    assert_eq!(named("redis://a?connectionName=worker-7").as_deref(), Some("worker-7"));
    assert_eq!(named("redis://a"), None);
    let sentinels = "redis-sentinel://h/m/1?db=2&password=p&socket_timeout=5";
    let StoreUrl::Sentinel(sentinels) = good("store.url", sentinels).store.url else { panic!() };
    assert_eq!((sentinels.database, sentinels.login.is_some()), (2, true));
    let cluster = good("store.url", "redis-cluster://h?db=0&read_from_replicas=true").store.url;
    assert_eq!(cluster.to_string(), "redis-cluster://h:6379");
}

#[test]
fn options_for_tls_are_settings_that_those_of_jobcache_win_over() {
    use super::{Temp, load};
    let file = Temp::new("url-options.pem", "x");
    let query = format!("ssl_cert_reqs=none&ssl_ca_certs={}", file.path());
    let url = format!("rediss://:pw@a/0?{query}");
    let loaded = load(&[], &[("REDIS_URL", &url)], "").unwrap();
    let tls = &loaded.config.store.tls;
    assert_eq!((tls.verify, tls.ca.as_deref()), (TlsVerify::None, Some(file.0.as_path())));
    assert!(
        matches!(&loaded.warnings[..], [warning] if warning.contains("store.tls.verify")),
        "{:?}",
        loaded.warnings
    );
    let toml = loaded.to_toml();
    assert!(toml.contains("# ssl_cert_reqs of REDIS_URL"), "{toml}");
    assert!(!toml.contains("pw"), "{toml}");

    let own = "[store.tls]\nverify = 'full'\nca = '/own.pem'";
    let tls = load(&[], &[("REDIS_URL", &url)], own).unwrap().config.store.tls;
    assert_eq!((tls.verify, tls.ca), (TlsVerify::Full, Some("/own.pem".into())));
    let own = [("REDIS_URL", &*url), ("JOBCACHE_STORE_TLS_VERIFY", "ca")];
    assert_eq!(load(&[], &own, "").unwrap().config.store.tls.verify, TlsVerify::Ca);

    // They are not settings of a server without TLS.
    let loaded = load(&[], &[("REDIS_URL", &url.replace("rediss", "redis"))], "").unwrap();
    assert_eq!(loaded.config.store.tls, ClientTls::default());
    assert!(loaded.warnings.concat().contains("ssl_cert_reqs"), "{:?}", loaded.warnings);
}

#[test]
fn a_file_that_is_only_in_the_container_of_the_application_is_a_warning() {
    use super::load;
    let url = "rediss://a?ssl_ca_certs=/nowhere/secret-name.pem&ssl_cert_reqs=required";
    let loaded = load(&[], &[("REDIS_URL", url)], "").unwrap();
    assert_eq!(loaded.config.store.tls, ClientTls::default());
    let warning = loaded.warnings.concat();
    assert!(warning.contains("ssl_ca_certs") && warning.contains("store.tls.ca"), "{warning}");
    assert!(!warning.contains("secret-name"), "{warning}");
}

#[test]
fn certificate_and_key_are_used_together_or_not_at_all() {
    use super::{Temp, load};
    let file = Temp::new("url-pair.pem", "x");
    let (here, gone) = (file.path(), "/nowhere.pem");
    let pair = |cert: &str, key: &str, own: &str| {
        let url = format!("rediss://a?ssl_certfile={cert}&ssl_keyfile={key}");
        load(&[], &[("REDIS_URL", &url)], own).unwrap().config.store.tls.identity
    };
    let both = pair(here, here, "");
    assert!(both.cert.is_some() && both.key.is_some());
    for (cert, key) in [(here, gone), (gone, here), (gone, gone), ("", here)] {
        assert_eq!(pair(cert, key, ""), KeyPair::default(), "{cert} {key}");
    }
    let own = pair(here, here, "[store.tls]\ncert = '/own.pem'");
    assert_eq!((own.cert, own.key), (Some("/own.pem".into()), None));
}

#[test]
fn an_unknown_option_is_one_warning_and_names_the_variable() {
    use super::load;
    let url = "redis://a/0?frobnicate=swordfish";
    let loaded = load(&[], &[("JOBCACHE_REDIS_URL", url)], "").unwrap();
    let [warning] = &loaded.warnings[..] else { panic!("{:?}", loaded.warnings) };
    assert!(warning.ends_with("ignores: frobnicate (from JOBCACHE_REDIS_URL)"), "{warning}");
}
