//! Dials TCP: a name's addresses in random order, and the next one in parallel when one takes long (happy
//! eyeballs).
//!
//! Everything happens in the one future that the caller polls: dropped, it leaves no socket behind, and at
//! most the look-up, which cannot be cancelled.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::connect::{Connect, Connecting, Io};
use super::endpoint::Endpoint;
use super::resolve::Resolver;

/// How long looking up and connecting may take. Less than a whole attempt may take, so that the error names
/// the addresses, and handshakes have time left.
const TCP_WITHIN: Duration = Duration::from_secs(4);

/// How long to wait for one address before the next is tried in parallel: longer than the first
/// retransmission of a lost packet takes on a local network, and short enough that a dead address costs little.
const NEXT_AFTER: Duration = Duration::from_millis(300);

/// The default connector.
pub(crate) struct Tcp(Resolver);

impl Tcp {
    pub(crate) const fn new(resolver: Resolver) -> Self {
        Self(resolver)
    }
}

impl Connect for Tcp {
    fn connect(&self, endpoint: &Endpoint) -> Connecting {
        let resolver = self.0.clone();
        let (host, port) = (endpoint.host().to_owned(), endpoint.port());
        Box::pin(async move {
            let dialled = dial(&resolver, &host, port, |address| {
                Box::pin(TcpStream::connect(address))
            });
            let stream = dialled.await.map_err(io::Error::other)?;
            // Requests are small and urgent: the kernel must not delay them.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }
}

type Attempt<S> = Pin<Box<dyn Future<Output = io::Result<S>> + Send>>;

async fn dial<S>(
    resolver: &Resolver,
    host: &str,
    port: u16,
    connect: impl Fn(SocketAddr) -> Attempt<S>,
) -> Result<S, String> {
    let mut tried = Tried::default();
    let work = async {
        let addresses = resolver.addresses(host).await?;
        tried.is_named = host.parse::<IpAddr>().is_err();
        race(&addresses, port, connect, &mut tried).await
    };
    match timeout(TCP_WITHIN, work).await {
        Ok(dialled) => dialled,
        Err(_) => Err(tried.none_within(host)),
    }
}

/// What became of a host's addresses.
#[derive(Default)]
struct Tried {
    /// Whether the host is a name: if it is an address, the endpoint names it already.
    is_named: bool,
    begun: Vec<IpAddr>,
    failed: Vec<(IpAddr, String)>,
}

impl Tried {
    /// Why all of them failed.
    fn failures(&mut self) -> String {
        // Sorted, so that the same failure reads the same each time.
        self.failed.sort_unstable();
        let failures = self
            .failed
            .iter()
            .map(|(address, why)| match self.is_named {
                true => format!("{address}: {why}"),
                false => why.clone(),
            });
        failures.collect::<Vec<_>>().join(", ")
    }

    fn none_within(&mut self, host: &str) -> String {
        if self.begun.is_empty() {
            return format!("{host} was not looked up within {TCP_WITHIN:?}");
        }
        let failed = |address: &IpAddr| self.failed.iter().any(|(failed, _)| failed == address);
        let waiting = self.begun.iter().filter(|address| !failed(address));
        let mut waiting: Vec<String> = waiting.map(ToString::to_string).collect();
        waiting.sort_unstable();
        let mut why = format!("no connection within {TCP_WITHIN:?}");
        if self.is_named {
            why = format!("{}: {why}", waiting.join(", "));
        }
        match self.failures() {
            failures if failures.is_empty() => why,
            failures => format!("{why}, {failures}"),
        }
    }
}

/// Connects to the first address that accepts; the other attempts are dropped.
async fn race<S>(
    addresses: &[IpAddr],
    port: u16,
    connect: impl Fn(SocketAddr) -> Attempt<S>,
    tried: &mut Tried,
) -> Result<S, String> {
    let mut left = addresses.iter();
    let mut racing: Vec<(IpAddr, Attempt<S>)> = Vec::new();
    loop {
        if let Some(address) = left.next() {
            tried.begun.push(*address);
            racing.push((*address, connect(SocketAddr::new(*address, port))));
        } else if racing.is_empty() {
            return Err(tried.failures());
        }
        let stagger = async {
            match left.len() {
                0 => std::future::pending().await,
                _ => sleep(NEXT_AFTER).await,
            }
        };
        tokio::select! {
            biased;
            (address, result) = first(&mut racing) => match result {
                Ok(connected) => return Ok(connected),
                // The next one starts at once.
                Err(error) => tried.failed.push((address, error.to_string())),
            },
            () = stagger => {}
        }
    }
}

/// Waits for the first attempt to end, and removes it. There must be one.
async fn first<S>(racing: &mut Vec<(IpAddr, Attempt<S>)>) -> (IpAddr, io::Result<S>) {
    std::future::poll_fn(|cx| {
        for at in 0..racing.len() {
            if let Poll::Ready(result) = racing[at].1.as_mut().poll(cx) {
                let (address, _) = racing.swap_remove(at);
                return Poll::Ready((address, result));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;
    use crate::resources::ResourceTracker;

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn named(addresses: &'static [u8]) -> Resolver {
        Resolver::new(ResourceTracker::new(), move |_| {
            Ok(addresses.iter().map(|n| ip(*n)).collect())
        })
    }

    /// Connects to 10.0.0.n: after 10 n ms for n below 100, never from 200, and not at all between.
    fn network(address: SocketAddr) -> Attempt<IpAddr> {
        let IpAddr::V4(host) = address.ip() else {
            unreachable!()
        };
        let n = u64::from(host.octets()[3]);
        Box::pin(async move {
            match n {
                200.. => std::future::pending().await,
                100.. => Err(io::ErrorKind::ConnectionRefused.into()),
                _ => {
                    sleep(Duration::from_millis(10 * n)).await;
                    Ok(address.ip())
                }
            }
        })
    }

    #[tokio::test(start_paused = true)]
    async fn dead_address_costs_little() {
        for _ in 0..20 {
            let start = Instant::now();
            let resolver = named(&[1, 150, 200, 201]);
            let connected = dial(&resolver, "h", 1, network).await;
            assert_eq!(connected, Ok(ip(1)));
            // At worst, the two silent addresses come before it.
            assert!(start.elapsed() <= 2 * NEXT_AFTER + Duration::from_millis(11));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_address_can_win_after_the_next_is_tried() {
        let resolver = named(&[60, 200]);
        for _ in 0..20 {
            let start = Instant::now();
            assert_eq!(dial(&resolver, "h", 1, network).await, Ok(ip(60)));
            assert!(start.elapsed() <= NEXT_AFTER + Duration::from_millis(601));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failure_names_the_addresses() {
        let refused = "connection refused";
        let error = dial(&named(&[100, 101]), "h", 1, network).await;
        assert_eq!(
            error.unwrap_err(),
            format!("10.0.0.100: {refused}, 10.0.0.101: {refused}")
        );
        let error = dial(&named(&[100, 200, 201]), "h", 1, network).await;
        assert_eq!(
            error.unwrap_err(),
            format!("10.0.0.200, 10.0.0.201: no connection within 4s, 10.0.0.100: {refused}")
        );
        // An endpoint that is an address names it already.
        let error = dial(&named(&[]), "10.0.0.100", 1, network).await;
        assert_eq!(error.unwrap_err(), refused);
        let error = dial(&named(&[]), "10.0.0.200", 1, network).await;
        assert_eq!(error.unwrap_err(), "no connection within 4s");
    }

    #[tokio::test(start_paused = true)]
    async fn order_is_random() {
        let firsts = Mutex::new(std::collections::HashSet::new());
        for _ in 0..200 {
            let _ = dial(&named(&[100, 101, 102]), "h", 1, |address| {
                let mut firsts = firsts.lock().unwrap();
                firsts.insert(address.ip());
                Box::pin(async { Ok(()) })
            })
            .await;
        }
        assert_eq!(firsts.lock().unwrap().len(), 3);
    }
}
