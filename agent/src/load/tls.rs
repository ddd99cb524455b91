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
    AlertDescription, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error,
    RootCertStore, SignatureScheme,
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
    Tls(Error),
    /// The peer does not speak the version of HTTP that is wanted.
    OtherProtocol,
}

impl Trouble {
    /// Whether the peer ended it, by what it said or by an end of the connection. Else it proves nothing of the peer.
    pub fn is_of_the_peer(&self) -> bool {
        match self {
            // As [`Secure::handshake`] tells of a FIN too.
            Self::Socket(errno) => matches!(*errno, Errno::CONNRESET | Errno::PIPE),
            Self::Tls(_) | Self::OtherProtocol => true,
        }
    }

    /// What is wrong, and what to do about it, in the words of the options of `holdfast load http`.
    pub fn in_words(&self) -> String {
        match self {
            Self::Socket(errno) => format!("TLS ended with the connection: {errno}"),
            Self::OtherProtocol => OTHER_PROTOCOL.to_owned(),
            Self::Tls(Error::InvalidCertificate(error)) => {
                format!("TLS: the server's certificate {}", of_certificate(error))
            }
            Self::Tls(Error::InvalidMessage(_)) => {
                "TLS: what the server sends is none: it may speak http:// on this port".to_owned()
            }
            // How a server refuses what is named first in ALPN (RFC 7301, 3.2).
            Self::Tls(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                OTHER_PROTOCOL.to_owned()
            }
            Self::Tls(Error::AlertReceived(alert)) => {
                format!("TLS: the server ended the handshake ({alert:?}): its log may say why")
            }
            Self::Tls(error) => format!("TLS: {error}"),
        }
    }
}

const OTHER_PROTOCOL: &str = "TLS: the server does not speak the version of HTTP that is wanted (ALPN): leave --http2 away if it was given, or give \
                              it";

/// What is wrong with a certificate, and the next step.
fn of_certificate(error: &CertificateError) -> String {
    const DAY_S: u64 = 24 * 3_600;
    let ago = |from: &UnixTime, to: &UnixTime| {
        let seconds = to.as_secs().saturating_sub(from.as_secs());
        match seconds / DAY_S {
            0 => format!("{seconds} s"),
            days => format!("{days} days"),
        }
    };
    match error {
        CertificateError::UnknownIssuer => "is of an authority that is not trusted: give that authority's with --ca FILE (without it those of \
                                            the agents' machines are trusted), or --insecure to trust any"
            .to_owned(),
        CertificateError::BadSignature => "is not signed with the key of the authority of that name that is trusted, which may have been made anew: \
                                           give the authority's certificate of today with --ca FILE, or --insecure to trust any"
            .to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<_> = presented.iter().map(|name| bare(name)).collect();
            let names = match names.as_slice() {
                [] => "no name at all".to_owned(),
                names => names.join(", "),
            };
            format!(
                "is for {names}, and not for {}: write a URL with a name that it is for, or --insecure to trust any",
                expected.to_str()
            )
        }
        CertificateError::NotValidForName => {
            "is not for the name of the URL: write one that it is for, or --insecure to trust any".to_owned()
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "expired {} ago: renew it (or set the clock of the agent's machine, if that is wrong), or --insecure to trust any",
            ago(not_after, time)
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "is valid only in {}: set the clock of the agent's machine, if that is wrong, or --insecure to trust any",
            ago(time, not_before)
        ),
        // An error of webpki, which rustls hands on without a name of its own.
        CertificateError::Other(other) if other.0.to_string() == "CaUsedAsEndEntity" => {
            "is an authority's own (CA:TRUE, as openssl req -x509 makes it), which none may be that a server shows, also with --ca: make one \
             for the server (-addext basicConstraints=critical,CA:FALSE), or --insecure to trust any"
                .to_owned()
        }
        CertificateError::Other(other) => format!("is no good: {}; --insecure trusts any", other.0),
        error => format!("is no good: {error}; --insecure trusts any"),
    }
}

/// A name out of what webpki makes of it: `DnsName("web")`, `IpAddress(127.0.0.1)`.
fn bare(presented: &str) -> &str {
    presented
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'))
        .unwrap_or(presented)
        .trim_matches('"')
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

    /// Nothing waits to be sent.
    pub fn is_written(&self) -> bool {
        !self.tls.wants_write()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_fails_by_itself_proves_nothing_of_the_peer() {
        for errno in [Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::NOBUFS] {
            assert!(!Trouble::Socket(errno).is_of_the_peer(), "{errno:?}");
        }
        for errno in [Errno::CONNRESET, Errno::PIPE] {
            assert!(Trouble::Socket(errno).is_of_the_peer(), "{errno:?}");
        }
        assert!(Trouble::Tls(Error::DecryptError).is_of_the_peer());
        assert!(Trouble::OtherProtocol.is_of_the_peer());
    }
}
