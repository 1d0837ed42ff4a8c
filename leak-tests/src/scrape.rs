//! The other side's own counts: metrics that a server or etcd serves over HTTP.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::witness::{Reading, Rule, Unreadable, Witness};

/// How many watches etcd has.
const ETCD_WATCHERS: &str = "etcd_debugging_mvcc_watcher_total";

/// How many streams they are on.
const ETCD_WATCH_STREAMS: &str = "etcd_debugging_mvcc_watch_stream_total";

/// What a driftless server holds for its clients.
const SERVER_GAUGES: [&str; 3] = [
    "driftless_streams",
    "driftless_scopes",
    "driftless_connections",
];

/// How long a page may take. It is served from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The longest page that is read, in bytes; etcd's has about a hundred thousand.
const MOST: u64 = 4 * 1024 * 1024;

/// What the witness of a page's length is called.
const SERIES: &str = "metric series";

/// A gauge of a process that serves its metrics over plain HTTP in the Prometheus text format, summed
/// over its labels. Or [the number of series](Self::series) on that page.
///
/// Only for another process: reading takes a connection, which would show in the counts of a server in
/// this process. Read that server's gauges with [`gauge`](crate::gauge).
#[derive(Clone, Debug)]
pub struct Scraped {
    /// Host and port.
    address: String,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    /// The value of the metric of this name.
    Metric(String),
    /// How many values there are.
    Series,
}

impl Scraped {
    /// The gauge `metric` that is shown at `http://{address}/metrics`; an address is a host and a
    /// port.
    pub fn new(address: impl Into<String>, metric: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            what: What::Metric(metric.into()),
        }
    }

    /// The number of series at `http://{address}/metrics`: one for each set of labels of each metric. It
    /// [may not grow](Rule::MayNotGrow), not even by one: a label that names a client or its request costs
    /// memory here and in everything that stores metrics.
    pub fn series(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            what: What::Series,
        }
    }

    /// What a driftless server whose admin endpoint is at `address` holds for its clients: streams,
    /// ranges that are watched, connections.
    pub fn of_server(address: &str) -> [Self; 3] {
        SERVER_GAUGES.map(|metric| Self::new(address, metric))
    }

    /// The watches that the etcd at `address` has, and the streams that they are on.
    pub fn of_etcd(address: &str) -> [Self; 2] {
        [ETCD_WATCHERS, ETCD_WATCH_STREAMS].map(|metric| Self::new(address, metric))
    }

    async fn count(&self) -> Result<i64, Unreadable> {
        let failed = |why: String| {
            let why = format!("http://{}/metrics: {why}", self.address);
            Unreadable::new(self.name(), why)
        };
        let page = match timeout(ANSWER_WITHIN, page(&self.address)).await {
            Ok(page) => page.map_err(|error| failed(error.to_string()))?,
            Err(_) => return Err(failed(format!("no answer within {ANSWER_WITHIN:?}"))),
        };
        let shown = match &self.what {
            What::Metric(metric) => value(&page, metric),
            What::Series => Some(series(&page)).filter(|series| *series > 0),
        };
        shown.ok_or_else(|| failed("the page does not show it; name one that it shows".to_owned()))
    }
}

/// Uses HTTP/1.0, in which the response ends with the connection.
async fn page(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    stream.take(MOST).read_to_string(&mut page).await?;
    Ok(page)
}

/// The sum of the metric over its labels; `None` where the page does not have it.
fn value(page: &str, metric: &str) -> Option<i64> {
    let mut sum = None;
    for line in page.lines() {
        let Some(rest) = line.strip_prefix(metric) else {
            continue;
        };
        // Labels may hold spaces, and end with the last brace.
        let rest = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once('}').map(|(_, rest)| rest),
            None => rest.starts_with(' ').then_some(rest),
        };
        let number = rest.and_then(|rest| rest.split_whitespace().next());
        // Whole numbers too are shown as floating-point ones by some.
        if let Some(number) = number.and_then(|number| number.parse::<f64>().ok()) {
            #[expect(clippy::cast_possible_truncation, reason = "a count")]
            let number = number as i64;
            sum = Some(sum.unwrap_or(0) + number);
        }
    }
    sum
}

/// How many lines of the page hold a value.
fn series(page: &str) -> i64 {
    // The answer's own head comes before an empty line.
    let (_, body) = page.split_once("\r\n\r\n").unwrap_or(("", page));
    let values = body.lines().map(str::trim);
    let values = values.filter(|line| !line.is_empty() && !line.starts_with('#'));
    i64::try_from(values.count()).unwrap_or(i64::MAX)
}

impl Witness for Scraped {
    fn name(&self) -> &str {
        match &self.what {
            What::Metric(metric) => metric,
            What::Series => SERIES,
        }
    }

    fn rule(&self) -> Rule {
        match self.what {
            What::Metric(_) => Rule::Returns,
            What::Series => Rule::MayNotGrow { slack: 0 },
        }
    }

    fn read(&self) -> Reading<'_> {
        Box::pin(self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_found_with_and_without_labels() {
        let page = "HTTP/1.0 200 OK\r\n\r\n# HELP a_b c\n# TYPE a_b gauge\na_b 3\na_b_total 7\n\
                    l{x=\"1 }\",y=\"2\"} 4\nl{x=\"2\"} 5.0 1700000000\nbig 1.5e+03\n";
        assert_eq!(value(page, "a_b"), Some(3));
        assert_eq!(value(page, "a_b_total"), Some(7));
        assert_eq!(value(page, "l"), Some(9));
        assert_eq!(value(page, "big"), Some(1500));
        assert_eq!(value(page, "a"), None);
    }

    #[test]
    fn series_are_counted_without_what_is_said_of_them() {
        let page = "HTTP/1.0 200 OK\r\nServer: x\r\n\r\n# HELP a b\na 3\n\nl{x=\"1\"} 4\nl{x=\"2\"} 5\n# EOF\n";
        assert_eq!(series(page), 3);
        assert_eq!(series("HTTP/1.0 404 Not Found\r\n\r\n"), 0);
    }
}
