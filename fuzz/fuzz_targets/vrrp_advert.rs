//! Advertisements of VRRP, which anybody on the network may send: no panic, and what is read can be said and read again.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use outlast_core::vrrp::wire::{Advert, Dialect, GROUP_V4, GROUP_V6};

fuzz_target!(|bytes: &[u8]| {
    let four: (IpAddr, IpAddr) = (Ipv4Addr::new(10, 0, 0, 1).into(), GROUP_V4.into());
    let six: (IpAddr, IpAddr) = (Ipv6Addr::LOCALHOST.into(), GROUP_V6.into());
    for (from, to) in [four, six] {
        for dialect in [Dialect::PseudoHeader, Dialect::MessageOnly] {
            if let Ok((advert, _)) = Advert::read(bytes, from, to) {
                let again = advert.to_bytes(from, to, dialect);
                let (read, _) = Advert::read(&again, from, to).expect("our own words");
                assert_eq!(read, advert);
            }
        }
        // A sum that is right is not found by chance: here it is made, over the message alone.
        let mut summed = bytes.to_vec();
        if let Some(sum) = summed.get_mut(6..8) {
            sum.fill(0);
            let words = summed.chunks(2).map(|word| match *word {
                [high, low] => u64::from(u16::from_be_bytes([high, low])),
                [high] => u64::from(high) << 8,
                _ => 0,
            });
            let mut sum: u64 = words.sum();
            while sum >> 16 != 0 {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            let sum = !u16::try_from(sum).expect("it was folded");
            summed[6..8].copy_from_slice(&sum.to_be_bytes());
            if let Ok((advert, _)) = Advert::read(&summed, from, to) {
                let again = advert.to_bytes(from, to, Dialect::MessageOnly);
                assert_eq!(Advert::read(&again, from, to).map(|(read, _)| read), Ok(advert));
            }
        }
    }
});
