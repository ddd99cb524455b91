//! Whom a TLS connection of the collector's trusts: the authorities of this machine, or those of a file and no others.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Why a file has no authorities.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the authorities in {}: {reason}", path.display())]
pub struct TrustError {
    path: PathBuf,
    reason: String,
}

/// TLS 1.2 and 1.3 with the authorities of a PEM file, or with those of this machine. A machine without any trusts
/// nobody, so every connection is refused.
///
/// # Errors
/// If the file cannot be read, or has no certificate.
pub fn client(authorities: Option<&Path>) -> Result<ClientConfig, TrustError> {
    let roots = match authorities {
        Some(path) => read(path).map_err(|reason| TrustError {
            path: path.to_owned(),
            reason,
        })?,
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3");
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn read(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() {
        return Err("there is no certificate in it".into());
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_authorities_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let error = || client(Some(&path)).unwrap_err().to_string();
        let read = format!("cannot read the authorities in {}: ", path.display());
        assert!(error().starts_with(&read), "{}", error());
        std::fs::write(&path, "no PEM\n").unwrap();
        assert_eq!(error(), format!("{read}there is no certificate in it"));
    }
}
