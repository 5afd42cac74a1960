//! `outlast switchover --at`: agreed on, and begun by whoever leads at that time.

use anyhow::{bail, ensure};
use outlast::cluster::door::Visitor;
use outlast_core::agreed::{Command, DatabaseCommand};
use outlast_core::time::Timestamp;
use serde_json::json;

use super::{Format, SwitchoverArgs, known, named, status, wanted, who, write};
use crate::{Outcome, output};

pub(super) async fn schedule(
    args: &SwitchoverArgs,
    when: jiff::Timestamp,
    visitor: &mut Visitor,
) -> anyhow::Result<Outcome> {
    ensure!(jiff::Timestamp::now() < when, "{when} has passed");
    let now = known(visitor, true, u64::MAX).await?;
    let database = named(&now, &args.database)?;
    if let Some(known) = &database.scheduled {
        bail!(
            "a switchover to node `{}` at {} waits already; take it back with --cancel",
            known.to,
            known.when
        );
    }
    let seen = status(&args.at).await?;
    let to = wanted(args, &seen)?;
    let members = seen.postgres.get(&args.database).map(|seen| &seen.members);
    ensure!(
        members.is_some_and(|members| members.contains_key(&to)),
        "node `{to}` is no member of postgres.{}",
        args.database
    );
    let when = Timestamp(when.as_millisecond());
    let command = DatabaseCommand::Schedule {
        database: args.database.clone(),
        to: to.clone(),
        who: who(),
        pause_max: args.pause,
        when,
    };
    write(visitor, Command::Database(command)).await?;
    output::print(&match args.format {
        Format::Json => format!("{}\n", json!({ "scheduled": when.to_string(), "to": to })),
        Format::Text => format!(
            "node `{to}` is to become primary at {when}, or `outlast switchover {} --cancel`\n",
            args.database
        ),
    })?;
    Ok(Outcome::Fine)
}

pub(super) async fn cancel(
    args: &SwitchoverArgs,
    visitor: &mut Visitor,
) -> anyhow::Result<Outcome> {
    let now = known(visitor, true, u64::MAX).await?;
    let database = named(&now, &args.database)?;
    let Some(scheduled) = &database.scheduled else {
        bail!("no switchover of postgres.{} waits for its time", args.database);
    };
    let (database, asked) = (args.database.clone(), scheduled.asked.index);
    let why = format!("{} took it back", who());
    write(visitor, Command::Database(DatabaseCommand::Unschedule { database, asked, why })).await?;
    let at = scheduled.when.to_string();
    output::print(&match args.format {
        Format::Json => format!("{}\n", json!({ "cancelled": at, "to": scheduled.to })),
        Format::Text => format!("node `{}` does not become primary at {at}\n", scheduled.to),
    })?;
    Ok(Outcome::Fine)
}
