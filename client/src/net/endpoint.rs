//! Where a server is.

use std::fmt;
use std::net::IpAddr;

use crate::error::BuildError;

/// Where a server is. Valid by construction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    uri: http::Uri,
    host: String,
    port: u16,
    tls: bool,
}

impl Endpoint {
    /// The ports of URLs without one: of `http://` and `https://`.
    const DEFAULT_PORTS: (u16, u16) = (80, 443);

    pub(crate) fn parse(url: &str) -> Result<Self, BuildError> {
        let bad = |problem| BuildError::Endpoint {
            url: redacted(url),
            problem,
        };
        let uri: http::Uri = url.parse().map_err(|_| bad("is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") if cfg!(feature = "tls") => true,
            Some("https") => return Err(BuildError::TlsUnsupported { url: redacted(url) }),
            _ => return Err(bad("does not start with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("holds a user name, which is not supported"));
        }
        if !matches!(
            uri.path_and_query().map(|path| path.as_str()),
            None | Some("/")
        ) {
            return Err(bad("has a path, which is not supported"));
        }
        let host = authority.host();
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if host.is_empty() {
            return Err(bad("names no host"));
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") if tls => Self::DEFAULT_PORTS.1,
            Some("") => Self::DEFAULT_PORTS.0,
            _ => authority
                .port_u16()
                .ok_or_else(|| bad("has no valid port"))?,
        };
        let host = host.to_owned();
        Ok(Self {
            uri,
            host,
            port,
            tls,
        })
    }

    /// The host: a name or an address, without the brackets of an IPv6 one.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether its connections use TLS (`https://`).
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether it is on this machine, as far as its name tells.
    pub(crate) fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }

    pub(crate) const fn uri(&self) -> &http::Uri {
        &self.uri
    }
}

impl fmt::Display for Endpoint {
    /// The URL, without the slash at its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{authority}")
    }
}

/// The URL without what may be a password: everything before the last `@`.
fn redacted(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, host)) => format!("...@{host}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_endpoints_are_parsed() {
        for (url, host, port, shown) in [
            (
                "http://127.0.0.1:7400",
                "127.0.0.1",
                7400,
                "http://127.0.0.1:7400",
            ),
            ("http://[::1]:7400/", "::1", 7400, "http://[::1]:7400"),
            ("http://[::1]", "::1", 80, "http://[::1]"),
            (
                "http://config.example",
                "config.example",
                80,
                "http://config.example",
            ),
            (
                "HTTP://config.example:1",
                "config.example",
                1,
                "http://config.example:1",
            ),
        ] {
            let endpoint = Endpoint::parse(url).unwrap();
            assert_eq!((endpoint.host(), endpoint.port()), (host, port), "{url}");
            assert_eq!(endpoint.to_string(), shown);
        }
    }

    #[test]
    fn invalid_endpoints_are_refused() {
        for url in [
            "",
            "/path",
            "127.0.0.1:7400",
            "localhost",
            "ftp://h:1",
            "http://",
            "http://:7400",
            "http://h:99999",
            "http://h:",
            "http://h:1/path",
            "http://h:1/?q",
            "http://h h",
        ] {
            let error = Endpoint::parse(url).unwrap_err();
            assert!(
                matches!(error, BuildError::Endpoint { .. }),
                "{url}: {error}"
            );
        }
    }

    #[test]
    #[cfg(feature = "tls")]
    fn scheme_decides_about_tls() {
        let endpoint = Endpoint::parse("https://config.example").unwrap();
        assert_eq!((endpoint.port(), endpoint.is_tls()), (443, true));
        assert_eq!(endpoint.to_string(), "https://config.example");
        let endpoint = Endpoint::parse("HTTPS://[::1]:7400/").unwrap();
        assert_eq!(endpoint.to_string(), "https://[::1]:7400");
        assert!(!Endpoint::parse("http://h:1").unwrap().is_tls());
    }

    #[test]
    #[cfg(not(feature = "tls"))]
    fn refusal_without_tls_names_the_feature() {
        let error = Endpoint::parse("https://h:1").unwrap_err();
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }

    #[test]
    fn loopback_hosts_are_recognised() {
        for (host, here) in [
            ("127.0.0.1", true),
            ("127.1.2.3", true),
            ("[::1]", true),
            ("localhost", true),
            ("LOCALHOST", true),
            ("localhost.example", false),
            ("10.0.0.1", false),
            ("[::]", false),
            ("config.example", false),
        ] {
            let endpoint = Endpoint::parse(&format!("http://{host}:1")).unwrap();
            assert_eq!(endpoint.is_loopback(), here, "{host}");
        }
    }

    #[test]
    fn error_does_not_repeat_a_password() {
        for url in ["http://me:CANARY@h:1", "https://me:CANARY@h:1", "CANARY@"] {
            let error = Endpoint::parse(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("CANARY"));
        }
    }
}
