//! What tshark says of our packets: it is to know each sort of them, and to find nothing wrong.

use std::fs;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::process::Command;

use outlast_core::vrrp::State;
use outlast_core::vrrp::wire::{Dialect, PROTOCOL};
use outlast_kernel::packet;

use crate::Case;
use crate::cases::listen;
use crate::field::{Field, Machine, wait_until};
use crate::keepalived::{INTERVAL, ips};
use crate::vrrp::{Ours, Router, own};

pub(crate) const CASES: &[Case] = &[
    ("tshark_finds_nothing_wrong_in_what_we_say_to_the_group", |f| {
        group(f, true, None);
        group(f, false, None);
    }),
    ("tshark_finds_nothing_wrong_in_what_we_say_to_peers", |f| {
        peer(f, true);
        peer(f, false);
    }),
    ("tshark_finds_our_checksum_right_that_covers_the_message_alone", |f| {
        group(f, true, Some(Dialect::MessageOnly));
    }),
];

const PRIORITY: u8 = 254;
/// The longest frame that is kept.
const FRAME_MAX: usize = 2048;

/// Everything that a machine hears from another one while that takes part, from its first word to its last.
fn heard_of(ours: &Machine, ear: &Machine, from: IpAddr, router: Router) -> Vec<Vec<u8>> {
    let listener = ear.run(listen);
    let mac = ours.mac;
    let vip = router.voices[0].0.last().unwrap().0;
    let mut frames = Vec::new();
    let look = |frames: &mut Vec<Vec<u8>>| {
        let mut buffer = [0; FRAME_MAX];
        while let Ok(arrival) = listener.receive(&mut buffer) {
            let frame = &buffer[..arrival.len];
            if frame[6..12] == mac {
                frames.push(frame.to_vec());
            }
        }
    };
    let part = Ours::start(ours, &[from], router);
    wait_until("it is active", || part.state() == State::Active && ours.has(vip));
    wait_until("it has said so several times", || {
        look(&mut frames);
        frames.iter().filter(|frame| is_vrrp(frame)).count() > 2
    });
    part.stop();
    let leaves = |frame: &Vec<u8>| is_vrrp(frame) && priority(frame) == 0;
    wait_until("it has said that it ends", || {
        look(&mut frames);
        frames.iter().any(leaves)
    });
    frames
}

fn is_v4(frame: &[u8]) -> bool {
    frame[12..14] == packet::IPV4.to_be_bytes()
}

fn is_vrrp(frame: &[u8]) -> bool {
    let is_v6 = frame[12..14] == packet::IPV6.to_be_bytes();
    is_v4(frame) && frame[23] == PROTOCOL || is_v6 && frame[20] == PROTOCOL
}

fn priority(frame: &[u8]) -> u8 {
    frame[if is_v4(frame) { 14 + 20 + 2 } else { 14 + 40 + 2 }]
}

/// What tshark says of each frame: the names of its protocols, the state of its checksum, its priority, and complaints.
fn tshark(frames: &[Vec<u8>], dialect: Option<Dialect>) -> Vec<[String; 4]> {
    let moment = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let home = Home(std::env::temp_dir().join(format!("outlast-tshark-{moment}")));
    fs::create_dir(&home.0).unwrap();
    let file = home.0.join("pcap");
    // The form of tcpdump: its number, version 2.4, the longest frame, Ethernet.
    let mut bytes = [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1].map(u32::to_ne_bytes).concat();
    for frame in frames {
        let len = u32::try_from(frame.len()).unwrap();
        bytes.extend([0, 0, len, len].map(u32::to_ne_bytes).concat());
        bytes.extend(frame);
    }
    fs::write(&file, bytes).unwrap();
    let alone = if dialect == Some(Dialect::MessageOnly) { "TRUE" } else { "FALSE" };
    let mut command = Command::new("tshark");
    // Nobody's own settings count.
    command.env("HOME", &home.0).env("XDG_CONFIG_HOME", &home.0);
    command.arg("-r").arg(&file).args(["-n", "-T", "fields", "-E", "separator=;"]);
    command.args(["-o", "ip.check_checksum:TRUE"]);
    command.arg("-o").arg(format!("vrrp.v3_checksum_as_in_v2:{alone}"));
    let fields = ["frame.protocols", "vrrp.checksum.status", "vrrp.prio", "_ws.expert.message"];
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("start tshark: {error}; apt-get install tshark"));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line = |line: &str| {
        let mut fields = line.split(';').map(str::to_owned);
        std::array::from_fn(|_| fields.next().unwrap_or_default())
    };
    said.lines().map(line).collect()
}

/// Removed when it is dropped.
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Nothing is wrong with any frame, and there is one of each of these protocols.
fn must_be_right(frames: &[Vec<u8>], dialect: Option<Dialect>, protocols: &[&str]) {
    let said = tshark(frames, dialect);
    assert_eq!(said.len(), frames.len());
    for [protocols, checksum, priority, complaint] in &said {
        assert_eq!(complaint, "", "{said:?}");
        assert!(!protocols.contains("malformed"), "{said:?}");
        if protocols.ends_with("vrrp") {
            // 1: good.
            assert_eq!(checksum, "1", "{said:?}");
            assert!([PRIORITY.to_string(), "0".to_owned()].contains(priority), "{said:?}");
        }
    }
    for protocol in protocols {
        assert!(said.iter().any(|[all, ..]| all.ends_with(protocol)), "{protocol}: {said:?}");
    }
    assert!(said.iter().any(|[.., priority, _]| priority == "0"), "{said:?}");
}

fn router(v4: bool, peers: Vec<IpAddr>, checksum: Option<Dialect>) -> Router {
    Router {
        number: NonZeroU8::new(9).unwrap(),
        interval: INTERVAL,
        priority: NonZeroU8::new(PRIORITY).unwrap(),
        voices: vec![(ips(v4), peers)],
        checksum,
    }
}

fn group(field: &Field, v4: bool, dialect: Option<Dialect>) {
    let (ours, ear) = (field.machine(), field.machine());
    let router = router(v4, Vec::new(), dialect);
    let frames = heard_of(&ours, &ear, own(&ours, v4), router);
    let announced = if v4 { "arp" } else { "icmpv6" };
    must_be_right(&frames, dialect, &["vrrp", announced]);
    if let Some(Dialect::MessageOnly) = dialect {
        // The same by the other rule is wrong: tshark has looked.
        let wrong = tshark(&frames, None);
        let is_wrong = |[_, checksum, _, complaint]: &[String; 4]| {
            checksum == "0" && complaint.contains("checksum")
        };
        assert!(wrong.iter().any(is_wrong), "{wrong:?}");
    }
}

fn peer(field: &Field, v4: bool) {
    let (ours, ear) = (field.machine(), field.machine());
    let at = |machine: &Machine| if v4 { own(machine, v4) } else { machine.global() };
    let router = router(v4, vec![at(&ear)], None);
    let frames = heard_of(&ours, &ear, at(&ours), router);
    must_be_right(&frames, None, &["vrrp"]);
}
