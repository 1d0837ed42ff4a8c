//! A fair queue: the peer comes next that holds the fewest permits, then the connection of that peer, then
//! its first stream. Among equals they take turns. Pure: it has no clock and wakes nobody.
//!
//! Connections without a running read are served before all others, so nobody's second read delays
//! anybody's first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};

use crate::session::connection::{Connection, ConnectionId};

/// Whose turns are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// All connections from one address; of IPv6 from one /64, which is what a host is given.
    Address(IpAddr),
    /// A connection without an address.
    Connection(ConnectionId),
}

/// Who asks for a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::session) struct Requester {
    peer: Peer,
    connection: ConnectionId,
}

impl Requester {
    pub(in crate::session) fn of(connection: &Connection) -> Self {
        let address = connection.peer().map(|peer| peer.ip());
        Self::new(connection.id(), address)
    }

    pub(super) fn new(connection: ConnectionId, address: Option<IpAddr>) -> Self {
        let peer = match address.map(|address| address.to_canonical()) {
            None => Peer::Connection(connection),
            Some(IpAddr::V6(v6)) => {
                let network = v6.to_bits() & !u128::from(u64::MAX);
                Peer::Address(Ipv6Addr::from_bits(network).into())
            }
            Some(v4) => Peer::Address(v4),
        };
        Self { peer, connection }
    }
}

/// Whether a waiting stream's connection has a running read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Newcomer = 0,
    Further = 1,
}

const CLASSES: [Class; 2] = [Class::Newcomer, Class::Further];

/// Streams that wait, by number, and how many run and hold permits, by connection.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    peers: HashMap<Peer, OfPeer>,
    /// The peers with a waiting stream of each class.
    turns: [Turns<Peer>; 2],
    waiting: usize,
}

#[derive(Debug, Default)]
struct OfPeer {
    connections: HashMap<ConnectionId, OfConnection>,
    turns: [Turns<ConnectionId>; 2],
    waiting: usize,
    running: usize,
    permits: usize,
}

#[derive(Debug, Default)]
struct OfConnection {
    /// Numbers ascend in order of arrival.
    waiting: BTreeSet<u64>,
    running: usize,
    permits: usize,
}

impl OfConnection {
    fn class(&self) -> Option<Class> {
        match (self.waiting.is_empty(), self.running) {
            (true, _) => None,
            (false, 0) => Some(Class::Newcomer),
            (false, _) => Some(Class::Further),
        }
    }
}

impl FairQueue {
    /// How many wait.
    pub(super) const fn len(&self) -> usize {
        self.waiting
    }

    /// How many wait of this peer, and of this connection.
    pub(super) fn waiting(&self, who: Requester) -> (usize, usize) {
        let peer = self.peers.get(&who.peer);
        let connection = peer.and_then(|peer| peer.connections.get(&who.connection));
        (
            peer.map_or(0, |peer| peer.waiting),
            connection.map_or(0, |connection| connection.waiting.len()),
        )
    }

    /// How many run of this peer, and of this connection.
    pub(super) fn running(&self, who: Requester) -> (usize, usize) {
        let peer = self.peers.get(&who.peer);
        let connection = peer.and_then(|peer| peer.connections.get(&who.connection));
        (
            peer.map_or(0, |peer| peer.running),
            connection.map_or(0, |connection| connection.running),
        )
    }

    /// How many permits this peer holds.
    pub(super) fn permits(&self, who: Requester) -> usize {
        self.peers.get(&who.peer).map_or(0, |peer| peer.permits)
    }

    /// How many permits the peer holds that comes next of those with newcomers. No other one holds fewer.
    pub(super) fn fewest_permits(&self) -> Option<usize> {
        let next = self.turns[Class::Newcomer as usize].first()?;
        self.peers.get(&next).map(|peer| peer.permits)
    }

    /// How many of those that wait would be served before a stream that came now. An upper bound: by
    /// its connection's turn, each other connection of its peer has as many turns at most, and by its
    /// peer's turn each other peer.
    pub(super) fn ahead(&self, who: Requester) -> usize {
        let (of_peer, of_connection) = self.waiting(who);
        let connections = self.peers.get(&who.peer).map_or(0, |peer| {
            peer.turns.iter().map(|turns| turns.len()).sum::<usize>()
        });
        let peers = self.turns.iter().map(|turns| turns.len()).sum::<usize>();
        let within_peer = of_peer.min((of_connection + 1).saturating_mul(connections));
        self.waiting.min((within_peer + 1).saturating_mul(peers))
    }

    /// Adds a stream, whose number is higher than those before.
    pub(super) fn add(&mut self, who: Requester, number: u64) {
        let peer = self.peers.entry(who.peer).or_default();
        let connection = peer.connections.entry(who.connection).or_default();
        connection.waiting.insert(number);
        peer.waiting += 1;
        self.waiting += 1;
        self.settle(who);
    }

    /// A stream does not wait any more.
    pub(super) fn remove(&mut self, who: Requester, number: u64) {
        if let Some(peer) = self.peers.get_mut(&who.peer)
            && let Some(connection) = peer.connections.get_mut(&who.connection)
            && connection.waiting.remove(&number)
        {
            peer.waiting -= 1;
            self.waiting -= 1;
            self.settle(who);
        }
    }

    /// Takes out the stream that comes next, which runs with a permit from now on; with `newcomers`, only one whose
    /// connection has no running read.
    pub(super) fn admit(&mut self, newcomers: bool) -> Option<u64> {
        let classes = &CLASSES[..if newcomers { 1 } else { 2 }];
        let (class, peer_key) = classes.iter().find_map(|class| {
            let class = *class as usize;
            Some((class, self.turns[class].first()?))
        })?;
        let peer = self.peers.get_mut(&peer_key)?;
        let connection_key = peer.turns[class].first()?;
        let connection = peer.connections.get_mut(&connection_key)?;
        let number = connection.waiting.pop_first()?;
        connection.running += 1;
        connection.permits += 1;
        peer.running += 1;
        peer.permits += 1;
        peer.waiting -= 1;
        self.waiting -= 1;
        // Their next turns come after everybody's.
        peer.turns[class].remove(connection_key);
        self.turns[class].remove(peer_key);
        self.settle(Requester {
            peer: peer_key,
            connection: connection_key,
        });
        Some(number)
    }

    /// A stream that was admitted gives its permit back, and may run on.
    pub(super) fn give_back(&mut self, who: Requester) {
        if let Some(peer) = self.peers.get_mut(&who.peer)
            && let Some(connection) = peer.connections.get_mut(&who.connection)
        {
            connection.permits -= 1;
            peer.permits -= 1;
            self.settle(who);
        }
    }

    /// A stream that was admitted, and gave its permit back, has ended.
    pub(super) fn ended(&mut self, who: Requester) {
        if let Some(peer) = self.peers.get_mut(&who.peer)
            && let Some(connection) = peer.connections.get_mut(&who.connection)
        {
            connection.running -= 1;
            peer.running -= 1;
            self.settle(who);
        }
    }

    /// Gives the connection and its peer turns where they have streams that wait, and forgets them
    /// when they have none at all.
    fn settle(&mut self, who: Requester) {
        let Some(peer) = self.peers.get_mut(&who.peer) else {
            return;
        };
        let connection = peer.connections.get(&who.connection);
        let is = connection.and_then(OfConnection::class);
        let permits = connection.map_or(0, |connection| connection.permits);
        if connection.is_some_and(|connection| is.is_none() && connection.running == 0) {
            peer.connections.remove(&who.connection);
        }
        for class in CLASSES {
            let within = &mut peer.turns[class as usize];
            within.set(who.connection, (is == Some(class)).then_some(permits));
            let waits = within.len() > 0;
            self.turns[class as usize].set(who.peer, waits.then_some(peer.permits));
        }
        if peer.connections.is_empty() {
            self.peers.remove(&who.peer);
        }
    }
}

/// Members in the order of how many permits they hold, then of their turns.
#[derive(Debug)]
struct Turns<K> {
    next: u64,
    order: BTreeMap<(usize, u64), K>,
    places: HashMap<K, (usize, u64)>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self {
            next: 0,
            order: BTreeMap::new(),
            places: HashMap::new(),
        }
    }
}

impl<K: Copy + Eq + Hash> Turns<K> {
    fn len(&self) -> usize {
        self.order.len()
    }

    fn first(&self) -> Option<K> {
        self.order.first_key_value().map(|(_, member)| *member)
    }

    /// Makes it a member with so many permits, or none. A new one comes after its equals; one that is
    /// there keeps its turn.
    fn set(&mut self, member: K, permits: Option<usize>) {
        let turn = match self.places.get(&member) {
            Some((before, _)) if Some(*before) == permits => return,
            Some((_, turn)) => Some(*turn),
            None => None,
        };
        self.remove(member);
        if let Some(permits) = permits {
            let turn = turn.unwrap_or_else(|| {
                self.next += 1;
                self.next
            });
            self.places.insert(member, (permits, turn));
            self.order.insert((permits, turn), member);
        }
    }

    fn remove(&mut self, member: K) {
        if let Some(place) = self.places.remove(&member) {
            self.order.remove(&place);
        }
    }
}

#[cfg(test)]
impl FairQueue {
    /// Whether nothing is kept of anybody.
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.turns.iter().all(|turns| turns.len() == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections 0 to 9 are of one address, 10 to 19 of the next, and so on.
    fn who(connection: u64) -> Requester {
        let address = [10, 0, 0, u8::try_from(connection / 10).unwrap()];
        Requester::new(ConnectionId(connection), Some(IpAddr::from(address)))
    }

    /// Everybody who waits, in the order in which they are admitted when each ends at once.
    fn order(queue: &mut FairQueue, by_number: &[Requester]) -> Vec<u64> {
        let mut order = Vec::new();
        while let Some(number) = queue.admit(false) {
            let who = by_number[usize::try_from(number).unwrap()];
            order.push(who.connection.0);
            queue.give_back(who);
            queue.ended(who);
        }
        order
    }

    fn queue_of(connections: &[u64]) -> (FairQueue, Vec<Requester>) {
        let mut queue = FairQueue::default();
        let all: Vec<_> = connections.iter().map(|it| who(*it)).collect();
        for (number, who) in all.iter().enumerate() {
            queue.add(*who, number as u64);
        }
        (queue, all)
    }

    #[test]
    fn peers_take_turns_then_connections() {
        let (mut queue, all) = queue_of(&[0, 0, 0, 1, 1, 2, 10, 20, 20]);
        assert_eq!(queue.len(), 9);
        assert_eq!(queue.waiting(who(1)), (6, 2));
        assert_eq!(order(&mut queue, &all), [0, 10, 20, 1, 20, 2, 0, 1, 0]);
        assert_eq!(queue.len(), 0);
        assert!(queue.is_empty(), "nothing is kept of who is gone");
    }

    #[test]
    fn second_read_of_a_connection_comes_after_all_first_ones() {
        let (mut queue, _) = queue_of(&[0, 0, 0, 1, 10]);
        let admitted: Vec<_> = std::iter::from_fn(|| queue.admit(true)).collect();
        assert_eq!(admitted, [0, 4, 3], "nobody ends meanwhile");
        assert_eq!(queue.running(who(0)), (2, 1));
        assert_eq!(queue.admit(true), None);
        assert_eq!(queue.admit(false), Some(1));
        // Its reads are over: it is a newcomer again.
        for _ in 0..2 {
            queue.give_back(who(0));
            assert_eq!(queue.admit(true), None, "one runs");
            queue.ended(who(0));
        }
        assert_eq!(queue.admit(true), Some(2));
    }

    #[test]
    fn peer_with_the_fewest_permits_comes_next() {
        let (mut queue, _) = queue_of(&[0, 1, 2, 3, 10, 11, 12]);
        let first: Vec<_> = (0..3).filter_map(|_| queue.admit(false)).collect();
        assert_eq!(first, [0, 4, 1]);
        // One of its reads is slow, and does not count any more.
        assert_eq!(queue.permits(who(0)), 2);
        assert_eq!(queue.fewest_permits(), Some(1));
        queue.give_back(who(0));
        queue.give_back(who(1));
        assert_eq!((queue.permits(who(0)), queue.running(who(0)).0), (0, 2));
        let rest: Vec<_> = std::iter::from_fn(|| queue.admit(false)).collect();
        assert_eq!(rest, [2, 5, 3, 6]);
    }

    #[test]
    fn stream_that_leaves_is_not_admitted() {
        let (mut queue, _) = queue_of(&[0, 0, 1]);
        queue.remove(who(0), 0);
        queue.remove(who(1), 2);
        queue.remove(who(1), 2);
        assert_eq!((queue.len(), queue.waiting(who(0))), (1, (1, 1)));
        assert_eq!(queue.admit(false), Some(1));
        assert_eq!(queue.admit(false), None);
    }

    #[test]
    fn estimate_counts_turns_and_not_all_who_wait() {
        let crowd = [0; 1000];
        let (mut queue, _) = queue_of(&crowd);
        assert_eq!(queue.ahead(who(0)), 1000, "of the same connection");
        assert_eq!(queue.ahead(who(1)), 2, "of the same address");
        assert_eq!(queue.ahead(who(10)), 1, "of another address");
        queue.add(who(10), 1000);
        assert_eq!(queue.ahead(who(10)), 4);
    }

    #[test]
    fn hosts_are_told_apart_by_address_or_network() {
        let of = |address: Option<&str>, connection| {
            let address = address.map(|address| address.parse().unwrap());
            Requester::new(ConnectionId(connection), address).peer
        };
        assert_eq!(of(Some("10.0.0.1"), 1), of(Some("::ffff:10.0.0.1"), 2));
        assert_ne!(of(Some("10.0.0.1"), 1), of(Some("10.0.0.2"), 1));
        assert_eq!(of(Some("2001:db8::1"), 1), of(Some("2001:db8::f:2"), 2));
        assert_ne!(of(Some("2001:db8::1"), 1), of(Some("2001:db8:0:1::1"), 1));
        assert_ne!(of(None, 1), of(None, 2));
    }
}
