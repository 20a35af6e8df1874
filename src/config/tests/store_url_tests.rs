//! URLs of the store.

use redis::IntoConnectionInfo;

use super::{
    super::{Config, RawValue, Secret, StoreUrl, setting},
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
    bad("memory://x", "nothing may follow memory://");
    bad("redis://", "the host is missing");
    bad("redis://0.0.0.0", "0.0.0.0 and [::] are addresses for listening, not for connecting");
    bad("redis://a:x", "this is not a URL; percent-encode special characters of the password");
    let encode = "percent-encode special characters of the password";
    bad("redis://a/b", &format!("the database must be a number; {encode}"));
    bad("redis://a/0?x", &format!("nothing may follow the database; {encode}"));
    bad("unix://a/b", "write three slashes before the path of a socket: unix:///path");
    bad("unix:///", "the path is missing");
    bad("unix:///a?password=x", "the query may have db, user and pass");
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
    assert_eq!(full.to_string(), "rediss-sentinel://***@h1:1,h2:26379,[::1]:3/mymaster/2");
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
    assert_eq!(full.to_string(), "rediss-cluster://***@h1:1,h2:6379,[::1]:3");
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
