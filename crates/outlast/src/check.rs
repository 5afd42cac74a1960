//! `outlast check`: what is wrong with a topology file, or what can be expected of it.

mod stale;
mod warnings;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use outlast::export::kubernetes;
use outlast::file::{Complaints, FILE_MAX, parse};
use outlast::report;
use outlast_core::topology::Topology;
use serde_json::json;

use crate::cli::{CheckArgs, Format, KubernetesArgs, ManifestFormat};
use crate::{Outcome, output};

pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<Outcome> {
    let format = args.format;
    if args.table {
        return nine_nines(format);
    }
    let (name, text) = read(&args.file)?;
    match parse(&name, &text) {
        Ok(topology) => {
            output::print(&expected(&topology, &name, format))?;
            Ok(Outcome::Fine)
        }
        Err(complaints) => {
            complain(&complaints, &name, format)?;
            Ok(Outcome::Mistakes)
        }
    }
}

/// Prints a process as a Kubernetes Deployment.
pub(crate) fn export_kubernetes(args: &KubernetesArgs) -> anyhow::Result<Outcome> {
    let (name, text) = read(&args.file)?;
    let topology = match parse(&name, &text) {
        Ok(topology) => topology,
        Err(complaints) => {
            complain(&complaints, &name, Format::Table)?;
            return Ok(Outcome::Mistakes);
        }
    };
    let manifest = match args.format {
        ManifestFormat::Yaml => kubernetes::deployment_yaml(&topology, &args.process),
        ManifestFormat::Json => {
            kubernetes::deployment(&topology, &args.process).map(|m| format!("{m:#}\n"))
        }
    };
    match manifest {
        Ok(manifest) => {
            output::print(&manifest)?;
            Ok(Outcome::Fine)
        }
        Err(reason) => {
            output::complain(&format!("error: {reason}\n"));
            Ok(Outcome::Mistakes)
        }
    }
}

/// Reads a file, or standard input for `-`; not much more of it than `parse` accepts.
pub(crate) fn read(path: &Path) -> anyhow::Result<(String, String)> {
    let limit = FILE_MAX as u64 + 1;
    let mut bytes = Vec::new();
    let name = if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(limit)
            .read_to_end(&mut bytes)
            .context("read standard input")?;
        "standard input".to_owned()
    } else {
        let name = path.display().to_string();
        File::open(path)
            .and_then(|file| file.take(limit).read_to_end(&mut bytes))
            .with_context(|| format!("read {name}"))
            .context("no topology to check; name a file that can be read, as in `outlast check shop.toml`")?;
        name
    };
    if bytes.len() > FILE_MAX {
        // Cut in the middle of a character it would not even be text; `parse` refuses it by its size.
        return Ok((name, String::from_utf8_lossy(&bytes).into_owned()));
    }
    let text = String::from_utf8(bytes)
        .with_context(|| format!("read {name}: it is not UTF-8; save it as UTF-8"))?;
    Ok((name, text))
}

/// What can be expected of a topology that makes sense.
fn expected(topology: &Topology, name: &str, format: Format) -> String {
    let counts = [
        ("node", topology.nodes.len()),
        ("service", topology.services.len()),
        ("process", topology.processes.len()),
        ("postgres", topology.postgres.len()),
        ("redis", topology.redis.len()),
        ("store", topology.stores.len()),
        ("external", topology.externals.len()),
    ];
    match format {
        Format::Table => {
            let parts: Vec<String> = counts
                .into_iter()
                .filter(|&(_, count)| count > 0)
                .map(|(word, count)| format!("{count} {word}"))
                .collect();
            let options = report::TableOptions { colour: output::output_may_have_colour() };
            let report = report::render_table(&outlast_model::analyse(topology), options);
            let warnings: String = warnings::warnings(topology)
                .iter()
                .map(|said| format!("warning: {said}\n"))
                .collect();
            let gap = if warnings.is_empty() { "" } else { "\n" };
            let stale = stale::table(&stale::all(topology));
            format!("{name}: no mistakes ({})\n{gap}{warnings}\n{report}{stale}", parts.join(", "))
        }
        Format::Json => {
            let report = report::render_json(&outlast_model::analyse(topology));
            let warnings = warnings::warnings(topology);
            let all = json!({
                "file": name,
                "mistakes": [],
                "warnings": warnings,
                "report": report,
                "stale": stale::json(&stale::all(topology)),
            });
            format!("{all:#}\n")
        }
    }
}

/// The table of nines: what an availability means in downtime.
fn nine_nines(format: Format) -> anyhow::Result<Outcome> {
    output::print(&match format {
        Format::Table => report::nine_nines_table(),
        Format::Json => {
            let rows: Vec<_> =
                outlast_model::nine_nines().iter().map(report::nine_nines_json).collect();
            format!("{:#}\n", json!(rows))
        }
    })?;
    Ok(Outcome::Fine)
}

pub(crate) fn complain(complaints: &Complaints, name: &str, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Table => {
            output::complain(&complaints.render(output::complaints_may_have_colour()));
            Ok(())
        }
        Format::Json => {
            let mistakes = json!({
                "file": name,
                "count": complaints.count(),
                "mistakes": complaints.list(),
            });
            output::print(&format!("{mistakes:#}\n"))
        }
    }
}
