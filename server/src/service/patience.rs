//! How long clients wait: what a call's deadline says, or else what our own clients do.

use std::time::Duration;

use http::HeaderMap;

/// For how long our client waits for a `Get`, unless it is told otherwise.
const GET: Duration = Duration::from_secs(10);

/// After how many progress intervals without a message a client gives up a `Watch`. It is in the contract.
const SILENT_INTERVALS: u32 = 3;

/// How long the client of a `Get` waits for it.
pub(super) fn of_get(headers: &HeaderMap) -> Duration {
    deadline(headers).unwrap_or(GET)
}

/// How long the client of a `Watch` waits for its state.
pub(super) fn of_watch(headers: &HeaderMap, progress_interval: Duration) -> Duration {
    let silent = progress_interval * SILENT_INTERVALS;
    deadline(headers).map_or(silent, |deadline| deadline.min(silent))
}

/// The time that a call may take, as gRPC writes it: at most eight digits and a unit.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|it| it.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(timeout: &str) -> HeaderMap {
        HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), timeout.parse().unwrap())])
    }

    #[test]
    fn deadline_of_a_call_is_read() {
        for (text, millis) in [
            ("2H", 7_200_000),
            ("3M", 180_000),
            ("10S", 10_000),
            ("2500m", 2_500),
            ("5000u", 5),
            ("99999999n", 99),
        ] {
            let read = deadline(&headers(text)).map(|read| read.as_millis());
            assert_eq!(read, Some(millis), "{text}");
        }
        for text in ["", "S", "10", "10X", "123456789S", "-1S", "1.5S", "1 S"] {
            assert_eq!(deadline(&headers(text)), None, "{text}");
        }
        assert_eq!(deadline(&HeaderMap::new()), None);
    }

    #[test]
    fn patience_is_a_deadline_or_that_of_our_client() {
        let progress = Duration::from_secs(10);
        let none = HeaderMap::new();
        assert_eq!(of_get(&none), GET);
        assert_eq!(of_watch(&none, progress), progress * 3);
        let minute = headers("1M");
        assert_eq!(of_get(&minute), Duration::from_secs(60));
        assert_eq!(of_watch(&minute, progress), progress * 3);
        assert_eq!(of_watch(&headers("1S"), progress), Duration::from_secs(1));
    }
}
