//! Until when a certificate is valid: the one field that is read from inside it here.
//!
//! Not checked: that is for clients. So what cannot be read is no error, only unknown.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// The tags of what has to be stepped over or into.
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The last second at which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotAfter {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl NotAfter {
    /// Whether it is over, by this machine's clock.
    pub(super) fn is_past(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        i64::try_from(now).is_ok_and(|now| self.seconds() < now)
    }

    /// Since 1970.
    fn seconds(&self) -> i64 {
        // Years that begin in March, so that the leap day is their last.
        let year = self.year - i64::from(self.month <= 2);
        let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        let month = (self.month + 9) % 12;
        let days = 365 * year + leap_days + (153 * month + 2) / 5 + self.day - 1;
        /// From the first of March of the year 0 to 1970.
        const EPOCH: i64 = 719_468;
        (((days - EPOCH) * 24 + self.hour) * 60 + self.minute) * 60 + self.second
    }
}

impl fmt::Display for NotAfter {
    /// As RFC 3339 writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            year,
            month,
            day,
            hour,
            minute,
            second,
        } = self;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
        )
    }
}

/// Finds it in a certificate (X.509, in DER).
pub(super) fn not_after(certificate: &[u8]) -> Option<NotAfter> {
    let (certificate, _) = inside(certificate, SEQUENCE)?;
    let (mut rest, _) = inside(certificate, SEQUENCE)?;
    if rest.first() == Some(&VERSION) {
        rest = element(rest)?.rest;
    }
    // The serial number, the algorithm and the issuer.
    for _ in 0..3 {
        rest = element(rest)?.rest;
    }
    let (validity, _) = inside(rest, SEQUENCE)?;
    let not_before = element(validity)?;
    let not_after = element(not_before.rest)?;
    time(not_after.tag, not_after.content)
}

struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    rest: &'a [u8],
}

/// The first element of these.
fn element(bytes: &[u8]) -> Option<Element<'_>> {
    let (tag, bytes) = bytes.split_first()?;
    let (first, bytes) = bytes.split_first()?;
    let (len, bytes) = match usize::from(*first) {
        short @ 0..=0x7f => (short, bytes),
        // So many bytes of length follow; more than three is more than a file may hold.
        long @ 0x81..=0x83 => {
            let (len, bytes) = bytes.split_at_checked(long - 0x80)?;
            let len = len
                .iter()
                .fold(0, |len, byte| len << 8 | usize::from(*byte));
            (len, bytes)
        }
        _ => return None,
    };
    let (content, rest) = bytes.split_at_checked(len)?;
    Some(Element {
        tag: *tag,
        content,
        rest,
    })
}

/// What is in the first element, if it is one of these, and what follows it.
fn inside(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let element = element(bytes)?;
    (element.tag == tag).then_some((element.content, element.rest))
}

fn time(tag: u8, text: &[u8]) -> Option<NotAfter> {
    let text = text.strip_suffix(b"Z")?;
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |digits: &[u8]| {
        let digit = |number: i64, digit: &u8| number * 10 + i64::from(digit - b'0');
        digits.iter().fold(0, digit)
    };
    let (year, rest) = match (tag, text.len()) {
        // Two digits stand for 1950 to 2049.
        (UTC_TIME, 12) => {
            let year = number(&text[..2]);
            (year + if year < 50 { 2000 } else { 1900 }, &text[2..])
        }
        (GENERALIZED_TIME, 14) => (number(&text[..4]), &text[4..]),
        _ => return None,
    };
    let two = |at: usize| number(&rest[at..at + 2]);
    Some(NotAfter {
        year,
        month: two(0),
        day: two(2),
        hour: two(4),
        minute: two(6),
        second: two(8),
    })
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
    fn the_end_of_a_certificate_is_found() {
        for (year, past) in [(2001, true), (2049, false), (2050, false), (3000, false)] {
            let found = not_after(&certificate(year)).unwrap();
            assert_eq!(found.to_string(), format!("{year}-02-03T00:00:00Z"));
            assert_eq!(found.is_past(), past);
        }
    }

    #[test]
    fn seconds_are_counted_from_1970() {
        for (tag, text, seconds) in [
            (UTC_TIME, "700101000000Z", 0),
            (UTC_TIME, "000229235959Z", 951_868_799),
            (UTC_TIME, "000301000000Z", 951_868_800),
            (UTC_TIME, "690101000000Z", -31_536_000),
            (GENERALIZED_TIME, "20380119031408Z", 2_147_483_648),
        ] {
            let found = time(tag, text.as_bytes()).unwrap();
            assert_eq!(found.seconds(), seconds, "{text}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        let certificate = certificate(2030);
        for len in 0..certificate.len() {
            // Cut off, it is one element no more.
            assert_eq!(not_after(&certificate[..len]), None);
        }
        for at in 0..certificate.len().min(200) {
            let mut broken = certificate.clone();
            broken[at] ^= 0xff;
            // Whatever it finds, it does not panic.
            let _ = not_after(&broken).map(|found| found.to_string());
        }
        assert_eq!(time(UTC_TIME, b"7001010000Z"), None);
        assert_eq!(time(UTC_TIME, b"70010100000aZ"), None);
        assert_eq!(time(SEQUENCE, b"700101000000Z"), None);
    }
}
