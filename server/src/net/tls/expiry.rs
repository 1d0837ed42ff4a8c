//! Until when a certificate is valid.
//!
//! Clients check it; the server only tells its operator. So a certificate that cannot be parsed is no
//! error here, its end is only unknown.

use std::fmt;

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// The last second at which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotAfter(ASN1Time);

impl NotAfter {
    /// True when it is over, by this machine's clock.
    pub(super) fn is_past(&self) -> bool {
        self.0.timestamp() < ASN1Time::now().timestamp()
    }
}

impl fmt::Display for NotAfter {
    /// As RFC 3339 writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The date of an ASN.1 time is in UTC.
        let time = self.0.to_datetime();
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            time.year(),
            u8::from(time.month()),
            time.day(),
            time.hour(),
            time.minute(),
            time.second()
        )
    }
}

/// The end of a certificate's validity (X.509, in DER). `None` when it cannot be parsed.
pub(super) fn not_after(certificate: &[u8]) -> Option<NotAfter> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(NotAfter(certificate.validity().not_after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(year: i32) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(1999, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 2, 3);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn end_of_validity_is_found_and_compared_with_now() {
        for (year, past) in [(2001, true), (2049, false), (2050, false), (3000, false)] {
            let found = not_after(&certificate(year)).unwrap();
            assert_eq!(found.to_string(), format!("{year}-02-03T00:00:00Z"));
            assert_eq!(found.is_past(), past);
        }
    }

    #[test]
    fn broken_certificates_have_no_end_and_do_not_panic() {
        let certificate = certificate(2030);
        for len in 0..certificate.len() {
            assert_eq!(not_after(&certificate[..len]), None);
        }
        for at in 0..certificate.len() {
            let mut broken = certificate.clone();
            broken[at] ^= 0xff;
            let _ = not_after(&broken).map(|found| found.to_string());
        }
    }
}
