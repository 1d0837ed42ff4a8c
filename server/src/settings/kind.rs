//! Kinds of settings: how a value is written in a file, the environment or a flag.
//!
//! A kind turns text into a value. When it cannot, it returns a message that quotes the text and says
//! what to write; the caller adds which setting it was, and where.

use std::cmp::Ordering;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::declare::Bound;

/// How the values of a setting are written.
pub(super) trait Kind {
    /// What the text is turned into.
    type Value;
    /// What `--help` shows for a value.
    const PLACEHOLDER: &'static str;
    /// Whether several values may be given.
    const IS_LIST: bool = false;

    /// Reads one text.
    fn read(text: &str) -> Result<Self::Value, String>;

    /// Reads all texts that were given for a setting; there is at least one.
    fn read_all(texts: &[String]) -> Result<Self::Value, String> {
        match texts {
            [text] => Self::read(text),
            _ => Err("given more than once; it takes one value".to_owned()),
        }
    }
}

/// A kind whose values have an order, so that a setting can have bounds.
pub(super) trait Bounded: Kind {
    /// How the value compares with a bound. `None` when there is no value to compare.
    fn compare(value: &Self::Value, bound: &Self::Value) -> Option<Ordering>;

    /// The value as text.
    fn show(value: &Self::Value) -> String;
}

/// Refuses a value that is below the bound.
///
/// # Panics
/// When the bound cannot be read.
pub(super) fn at_least<K: Bounded>(value: &K::Value, bound: Bound) -> Result<(), String> {
    match K::compare(value, &read_bound::<K>(bound)) {
        Some(Ordering::Less) => Err(format!(
            "{} is below the minimum of {}: {}",
            K::show(value),
            bound.value,
            bound.reason
        )),
        _ => Ok(()),
    }
}

/// Refuses a value that is above the bound.
///
/// # Panics
/// When the bound cannot be read.
pub(super) fn at_most<K: Bounded>(value: &K::Value, bound: Bound) -> Result<(), String> {
    match K::compare(value, &read_bound::<K>(bound)) {
        Some(Ordering::Greater) => Err(format!(
            "{} is above the maximum of {}: {}",
            K::show(value),
            bound.value,
            bound.reason
        )),
        _ => Ok(()),
    }
}

fn read_bound<K: Kind>(bound: Bound) -> K::Value {
    K::read(bound.value).expect("the table's bound can be read")
}

/// A duration: a whole number with a unit, such as `10s`.
pub(super) struct Time;

impl Kind for Time {
    type Value = Duration;
    const PLACEHOLDER: &'static str = "TIME";

    fn read(text: &str) -> Result<Duration, String> {
        parse_duration(text)
    }
}

impl Bounded for Time {
    fn compare(value: &Duration, bound: &Duration) -> Option<Ordering> {
        Some(value.cmp(bound))
    }

    fn show(value: &Duration) -> String {
        show_duration(*value)
    }
}

/// A number of bytes, such as `64MiB`.
pub(super) struct Bytes;

impl Kind for Bytes {
    type Value = usize;
    const PLACEHOLDER: &'static str = "BYTES";

    fn read(text: &str) -> Result<usize, String> {
        let (number, unit) = split_unit(text);
        number
            .parse()
            .ok()
            .zip(BYTE_UNITS.iter().find(|(name, _)| *name == unit))
            .and_then(|(number, (_, factor)): (usize, _)| number.checked_mul(*factor))
            .ok_or_else(|| {
                format!(
                    "{text:?} is not a number of bytes; write a whole number, alone or with KiB, MiB \
                     or GiB, such as 64MiB"
                )
            })
    }
}

impl Bounded for Bytes {
    fn compare(value: &usize, bound: &usize) -> Option<Ordering> {
        Some(value.cmp(bound))
    }

    fn show(value: &usize) -> String {
        let (unit, factor) = BYTE_UNITS
            .into_iter()
            .rev()
            .find(|(_, factor)| *value >= *factor && value.is_multiple_of(*factor))
            .unwrap_or(("", 1));
        format!("{}{unit}", value / factor)
    }
}

/// The memory that a server may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryLimit {
    /// As much as there is.
    #[default]
    Off,
    /// The limit of the cgroup that the process is in; without one, as much as there is.
    Cgroup,
    /// So many bytes.
    Bytes(usize),
}

/// A number of bytes, `cgroup` or `off`.
pub(super) struct Memory;

impl Kind for Memory {
    type Value = MemoryLimit;
    const PLACEHOLDER: &'static str = Bytes::PLACEHOLDER;

    fn read(text: &str) -> Result<MemoryLimit, String> {
        match text {
            "off" => Ok(MemoryLimit::Off),
            "cgroup" => Ok(MemoryLimit::Cgroup),
            text => Bytes::read(text)
                .map(MemoryLimit::Bytes)
                .map_err(|problem| format!("{problem}, or cgroup, or off")),
        }
    }
}

/// Units of bytes, the smallest first.
const BYTE_UNITS: [(&str, usize); 4] = [
    ("", 1),
    ("KiB", 1024),
    ("MiB", 1024 * 1024),
    ("GiB", 1024 * 1024 * 1024),
];

/// A whole number.
pub(super) struct Count;

impl Kind for Count {
    type Value = usize;
    const PLACEHOLDER: &'static str = "NUMBER";

    fn read(text: &str) -> Result<usize, String> {
        text.parse().map_err(|_| {
            format!(
                "{text:?} is not a whole number between 0 and {}",
                usize::MAX
            )
        })
    }
}

impl Bounded for Count {
    fn compare(value: &usize, bound: &usize) -> Option<Ordering> {
        Some(value.cmp(bound))
    }

    fn show(value: &usize) -> String {
        value.to_string()
    }
}

/// Another kind, or `off`.
pub(super) struct Off<K>(PhantomData<K>);

impl<K: Kind> Kind for Off<K> {
    type Value = Option<K::Value>;
    const PLACEHOLDER: &'static str = K::PLACEHOLDER;

    fn read(text: &str) -> Result<Self::Value, String> {
        match text {
            "off" => Ok(None),
            text => K::read(text).map(Some),
        }
    }
}

impl<K: Bounded> Bounded for Off<K> {
    fn compare(value: &Self::Value, bound: &Self::Value) -> Option<Ordering> {
        K::compare(value.as_ref()?, bound.as_ref()?)
    }

    fn show(value: &Self::Value) -> String {
        value.as_ref().map_or_else(|| "off".to_owned(), K::show)
    }
}

/// An IP address and a port.
pub(super) struct Address;

impl Kind for Address {
    type Value = SocketAddr;
    const PLACEHOLDER: &'static str = "ADDRESS";

    fn read(text: &str) -> Result<SocketAddr, String> {
        text.parse().map_err(|_| {
            format!(
                "{text:?} is not an address; write an IP address and a port, such as \
                 127.0.0.1:7400 or [::]:7400"
            )
        })
    }
}

/// Any text.
pub(super) struct Text;

impl Kind for Text {
    type Value = String;
    const PLACEHOLDER: &'static str = "TEXT";

    fn read(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }
}

/// The path of a file.
pub(super) struct File;

impl Kind for File {
    type Value = Option<PathBuf>;
    const PLACEHOLDER: &'static str = "FILE";

    fn read(text: &str) -> Result<Self::Value, String> {
        Ok(Some(text.into()))
    }
}

/// Several URLs. [`check_etcd_url`](super::check::check_etcd_url) checks them.
pub(super) struct Urls;

impl Kind for Urls {
    type Value = Vec<String>;
    const PLACEHOLDER: &'static str = "URL";
    const IS_LIST: bool = true;

    fn read(text: &str) -> Result<Self::Value, String> {
        Ok(vec![text.to_owned()])
    }

    fn read_all(texts: &[String]) -> Result<Self::Value, String> {
        Ok(texts.to_vec())
    }
}

/// Several prefixes of keys.
pub(super) struct Prefixes;

impl Kind for Prefixes {
    type Value = Vec<Vec<u8>>;
    const PLACEHOLDER: &'static str = "PREFIX";
    const IS_LIST: bool = true;

    fn read(text: &str) -> Result<Self::Value, String> {
        Ok(vec![text.as_bytes().to_vec()])
    }

    fn read_all(texts: &[String]) -> Result<Self::Value, String> {
        Ok(texts.iter().map(|text| text.as_bytes().to_vec()).collect())
    }
}

/// Reads a duration: a whole number and `ms`, `s`, `m` or `h`, such as `10s`.
///
/// # Errors
/// A message that quotes the text and says what to write.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let millis: Option<u64> = match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60 * 1000),
        "h" => Some(3600 * 1000),
        _ => None,
    };
    number
        .parse()
        .ok()
        .zip(millis)
        .and_then(|(number, millis): (u64, u64)| number.checked_mul(millis))
        .map(Duration::from_millis)
        .ok_or_else(|| {
            format!(
                "{text:?} is not a duration; write a whole number and ms, s, m or h, such as 10s"
            )
        })
}

/// A duration as [`parse_duration`] reads it.
fn show_duration(time: Duration) -> String {
    let millis = time.as_millis();
    match millis {
        _ if !millis.is_multiple_of(1000) => format!("{millis}ms"),
        1.. if millis.is_multiple_of(3600 * 1000) => format!("{}h", millis / (3600 * 1000)),
        1.. if millis.is_multiple_of(60 * 1000) => format!("{}m", millis / (60 * 1000)),
        _ => format!("{}s", millis / 1000),
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_do_not_overflow() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        for text in ["", "s", "1.5s", "-1s", "10 s", "18446744073709551615h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        for text in ["0s", "250ms", "90s", "2m", "3h", "61001ms"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn byte_counts_do_not_overflow() {
        assert_eq!(Bytes::read("2GiB"), Ok(2 << 30));
        assert!(Bytes::read("99999999999999999999").is_err());
        assert!(Bytes::read("99999999999GiB").is_err());
        for text in ["0", "1000", "512KiB", "1MiB", "1025KiB"] {
            assert_eq!(Bytes::show(&Bytes::read(text).unwrap()), text);
        }
    }

    #[test]
    fn off_is_within_all_bounds() {
        assert_eq!(Off::<Time>::read("off"), Ok(None));
        let bound = Bound {
            value: "1s",
            reason: "it is long",
        };
        assert_eq!(at_least::<Off<Time>>(&None, bound), Ok(()));
        assert_eq!(at_most::<Off<Time>>(&None, bound), Ok(()));
        let long = Some(Duration::from_secs(2));
        assert_eq!(
            at_most::<Off<Time>>(&long, bound),
            Err("2s is above the maximum of 1s: it is long".to_owned())
        );
    }
}
