//! Certificates that the tests make for themselves.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// A certificate and its key, in PEM.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// A CA.
pub(crate) struct Ca {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is for.
#[derive(Clone, Copy)]
pub(crate) enum For {
    Server,
    Client,
}

impl Ca {
    /// A new one: another than all before, even by the same name.
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    /// A certificate for these names, valid from the begin of one year to that of another.
    pub(crate) fn issue(&self, names: &[&str], years: (i32, i32), what: For) -> Pair {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "test");
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        params.extended_key_usages = vec![match what {
            For::Server => ExtendedKeyUsagePurpose::ServerAuth,
            For::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        let key = key.serialize_pem();
        Pair { cert, key }
    }

    /// One for a server on loopback, valid now.
    pub(crate) fn server(&self) -> Pair {
        self.issue(&["localhost", "127.0.0.1"], NOW, For::Server)
    }

    /// One for a client, valid now.
    pub(crate) fn client(&self) -> Pair {
        self.issue(&["client.example"], NOW, For::Client)
    }
}

/// A certificate that its own key has signed, as openssl makes them: it is a CA's, too.
pub(crate) fn self_signed() -> Pair {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cert = params.self_signed(&key).unwrap().pem();
    let key = key.serialize_pem();
    Pair { cert, key }
}

/// Years between which every test is run.
pub(crate) const NOW: (i32, i32) = (2020, 2060);
