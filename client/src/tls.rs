//! TLS towards servers: what the files say at each connection, and what to say when it fails.
//!
//! The only user of rustls. Nothing is kept between two connections, no session either: files that
//! rotate count from the next connection on, and a server's certificate is checked every time.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::ClientConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, Error, PeerIncompatible, RootCertStore,
};

use crate::blocking::{Files, Jobs};
use crate::connect::{Endpoint, Io};
use crate::error::BuildError;
use crate::greeting::Words;
use crate::inventory::{Held, Inventory};

/// The most that a file of certificates or a key may hold, in bytes: several times what a system's
/// whole store of CAs takes.
const MAX_FILE: usize = 1024 * 1024;

/// What HTTP/2 is called where protocols are agreed on.
const H2: &[u8] = b"h2";

/// How the system's CAs are called in the inventory.
const SYSTEM: &str = "the system's CAs";

/// What a builder collects.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) server_name: Option<String>,
}

/// Makes TLS of byte streams.
pub(crate) struct Tls {
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    server_name: Option<ServerName<'static>>,
    files: Files,
    system: Jobs<Arc<RootCertStore>>,
}

impl Tls {
    /// Checks names; reads nothing.
    ///
    /// # Errors
    /// When the name that a certificate has to be for can be in none, or there are options and no
    /// endpoint that they are for.
    pub(crate) fn new(
        options: Options,
        endpoints: &[Endpoint],
        files: Files,
        inventory: Inventory,
    ) -> Result<Self, BuildError> {
        let given =
            options.ca.is_some() || options.identity.is_some() || options.server_name.is_some();
        if given && !endpoints.iter().any(Endpoint::is_tls) {
            return Err(BuildError::TlsUnused);
        }
        let server_name = options.server_name.as_deref().map(parse_name).transpose()?;
        if server_name.is_none() {
            let secure = endpoints.iter().filter(|endpoint| endpoint.is_tls());
            secure
                .map(Endpoint::host)
                .try_for_each(|host| parse_name(host).map(drop))?;
        }
        Ok(Self {
            ca: options.ca,
            identity: options.identity,
            server_name,
            files,
            system: Jobs::new(inventory),
        })
    }

    /// Agrees on TLS with the server at the other end of `io`. Errors are for people.
    ///
    /// # Cancel safety
    /// Dropping it closes the stream.
    pub(crate) async fn connect(
        &self,
        endpoint: &Endpoint,
        io: Box<dyn Io>,
    ) -> Result<TlsStream<Box<dyn Io>>, String> {
        let config = Arc::new(self.config().await?);
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => parse_name(endpoint.host()).map_err(|error| error.to_string())?,
        };
        let stream = TlsConnector::from(config)
            .connect(name, io)
            .await
            .map_err(|error| self.words(&error).unwrap_or_else(|| plain_words(&error)))?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(H2) {
            return Err(NO_HTTP2.to_owned());
        }
        tracing::debug!(
            %endpoint,
            version = ?session.protocol_version(),
            "TLS is agreed on"
        );
        Ok(stream)
    }

    async fn config(&self) -> Result<ClientConfig, String> {
        let roots = match &self.ca {
            Some(path) => Arc::new(self.roots(path).await?),
            None => self.system_roots().await?,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let (chain, secret) = self.identity(cert, key).await?;
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| unfit(cert, key, &error))?
            }
        };
        config.alpn_protocols = vec![H2.to_vec()];
        Ok(config)
    }

    async fn roots(&self, path: &Path) -> Result<RootCertStore, String> {
        const WHAT: &str = "the CA file";
        let chain = self.certificates(WHAT, path).await?;
        let mut roots = RootCertStore::empty();
        for cert in chain {
            roots.add(cert).map_err(|_| {
                let path = path.display();
                format!(
                    "{WHAT} {path}: it holds a certificate that cannot be a CA's; name another file"
                )
            })?;
        }
        Ok(roots)
    }

    async fn system_roots(&self) -> Result<Arc<RootCertStore>, String> {
        let load = || {
            let mut roots = RootCertStore::empty();
            // Some that cannot be read are no reason to do without the others.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Arc::new(roots)
        };
        let roots = self.system.run(Held::File(SYSTEM.to_owned()), load).await;
        roots
            .filter(|roots| !roots.is_empty())
            .ok_or_else(|| "this system trusts no CA; give the file of the server's CA".to_owned())
    }

    async fn identity(
        &self,
        cert: &Path,
        key: &Path,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
        const WHAT: &str = "the client's key file";
        let chain = self
            .certificates("the client's certificate file", cert)
            .await?;
        let pem = self.files.read(WHAT, key, MAX_FILE).await?;
        // Whatever is wrong with it, what it holds is not quoted.
        let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
            let path = key.display();
            format!(
                "{WHAT} {path}: it holds no private key that can be used; it takes PEM, not encrypted"
            )
        })?;
        Ok((chain, secret))
    }

    async fn certificates(
        &self,
        what: &'static str,
        path: &Path,
    ) -> Result<Vec<CertificateDer<'static>>, String> {
        let pem = self.files.read(what, path, MAX_FILE).await?;
        let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let found = found.ok().filter(|found| !found.is_empty());
        found.ok_or_else(|| {
            let path = path.display();
            format!("{what} {path}: it holds no certificate that can be read; it takes PEM")
        })
    }

    /// What an error of the handshake, or of a stream after it, means. `None`: it is not TLS's.
    fn words(&self, error: &io::Error) -> Option<String> {
        let error = error.get_ref()?.downcast_ref::<Error>()?;
        Some(words(error, self.ca.as_deref(), self.identity.is_some()))
    }

    /// The same for a stream that lives on.
    pub(crate) fn words_later(&self) -> Words {
        let (ca, shows) = (self.ca.clone(), self.identity.is_some());
        Box::new(move |error| {
            let error = error.get_ref()?.downcast_ref::<Error>()?;
            Some(words(error, ca.as_deref(), shows))
        })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("ca", &self.ca)
            .field("identity", &self.identity)
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

const NO_HTTP2: &str = "the server speaks TLS, but does not offer HTTP/2 in it (ALPN h2); what is there \
                        may be a proxy or another server";

fn parse_name(name: &str) -> Result<ServerName<'static>, BuildError> {
    ServerName::try_from(name.to_owned()).map_err(|_| BuildError::ServerName {
        name: name.to_owned(),
    })
}

/// A client's certificate and key that are no pair.
fn unfit(cert: &Path, key: &Path, error: &Error) -> String {
    let (cert, key) = (cert.display(), key.display());
    match error {
        Error::InconsistentKeys(_) => {
            format!("the client's key {key} is not that of the certificate {cert}")
        }
        _ => format!("the client's certificate {cert} and key {key} cannot be used: {error}"),
    }
}

/// An error below TLS.
fn plain_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the server closed the connection while TLS was being agreed on; it may not speak TLS \
             (then write http://), or allow no more connections"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

/// What an error of TLS means and what to do, for people.
fn words(error: &Error, ca: Option<&Path>, shows_identity: bool) -> String {
    match error {
        Error::InvalidCertificate(error) => certificate_words(error, ca),
        Error::AlertReceived(alert) => alert_words(*alert, shows_identity),
        Error::InvalidMessage(_) => "the server does not speak TLS; write http:// in place of \
                                     https://, or give it a certificate"
            .to_owned(),
        Error::NoApplicationProtocol => NO_HTTP2.to_owned(),
        Error::PeerIncompatible(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig) => {
            OLD_TLS.to_owned()
        }
        other => format!("TLS failed: {other}"),
    }
}

const OLD_TLS: &str =
    "the server speaks no TLS of version 1.2 or newer; it has to be configured for one";

/// Why the server's certificate is not taken.
fn certificate_words(error: &CertificateError, ca: Option<&Path>) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired; renew it there (or is this machine's clock wrong?)"
                .to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet; compare the clocks of both machines".to_owned()
        }
        CertificateError::NotValidForName => NOT_FOR_NAME.to_owned(),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => {
            let expected = expected.to_str();
            let presented = presented.iter().map(|name| presented_name(name));
            let presented = presented.collect::<Vec<_>>();
            match presented.is_empty() {
                true => format!(
                    "the server's certificate is for no name at all, and {expected} was dialled; it \
                     has to be issued with that as a subjectAltName"
                ),
                false => format!(
                    "the server's certificate is for {}, and {expected} was dialled; use a name that \
                     it is for, or give one as the server's name",
                    presented.join(", ")
                ),
            }
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            let trusted = match ca {
                Some(path) => format!("the CA in {}", path.display()),
                None => "a CA that this system trusts".to_owned(),
            };
            format!(
                "the server's certificate is not from {trusted}; give the file of the CA that issued \
                 it"
            )
        }
        CertificateError::Revoked => "the server's certificate was revoked".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the server's certificate is not meant for servers; it has to be issued for serverAuth"
                .to_owned()
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "the server's certificate is that of a CA; have the CA issue one for the server".to_owned()
        }
        other => format!("the server's certificate cannot be used: {other}"),
    }
}

const NOT_FOR_NAME: &str = "the server's certificate is for another name than was dialled; use a name \
                            that it is for, or give one as the server's name";

/// `DnsName("config.example")` without what is around the name.
fn presented_name(name: &str) -> String {
    let inner = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"').to_owned()
}

/// Why the server does not want this client.
fn alert_words(alert: AlertDescription, shows_identity: bool) -> String {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired => REQUIRED.to_owned(),
        // What TLS 1.2 has for it.
        Alert::HandshakeFailure if !shows_identity => format!(
            "the server refuses to agree on TLS; perhaps it {}",
            REQUIRED.trim_start_matches("the server ")
        ),
        Alert::UnknownCA
        | Alert::BadCertificate
        | Alert::CertificateUnknown
        | Alert::UnsupportedCertificate
        | Alert::DecryptError
        | Alert::AccessDenied
            if shows_identity =>
        {
            "the server does not take this client's certificate; it has to be issued by the CA that \
             the server trusts for clients"
                .to_owned()
        }
        Alert::CertificateExpired => {
            "this client's certificate has expired; renew it (or is the server's clock wrong?)"
                .to_owned()
        }
        Alert::CertificateRevoked => "this client's certificate was revoked".to_owned(),
        Alert::NoApplicationProtocol => NO_HTTP2.to_owned(),
        Alert::ProtocolVersion => OLD_TLS.to_owned(),
        Alert::UnrecognisedName => {
            "the server does not know the name that was dialled; give the one that it is for".to_owned()
        }
        other => format!("the server ended TLS, saying {other:?}"),
    }
}

const REQUIRED: &str = "the server requires a client certificate; give this client a certificate and its \
                        key";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_in_words_that_help() {
        let ca = Some(Path::new("/ca.pem"));
        let name = ServerName::try_from("config.example").unwrap();
        let other = |presented: &[&str]| CertificateError::NotValidForNameContext {
            expected: name.clone(),
            presented: presented.iter().map(ToString::to_string).collect(),
        };
        for (error, expected) in [
            (CertificateError::Expired, "has expired; renew it"),
            (
                CertificateError::NotValidYet,
                "not valid yet; compare the clocks",
            ),
            (
                CertificateError::UnknownIssuer,
                "not from the CA in /ca.pem; give",
            ),
            (
                other(&["DnsName(\"other.example\")", "IpAddress(127.0.0.1)"]),
                "is for other.example, 127.0.0.1, and config.example was dialled; use a name",
            ),
            (other(&[]), "for no name at all, and config.example"),
            (CertificateError::InvalidPurpose, "not meant for servers"),
            (CertificateError::Revoked, "was revoked"),
        ] {
            let said = words(&Error::InvalidCertificate(error), ca, false);
            assert!(said.contains(expected), "{said}");
        }
        let said = words(&CertificateError::UnknownIssuer.into(), None, false);
        assert!(said.contains("a CA that this system trusts"), "{said}");
    }

    #[test]
    fn what_a_server_does_not_like_is_said_too() {
        use AlertDescription as Alert;
        for (alert, shows_identity, expected) in [
            (
                Alert::CertificateRequired,
                false,
                "requires a client certificate",
            ),
            (
                Alert::HandshakeFailure,
                false,
                "perhaps it requires a client certificate",
            ),
            (
                Alert::UnknownCA,
                true,
                "does not take this client's certificate",
            ),
            (
                Alert::CertificateExpired,
                true,
                "this client's certificate has expired",
            ),
            (Alert::NoApplicationProtocol, false, "ALPN h2"),
            (Alert::ProtocolVersion, false, "no TLS of version 1.2"),
            (Alert::InternalError, false, "saying InternalError"),
        ] {
            let said = words(&Error::AlertReceived(alert), None, shows_identity);
            assert!(said.contains(expected), "{said}");
        }
    }
}
