//! By which network and from which address a request came, and whether its instance takes it.
//! The socket alone tells; no header counts, since whoever calls can write what he likes there.

use crate::http::auth::Caller;
use crate::http::error::KpError;
use crate::listen::Peer;
use axum::http::{Extensions, StatusCode};
use claviger_domain::id::InstanceId;
use claviger_store::policies::{self, InstancePolicyKind};
use claviger_store::{StoreError, Tx};
use claviger_wire::kp::policies::{AllowedIp, AllowedNetwork};
use std::net::IpAddr;

/// The network that a listener serves. The accept loop puts it into the request; its absence
/// means the private one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// The operator's own.
    #[default]
    Private,
    /// Whoever can reach it.
    Public,
}

/// What an instance says of networks when it lets anyone come by both.
pub const BOTH: &str = "public-and-private";
/// What it says when only the private one counts.
pub const PRIVATE_ONLY: &str = "private-only";

/// Where a request came from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Origin {
    /// The peer of its socket; none for a request that came by no socket.
    pub address: Option<IpAddr>,
    /// The network of its listener.
    pub network: Network,
}

impl Origin {
    /// As the accept loop noted it.
    pub fn of(extensions: &Extensions) -> Origin {
        Origin {
            // An IPv4 peer of an IPv6 socket is an IPv4 peer.
            address: extensions.get().map(|Peer(peer)| peer.ip().to_canonical()),
            network: extensions.get().copied().unwrap_or_default(),
        }
    }
}

/// Whether an `allowed_network` of this text takes requests by `network`. A text that is not
/// known takes the private ones only.
pub fn network_allowed(policy: &str, network: Network) -> bool {
    network == Network::Private || policy == BOTH
}

/// Subnets, in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subnet {
    address: IpAddr,
    bits: u8,
}

impl Subnet {
    pub(crate) fn parse(text: &str) -> Option<Subnet> {
        let (address, bits) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        // No sign and no leading zeros: one way to write each subnet.
        let sane =
            bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
        let bits: u8 = bits.parse().ok().filter(|_| sane)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Subnet { address, bits })
    }

    pub(crate) fn has(&self, address: IpAddr) -> bool {
        // The bits that count are at the upper end; a shift by all of them leaves nothing.
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let apart = own.to_bits() ^ other.to_bits();
                apart.checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let apart = own.to_bits() ^ other.to_bits();
                apart.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// Whether the instance takes calls from where the caller is. Addresses do not bind a service
/// that calls as a resource of its own, such as a cluster; networks bind everyone.
pub(crate) fn admit(
    tx: &Tx<'_>,
    instance: InstanceId,
    caller: &Caller,
    any_address: bool,
) -> Result<(), KpError> {
    // Who has nothing to do with the instance is refused by what follows, and learns no policy.
    if !caller.sees(instance) {
        return Ok(());
    }
    let damaged = || StoreError::Damaged("attributes of an instance policy".to_owned());
    for (kind, attributes) in policies::gates(tx, instance)? {
        if kind == InstancePolicyKind::AllowedNetwork {
            let policy: AllowedNetwork =
                serde_json::from_str(&attributes).map_err(|_| damaged())?;
            if !network_allowed(&policy.allowed_network, caller.trace.origin.network) {
                let what = "The instance takes calls by the private network only; use the private endpoint";
                let code = "CONFIG_RULE_CONFLICT_ERR";
                return Err(KpError::new(StatusCode::FORBIDDEN, code, what));
            }
        } else if caller.crn.is_none() && !any_address {
            let policy: AllowedIp = serde_json::from_str(&attributes).map_err(|_| damaged())?;
            let allowed = caller.trace.origin.address.is_some_and(|address| {
                let subnets = policy.allowed_ip.iter().filter_map(|text| Subnet::parse(text));
                subnets.into_iter().any(|subnet| subnet.has(address))
            });
            if !allowed {
                return Err(KpError::unauthorized());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_have_what_they_say() {
        let rows = [
            ("10.1.0.0/16", "10.1.2.3", true),
            ("10.1.0.0/16", "10.2.0.1", false),
            ("10.1.2.3/32", "10.1.2.3", true),
            ("10.1.2.3/32", "10.1.2.2", false),
            ("10.1.2.3/16", "10.1.9.9", true),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "::1", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "2001:db8::1", true),
            ("::1/128", "::1", true),
        ];
        for (subnet, address, has) in rows {
            let subnet = Subnet::parse(subnet).expect(subnet);
            assert_eq!(
                subnet.has(address.parse().expect("an address")),
                has,
                "{subnet:?} {address}"
            );
        }
        for bad in [
            "10.1.2.3",
            "10.1.2.3/33",
            "::1/129",
            "10.1.2/8",
            "10.1.2.3/-1",
            "x/8",
            "",
            "/",
            "1.2.3.4/08",
            "1.2.3.4/+8",
        ] {
            assert_eq!(Subnet::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn networks() {
        assert!(network_allowed(PRIVATE_ONLY, Network::Private));
        assert!(!network_allowed(PRIVATE_ONLY, Network::Public));
        assert!(network_allowed(BOTH, Network::Public));
        assert!(!network_allowed("", Network::Public), "what is not known is not public");
    }
}
