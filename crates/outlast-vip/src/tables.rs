//! The guard in the kernel: who may be reached at a managed address, said to nftables.
//!
//! ```text
//! table inet, table arp: outlast_vip_UNIT
//!   set managed4, managed6       the unit's addresses
//!   set lease4, lease6           those that this node has now, each until the end of its lease
//!   chain input                  to a managed address without a lease, or asks where it is: drop
//!   chain output                 from a managed address without a lease, or says that it is here: drop
//! ```
//!
//! What others say of the address comes through, so that a node that does not have it knows who has.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use outlast_kernel::netlink::Socket;
use outlast_kernel::nft::{self, Batch, Expressions, Family, Hook, Meta, Part, Set, Table};
use outlast_kernel::route::octets;
use rustix::io::Errno;

/// Before everything else, connection tracking too.
const PRIORITY: i32 = -300;
const INPUT: &str = "input";
const OUTPUT: &str = "output";

/// `TYPE_IPADDR`, `TYPE_IP6ADDR` of nft, so that it can print them.
const MANAGED_V4: Set<'_> =
    Set { name: "managed4", id: 1, prints_as: 7, key_len: 4, forgets: false };
const LEASE_V4: Set<'_> = Set { name: "lease4", id: 2, prints_as: 7, key_len: 4, forgets: true };
const MANAGED_V6: Set<'_> =
    Set { name: "managed6", id: 3, prints_as: 8, key_len: 16, forgets: false };
const LEASE_V6: Set<'_> = Set { name: "lease6", id: 4, prints_as: 8, key_len: 16, forgets: true };
const MANAGED_ARP: Set<'_> = Set { id: 5, ..MANAGED_V4 };
const LEASE_ARP: Set<'_> = Set { id: 6, ..LEASE_V4 };

/// Where the fields are in the headers of IPv4, IPv6 and ARP, and how long addresses are.
const V4_FROM: u32 = 12;
const V4_TO: u32 = 16;
const V4_LEN: u32 = 4;
const V6_FROM: u32 = 8;
const V6_TO: u32 = 24;
const V6_LEN: u32 = 16;
const ARP_WHAT: u32 = 6;
const ARP_FROM: u32 = 14;
const ARP_ABOUT: u32 = 24;
const ARP_REQUEST: [u8; 2] = [0, 1];
/// RFC 4861 4.3 and 4.4: the type, and the address that it is about.
const ICMP6_TYPE: u32 = 0;
const ICMP6_ABOUT: u32 = 8;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ICMP6: u8 = 58;
/// NFPROTO_IPV4, NFPROTO_IPV6
const V4: u8 = 2;
const V6: u8 = 10;

/// The tables of one unit.
#[derive(Debug)]
pub(crate) struct Tables {
    netfilter: Socket,
    name: String,
    v4: Vec<Vec<u8>>,
    v6: Vec<Vec<u8>>,
}

impl Tables {
    /// Nothing is changed yet.
    pub(crate) fn open(unit: &str, addresses: impl Iterator<Item = IpAddr>) -> io::Result<Tables> {
        let (v4, v6): (Vec<_>, Vec<_>) = addresses.partition(IpAddr::is_ipv4);
        let keys = |ips: Vec<IpAddr>| ips.into_iter().map(octets).collect();
        let name = format!("outlast_vip_{unit}");
        Ok(Tables { netfilter: nft::open()?, name, v4: keys(v4), v6: keys(v6) })
    }

    /// Makes the tables anew, without a lease.
    pub(crate) fn build(&self) -> io::Result<()> {
        self.built().commit(&self.netfilter)
    }

    /// Lets the addresses be reached for so long from now, and no longer.
    pub(crate) fn grant(&self, left: Duration) -> io::Result<()> {
        let mut batch = Batch::new();
        self.add_grant(&mut batch, left);
        match batch.commit(&self.netfilter) {
            // Somebody has flushed the rules of this machine: the guard comes back together with the lease.
            Err(error) if is_missing(&error) => {
                let mut batch = self.built();
                self.add_grant(&mut batch, left);
                batch.commit(&self.netfilter)
            }
            done => done,
        }
    }

    /// Lets nobody reach the addresses any more.
    pub(crate) fn revoke(&self) -> io::Result<()> {
        match self.flush() {
            Err(error) if is_missing(&error) => self.build(),
            done => done,
        }
    }

    /// The same, and makes no tables where there are none.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.flush_set(self.inet(), LEASE_V4.name);
        batch.flush_set(self.inet(), LEASE_V6.name);
        if !self.v4.is_empty() {
            batch.flush_set(self.arp(), LEASE_ARP.name);
        }
        batch.commit(&self.netfilter)
    }

    /// Takes the tables away, after the addresses are gone.
    pub(crate) fn delete(&self) -> io::Result<()> {
        let mut batch = Batch::new();
        for table in [self.inet(), self.arp()] {
            batch.add_table(table);
            batch.delete_table(table);
        }
        batch.commit(&self.netfilter)
    }

    fn inet(&self) -> Table<'_> {
        Table { family: Family::Inet, name: &self.name }
    }

    fn arp(&self) -> Table<'_> {
        Table { family: Family::Arp, name: &self.name }
    }

    fn add_grant(&self, batch: &mut Batch, left: Duration) {
        if !self.v4.is_empty() {
            batch.renew_elements(self.inet(), LEASE_V4.name, &self.v4, left);
            batch.renew_elements(self.arp(), LEASE_ARP.name, &self.v4, left);
        }
        if !self.v6.is_empty() {
            batch.renew_elements(self.inet(), LEASE_V6.name, &self.v6, left);
        }
    }

    fn built(&self) -> Batch {
        let mut batch = Batch::new();
        self.build_inet(&mut batch);
        if !self.v4.is_empty() {
            self.build_arp(&mut batch);
        }
        batch
    }

    fn build_inet(&self, batch: &mut Batch) {
        let table = self.inet();
        begin(batch, table, &[MANAGED_V4, LEASE_V4, MANAGED_V6, LEASE_V6]);
        batch.add_elements(table, MANAGED_V4.name, &self.v4, None);
        batch.add_elements(table, MANAGED_V6.name, &self.v6, None);
        for (chain, from_or_to) in [(INPUT, V4_TO), (OUTPUT, V4_FROM)] {
            batch.add_rule(table, chain, |rule| {
                rule.load_meta(Meta::Family, 0);
                rule.is(&[V4]);
                rule.load(Part::Network, from_or_to, V4_LEN);
                drop_without_lease(rule, MANAGED_V4, LEASE_V4);
            });
        }
        for (chain, from_or_to) in [(INPUT, V6_TO), (OUTPUT, V6_FROM)] {
            batch.add_rule(table, chain, |rule| {
                rule.load_meta(Meta::Family, 0);
                rule.is(&[V6]);
                rule.load(Part::Network, from_or_to, V6_LEN);
                drop_without_lease(rule, MANAGED_V6, LEASE_V6);
            });
        }
        for (chain, kind) in [(INPUT, SOLICITATION), (OUTPUT, ADVERTISEMENT)] {
            batch.add_rule(table, chain, |rule| {
                rule.load_meta(Meta::Family, 0);
                rule.is(&[V6]);
                rule.load_meta(Meta::Protocol, 0);
                rule.is(&[ICMP6]);
                rule.load(Part::Transport, ICMP6_TYPE, 1);
                rule.is(&[kind]);
                rule.load(Part::Transport, ICMP6_ABOUT, V6_LEN);
                drop_without_lease(rule, MANAGED_V6, LEASE_V6);
            });
        }
    }

    fn build_arp(&self, batch: &mut Batch) {
        let table = self.arp();
        begin(batch, table, &[MANAGED_ARP, LEASE_ARP]);
        batch.add_elements(table, MANAGED_ARP.name, &self.v4, None);
        batch.add_rule(table, INPUT, |rule| {
            rule.load(Part::Network, ARP_WHAT, 2);
            rule.is(&ARP_REQUEST);
            // A request that comes from the address itself is an announcement of whoever has it.
            rule.load(Part::Network, ARP_FROM, V4_LEN);
            rule.is_not_in(MANAGED_ARP);
            rule.load(Part::Network, ARP_ABOUT, V4_LEN);
            drop_without_lease(rule, MANAGED_ARP, LEASE_ARP);
        });
        batch.add_rule(table, OUTPUT, |rule| {
            rule.load(Part::Network, ARP_FROM, V4_LEN);
            drop_without_lease(rule, MANAGED_ARP, LEASE_ARP);
        });
    }
}

fn begin(batch: &mut Batch, table: Table<'_>, sets: &[Set<'_>]) {
    batch.renew_table(table);
    for set in sets {
        batch.add_set(table, *set);
    }
    batch.add_chain(table, INPUT, Hook::Input, PRIORITY);
    batch.add_chain(table, OUTPUT, Hook::Output, PRIORITY);
}

fn drop_without_lease(rule: &mut Expressions<'_, '_>, managed: Set<'_>, lease: Set<'_>) {
    rule.is_in(managed);
    rule.is_not_in(lease);
    rule.drop_it();
}

fn is_missing(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NOENT)
}
