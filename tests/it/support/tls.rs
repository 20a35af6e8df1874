//! A certificate authority, and both ends of connections that trust it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper::{
    Method, Request,
    client::conn::{http1, http2},
    header::HOST,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jobcache::config::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair as Key};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};

use super::{Reply, client::HOST as NAME, full, soon};

/// Signs certificates and keeps them in files that live as long as the authority.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, Key>,
    files: TempDir,
}

/// A certificate and its key.
pub(crate) struct Signed {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = Key::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let files = tempfile::tempdir().expect("a directory");
        std::fs::write(files.path().join("ca.pem"), issuer.pem()).expect("a file");
        Self { issuer, files }
    }

    /// Returns the path of the authority's certificate, for clients and servers that trust it.
    pub(crate) fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Signs a certificate for these names.
    pub(crate) fn sign(&self, names: &[&str]) -> Signed {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("names");
        // The default name is that of the authority, so that OpenSSL would consider the certificate
        // self-signed.
        params.distinguished_name.push(DnType::CommonName, "signed");
        let key = Key::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Signed { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// Signs a certificate for these names and writes it to files.
    pub(crate) fn issue(&self, file: &str, names: &[&str]) -> KeyPair {
        let signed = self.sign(names);
        let (cert, key) = (self.path(&format!("{file}.pem")), self.path(&format!("{file}.key")));
        write(&cert, &signed.cert);
        write(&key, &signed.key);
        KeyPair { cert: Some(cert), key: Some(key) }
    }

    /// Signs an expired certificate.
    pub(crate) fn issue_expired(&self, file: &str, names: &[&str]) -> KeyPair {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, "expired");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        let key = Key::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        let (path, key_path) =
            (self.path(&format!("{file}.pem")), self.path(&format!("{file}.key")));
        write(&path, &cert.pem());
        write(&key_path, &key.serialize_pem());
        KeyPair { cert: Some(path), key: Some(key_path) }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("an authority");
        roots
    }

    /// Returns a server configuration with a certificate for these names.
    pub(crate) fn server(&self, names: &[&str]) -> ServerConfig {
        self.signed_server(names, ServerConfig::builder().with_no_client_auth())
    }

    /// Returns a server configuration that requires a client certificate of this authority.
    pub(crate) fn server_for_known_clients(&self, names: &[&str]) -> ServerConfig {
        let verifier = WebPkiClientVerifier::builder(Arc::new(self.roots())).build();
        let builder = ServerConfig::builder();
        self.signed_server(names, builder.with_client_cert_verifier(verifier.expect("roots")))
    }

    fn signed_server(
        &self,
        names: &[&str],
        builder: tokio_rustls::rustls::ConfigBuilder<
            ServerConfig,
            tokio_rustls::rustls::server::WantsServerCert,
        >,
    ) -> ServerConfig {
        let Signed { cert, key } = self.sign(names);
        let cert = CertificateDer::from_pem_slice(cert.as_bytes()).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        builder.with_single_cert(vec![cert], key).expect("a pair")
    }

    /// Opens a TLS connection that offers these protocols.
    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        protocols: &[&str],
    ) -> TlsStream<TcpStream> {
        let roots = self.roots();
        let mut config =
            ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = soon(TcpStream::connect(address)).await.expect("a connection");
        let name = ServerName::try_from(NAME).expect("a name");
        let connector = TlsConnector::from(Arc::new(config));
        soon(connector.connect(name, stream)).await.expect("a handshake")
    }

    /// Sends a request over its own HTTP/1.1 connection.
    pub(crate) async fn get(&self, address: SocketAddr, path: &str) -> Reply {
        self.request(address, Method::GET, path).await
    }

    pub(crate) async fn request(&self, address: SocketAddr, method: Method, path: &str) -> Reply {
        let stream = self.connect(address, &["http/1.1"]).await;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(HOST, NAME);
        let sent = sender.send_request(request.body(full("")).expect("a request"));
        Reply::read(soon(sent).await.expect("an answer")).await.expect("a whole answer")
    }

    /// Sends a request over HTTP/2.
    pub(crate) async fn get_http2(&self, address: SocketAddr, path: &str) -> Reply {
        let stream = self.connect(address, &["h2", "http/1.1"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("a preface");
        tokio::spawn(connection);
        let request = Request::builder().uri(format!("https://{NAME}{path}"));
        let sent = sender.send_request(request.body(full("")).expect("a request"));
        Reply::read(soon(sent).await.expect("an answer")).await.expect("a whole answer")
    }
}

pub(crate) fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file");
}
