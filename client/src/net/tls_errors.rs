//! Explains TLS errors: what they mean and what to do.

use std::io;
use std::path::Path;

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

pub(super) const NO_HTTP2: &str = "the server speaks TLS, but does not offer HTTP/2 in it (ALPN h2); what is there \
                        may be a proxy or another server";

/// The error for a client's certificate and key that do not fit together.
pub(super) fn mismatched(cert: &Path, key: &Path, error: &Error) -> String {
    let (cert, key) = (cert.display(), key.display());
    match error {
        Error::InconsistentKeys(_) => {
            format!("the client's key {key} is not that of the certificate {cert}")
        }
        _ => format!("the client's certificate {cert} and key {key} cannot be used: {error}"),
    }
}

/// Explains an error below TLS.
pub(super) fn explain_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the server closed the connection during the TLS handshake; it may not speak TLS (then \
             write http://), or allow no more connections"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

/// Explains an error of TLS.
pub(super) fn explain(error: &Error, ca: Option<&Path>, has_identity: bool) -> String {
    match error {
        Error::InvalidCertificate(error) => explain_certificate(error, ca),
        Error::AlertReceived(alert) => explain_alert(*alert, has_identity),
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

/// Explains why the server's certificate is not accepted.
fn explain_certificate(error: &CertificateError, ca: Option<&Path>) -> String {
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

/// Explains why the server rejects this client.
fn explain_alert(alert: AlertDescription, has_identity: bool) -> String {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired => REQUIRED.to_owned(),
        // TLS 1.2 has no alert of its own for it.
        Alert::HandshakeFailure if !has_identity => format!(
            "the server refused the TLS handshake; perhaps it {}",
            REQUIRED.trim_start_matches("the server ")
        ),
        Alert::UnknownCA
        | Alert::BadCertificate
        | Alert::CertificateUnknown
        | Alert::UnsupportedCertificate
        | Alert::DecryptError
        | Alert::AccessDenied
            if has_identity =>
        {
            "the server rejected this client's certificate; it has to be issued by the CA that the \
             server trusts for clients"
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
            "the server does not know the name that was dialled; give the one that it is for"
                .to_owned()
        }
        other => format!("the server ended TLS with the alert {other:?}"),
    }
}

const REQUIRED: &str = "the server requires a client certificate; give this client a certificate and its \
                        key";

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::pki_types::ServerName;

    use super::*;

    #[test]
    fn certificate_errors_say_what_to_do() {
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
            let text = explain(&Error::InvalidCertificate(error), ca, false);
            assert!(text.contains(expected), "{text}");
        }
        let text = explain(&CertificateError::UnknownIssuer.into(), None, false);
        assert!(text.contains("a CA that this system trusts"), "{text}");
    }

    #[test]
    fn alerts_say_what_to_do() {
        use AlertDescription as Alert;
        for (alert, has_identity, expected) in [
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
            (Alert::UnknownCA, true, "rejected this client's certificate"),
            (
                Alert::CertificateExpired,
                true,
                "this client's certificate has expired",
            ),
            (Alert::NoApplicationProtocol, false, "ALPN h2"),
            (Alert::ProtocolVersion, false, "no TLS of version 1.2"),
            (Alert::InternalError, false, "the alert InternalError"),
        ] {
            let text = explain(&Error::AlertReceived(alert), None, has_identity);
            assert!(text.contains(expected), "{text}");
        }
    }
}
