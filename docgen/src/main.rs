//! Writes the reference pages that speak of both binaries, `docs/metrics.md` and `docs/flags.md`, from the definitions
//! that the binaries run with; with `--check` fails where a page on disk differs. (`docs/crds.md` is crdgen's.)

mod flags;
mod metrics;

use std::{
    env, fs,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, bail};

fn main() -> anyhow::Result<ExitCode> {
    let check = match env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => bail!("unknown argument `{other}`; usage: docgen [--check]"),
    };
    let stale = stale()?;
    for (path, text) in &stale {
        if check {
            writeln!(
                io::stderr(),
                "{path} is not what the binaries say: run `make generate`"
            )?;
        } else {
            fs::write(root().join(path), text).with_context(|| format!("write {path}"))?;
            writeln!(io::stdout(), "wrote {path}")?;
        }
    }
    Ok(if check && !stale.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The workspace.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Pages that are not on disk as they should be, with what they should be.
fn stale() -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut pages = vec![
        ("docs/metrics.md", metrics::page()?),
        ("docs/flags.md", flags::page()),
    ];
    pages.retain(|(path, text)| fs::read_to_string(root().join(path)).unwrap_or_default() != *text);
    Ok(pages)
}

/// One row of a table; a bar inside a cell is escaped.
fn row(page: &mut String, cells: &[&str]) {
    for cell in cells {
        page.push_str("| ");
        page.push_str(&cell.replace('|', "\\|"));
        page.push(' ');
    }
    page.push_str("|\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_are_current() {
        let stale: Vec<&str> = stale().unwrap().into_iter().map(|(path, _)| path).collect();
        assert!(stale.is_empty(), "run `make generate`: {stale:?}");
    }

    #[test]
    fn both_binaries_are_on_both_pages() {
        let (metrics, flags) = (metrics::page().unwrap(), flags::page());
        for text in [
            "`weir_operator_fences_total` | counter | `outcome`",
            "`weir_requests_total` | counter | `pool` `outcome` `reason` | gateway",
        ] {
            assert!(metrics.contains(text), "{text}");
        }
        for text in [
            "`--router-image` | `WEIR_ROUTER_IMAGE` | required",
            "`--drain-timeout` | `WEIR_DRAIN_TIMEOUT` | `10m`",
            "## weir-router gateway",
        ] {
            assert!(flags.contains(text), "{text}");
        }
    }

    #[test]
    fn every_metric_and_flag_is_explained() {
        for page in [metrics::page().unwrap(), flags::page()] {
            for line in page.lines().filter(|line| line.starts_with("| `")) {
                let meaning = line.trim_end_matches(" |").rsplit("| ").next().unwrap();
                assert!(meaning.len() > 10, "{line}");
            }
        }
    }
}
