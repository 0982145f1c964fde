//! What is needed to speak `https` to the analyser.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::{ForwardError, ForwardOptions};

/// Makes TLS sessions with one analyser.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Connector {
    /// Trusts the system's root certificates and those of `--forward-ca`. Reads files.
    ///
    /// # Errors
    /// [`ForwardError`] when there is nothing to trust or the host is no name that a certificate can bear.
    pub(super) fn new(options: &ForwardOptions) -> Result<Self, ForwardError> {
        let host = &options.target.host;
        let tls = |source| ForwardError::Tls {
            host: host.clone(),
            source,
        };
        let mut roots = RootCertStore::empty();
        // What cannot be read of the system's store is not fatal: what can be may be all that is needed.
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::debug!(%error, "part of the system's certificate store is not readable");
        }
        roots.add_parsable_certificates(native.certs);
        if let Some(path) = &options.ca_file {
            add_file(&mut roots, path)?;
        }
        if roots.is_empty() {
            return Err(ForwardError::NoRoots);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // An analyser that prefers HTTP/2 must not choose it.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::try_from(host.clone())
            .map_err(|error| tls(rustls::Error::General(error.to_string())))?;
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    /// A session whose handshake has not begun.
    ///
    /// # Errors
    /// What rustls says.
    pub(super) fn session(&self) -> Result<ClientConnection, rustls::Error> {
        ClientConnection::new(Arc::clone(&self.config), self.name.clone())
    }
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), ForwardError> {
    let bad = |why: String| ForwardError::Ca {
        path: path.to_owned(),
        why,
    };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))?;
    let before = roots.len();
    for certificate in certificates {
        let certificate = certificate.map_err(|e| bad(e.to_string()))?;
        roots.add(certificate).map_err(|e| bad(e.to_string()))?;
    }
    if roots.len() == before {
        return Err(bad("it holds no certificate".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_that_holds_no_certificate_is_one_line_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        for content in [
            None,
            Some("hello\n"),
            Some("-----BEGIN CERTIFICATE-----\n%%\n"),
        ] {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let options = ForwardOptions {
                target: "https://localhost:1".parse().unwrap(),
                ca_file: Some(path.clone()),
                ..ForwardOptions::default()
            };
            let line = Connector::new(&options).unwrap_err().to_string();
            assert!(line.contains("ca.pem"), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }
}
