//! Settings as text: what people write for a span of time, an address, a URL.
//!
//! Each reads one value and, when it cannot, returns a message that quotes it and says what it should
//! look like; the caller adds which setting it was and where.

use std::net::SocketAddr;
use std::time::Duration;

use super::Setting;

/// A span of time as people write it: a whole number and `ms`, `s`, `m` or `h`, such as `10s`.
///
/// # Errors
/// A message that quotes the text and says what it should look like.
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
            format!("{text:?} is not a span of time; write a whole number and ms, s, m or h, such as 10s")
        })
}

/// A number of bytes as people write it: a whole number, alone or with `KiB`, `MiB` or `GiB`.
pub(super) fn parse_bytes(text: &str) -> Result<usize, String> {
    let (number, unit) = split_unit(text);
    let factor: Option<usize> = match unit {
        "" => Some(1),
        "KiB" => Some(1024),
        "MiB" => Some(1024 * 1024),
        "GiB" => Some(1024 * 1024 * 1024),
        _ => None,
    };
    number
        .parse()
        .ok()
        .zip(factor)
        .and_then(|(number, factor): (usize, usize)| number.checked_mul(factor))
        .ok_or_else(|| {
            format!("{text:?} is not a number of bytes; write it alone or with KiB, MiB or GiB, such as 64MiB")
        })
}

/// A span of time, as [`parse_duration`] reads it.
pub(super) fn show_duration(time: Duration) -> String {
    let millis = time.as_millis();
    match millis {
        _ if !millis.is_multiple_of(1000) => format!("{millis}ms"),
        1.. if millis.is_multiple_of(3600 * 1000) => format!("{}h", millis / (3600 * 1000)),
        1.. if millis.is_multiple_of(60 * 1000) => format!("{}m", millis / (60 * 1000)),
        _ => format!("{}s", millis / 1000),
    }
}

/// How many connections there may be.
pub(super) fn parse_count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| {
        format!(
            "{text:?} is not a whole number between 1 and {}",
            usize::MAX
        )
    })
}

fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(digits)
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address; write an IP address and a port, such as 127.0.0.1:7400 or [::]:7400")
    })
}

/// Whether an etcd client could use it; the message never shows a password.
pub(super) fn check_etcd_url(url: &str) -> Result<(), String> {
    const LIKE: &str = "write it like http://127.0.0.1:2379";
    if url.contains('@') {
        return Err(format!(
            "the URL holds a user name or password, which would end up in logs; {LIKE}"
        ));
    }
    if url.contains(',') {
        return Err(format!(
            "{url:?} holds a comma; give several URLs one by one, each {}",
            LIKE.trim_start_matches("write it ")
        ));
    }
    let (scheme, _) = url.split_once("://").ok_or_else(|| match url {
        "" => format!("the URL is empty; {LIKE}"),
        _ => format!("{url:?} does not start with http://; {LIKE}"),
    })?;
    match scheme {
        "http" => {}
        "https" => {
            return Err(format!(
                "{url:?} asks for TLS, which is not supported yet; {LIKE}"
            ));
        }
        _ => return Err(format!("{url:?} does not start with http://; {LIKE}")),
    }
    let uri: http::Uri = url
        .parse()
        .map_err(|_| format!("{url:?} is not a URL; {LIKE}"))?;
    if uri.host().is_none_or(str::is_empty) {
        return Err(format!("{url:?} names no host; {LIKE}"));
    }
    if uri.port_u16().is_none_or(|port| port == 0) {
        return Err(format!("{url:?} has no port between 1 and 65535; {LIKE}"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(format!("{url:?} has something behind the port; {LIKE}"));
    }
    Ok(())
}
/// The texts of a value in a file: TOML's own numbers are as good as text.
pub(super) fn toml_texts(
    setting: Setting,
    value: &toml::de::DeValue<'_>,
) -> Result<Vec<String>, String> {
    use toml::de::DeValue;
    let text = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.to_string()),
        other => Err(format!(
            "it takes {}, not {}",
            if setting.is_list() {
                "a list of texts"
            } else {
                "a text or a whole number"
            },
            match other {
                DeValue::Array(_) => "a list",
                DeValue::Boolean(_) => "a boolean",
                DeValue::Float(_) => "a fraction",
                DeValue::Datetime(_) => "a date",
                _ => "a table",
            }
        )),
    };
    match value {
        DeValue::Array(items) if setting.is_list() => {
            if items.is_empty() {
                return Err("the list is empty; name at least one, or remove the line".to_owned());
            }
            items.iter().map(|item| text(item.get_ref())).collect()
        }
        one => text(one).map(|text| vec![text]),
    }
}
