//! Verifies the certificate of a server: by its authority and name, by its authority, or not at all.
//!
//! A certificate that is itself in the CA file is trusted as it is. The operator has named this very
//! certificate, so its issuer, name, dates and version add nothing, as with `DANE-EE` (RFC 7671
//! 5.1). Only the key counts: the server has to sign the handshake with it. rustls parses X.509 v3
//! only, so that key is read as the key of a trust anchor, which may be v1.

use std::sync::Arc;

use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::ParsedCertificate,
};
use webpki::{RawPublicKeyEntity, anchor_from_trusted_cert};

use crate::config::TlsVerify;

/// The handshake is not signed with the key of the certificate.
#[derive(Debug, thiserror::Error)]
#[error("the server does not sign with the key of its certificate")]
pub(crate) struct StrangeKey;

/// The certificates by which a server is verified.
pub(super) struct Trusted {
    pub(super) roots: RootCertStore,
    /// The certificates of the file, each trusted as it is if a server has it.
    pub(super) pinned: Vec<CertificateDer<'static>>,
}

/// Verifies servers as the configuration says.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    verify: TlsVerify,
    roots: RootCertStore,
    pinned: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    pub(super) fn new(Trusted { roots, pinned }: Trusted, verify: TlsVerify) -> Self {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        Self { verify, roots, pinned, algorithms }
    }

    /// Verifies the signature of a TLS 1.2 handshake. A scheme of TLS 1.2 does not name the curve of
    /// an ECDSA key, so each algorithm of the scheme is tried.
    fn verify_tls12(
        &self,
        message: &[u8],
        key: &SubjectPublicKeyInfoDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = RawPublicKeyEntity::try_from(key).map_err(|_| strange_key())?;
        let schemes = self.algorithms.mapping.iter();
        let mut algorithms = schemes
            .filter(|(scheme, _)| *scheme == signed.scheme)
            .flat_map(|(_, algorithms)| *algorithms);
        let is_signed =
            algorithms.any(|one| key.verify_signature(*one, message, signed.signature()).is_ok());
        if is_signed { Ok(HandshakeSignatureValid::assertion()) } else { Err(strange_key()) }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.verify != TlsVerify::None && !self.pinned.contains(certificate) {
            let parsed = ParsedCertificate::try_from(certificate)?;
            let (roots, algorithms) = (&self.roots, self.algorithms.all);
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                roots,
                intermediates,
                now,
                algorithms,
            )?;
            if self.verify == TlsVerify::Full {
                verify_server_name(&parsed, name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.verify == TlsVerify::None {
            return Ok(HandshakeSignatureValid::assertion());
        }
        self.verify_tls12(message, &key_of(certificate)?, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.verify == TlsVerify::None {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let key = key_of(certificate)?;
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
            .map_err(|_| strange_key())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn strange_key() -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(StrangeKey))))
}

/// The key of a certificate of any version.
fn key_of(certificate: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    let anchor = anchor_from_trusted_cert(certificate)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    Ok(in_sequence(&anchor.subject_public_key_info).into())
}

/// Wraps the content of a DER `SEQUENCE`.
fn in_sequence(content: &[u8]) -> Vec<u8> {
    const SEQUENCE: u8 = 0x30;
    const LONG: u8 = 0x80;
    let length = content.len().to_be_bytes();
    let length: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    let mut der = vec![SEQUENCE];
    match length[..] {
        [] => der.push(0),
        [short @ ..LONG] => der.push(short),
        _ => {
            // A length has eight bytes at most.
            der.push(LONG | u8::try_from(length.len()).unwrap_or(0));
            der.extend(length);
        }
    }
    der.extend_from_slice(content);
    der
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_has_the_shortest_length() {
        for (length, head) in [
            (0, &[0x30, 0][..]),
            (0x7f, &[0x30, 0x7f]),
            (0x80, &[0x30, 0x81, 0x80]),
            (0x126, &[0x30, 0x82, 0x01, 0x26]),
        ] {
            let der = in_sequence(&vec![7; length]);
            assert_eq!((&der[..head.len()], der.len()), (head, head.len() + length));
        }
    }
}
