//! Certificates of Redis that no authority vouches for: trusted because they are in `store.tls.ca`, or because
//! `store.tls.verify` asks for less. Made with `openssl`, as people make them.

use std::{path::PathBuf, process::Command, sync::Arc};

use hyper::StatusCode;
use jobcache::config::{KeyPair, StoreUrl, TlsVerify};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig, SupportedProtocolVersion,
        crypto::ring::sign::any_supported_type,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        sign::{CertifiedKey, SingleCertAndKey},
        version::{TLS12, TLS13},
    },
};

use crate::{
    store_tls::tls_args,
    support::{
        Process, RedisServer, SOON, Setup, Upstream, eventually, free_port, redis::key,
        tls::Authority, upstream::version,
    },
};

/// Certificates in files.
struct Made(TempDir);

impl Made {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn pair(&self, name: &str) -> KeyPair {
        let file = |end: &str| Some(PathBuf::from(self.path(&format!("{name}.{end}"))));
        KeyPair { cert: file("pem"), key: file("key") }
    }

    fn openssl(&self, args: &str) {
        let args: Vec<_> = args.split_whitespace().collect();
        let output = Command::new("openssl").args(&args).current_dir(self.0.path()).output();
        let output = output.expect("openssl runs");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A certificate that has signed itself, with an authority's rights and no other name than its subject.
    fn self_signed(&self, name: &str, key: &str) -> KeyPair {
        self.openssl(&format!("req -x509 -newkey {key} -nodes -keyout {name}.key -out {name}.pem -subj /CN=redis -days 30"));
        self.pair(name)
    }

    /// A certificate of version 1, which has no names.
    fn v1(&self, name: &str) -> KeyPair {
        self.openssl(&format!(
            "req -new -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN=redis"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -signkey {name}.key -out {name}.pem -days 30"
        ));
        let mut show = Command::new("openssl");
        show.args(["x509", "-noout", "-text", "-in", &self.path(&format!("{name}.pem"))]);
        let shown = show.output().expect("openssl runs").stdout;
        let shown = String::from_utf8_lossy(&shown);
        assert!(shown.contains("Version: 1"), "{shown}");
        self.pair(name)
    }

    /// A certificate that an authority has signed, and that has no other name than its subject.
    fn of_authority(&self, name: &str, extensions: &str) -> KeyPair {
        self.openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=authority -days 30");
        self.openssl(&format!(
            "req -new -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN=redis"
        ));
        std::fs::write(self.path("extensions"), extensions).expect("a file");
        self.openssl(&format!("x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 30 -extfile extensions"));
        self.pair(name)
    }
}

async fn redis_with(pair: &KeyPair, more: &[&str]) -> (RedisServer, String) {
    let port = free_port();
    let (cert, key, number) = (text(pair.cert.as_ref()), text(pair.key.as_ref()), port.to_string());
    let args = ["--tls-port", &number, "--tls-cert-file", &cert, "--tls-key-file", &key];
    let args =
        [&args[..], &["--tls-ca-cert-file", &cert, "--tls-auth-clients", "no"], more].concat();
    (RedisServer::start_with(&args).await, format!("rediss://127.0.0.1:{port}"))
}

fn text(path: Option<&PathBuf>) -> String {
    path.expect("a path").display().to_string()
}

/// Asserts what a check says about a store with these settings of `store.tls`.
async fn says(url: &str, settings: &[(&str, &str)], parts: &[&str]) {
    let upstream = Upstream::start().await;
    let envs: Vec<_> = settings
        .iter()
        .map(|(name, value)| (format!("JOBCACHE_STORE_TLS_{name}"), *value))
        .collect();
    let envs: Vec<_> = envs.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let (refused, line) = Process::check_store(url, &upstream, &envs).await;
    assert_eq!(refused, parts != ["reachable"], "{settings:?}: {line}");
    for part in parts {
        assert!(line.contains(part), "{settings:?}: {part} is missing in {line}");
    }
}

#[tokio::test]
async fn a_certificate_in_the_ca_file_is_trusted_as_it_is() {
    let made = Made::new();
    let authority = Authority::new();
    let pairs = [
        made.self_signed("rsa", "rsa:2048"),
        made.self_signed("ec", "ec -pkeyopt ec_paramgen_curve:prime256v1"),
        made.self_signed("ed", "ed25519"),
        made.v1("v1"),
        made.of_authority("named", "basicConstraints = CA:false"),
        made.of_authority("client", "extendedKeyUsage = clientAuth"),
        authority.issue_expired("old", &["other.internal"]),
    ];
    for pair in pairs {
        for protocol in ["TLSv1.2", "TLSv1.3"] {
            let (_redis, url) = redis_with(&pair, &["--tls-protocols", protocol]).await;
            says(&url, &[("CA", &text(pair.cert.as_ref()))], &["reachable"]).await;
        }
    }
}

#[tokio::test]
async fn a_redis_with_a_pinned_certificate_serves_hits_and_purges() {
    let made = Made::new();
    let pair = made.v1("v1");
    let (redis, url) = redis_with(&pair, &[]).await;
    let setup = Setup::cold(redis, |config| {
        config.store.url = StoreUrl::Redis(url);
        config.store.tls.ca = pair.cert.clone();
    })
    .await;
    setup.hit("/jobs/x1").await.assert(200, &version("x1", 0));
    setup.upstream.commit("x1");
    setup.redis.del(&key("x1")).await;
    setup.get("/jobs/x1").await.assert(200, &version("x1", 1));
    assert_eq!(setup.sidecar.put("/jobs/x1").await.status, StatusCode::OK);
    let tracking = async || setup.sidecar.admin.metric("jobcache_tracking_up").await == 1;
    eventually(SOON, tracking).await;
}

/// Returns the configuration of a server that shows a certificate and signs with a key, which may be
/// that of another.
fn showing(
    pair: &KeyPair,
    signer: &KeyPair,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let cert = pair.cert.as_ref().expect("a path");
    let cert = CertificateDer::from_pem_file(cert).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(signer.key.as_ref().expect("a path")).expect("a key");
    let key = any_supported_type(&key).expect("a key");
    ServerConfig::builder_with_protocol_versions(versions)
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![cert], key))))
}

/// Returns the URL of a server that shows a certificate and signs with the key of a stranger.
async fn impostor(
    pair: &KeyPair,
    stranger: &KeyPair,
    version: &'static SupportedProtocolVersion,
) -> String {
    let config = showing(pair, stranger, &[version]);
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a listener");
    let url = format!("rediss://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let accepted = acceptor.clone().accept(client);
            tokio::spawn(async move { drop(accepted.await) });
        }
    });
    url
}

#[tokio::test]
async fn a_pinned_certificate_with_the_key_of_another_is_refused() {
    let made = Made::new();
    let stranger = made.self_signed("stranger", "rsa:2048");
    for pair in [made.self_signed("rsa", "rsa:2048"), made.v1("v1")] {
        for version in [&TLS12, &TLS13] {
            let url = impostor(&pair, &stranger, version).await;
            let parts =
                ["does not sign with the key of its certificate", "find out what listens there"];
            says(&url, &[("CA", &text(pair.cert.as_ref()))], &parts).await;
        }
    }
    let pair = made.self_signed("ec", "ec -pkeyopt ec_paramgen_curve:prime256v1");
    let other = made.self_signed("ec2", "ec -pkeyopt ec_paramgen_curve:prime256v1");
    let url = impostor(&pair, &other, &TLS13).await;
    says(&url, &[("CA", &text(pair.cert.as_ref()))], &["find out what listens there"]).await;
}

#[tokio::test]
async fn an_api_with_a_pinned_certificate_is_trusted_too() {
    let made = Made::new();
    let (pair, stranger) = (made.v1("v1"), made.self_signed("stranger", "rsa:2048"));
    for (signer, status) in [(&pair, StatusCode::OK), (&stranger, StatusCode::BAD_GATEWAY)] {
        let config = showing(&pair, signer, &[&TLS12, &TLS13]);
        let api = Upstream::start_tls(config).await;
        let args = ["--upstream", &api.url(), "--redis-url", "memory://"];
        let envs = [("JOBCACHE_UPSTREAM_TLS_CA", &*text(pair.cert.as_ref()))];
        let process = Process::start(&args, &envs).await;
        assert_eq!(process.client.get("/jobs/x1").await.status, status);
    }
}

#[tokio::test]
async fn each_remedy_for_a_certificate_works() {
    let made = Made::new();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (ca, other_ca) =
        (authority.ca().display().to_string(), stranger.ca().display().to_string());

    // An unknown authority: the remedy is the authority or the certificate.
    let pair = authority.issue("good", &["127.0.0.1"]);
    let (_redis, url) = redis_with(&pair, &[]).await;
    let parts = [
        "invalid peer certificate",
        "set store.tls.ca to the authority",
        "or to the certificate itself",
    ];
    says(&url, &[("CA", &other_ca)], &parts).await;
    for remedy in [&ca, &text(pair.cert.as_ref())] {
        says(&url, &[("CA", remedy)], &["reachable"]).await;
    }
    // `ca` does not trust it either.
    says(&url, &[("CA", &other_ca), ("VERIFY", "ca")], &parts).await;

    // For another name: the name, or `ca`.
    let named = authority.issue("named", &["redis.internal"]);
    let (_redis, url) = redis_with(&named, &[]).await;
    let parts = ["redis.internal", "set store.tls.server_name", "store.tls.verify to \"ca\""];
    says(&url, &[("CA", &ca)], &parts).await;
    says(&url, &[("CA", &ca), ("SERVER_NAME", "redis.internal")], &["reachable"]).await;
    says(&url, &[("CA", &ca), ("VERIFY", "ca")], &["reachable"]).await;
    says(&url, &[("CA", &text(named.cert.as_ref()))], &["reachable"]).await;

    // Without names: the certificate, or `ca`.
    let nameless = made.of_authority("nameless", "basicConstraints = CA:false");
    let authority_file = made.path("ca.pem");
    let (_redis, url) = redis_with(&nameless, &[]).await;
    let parts = ["put the certificate itself into store.tls.ca", "store.tls.verify to \"ca\""];
    says(&url, &[("CA", &authority_file)], &parts).await;
    says(&url, &[("CA", &authority_file), ("VERIFY", "ca")], &["reachable"]).await;
    says(&url, &[("CA", &text(nameless.cert.as_ref()))], &["reachable"]).await;

    // One that webpki does not accept: the certificate.
    for pair in [made.self_signed("self", "rsa:2048"), made.v1("v1")] {
        let (_redis, url) = redis_with(&pair, &[]).await;
        let parts = ["put the certificate itself into store.tls.ca"];
        says(&url, &[("CA", &ca)], &parts).await;
        says(&url, &[("CA", &text(pair.cert.as_ref()))], &["reachable"]).await;
    }
    let old = authority.issue_expired("old", &["127.0.0.1"]);
    let (_redis, url) = redis_with(&old, &[]).await;
    says(&url, &[("CA", &ca)], &["expired", "renew the certificate of Redis"]).await;
    says(&url, &[("CA", &ca), ("VERIFY", "ca")], &["expired"]).await;
}

#[tokio::test]
async fn what_redis_wants_of_tls_is_told() {
    let authority = Authority::new();
    let ca = authority.ca().display().to_string();
    let made = Made::new();
    // A kind of key that jobcache does not know.
    let pair = made.self_signed("p521", "ec -pkeyopt ec_paramgen_curve:secp521r1");
    let (_redis, url) = redis_with(&pair, &[]).await;
    says(
        &url,
        &[("CA", &text(pair.cert.as_ref()))],
        &["give Redis a key of a kind that jobcache knows", "P-256"],
    )
    .await;

    let pair = authority.issue("redis", &["127.0.0.1"]);
    let ours = authority.issue("ours", &["jobcache"]);
    let strange = Authority::new().sign(&["jobcache"]);
    let (cert, key) = (made.path("strange.pem"), made.path("strange.key"));
    std::fs::write(&cert, strange.cert).expect("a file");
    std::fs::write(&key, strange.key).expect("a file");
    for protocol in ["TLSv1.2", "TLSv1.3"] {
        let (port, args) = tls_args(&authority, &pair, "yes");
        let args: Vec<_> =
            args.iter().map(String::as_str).chain(["--tls-protocols", protocol]).collect();
        let _redis = RedisServer::start_with(&args).await;
        let url = format!("rediss://127.0.0.1:{port}");
        says(&url, &[("CA", &ca)], &["set store.tls.cert"]).await;
        let shown = [("CA", &*ca), ("CERT", &*cert), ("KEY", &*key)];
        says(&url, &shown, &["does not accept the certificate in store.tls.cert"]).await;
        let (cert, key) = (text(ours.cert.as_ref()), text(ours.key.as_ref()));
        says(&url, &[("CA", &*ca), ("CERT", &*cert), ("KEY", &*key)], &["reachable"]).await;
    }
    let (_redis, url) = redis_with(&pair, &["--tls-protocols", "TLSv1.1"]).await;
    says(&url, &[("CA", &ca)], &["TLSv1.2 or TLSv1.3 in tls-protocols"]).await;
}

#[tokio::test]
async fn no_verification_takes_any_redis_and_warns() {
    let made = Made::new();
    let (pair, upstream) = (made.v1("v1"), Upstream::start().await);
    let (_redis, url) = redis_with(&pair, &[]).await;
    says(&url, &[("VERIFY", "none")], &["reachable"]).await;
    let envs = [("JOBCACHE_STORE_TLS_VERIFY", "none")];
    let (_, out, _) = Process::output(&["check", "--redis-url", &url], &envs);
    assert!(out.contains("warning: store.tls.verify is \"none\""), "{out}");

    let process =
        Process::start(&["--upstream", &upstream.url(), "--redis-url", &url], &envs).await;

    eventually(SOON, async || process.client.get("/jobs/x1").await.is_hit()).await;
    let warnings = process.stderr().matches("store.tls.verify is").count();
    assert_eq!(warnings, 1, "{}", process.stderr());
    // Nothing is said where it does not matter.
    let (_, out, _) = Process::output(&["check", "--redis-url", "redis://127.0.0.1:1"], &envs);
    assert!(!out.contains("warning: store.tls"), "{out}");
    assert_eq!(TlsVerify::default(), TlsVerify::Full);
}
