//! Why a client cannot be built.

/// Why a client cannot be built from its options. A retry does not help.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No endpoint was given.
    #[error("no endpoint was given; name one, such as \"http://127.0.0.1:7400\"")]
    NoEndpoint,
    /// An endpoint is not a URL that can be dialled.
    #[error("endpoint \"{url}\" {problem}; it should look like \"http://127.0.0.1:7400\"")]
    Endpoint {
        /// The endpoint as it was given, without a password.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The endpoint needs TLS, and the library was built without its feature `tls`.
    #[error(
        "endpoint \"{url}\" asks for TLS, which this build does not support; enable the feature \
         `tls` of driftless-client"
    )]
    TlsUnsupported {
        /// The endpoint as it was given.
        url: String,
    },
    /// The server name for certificates is neither a host name nor an address.
    #[error(
        "\"{name}\" cannot be the name in a certificate; give the host name or the address of the \
         server's certificate"
    )]
    ServerName {
        /// The name.
        name: String,
    },
    /// There is a bearer token, and an endpoint that would get it in clear text.
    #[error(
        "endpoint \"{url}\" would get the token in clear text; use https://, or http:// on this \
         machine only"
    )]
    TokenInClear {
        /// The endpoint.
        url: String,
    },
    /// There are TLS options, and no endpoint with TLS: everything would travel in clear text.
    #[error(
        "TLS options are given, but no endpoint starts with https://; write https://, or remove the \
         options"
    )]
    TlsUnused,
    /// The instance id is empty or longer than the contract allows.
    #[error("the instance id is {len} bytes long; 1 to {max} are allowed")]
    Instance {
        /// Its length in bytes.
        len: usize,
        /// The most that is allowed, in bytes.
        max: usize,
    },
    /// There are more labels than the contract allows.
    #[error("there are {count} labels; at most {max} are allowed")]
    TooManyLabels {
        /// How many there are.
        count: usize,
        /// The most that are allowed.
        max: usize,
    },
    /// A label's name or value is longer than the contract allows, or its name is empty.
    #[error("label \"{name}\" is too long or has no name; names and values take up to {max} bytes")]
    Label {
        /// The label's name, cut to what is allowed.
        name: String,
        /// The most that is allowed, in bytes.
        max: usize,
    },
}

impl BuildError {
    /// Whether a retry with the same options may succeed: never.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

debug_as_display! {
    BuildError: NoEndpoint Endpoint TlsUnsupported ServerName TokenInClear TlsUnused Instance TooManyLabels Label
}
