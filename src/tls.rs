//! TLS on both sides: rustls' configurations, made from PEM files and made anew when these change.
//!
//! Certificates are short-lived and are renewed by others (cert-manager, certbot), who replace the
//! files. So they are read again from time to time; what does not fit together then (half of it is
//! written, say) changes nothing and is tried again.

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

use crate::{
    config::{ClientTls, Config, Endpoint, Identity},
    metrics::{Metrics, OutcomeLabels},
    throttle::Throttle,
};

/// HTTP/1.1 as the protocol of a connection (RFC 7301 6).
pub(crate) const HTTP1: &[u8] = b"http/1.1";
/// HTTP/2 over TLS (RFC 9113 3.2).
pub(crate) const HTTP2: &[u8] = b"h2";

/// Why TLS cannot be spoken with what the configuration names.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file does not hold what it is named for.
    #[error("{} has no {what} in PEM form: {source}", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// No certificate of an authority was found that can be trusted.
    #[error(
        "the system has no certificates of authorities: install ca-certificates, or name those that \
         are to be believed in upstream.tls.ca or store.tls.ca"
    )]
    NoRoots,
    /// Certificate and key are not what rustls takes.
    #[error("{} cannot be used: {source}", path.display())]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// Whether there are the certificates and keys that a configuration names, and fit together.
pub fn verify(config: &Config) -> Result<(), TlsError> {
    config.tls.identity().map(|identity| server(&identity)).transpose()?;
    let spoken = matches!(config.upstream.endpoint(), Endpoint::Tls { .. });
    spoken.then(|| client(&config.upstream.tls)).transpose()?;
    let spoken = config.store.url.is_tls() || config.store.sentinel.tls == Some(true);
    spoken.then(|| client(&config.store.tls)).transpose()?;
    Ok(())
}

/// What clients are shown: HTTP/2 where they offer it, else HTTP/1.1.
pub(crate) fn server(identity: &Identity) -> Result<ServerConfig, TlsError> {
    let (chain, key) = (certificates(&identity.cert)?, private_key(&identity.key)?);
    let unusable = |source| TlsError::Unusable { path: identity.cert.clone(), source };
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    Ok(config)
}

/// What is made of these files, and made anew when they change.
pub(crate) fn renewed_client(config: ClientTls) -> Result<Arc<Renewed<ClientConfig>>, TlsError> {
    let own = config.identity.identity().into_iter();
    let own = own.flat_map(|identity| [identity.cert, identity.key]);
    let files = own.chain(config.ca.clone()).collect();
    Renewed::new(files, move || client(&config))
}

/// How a server is believed, and what it is shown. The protocol is the caller's to set.
fn client(config: &ClientTls) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder().with_root_certificates(roots(config.ca.as_deref())?);
    let Some(identity) = config.identity.identity() else {
        return Ok(builder.with_no_client_auth());
    };
    let (chain, key) = (certificates(&identity.cert)?, private_key(&identity.key)?);
    let unusable = |source| TlsError::Unusable { path: identity.cert, source };
    builder.with_client_auth_cert(chain, key).map_err(unusable)
}

/// Those of the file alone, or else those of the system.
fn roots(ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        for certificate in certificates(path)? {
            let unusable = |source| TlsError::Unusable { path: path.to_owned(), source };
            roots.add(certificate).map_err(unusable)?;
        }
        return Ok(roots);
    }
    // What cannot be read of them is left out: systems ship odd ones.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TlsError::NoRoots) } else { Ok(roots) }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let bad = |source| TlsError::Pem { path: path.to_owned(), what: "certificate", source };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(bad)?;
    if all.is_empty() { Err(bad(pem::Error::NoItemsFound)) } else { Ok(all) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bad = |source| TlsError::Pem { path: path.to_owned(), what: "private key", source };
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(bad)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// What is made from files, as they were when they last fitted together.
pub(crate) struct Renewed<T> {
    current: RwLock<Arc<T>>,
    files: Vec<PathBuf>,
    /// Of the files before it was first made: what changes later is seen as a change.
    first: u128,
    make: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
}

impl<T: Send + Sync + 'static> Renewed<T> {
    /// Makes it for the first time.
    pub(crate) fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, TlsError> {
        let first = digest(&files);
        let current = RwLock::new(Arc::new(make()?));
        Ok(Arc::new(Self { current, files, first, make: Box::new(make) }))
    }

    /// As it is now.
    pub(crate) fn current(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps it so, for as long as the handle lives; looks every `interval`.
    pub(crate) fn keep(
        self: &Arc<Self>,
        interval: Duration,
        metrics: Arc<Metrics>,
    ) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(Arc::clone(self).renew(interval, metrics)))
    }

    /// Makes it anew whenever a file has changed.
    async fn renew(self: Arc<Self>, interval: Duration, metrics: Arc<Metrics>) {
        let warnings = Throttle::default();
        let mut seen = self.first;
        loop {
            sleep(interval).await;
            let digest = self.digest().await;
            if digest == seen {
                continue;
            }
            let this = Arc::clone(&self);
            let made = spawn_blocking(move || (this.make)()).await;
            let outcome = match made {
                Ok(Ok(made)) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(made);
                    seen = digest;
                    info!(files = ?self.files, "read certificates anew");
                    "applied"
                }
                Ok(Err(error)) => {
                    if let Some(suppressed) = warnings.admit(&error.to_string()) {
                        warn!(%error, suppressed, "changed certificates cannot be used; the last \
                              ones are kept, and these are tried again");
                    }
                    "failed"
                }
                // The runtime ends.
                Err(_) => return,
            };
            metrics.tls_reloads.get_or_create(&OutcomeLabels { outcome }).inc();
        }
    }

    async fn digest(&self) -> u128 {
        let files = self.files.clone();
        spawn_blocking(move || digest(&files)).await.unwrap_or_default()
    }
}

/// Of the files' bytes; one that cannot be read has none.
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
