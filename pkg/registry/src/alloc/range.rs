//! The usable part of a range and the order in which it is handed out.
//!
//! The lower band is kept for addresses and ports that users choose themselves: dynamic allocation begins in
//! the upper band, at a random place, and goes to the lower one only when that is full.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rkube_apimachinery::random::{Random, below};

/// `min(max(16, size/16), 256)` addresses are reserved; of ports `min(max(16, size/32), 128)`.
const BAND_MIN: u64 = 16;
const ADDRESS_BAND: (u64, u64) = (16, 256);
const PORT_BAND: (u64, u64) = (32, 128);

/// Consecutive offsets with a reserved band at the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bands {
    pub(crate) size: u64,
    pub(crate) reserved: u64,
}

impl Bands {
    pub(crate) fn of_ports(size: u64) -> Self {
        Self { size, reserved: reserved(size, PORT_BAND) }
    }

    /// All offsets in the order they are tried.
    pub(crate) fn offsets(self, random: &dyn Random) -> impl Iterator<Item = u64> {
        let upper = scan(self.reserved, self.size, random);
        let lower = scan(0, self.reserved.min(self.size), random);
        upper.chain(lower)
    }
}

fn reserved(size: u64, (step, max): (u64, u64)) -> u64 {
    if size <= BAND_MIN { 0 } else { (size / step).clamp(BAND_MIN, max) }
}

/// From a random place around once.
fn scan(from: u64, to: u64, random: &dyn Random) -> impl Iterator<Item = u64> + use<> {
    let start = if from < to { from + below(random, to - from) } else { to };
    (start..to).chain(from..start.min(to))
}

/// The addresses of one service range: all but the network's own and, for IPv4, the broadcast address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddressRange {
    pub(crate) network: IpNet,
    first: u128,
    bands: Bands,
}

impl AddressRange {
    pub(crate) fn new(network: IpNet) -> Self {
        let network = network.trunc();
        let bits = u32::from(network.max_prefix_len() - network.prefix_len());
        // 2^64 addresses are as many as offsets can count.
        let all = 1_u64.checked_shl(bits).unwrap_or(u64::MAX);
        let unusable = if network.addr().is_ipv4() { 2 } else { 1 };
        let size = all.saturating_sub(unusable);
        let reserved = reserved(all, ADDRESS_BAND);
        Self { first: number(network.addr()) + 1, network, bands: Bands { size, reserved } }
    }

    pub(crate) fn is_ipv6(&self) -> bool {
        self.network.addr().is_ipv6()
    }

    /// Whether the address is one that can be allocated.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let offset = number(address).wrapping_sub(self.first);
        address.is_ipv6() == self.is_ipv6() && offset < u128::from(self.bands.size)
    }

    /// All addresses in the order they are tried.
    pub(crate) fn addresses(&self, random: &dyn Random) -> impl Iterator<Item = IpAddr> {
        let (first, ipv6) = (self.first, self.is_ipv6());
        self.bands.offsets(random).map(move |offset| address(first + u128::from(offset), ipv6))
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(number: u128, ipv6: bool) -> IpAddr {
    if ipv6 {
        IpAddr::V6(Ipv6Addr::from(number))
    } else {
        IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use expect_test::expect;
    use rkube_apimachinery::random::SeededRandom;

    use super::*;

    fn describe(network: &str) -> String {
        let range = AddressRange::new(network.parse().expect("a network"));
        let random = SeededRandom::new(1);
        let order: Vec<IpAddr> = range.addresses(&random).take(100_000).collect();
        let distinct: BTreeSet<&IpAddr> = order.iter().collect();
        let ends = (distinct.first(), distinct.last());
        format!("{network}: {} addresses, {} reserved, {ends:?}", order.len(), range.bands.reserved)
    }

    #[test]
    fn every_usable_address_comes_once() {
        expect![[r#"
            10.0.0.0/24: 254 addresses, 16 reserved, (Some(10.0.0.1), Some(10.0.0.254))
            10.0.0.0/28: 14 addresses, 0 reserved, (Some(10.0.0.1), Some(10.0.0.14))
            10.0.0.0/16: 65534 addresses, 256 reserved, (Some(10.0.0.1), Some(10.0.255.254))
            fd00::/112: 65535 addresses, 256 reserved, (Some(fd00::1), Some(fd00::ffff))
            10.0.0.0/32: 0 addresses, 0 reserved, (None, None)"#]]
        .assert_eq(
            &["10.0.0.0/24", "10.0.0.0/28", "10.0.0.0/16", "fd00::/112", "10.0.0.0/32"].map(describe).join("\n"),
        );
    }

    #[test]
    fn the_reserved_band_comes_last() {
        let bands = Bands::of_ports(2768);
        assert_eq!(bands.reserved, 86);
        let order: Vec<u64> = bands.offsets(&SeededRandom::new(3)).collect();
        assert_eq!(order.len(), 2768);
        let (upper, lower) = order.split_at(2768 - 86);
        assert!(upper.iter().all(|offset| *offset >= 86) && lower.iter().all(|offset| *offset < 86));
    }

    #[test]
    fn a_range_knows_what_is_in_it() {
        let range = AddressRange::new("10.0.0.0/29".parse().expect("a network"));
        let inside = |address: &str| range.contains(address.parse().expect("an address"));
        let found = ["10.0.0.0", "10.0.0.1", "10.0.0.6", "10.0.0.7", "10.0.0.8", "fd00::1"].map(inside);
        assert_eq!(found, [false, true, true, false, false, false]);
    }
}
