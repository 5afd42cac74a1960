//! `[address.NAME]`.

use outlast_core::topology::PartKind;

use super::{DURATION, DURATION_OR_ZERO, PART_NODES};
use crate::file::shape::{Key, Kind, Shape};

pub(crate) const ADDRESS_MODES: &[&str] = &["lease", "vrrp"];
pub(crate) const SPLIT_BRAINS: &[&str] = &["refuse", "accept"];
pub(crate) const CHECKSUMS: &[&str] = &["auto", "with-pseudo-header", "without"];

/// Parts that have a leading node.
static LED: [PartKind; 2] = [PartKind::Postgres, PartKind::Service];
/// Parts that can be well on a node or not.
static TRACKED: [PartKind; 6] = [
    PartKind::Service,
    PartKind::Process,
    PartKind::Postgres,
    PartKind::Redis,
    PartKind::Store,
    PartKind::External,
];

pub(super) static ADDRESS: Shape = Shape {
    title: "[address.NAME]",
    about: "An IP address that moves to a healthy node.",
    keys: &[
        Key::new(
            "ip",
            Kind::Text("10.0.0.100/24"),
            "The address and its prefix length; not together with `ips`.",
        )
        .elsewhere(&["address", "vip", "cidr"]),
        Key::new(
            "ips",
            Kind::List(&Kind::Text("10.0.0.100/24")),
            "Several addresses that move together, at most 20.",
        )
        .elsewhere(&["virtual_ipaddress", "addresses", "vips"]),
        Key::new("interface", Kind::Text("eth0"), "The network interface that gets it.")
            .required()
            .elsewhere(&["device", "dev", "nic"]),
        PART_NODES,
        Key::new(
            "mode",
            Kind::Words(ADDRESS_MODES),
            "lease: who holds it is agreed, never two at one time. vrrp: the nodes (or a keepalived) decide by VRRP; when they do not hear each other, both hold it.",
        )
        .or("lease"),
        Key::new(
            "follows",
            Kind::Part(&LED),
            "Whose leading node holds it: postgres.NAME (the primary) or service.NAME (the active side of a pair). Its nodes if `nodes` is absent.",
        )
        .elsewhere(&["with", "colocate"]),
        Key::new(
            "priority",
            Kind::Map(&Kind::Count { min: 1, max: 254 }),
            "By node: the highest one holds it; 100 for nodes that are not named. If absent: by the order of `nodes`.",
        )
        .elsewhere(&["priorities"]),
        Key::new(
            "preempt",
            Kind::Switch,
            "Whether a node of a higher priority takes it from one that is well.",
        )
        .or_switch(false)
        .elsewhere(&["nopreempt"]),
        Key::new(
            "preempt_delay",
            DURATION_OR_ZERO,
            "With `preempt`: how long that node must have been well, at most 1000s.",
        )
        .or("30s"),
        Key::new("group", Kind::Text("edge"), "Addresses of one group are always held by one node.")
            .elsewhere(&["sync_group", "vrrp_sync_group"]),
        Key::new(
            "track",
            Kind::List(&Kind::Table(&TRACK)),
            "What else must be well on the node that holds it.",
        )
        .elsewhere(&["track_interface", "track_script", "track_process", "checks"]),
        Key::new(
            "split_brain",
            Kind::Words(SPLIT_BRAINS),
            "Of two nodes without a third: accept has one take over when it does not hear the other, so that both may hold the address.",
        )
        .or("refuse"),
        Key::new(
            "heartbeat",
            Kind::Table(&HEARTBEAT),
            "With `split_brain = \"accept\"`: how fast the two nodes notice each other's end.",
        )
        .elsewhere(&["keepalive", "deadtime"]),
        Key::new(
            "vrrp_id",
            Kind::Count { min: 1, max: 255 },
            "The virtual router's number, to speak VRRP. In mode lease the holder only announces itself.",
        )
        .elsewhere(&["virtual_router_id", "vrid"]),
        Key::new(
            "advert",
            DURATION,
            "With `vrrp_id`: the time between two advertisements, 10ms to 40.95s.",
        )
        .or("1s")
        .elsewhere(&["advert_int", "advertisement_interval"]),
        Key::new(
            "unicast",
            Kind::Switch,
            "With `vrrp_id`: advertisements go to each other node, not to the multicast group.",
        )
        .or_switch(false),
        Key::new(
            "peers",
            Kind::List(&Kind::Ip),
            "With `unicast`: where they go to as well, like to a keepalived.",
        )
        .elsewhere(&["unicast_peer", "unicast_peers"]),
        Key::new(
            "checksum",
            Kind::Words(CHECKSUMS),
            "With `vrrp_id`, for IPv4: whether the checksum covers the pseudo-header, as keepalived has it, or not, as RFC 9568 has it. auto: as the peer does.",
        )
        .or("auto")
        .elsewhere(&["v3_checksum_as_v2", "v3_checksum_type"]),
    ],
};

pub(crate) static HEARTBEAT: Shape = Shape {
    title: "address.heartbeat",
    about: "How fast two nodes without a third one notice each other's end.",
    keys: &[
        Key::new("every", DURATION, "Between two heartbeats, at least 20ms.")
            .or("100ms")
            .elsewhere(&["interval"]),
        Key::new(
            "timeout",
            DURATION,
            "After so long without one, the other node is asked three times within another `every`; then this node takes over. 300ms to 60s.",
        )
        .or("300ms"),
    ],
};

static TRACK: Shape = Shape {
    title: "address.track",
    about: "One thing that is to be well: an interface, a part or a script.",
    keys: &[
        Key::new("interface", Kind::Text("eth1"), "A network interface that is to be up."),
        Key::new("service", Kind::Part(&TRACKED), "A part that is to be up: service.NAME.")
            .elsewhere(&["part", "process"]),
        Key::new("script", Kind::Command, "A command that is to end with status 0.")
            .elsewhere(&["command"]),
        Key::new(
            "weight",
            Kind::Number { min: -253.0, max: 253.0 },
            "Below 0: what the priority loses while it is down. Above: what it gains while it is up. If absent: a node where it is down does not hold the address.",
        ),
        Key::new("every", DURATION, "Of a script: between two starts.")
            .or("1s")
            .elsewhere(&["interval"]),
        Key::new(
            "timeout",
            DURATION,
            "Of a script: it fails when it takes longer; as `every` if absent.",
        ),
        Key::new(
            "fall",
            Kind::Count { min: 1, max: 1000 },
            "Of a script: failures in a row until it is down.",
        )
        .or_count(2),
        Key::new(
            "rise",
            Kind::Count { min: 1, max: 1000 },
            "Of a script: successes in a row until it is up.",
        )
        .or_count(2),
    ],
};
