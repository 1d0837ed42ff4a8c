//! The proofs of identity that a peer gave: certificates and a bearer token.

use std::fmt;

/// The certificates that a peer showed in its TLS handshake, as DER; its own comes first. rustls has
/// verified them.
///
/// `Debug` shows only their number.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificateChain(Box<[Box<[u8]>]>);

impl CertificateChain {
    /// How much of a chain is kept, in bytes. What comes after is left out: the peer's own certificate
    /// comes first, and it is the one that names the peer.
    pub const MAX_BYTES: usize = 16 * 1024;

    /// Keeps as many of these as fit. `None` when there are none, or the first does not fit.
    pub(crate) fn new<'a>(certificates: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut bytes = 0;
        let kept: Box<[Box<[u8]>]> = certificates
            .into_iter()
            .take_while(|certificate| {
                bytes += certificate.len();
                bytes <= Self::MAX_BYTES
            })
            .map(Into::into)
            .collect();
        (!kept.is_empty()).then_some(Self(kept))
    }

    /// The certificates as DER, the peer's own first. Not for logs.
    pub fn expose(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(AsRef::as_ref)
    }
}

impl fmt::Debug for CertificateChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateChain({} certificates)", self.0.len())
    }
}

/// The token of a call's `authorization: Bearer …`.
///
/// `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken(Box<[u8]>);

impl BearerToken {
    /// The longest token that is kept, in bytes.
    pub const MAX_BYTES: usize = 8 * 1024;

    /// The token in the value of an `authorization` header. `None` when the value is of another scheme,
    /// or holds no token or one that is too long.
    pub(crate) fn from_authorization(value: &[u8]) -> Option<Self> {
        const SCHEME: &[u8] = b"bearer ";
        let (scheme, token) = value.split_at_checked(SCHEME.len())?;
        let token = token.trim_ascii();
        let fits = !token.is_empty() && token.len() <= Self::MAX_BYTES;
        (fits && scheme.eq_ignore_ascii_case(SCHEME)).then(|| Self(token.into()))
    }

    /// The token itself. Not for logs.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(…)")
    }
}

/// All proofs of identity behind one stream. Nothing judges them yet.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Identity<'a> {
    /// Those of the connection. `None` without TLS, when the server asks for none, or when the peer's
    /// own was too long to be kept.
    pub certificates: Option<&'a CertificateChain>,
    /// That of the call. `None` when there was none, it was too long to be kept, or the streams of the
    /// connection keep too much already.
    pub token: Option<&'a BearerToken>,
}

impl<'a> Identity<'a> {
    pub(crate) const fn new(
        certificates: Option<&'a CertificateChain>,
        token: Option<&'a BearerToken>,
    ) -> Self {
        Self {
            certificates,
            token,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_tokens_are_found_whatever_the_case() {
        let token = |value: &str| BearerToken::from_authorization(value.as_bytes());
        for value in ["Bearer secret", "bearer secret", "BEARER  secret "] {
            let token = token(value).unwrap();
            assert_eq!(token.expose(), b"secret");
        }
        let long = format!("Bearer {}", "t".repeat(BearerToken::MAX_BYTES));
        assert!(token(&long).is_some());
        for value in [
            "",
            "Bearer",
            "Bearer ",
            "Basic secret",
            "Bearersecret",
            &format!("{long}t"),
        ] {
            assert!(token(value).is_none(), "{value}");
        }
    }

    #[test]
    fn certificates_are_kept_up_to_the_bound() {
        let [own, next] = [vec![1; 10 * 1024], vec![2; 10 * 1024]];
        let chain = CertificateChain::new([&own[..], &next[..]]).unwrap();
        assert!(chain.expose().eq([&own[..]]));
        let short = CertificateChain::new([&own[..], b"ca"]).unwrap();
        assert!(short.expose().eq([&own[..], b"ca"]));
        let long = vec![1; CertificateChain::MAX_BYTES + 1];
        assert_eq!(CertificateChain::new([&long[..]]), None);
        assert_eq!(CertificateChain::new([]), None);
    }

    #[test]
    fn debug_shows_neither_token_nor_certificate() {
        let token = BearerToken::from_authorization(b"Bearer CANARY").unwrap();
        let chain = CertificateChain::new([&b"CANARY"[..]]).unwrap();
        let shown = format!("{:?}", Identity::new(Some(&chain), Some(&token)));
        let bytes = format!("{:?}", b"CANARY");
        assert!(
            !shown.contains("CANARY") && !shown.contains(&bytes),
            "{shown}"
        );
    }
}
