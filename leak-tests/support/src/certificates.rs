//! Certificates that tests make for themselves, and the folders that they are read from.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

use crate::files;

/// A certificate and its key, in PEM.
#[derive(Debug)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

/// A certificate authority.
#[derive(Debug)]
pub struct Ca {
    /// Its own certificate, in PEM.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug)]
pub enum Usage {
    /// By a server.
    Server,
    /// By a client.
    Client,
}

impl Ca {
    /// A new one: another than all before, even with the same name.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    /// A certificate for these names, valid from the start of one year to that of another.
    ///
    /// # Panics
    /// When a name is none that a certificate can hold.
    #[must_use]
    pub fn issue(&self, names: &[&str], years: (i32, i32), usage: Usage) -> Pair {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "test");
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        params.extended_key_usages = vec![match usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        let key = key.serialize_pem();
        Pair { cert, key }
    }

    /// One for a server on loopback, valid now.
    #[must_use]
    pub fn server(&self) -> Pair {
        self.issue(&["localhost", "127.0.0.1"], NOW, Usage::Server)
    }

    /// One for a client, valid now.
    #[must_use]
    pub fn client(&self) -> Pair {
        self.issue(&["client.example"], NOW, Usage::Client)
    }
}

/// A certificate that its own key has signed, as openssl makes them: it is a CA's, too.
///
/// # Panics
/// Never.
#[must_use]
pub fn self_signed() -> Pair {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cert = params.self_signed(&key).unwrap().pem();
    let key = key.serialize_pem();
    Pair { cert, key }
}

/// Years between which every test is run.
pub const NOW: (i32, i32) = (2020, 2060);

/// A folder with the files of one end: `ca.pem`, `cert.pem` and `key.pem`. It goes with this.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Folder {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self(files::folder())
    }

    /// One with a CA's certificate, and a certificate and key.
    #[must_use]
    pub fn with(ca: &Ca, pair: &Pair) -> Self {
        let folder = Self::new();
        folder.write("ca.pem", &ca.pem);
        folder.put(pair);
        folder
    }

    /// Puts this certificate and key in place of what there is.
    pub fn put(&self, pair: &Pair) {
        self.write("cert.pem", &pair.cert);
        self.write("key.pem", &pair.key);
    }

    /// Replaces a file at once, as everybody should.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path("new"), text).unwrap();
        std::fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    /// Where a file of this name is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The same as text, for a command's arguments.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}
