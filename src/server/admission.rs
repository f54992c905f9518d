//! How many connections there may be: in total, and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use rustix::process::{Resource, getrlimit};

use crate::config::ConnectionLimits;
use crate::metrics;

/// What whoever has IPv6 can choose addresses from: a host has a /64, a site at most a /48. One /64 gets the limit of an
/// address, and a /48 some times that, or a site could have the limit 65,536 times.
const HOST_BITS_V6: u8 = 64;
const SITE_BITS_V6: u8 = 48;
const HOSTS_OF_SITE: usize = 8;
/// Files that are open beside connections: those to Redis, listeners, the log.
const OPEN_FILES_RESERVED: usize = 128;

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There are as many as there may be.
    Total,
    /// There are as many from this address, or network, as there may be.
    Address,
}

impl Refused {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Address => "address",
        }
    }
}

/// Counts the connections of a listener.
pub(super) struct Admission {
    limits: ConnectionLimits,
    total_max: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    total: usize,
    by_network: HashMap<IpNet, usize>,
}

impl Admission {
    pub(super) fn new(limits: ConnectionLimits) -> Arc<Self> {
        let total_max = limits.total.min(connections_possible());
        if total_max < limits.total {
            tracing::warn!(total_max, "the limit of open files allows no more connections than this");
        }
        Arc::new(Self { limits, total_max, held: Mutex::default() })
    }

    /// A place for a connection of this client, until it is dropped.
    pub(super) fn admit(self: &Arc<Self>, client: IpAddr) -> Result<Place, Refused> {
        let networks = self.networks(client);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.total >= self.total_max {
            return Err(Refused::Total);
        }
        let is_full =
            |(network, most): &(IpNet, usize)| held.by_network.get(network).is_some_and(|count| count >= most);
        if networks.iter().any(is_full) {
            return Err(Refused::Address);
        }
        held.total += 1;
        metrics::connection_opened();
        for (network, _) in &networks {
            *held.by_network.entry(*network).or_default() += 1;
        }
        Ok(Place { admission: self.clone(), networks })
    }

    /// The networks that a client counts for, each with its limit.
    fn networks(&self, client: IpAddr) -> Vec<(IpNet, usize)> {
        let client = client.to_canonical();
        if self.limits.proxies.iter().any(|proxies| proxies.contains(&client)) {
            return Vec::new();
        }
        let most = self.limits.per_address;
        match client {
            IpAddr::V4(_) => vec![(client.into(), most)],
            IpAddr::V6(_) => {
                let network = |bits| IpNet::new_assert(client, bits).trunc();
                vec![(network(HOST_BITS_V6), most), (network(SITE_BITS_V6), most.saturating_mul(HOSTS_OF_SITE))]
            }
        }
    }
}

/// The most connections that the limit of open files has room for.
fn connections_possible() -> usize {
    let open_files = getrlimit(Resource::Nofile).current.and_then(|most| usize::try_from(most).ok());
    open_files.map_or(usize::MAX, |most| most.saturating_sub(OPEN_FILES_RESERVED).max(1))
}

/// A connection's place among those that there may be.
pub(super) struct Place {
    admission: Arc<Admission>,
    networks: Vec<(IpNet, usize)>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.admission.held.lock().unwrap_or_else(PoisonError::into_inner);
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

    fn admission(total: usize, per_address: usize, proxies: &[&str]) -> Arc<Admission> {
        let proxies = proxies.iter().map(|text| text.parse().expect("a network")).collect();
        Admission::new(ConnectionLimits { total, per_address, proxies, head_bytes: 8192, headers: 100 })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_has_so_many_places_and_leaves_none_behind() {
        let admission = admission(5, 2, &[]);
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let mut places: Vec<_> = (0..2).map(|_| admission.admit(one).expect("a place")).collect();
        // The same address, as a listener for both families names it.
        assert_eq!(admission.admit(address("::ffff:192.0.2.1")).err(), Some(Refused::Address));
        places.extend((0..2).map(|_| admission.admit(other).expect("a place")));
        places.push(admission.admit(address("192.0.2.3")).expect("a place"));
        assert_eq!(admission.admit(address("192.0.2.4")).err(), Some(Refused::Total));
        drop(places);
        let held = admission.held.lock().expect("the count");
        assert_eq!((held.total, held.by_network.len()), (0, 0));
    }

    #[test]
    fn a_client_does_not_multiply_by_the_addresses_of_its_network() {
        let admission = admission(100, 2, &[]);
        let in_host = |host: usize, number| address(&format!("2001:db8:1:{host:x}::{number:x}"));
        let mut places: Vec<_> = (0..2).map(|number| admission.admit(in_host(0, number)).expect("a place")).collect();
        assert_eq!(admission.admit(in_host(0, 2)).err(), Some(Refused::Address));
        for host in 1..HOSTS_OF_SITE {
            places.extend((0..2).map(|number| admission.admit(in_host(host, number)).expect("a place")));
        }
        assert_eq!(admission.admit(in_host(HOSTS_OF_SITE, 0)).err(), Some(Refused::Address));
        assert!(admission.admit(address("2001:db8:2::1")).is_ok());
    }

    #[test]
    fn the_clients_behind_a_proxy_are_not_one_client() {
        let admission = admission(10, 1, &["10.0.0.0/8", "::1/128"]);
        let proxies = [address("10.1.2.3"), address("::ffff:10.1.2.3"), address("::1")];
        let mut places: Vec<_> = (0..9).map(|number| admission.admit(proxies[number % 3]).expect("a place")).collect();
        places.push(admission.admit(address("11.0.0.1")).expect("a place"));
        assert_eq!(admission.admit(proxies[0]).err(), Some(Refused::Total));
    }
}
