//! TLS on both sides: rustls configurations, built from PEM files and rebuilt when the files
//! change.
//!
//! Certificates are short-lived, and other programs (cert-manager, certbot) renew them by replacing
//! the files. So the files are read again from time to time. Files that do not fit together, for
//! example because one is half written, change nothing and are tried again.

mod server_verifier;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::sleep};
use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore, ServerConfig,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};
use xxhash_rust::xxh3::Xxh3Default;

pub(crate) use self::server_verifier::StrangeKey;
use self::server_verifier::{ServerVerifier, Trusted};
use crate::{
    config::{ClientTls, Config, Endpoint, Identity, TlsVerify},
    observe::{
        metrics::{Counters, Registry},
        throttle::Throttle,
    },
};

/// The ALPN name of HTTP/1.1 (RFC 7301 6).
pub(crate) const HTTP1: &[u8] = b"http/1.1";
/// The ALPN name of HTTP/2 over TLS (RFC 9113 3.2).
pub(crate) const HTTP2: &[u8] = b"h2";

/// Why the TLS files of a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A file does not hold what its setting says.
    #[error("{} has no {what} in PEM form: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
        /// The error of the parser.
        source: pem::Error,
    },
    /// There is no CA certificate to trust.
    #[error(
        "the system has no CA certificates: install ca-certificates, or name the file of those to \
         trust in upstream.tls.ca or store.tls.ca"
    )]
    NoRoots,
    /// rustls does not accept the certificate, or its key.
    #[error("{} cannot be used: {source}", path.display())]
    Unusable {
        /// The file of the certificate.
        path: PathBuf,
        /// The error of rustls.
        source: rustls::Error,
    },
}

/// Checks that the certificates and keys of a configuration exist and fit together.
pub fn verify(config: &Config) -> Result<(), TlsError> {
    config.tls.identity().map(|identity| server_config(&identity)).transpose()?;
    let uses_tls = matches!(config.upstream.endpoint(), Endpoint::Tls { .. });
    uses_tls.then(|| client_config(&config.upstream.tls)).transpose()?;
    let uses_tls = config.store.url.is_tls() || config.store.sentinel.tls == Some(true);
    uses_tls.then(|| client_config(&config.store.tls)).transpose()?;
    Ok(())
}

/// Builds the configuration for clients: HTTP/2 if they offer it, else HTTP/1.1.
pub(crate) fn server_config(identity: &Identity) -> Result<ServerConfig, TlsError> {
    let (chain, key) = (certificates(&identity.cert)?, private_key(&identity.key)?);
    let unusable = |source| TlsError::Unusable { path: identity.cert.clone(), source };
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    Ok(config)
}

/// Builds the configuration for a server that jobcache connects to, renewed when its files change.
pub(crate) fn renewed_client(config: ClientTls) -> Result<Arc<Renewed<ClientConfig>>, TlsError> {
    let identity_files = config.identity.identity().into_iter();
    let identity_files = identity_files.flat_map(|identity| [identity.cert, identity.key]);
    let files = identity_files.chain(config.ca.clone()).collect();
    Renewed::new(files, move || client_config(&config))
}

/// Builds the configuration for a server that jobcache connects to. The caller sets the protocol.
fn client_config(config: &ClientTls) -> Result<ClientConfig, TlsError> {
    let verifier = ServerVerifier::new(trusted(config)?, config.verify);
    let builder = ClientConfig::builder().dangerous();
    let builder = builder.with_custom_certificate_verifier(Arc::new(verifier));
    let Some(identity) = config.identity.identity() else {
        return Ok(builder.with_no_client_auth());
    };
    let (chain, key) = (certificates(&identity.cert)?, private_key(&identity.key)?);
    let unusable = |source| TlsError::Unusable { path: identity.cert, source };
    builder.with_client_auth_cert(chain, key).map_err(unusable)
}

/// Builds a configuration with which any server is believed, to find out whether it speaks TLS.
pub(crate) fn unverified_client() -> Result<Arc<ClientConfig>, TlsError> {
    client_config(&ClientTls { verify: TlsVerify::None, ..ClientTls::default() }).map(Arc::new)
}

/// The certificates of the file or, without a file, the authorities of the system.
fn trusted(config: &ClientTls) -> Result<Trusted, TlsError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = &config.ca else {
        if config.verify != TlsVerify::None {
            // Certificates that cannot be parsed are left out: systems ship odd ones.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError::NoRoots);
            }
        }
        return Ok(Trusted { roots, pinned: Vec::new() });
    };
    let pinned = certificates(path)?;
    for certificate in &pinned {
        let unusable = |source| TlsError::Unusable { path: path.clone(), source };
        roots.add(certificate.clone()).map_err(unusable)?;
    }
    Ok(Trusted { roots, pinned })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let pem_error = |source| TlsError::Pem { path: path.to_owned(), what: "certificate", source };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(pem_error)?;
    if all.is_empty() { Err(pem_error(pem::Error::NoItemsFound)) } else { Ok(all) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem_error = |source| TlsError::Pem { path: path.to_owned(), what: "private key", source };
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(pem_error)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// Metrics of renewed certificates. The listeners, the upstream and the store count in the same.
#[derive(Clone, Debug)]
pub(crate) struct TlsMetrics {
    /// Changed certificates by outcome.
    reloads: Arc<Counters<1>>,
}

impl TlsMetrics {
    /// Returns the metrics, which the first part to call this registers.
    pub(crate) fn shared(registry: &mut Registry) -> Self {
        registry.shared(|registry| {
            let reloads = registry.counters_by(
                "outcome",
                "tls_reloads",
                "Changed certificates by outcome",
                ["applied", "failed"],
            );
            Self { reloads: Arc::new(reloads) }
        })
    }
}

/// A value built from files, as of the last time that they fitted together.
pub(crate) struct Renewed<T> {
    current: RwLock<Arc<T>>,
    files: Vec<PathBuf>,
    /// The digest of the files from before the first build, so that every later change is noticed.
    initial_digest: u128,
    build: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
}

impl<T: Send + Sync + 'static> Renewed<T> {
    /// Builds the value for the first time.
    pub(crate) fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, TlsError> {
        let first = digest(&files);
        let current = RwLock::new(Arc::new(make()?));
        Ok(Arc::new(Self { current, files, initial_digest: first, build: Box::new(make) }))
    }

    /// The current value.
    pub(crate) fn current(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Rebuilds the value while the handle lives; checks the files every `interval`.
    pub(crate) fn spawn_renewal(
        self: &Arc<Self>,
        interval: Duration,
        metrics: TlsMetrics,
    ) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(Arc::clone(self).renew(interval, metrics)))
    }

    /// Rebuilds the value when a file has changed.
    async fn renew(self: Arc<Self>, interval: Duration, metrics: TlsMetrics) {
        let warnings = Throttle::default();
        let mut seen = self.initial_digest;
        loop {
            sleep(interval).await;
            let digest = self.digest().await;
            if digest == seen {
                continue;
            }
            let this = Arc::clone(&self);
            let built = spawn_blocking(move || (this.build)()).await;
            let outcome = match built {
                Ok(Ok(built)) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(built);
                    seen = digest;
                    info!(files = ?self.files, "reloaded the certificates");
                    "applied"
                }
                Ok(Err(error)) => {
                    if let Some(suppressed) = warnings.admit(&error.to_string()) {
                        warn!(%error, suppressed, "changed certificates cannot be used; the last \
                              ones stay in use, and the new ones are tried again");
                    }
                    "failed"
                }
                // The runtime shuts down.
                Err(_) => return,
            };
            metrics.reloads.inc([outcome]);
        }
    }

    async fn digest(&self) -> u128 {
        let files = self.files.clone();
        spawn_blocking(move || digest(&files)).await.unwrap_or_default()
    }
}

/// The digest of the bytes of all files. A file that cannot be read counts as empty.
fn digest(files: &[PathBuf]) -> u128 {
    let mut hash = Xxh3Default::new();
    for path in files {
        let bytes = fs::read(path).unwrap_or_default();
        hash.update(&bytes.len().to_le_bytes());
        hash.update(&bytes);
    }
    hash.digest128()
}

impl<T> fmt::Debug for Renewed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewed").field("files", &self.files).finish_non_exhaustive()
    }
}
