//! TLS over a socket that does not wait: what rustls makes of bytes, and which bytes it wants sent.

use std::{
    io::{self, Read, Write},
    os::fd::OwnedFd,
    sync::Arc,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use super::{
    http::{Tls, Version},
    plan::Nonsense,
};

/// What every connection of a run has in common.
#[derive(Clone, Debug)]
pub struct Terms {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    version: Version,
}

/// Why it does not go on.
#[derive(Debug)]
pub enum Trouble {
    /// [`Errno::AGAIN`]: not now.
    Socket(Errno),
    Tls(rustls::Error),
    /// The peer does not speak the version of HTTP that is wanted.
    OtherProtocol,
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Socket(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))
    }
}

impl Terms {
    /// # Errors
    /// If the name is none, or there is no authority to trust.
    pub fn new(tls: &Tls, version: Version) -> Result<Self, Nonsense> {
        let fault = |text: String| Nonsense(text);
        let name = ServerName::try_from(tls.name.clone())
            .map_err(|_| fault(format!("{:?} is no name that a certificate can have", tls.name)))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| fault(error.to_string()))?;
        let mut config = if tls.is_blind {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Blind(provider)))
                .with_no_client_auth()
        } else {
            builder
                .with_root_certificates(authorities(&tls.authorities)?)
                .with_no_client_auth()
        };
        config.alpn_protocols = vec![match version {
            Version::Http1 => b"http/1.1".to_vec(),
            Version::Http2 => b"h2".to_vec(),
        }];
        // A session that goes on where another one ended would make the second connection cheaper than a user's first.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            name,
            version,
        })
    }
}

/// Those that are given, or those of this machine.
fn authorities(pem: &[u8]) -> Result<RootCertStore, Nonsense> {
    let mut store = RootCertStore::empty();
    if pem.is_empty() {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if store.is_empty() {
            return Err(Nonsense(
                "this node trusts no certificate authority (Debian package ca-certificates): give one with --ca".into(),
            ));
        }
        return Ok(store);
    }
    for certificate in CertificateDer::pem_slice_iter(pem) {
        certificate
            .map_err(|error| error.to_string())
            .and_then(|certificate| store.add(certificate).map_err(|error| error.to_string()))
            .map_err(|error| Nonsense(format!("an authority cannot be read: {error}")))?;
    }
    if store.is_empty() {
        return Err(Nonsense("there is no certificate in what --ca names".into()));
    }
    Ok(store)
}

/// One connection.
#[derive(Debug)]
pub struct Secure {
    tls: ClientConnection,
    version: Version,
}

impl Secure {
    /// # Errors
    /// If the terms make no connection.
    pub fn new(terms: &Terms) -> Result<Self, Trouble> {
        let tls = ClientConnection::new(terms.config.clone(), terms.name.clone()).map_err(Trouble::Tls)?;
        Ok(Self {
            tls,
            version: terms.version,
        })
    }

    /// Goes on with the handshake; true once it is done.
    ///
    /// # Errors
    /// Whatever ended it; [`Errno::CONNRESET`] if the peer closed.
    pub fn handshake(&mut self, socket: &OwnedFd) -> Result<bool, Trouble> {
        loop {
            self.flush(socket)?;
            if !self.tls.is_handshaking() {
                let spoken = self.tls.alpn_protocol();
                // HTTP/1.1 is what servers speak that do not ask.
                return match (self.version, spoken) {
                    (Version::Http2, Some(b"h2")) | (Version::Http1, None | Some(b"http/1.1")) => Ok(true),
                    _ => Err(Trouble::OtherProtocol),
                };
            }
            match self.tls.read_tls(&mut Socket(socket)) {
                Ok(0) => return Err(Trouble::Socket(Errno::CONNRESET)),
                Ok(_) => self.process(socket)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn process(&mut self, socket: &OwnedFd) -> Result<(), Trouble> {
        match self.tls.process_new_packets() {
            Ok(_) => Ok(()),
            Err(error) => {
                // The peer is told why.
                let _ = self.flush(socket);
                Err(Trouble::Tls(error))
            }
        }
    }

    /// Takes all of `bytes` and sends what goes.
    ///
    /// # Errors
    /// If the socket is at its end.
    pub fn send(&mut self, socket: &OwnedFd, bytes: &[u8]) -> Result<(), Trouble> {
        self.tls.set_buffer_limit(None);
        self.tls.writer().write_all(bytes)?;
        self.flush(socket)
    }

    /// Sends what waits, as far as it goes.
    ///
    /// # Errors
    /// If the socket is at its end.
    pub fn flush(&mut self, socket: &OwnedFd) -> Result<(), Trouble> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Socket(socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads what has come; zero: the peer has closed.
    ///
    /// # Errors
    /// [`Errno::AGAIN`] if there is nothing now.
    pub fn recv(&mut self, socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Trouble> {
        loop {
            match self.tls.reader().read(buffer) {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            self.tls.read_tls(&mut Socket(socket))?;
            self.process(socket)?;
        }
    }
}

/// The socket as rustls wants it.
struct Socket<'a>(&'a OwnedFd);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.0, buffer, RecvFlags::empty())?.0)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes any certificate: for servers whose name or authority is not what is tested.
#[derive(Debug)]
struct Blind(Arc<CryptoProvider>);

impl ServerCertVerifier for Blind {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
