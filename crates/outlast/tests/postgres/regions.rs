//! Members in two regions and a witness in a third one.

use std::fs;
use std::time::{Duration, Instant};

use crate::are_real;
use crate::cluster::{Cluster, Plan};
use crate::wait::{REJOIN, TAKEOVER};

/// Until all four members are there, each but one by a clone, and follow whom they are to follow.
const BEGIN: Duration = Duration::from_secs(120);

const EAST: [&str; 2] = ["a", "b"];
const WEST: [&str; 2] = ["d", "e"];

const MANUAL: Plan = Plan {
    nodes: &["a", "b", "d", "e", "w"],
    members: &["a", "b", "d", "e"],
    lines: "home = \"east\"",
};
const AUTOMATIC: Plan =
    Plan { lines: "home = \"east\"\nregion_failover = \"automatic\"", ..MANUAL };

fn region(node: &str) -> &'static str {
    match node {
        "a" | "b" => "east",
        "d" | "e" => "west",
        _ => "north",
    }
}

/// Starts the agents, whose files say where each node stands.
fn serving(plan: Plan) -> Cluster {
    let mut cluster = Cluster::new(plan);
    for node in cluster.plan.nodes {
        let file = cluster.file(node);
        let mut text = fs::read_to_string(&file).unwrap();
        for node in cluster.plan.nodes {
            let head = format!("[node.{node}]\n");
            text = text.replace(&head, &format!("{head}region = \"{}\"\n", region(node)));
        }
        // All five vote: else the loss of a region could leave too few.
        text += &format!("[consensus]\nvoters = {:?}\n", cluster.plan.nodes);
        fs::write(&file, text).unwrap();
        cluster.start_agent(node);
    }
    cluster.until(BEGIN, "the database serves in both regions", is_whole);
    cluster.write(crate::ledger::TABLE).unwrap();
    cluster
}

/// The primary's region acknowledges; of the other one a relay follows the primary, and the other member the relay.
fn is_whole(cluster: &Cluster) -> bool {
    let Some(primary) = cluster.primary() else { return false };
    let Some(says) = cluster.says(primary) else { return false };
    let (near, far) = if region(primary) == "east" { (EAST, WEST) } else { (WEST, EAST) };
    let Some(other) = near.into_iter().find(|node| *node != primary) else { return false };
    let relayed = |relay: &str, last: &str| {
        says["members"][last]["upstream"] == *relay
            && cluster.is_standby_of(relay, primary)
            && cluster.is_standby_of(last, relay)
    };
    says["rule_changes"] == false
        && says["active_region"] == region(primary)
        && cluster.is_standby_of(other, primary)
        && says["members"][other]["sync"] == true
        && far.iter().all(|node| says["members"][*node]["sync"] == false)
        && (relayed(far[0], far[1]) || relayed(far[1], far[0]))
}

fn rebuilt(cluster: &Cluster) -> usize {
    let rebuilds = |node: &&str| {
        let log = fs::read_to_string(cluster.dir.join(format!("{node}.log"))).unwrap();
        let begun = |line: &&str| line.contains("Rewind {") || line.contains("Clone {");
        log.lines().filter(|line| line.contains("order=")).filter(begun).count()
    };
    cluster.plan.nodes.iter().map(rebuilds).sum()
}

fn history(cluster: &Cluster) -> String {
    cluster.verb("w", &["history", "orders"]).1
}

/// it follows, fails over within its region, moves to the other region and back, and is taken over by hand.
#[test]
fn a_region_follows_is_switched_to_and_back_and_taken_over_by_hand() {
    if !are_real() {
        return;
    }
    let mut cluster = serving(MANUAL);
    let first = cluster.primary().unwrap();
    assert_eq!(region(first), "east", "it is made at home");
    let writer = cluster.writer(&EAST);

    // Within the region.
    cluster.kill_node(first);
    let second = cluster.successor(first);
    assert_eq!(region(second), "east", "its own region takes over");
    cluster.start_agent(first);
    cluster.until(REJOIN, "all is whole after a failover at home", is_whole);
    cluster.flows(&writer);

    // To the other one and back.
    let before = rebuilt(&cluster);
    for to in ["west", "east"] {
        let since = Instant::now();
        let (done, said) = cluster.verb("w", &["switchover", "orders", "--region", to]);
        assert!(done, "{said}");
        assert!(said.contains(" of system "), "the token is shown: {said}");
        cluster.flows(&writer);
        println!("MEASURED to {to}: blackout {:.2} s", writer.blackout(since).as_secs_f64());
        cluster.until(REJOIN, "all is whole after a swap", is_whole);
        assert_eq!(cluster.primary().map(region), Some(to));
        assert_eq!(rebuilt(&cluster), before, "nothing is rebuilt");
    }
    assert!(history(&cluster).contains(" of system "), "{}", history(&cluster));
    cluster.audit(writer);

    // The region is lost: nobody else takes over by themselves.
    for node in EAST {
        cluster.kill_node(node);
    }
    cluster.until(TAKEOVER, "it is said why nobody takes over", |cluster| {
        ["d", "e", "w"].iter().any(|node| {
            let why = cluster.says(node).map(|says| says["why"].to_string());
            // The second may have been heard a moment longer than the first.
            let words = ["no other member in region `east`", "which has not reported"];
            why.is_some_and(|why| words.iter().any(|words| why.contains(words)))
        })
    });
    let (done, said) = cluster.verb("w", &["failover", "orders", "--region", "west", "--yes"]);
    assert!(!done && said.contains("nothing was changed"), "{said}");
    assert!(!history(&cluster).contains("into region"), "{}", history(&cluster));
    let words = ["failover", "orders", "--region", "west", "--allow-data-loss", "--yes"];
    let (done, said) = cluster.verb("w", &words);
    assert!(done, "{said}");
    // The other nodes may hear of it a moment later than the one that was asked.
    let third = cluster.wait(TAKEOVER, "the other region serves", |cluster| {
        cluster.primary_but(&EAST).filter(|primary| region(primary) == "west")
    });
    assert!(history(&cluster).contains("accepting a loss"), "{}", history(&cluster));
    for node in EAST {
        cluster.start_agent(node);
    }
    cluster.until(REJOIN, "the old region follows", is_whole);
    assert_eq!(cluster.primary(), Some(third), "it does not go back by itself");
}

/// A-26, the last part.
#[test]
fn a_region_that_is_lost_is_taken_over_by_itself_if_that_is_wanted() {
    if !are_real() {
        return;
    }
    let mut cluster = serving(AUTOMATIC);
    let writer = cluster.writer(&EAST);
    let since = Instant::now();
    for node in EAST {
        cluster.kill_node(node);
    }
    let next = cluster.wait(TAKEOVER, "the other region serves", |cluster| {
        cluster.primary_but(&EAST).filter(|primary| region(primary) == "west")
    });
    cluster.flows(&writer);
    println!("MEASURED region lost: blackout {:.2} s", writer.blackout(since).as_secs_f64());
    let said = history(&cluster);
    // The second may have been heard a moment longer than the first: then the election has begun as one at home.
    let words = ["region `east` is silent", "accepting a loss"];
    assert!(words.iter().any(|words| said.contains(words)), "{said}");
    for node in EAST {
        cluster.start_agent(node);
    }
    cluster.until(REJOIN, "the old region follows", is_whole);
    assert_eq!(cluster.primary(), Some(next), "it does not go back by itself");
    let rows = cluster.rows(next).unwrap();
    let account = writer.end();
    assert!(rows.is_subset(&account.tried), "rows that nobody wrote");
    let lost = account.acknowledged.iter().filter(|id| !rows.contains(id)).count();
    println!("{lost} of {} acknowledged rows lost, which this allows", account.acknowledged.len());
    let (done, said) = cluster.verb("w", &["switchover", "orders", "--region", "east"]);
    assert!(done, "{said}");
    cluster.until(REJOIN, "all is whole at home", is_whole);
    assert_eq!(cluster.primary().map(region), Some("east"));
}
