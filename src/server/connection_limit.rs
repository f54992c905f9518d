//! Limits the number of connections, in total and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use rustix::process::{Resource, getrlimit};

use crate::config::ConnectionLimits;
use crate::metrics;

/// The IPv6 networks that are counted like addresses. A host can choose its addresses from a /64, and a site from at
/// most a /48. A /64 has the limit of one address. A /48 has `HOSTS_OF_SITE` times that limit; without it, a site could
/// use the limit 65,536 times.
const HOST_BITS_V6: u8 = 64;
const SITE_BITS_V6: u8 = 48;
const HOSTS_OF_SITE: usize = 8;
/// File descriptors for other uses: connections to Redis, listeners, the log.
const OPEN_FILES_RESERVED: usize = 128;

/// Which limit a connection exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitExceeded {
    /// The number of all connections.
    Total,
    /// The number of connections from this address or network.
    Address,
}

impl LimitExceeded {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Address => "address",
        }
    }
}

/// Counts the connections of a listener.
pub(super) struct ConnectionLimiter {
    limits: ConnectionLimits,
    total_max: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    total: usize,
    by_network: HashMap<IpNet, usize>,
}

impl ConnectionLimiter {
    pub(super) fn new(limits: ConnectionLimits) -> Arc<Self> {
        let total_max = limits.total.min(connections_allowed());
        if total_max < limits.total {
            tracing::warn!(total_max, "the limit of open files allows fewer connections than configured");
        }
        Arc::new(Self { limits, total_max, held: Mutex::default() })
    }

    /// Returns a permit for a connection of this client.
    pub(super) fn acquire(self: &Arc<Self>, client: IpAddr) -> Result<ConnectionPermit, LimitExceeded> {
        let networks = self.networks(client);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.total >= self.total_max {
            return Err(LimitExceeded::Total);
        }
        let is_full = |(network, max): &(IpNet, usize)| held.by_network.get(network).is_some_and(|count| count >= max);
        if networks.iter().any(is_full) {
            return Err(LimitExceeded::Address);
        }
        held.total += 1;
        metrics::connection_opened();
        for (network, _) in &networks {
            *held.by_network.entry(*network).or_default() += 1;
        }
        Ok(ConnectionPermit { limiter: self.clone(), networks })
    }

    /// The networks in which a client is counted, each with its limit. Empty for a trusted proxy.
    fn networks(&self, client: IpAddr) -> Vec<(IpNet, usize)> {
        let client = client.to_canonical();
        if self.limits.trusted_proxies.iter().any(|network| network.contains(&client)) {
            return Vec::new();
        }
        let max = self.limits.per_address;
        match client {
            IpAddr::V4(_) => vec![(client.into(), max)],
            IpAddr::V6(_) => {
                let network = |bits| IpNet::new_assert(client, bits).trunc();
                vec![(network(HOST_BITS_V6), max), (network(SITE_BITS_V6), max.saturating_mul(HOSTS_OF_SITE))]
            }
        }
    }
}

/// Maximum number of connections within the process's limit of open files.
fn connections_allowed() -> usize {
    let open_files = getrlimit(Resource::Nofile).current.and_then(|max| usize::try_from(max).ok());
    open_files.map_or(usize::MAX, |max| max.saturating_sub(OPEN_FILES_RESERVED).max(1))
}

/// A permit for one connection, until it is dropped.
pub(crate) struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    networks: Vec<(IpNet, usize)>,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut held = self.limiter.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total -= 1;
        metrics::connection_closed();
        for (network, _) in &self.networks {
            if let Some(count) = held.by_network.get_mut(network) {
                *count -= 1;
                if *count == 0 {
                    held.by_network.remove(network);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(total: usize, per_address: usize, trusted_proxies: &[&str]) -> Arc<ConnectionLimiter> {
        let trusted_proxies = trusted_proxies.iter().map(|text| text.parse().expect("a network")).collect();
        ConnectionLimiter::new(ConnectionLimits { total, per_address, trusted_proxies, head_bytes: 8192, headers: 100 })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn connections_are_limited_by_address_and_in_total() {
        let limiter = limiter(5, 2, &[]);
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let mut permits: Vec<_> = (0..2).map(|_| limiter.acquire(one).expect("a permit")).collect();
        // The same address, as a listener for IPv4 and IPv6 reports it.
        assert_eq!(limiter.acquire(address("::ffff:192.0.2.1")).err(), Some(LimitExceeded::Address));
        permits.extend((0..2).map(|_| limiter.acquire(other).expect("a permit")));
        permits.push(limiter.acquire(address("192.0.2.3")).expect("a permit"));
        assert_eq!(limiter.acquire(address("192.0.2.4")).err(), Some(LimitExceeded::Total));
        drop(permits);
        let held = limiter.held.lock().expect("the count");
        assert_eq!((held.total, held.by_network.len()), (0, 0));
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_a_limit() {
        let limiter = limiter(100, 2, &[]);
        let in_host = |host: usize, number| address(&format!("2001:db8:1:{host:x}::{number:x}"));
        let mut permits: Vec<_> = (0..2).map(|number| limiter.acquire(in_host(0, number)).expect("a permit")).collect();
        assert_eq!(limiter.acquire(in_host(0, 2)).err(), Some(LimitExceeded::Address));
        for host in 1..HOSTS_OF_SITE {
            permits.extend((0..2).map(|number| limiter.acquire(in_host(host, number)).expect("a permit")));
        }
        assert_eq!(limiter.acquire(in_host(HOSTS_OF_SITE, 0)).err(), Some(LimitExceeded::Address));
        assert!(limiter.acquire(address("2001:db8:2::1")).is_ok());
    }

    #[test]
    fn trusted_proxies_have_no_limit_by_address() {
        let limiter = limiter(10, 1, &["10.0.0.0/8", "::1/128"]);
        let trusted_proxies = [address("10.1.2.3"), address("::ffff:10.1.2.3"), address("::1")];
        let mut permits: Vec<_> =
            (0..9).map(|number| limiter.acquire(trusted_proxies[number % 3]).expect("a permit")).collect();
        permits.push(limiter.acquire(address("11.0.0.1")).expect("a permit"));
        assert_eq!(limiter.acquire(trusted_proxies[0]).err(), Some(LimitExceeded::Total));
    }
}
