//! Regions of databases: whether the file says where each member stands, and whether a majority is left without one of them.

use std::collections::{BTreeMap, BTreeSet};

use outlast_core::topology::{Consensus, ConsensusKind, Node, Postgres, RegionFailover, Topology};

use super::Parts;
use super::complaint::quote;
use super::section::Section;

/// What is left of the voters without one region.
#[derive(Debug)]
struct Left {
    region: String,
    voters: usize,
    of: usize,
}

impl Left {
    fn is_majority(&self) -> bool {
        self.of < 2 * self.voters
    }
}

pub(super) fn complain(
    postgres: &Parts<'_, Postgres>,
    nodes: &Parts<'_, Node>,
    consensus: Option<&Consensus>,
) {
    let regions: BTreeMap<&str, Option<&str>> =
        nodes.good().map(|(name, _, node)| (name, node.region.as_deref())).collect();
    for (name, section, part) in postgres.good() {
        if let Some(home) = &part.home {
            complain_of_home(section, name, part, home, &regions);
            complain_of_automatic(section, part, &regions, consensus);
        }
    }
}

fn complain_of_home(
    section: &Section<'_>,
    name: &str,
    part: &Postgres,
    home: &str,
    regions: &BTreeMap<&str, Option<&str>>,
) {
    let (desk, span) = (section.desk, section.span_of("home"));
    for node in part.nodes.iter().filter(|node| regions.get(node.as_str()) == Some(&None)) {
        desk.complain(
            span.clone(),
            format!("node {} of [postgres.{name}] has no region", quote(node)),
            format!("add `region` to [node.{node}]"),
        );
    }
    let there = regions_of(part, regions);
    if !there.is_empty() && !there.contains(home) {
        let known: Vec<String> = there.into_iter().map(quote).collect();
        desk.complain(
            span,
            format!("no member of [postgres.{name}] is in region {}", quote(home)),
            format!("name the region of one: {}", known.join(", ")),
        );
    }
}

fn complain_of_automatic(
    section: &Section<'_>,
    part: &Postgres,
    regions: &BTreeMap<&str, Option<&str>>,
    consensus: Option<&Consensus>,
) {
    if part.region_failover != RegionFailover::Automatic {
        return;
    }
    let (desk, span) = (section.desk, section.span_of("region_failover"));
    let there = regions_of(part, regions);
    if let [only] = there.iter().collect::<Vec<_>>().as_slice() {
        desk.complain(
            span,
            format!("no other region could take over: all members are in {}", quote(only)),
            "add members in another region, or take it out",
        );
        return;
    }
    let voters = consensus.map_or(&[][..], voters);
    let short = there.iter().map(|region| left(region, voters, regions));
    for left in short.filter(|left| left.of > 0 && !left.is_majority()) {
        desk.complain(
            span.clone(),
            format!(
                "without region {} only {} of {} voters are known to be left, which is no majority: nobody could decide",
                quote(&left.region),
                left.voters,
                left.of
            ),
            "add a node without data (a witness) in a third region, give each voter its `region`, and name them in `voters` of [consensus]",
        );
    }
}

/// Who votes, if that is not up to etcd.
fn voters(consensus: &Consensus) -> &[String] {
    match consensus.kind {
        ConsensusKind::Embedded => &consensus.voters,
        ConsensusKind::Etcd { .. } => &[],
    }
}

fn regions_of<'a>(part: &Postgres, regions: &BTreeMap<&str, Option<&'a str>>) -> BTreeSet<&'a str> {
    part.nodes.iter().filter_map(|node| *regions.get(node.as_str())?).collect()
}

/// A voter of which nobody knows where it stands could be lost with any region.
fn left(region: &str, voters: &[String], regions: &BTreeMap<&str, Option<&str>>) -> Left {
    let elsewhere = |voter: &&String| {
        regions.get(voter.as_str()).copied().flatten().is_some_and(|other| other != region)
    };
    let left = voters.iter().filter(elsewhere).count();
    Left { region: region.to_owned(), voters: left, of: voters.len() }
}

/// Databases whose home no other region could take over from, because nobody could decide.
pub fn warnings(topology: &Topology) -> Vec<String> {
    let regions: BTreeMap<&str, Option<&str>> =
        topology.nodes.iter().map(|(name, node)| (name.as_str(), node.region.as_deref())).collect();
    let lost = topology.postgres.iter().filter_map(|(name, part)| {
        let left = left(part.home.as_ref()?, voters(&topology.consensus), &regions);
        let alone = regions_of(part, &regions).len() < 2;
        (left.of > 0 && !alone && !left.is_majority()).then(|| {
            format!(
                "postgres.{name}: without its home {} only {} of {} voters are known to be left, which is no majority; then not even `outlast failover --region` can make a member elsewhere the primary. Put voters into other regions, a third one for example",
                quote(&left.region), left.voters, left.of
            )
        })
    });
    lost.collect()
}
