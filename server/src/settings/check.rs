//! What a single value or the whole must satisfy beyond the bounds in the table.

use std::path::PathBuf;

use driftless_proto::KeyRange;

use super::error::{Given, SettingsError};
use super::kind::{Bounded as _, Bytes, MemoryLimit};
use super::settings::TlsFiles;
use super::table::{Setting, Values};

/// Every client gets it as part of the epoch.
const MAX_GENERATION_BYTES: usize = 64;

/// Says whether an etcd client could use the URL; the message never shows a password.
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
        return Err(format!(
            "{url:?} has a path or query after the port; {LIKE}"
        ));
    }
    Ok(())
}

/// The prefixes as ranges, none of which covers another.
pub(super) fn check_prefixes(
    prefixes: &[Vec<u8>],
    given: impl Fn() -> Given,
) -> Result<Vec<KeyRange>, SettingsError> {
    let mut ranges: Vec<KeyRange> = Vec::with_capacity(prefixes.len());
    for bytes in prefixes {
        let new = KeyRange::prefix(bytes).map_err(|error| SettingsError::Invalid {
            given: given(),
            problem: error.to_string(),
        })?;
        for old in &ranges {
            let (inner, outer) = if old.covers(&new) {
                (&new, old)
            } else if new.covers(old) {
                (old, &new)
            } else {
                continue;
            };
            let (inner, outer) = (inner.start().clone(), outer.start().clone());
            return Err(if inner == outer {
                SettingsError::PrefixTwice {
                    given: given(),
                    prefix: inner,
                }
            } else {
                SettingsError::PrefixInside {
                    given: given(),
                    inner,
                    outer,
                }
            });
        }
        ranges.push(new);
    }
    Ok(ranges)
}

/// Refuses a generation that is too long.
pub(super) fn check_generation(generation: &str) -> Result<(), String> {
    match generation.len() {
        0..=MAX_GENERATION_BYTES => Ok(()),
        len => Err(format!(
            "it is {len} bytes long; at most {MAX_GENERATION_BYTES} are allowed"
        )),
    }
}

/// Refuses a memory limit that the change log alone would bring near.
pub(super) fn check_memory_limit(limit: MemoryLimit, log_bytes: usize) -> Result<(), String> {
    let needed = log_bytes.saturating_mul(2);
    match limit {
        MemoryLimit::Bytes(limit) if limit < needed => Err(format!(
            "{} is below twice log_bytes, which is {}: the change log alone would keep memory tight; \
             give at least {}, or lower log_bytes",
            Bytes::show(&limit),
            Bytes::show(&log_bytes),
            Bytes::show(&needed),
        )),
        _ => Ok(()),
    }
}

/// All TLS files that are needed, or none. An error names the setting that it is about.
pub(super) fn tls_files(values: &Values) -> Result<Option<TlsFiles>, (Setting, String)> {
    use Setting::{TlsCert, TlsClientCa, TlsKey};
    let files = [
        (TlsCert, &values.tls_cert),
        (TlsKey, &values.tls_key),
        (TlsClientCa, &values.tls_client_ca),
    ];
    let is_empty = |path: &PathBuf| path.as_os_str().is_empty();
    for (setting, path) in files {
        if path.as_ref().is_some_and(is_empty) {
            return Err((setting, "the path is empty; name a PEM file".to_owned()));
        }
    }
    let needs = |setting, what: &str, missing: Setting| {
        Err((
            setting,
            format!("it needs {what}: {}", missing.how_to_give()),
        ))
    };
    match files.map(|(_, path)| path.clone()) {
        [None, None, None] => Ok(None),
        [Some(cert), Some(key), client_ca] => Ok(Some(TlsFiles {
            cert,
            key,
            client_ca,
        })),
        [Some(_), None, _] => needs(TlsCert, "its key", TlsKey),
        [None, Some(_), _] => needs(TlsKey, "its certificate", TlsCert),
        [None, None, Some(_)] => needs(TlsClientCa, "a certificate for the server", TlsCert),
    }
}
