//! `cluster`: starts and ends the Kubernetes that tests and the demo run on.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use weir_e2e::{
    cluster::{
        Cluster,
        cache::Cache,
        images,
        plane::{Owner, Plane},
        process::Record,
        progress::Progress,
    },
    interrupted,
};

/// The Kubernetes that tests and the demo run on: that of KUBECONFIG, one made with kind, or a real one on this machine.
#[derive(Debug, Parser)]
#[command(name = "cluster", version)]
struct Args {
    /// Name of the cluster; one local Kubernetes runs at a time.
    #[arg(long, global = true, env = "WEIR_CLUSTER", default_value = "weir")]
    name: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start the cluster, or join the running one.
    Up {
        /// End it when this process has ended; without it, it runs until `cluster down`.
        #[arg(long)]
        owner: Option<i32>,
    },
    /// End the cluster and remove all its traces.
    Down {
        /// Only take back what `up --owner` said: whoever else has joined keeps it.
        #[arg(long)]
        owner: Option<i32>,
    },
    /// Show what runs.
    Status,
    /// Build IMAGE from DIRECTORY (with a Dockerfile) and hand it to the cluster.
    LoadImage {
        /// Name with tag, such as localhost/example:dev.
        image: String,
        /// Directory with the Dockerfile and what it copies.
        directory: PathBuf,
    },
    /// Compile the project, build its images and, if the cluster runs, hand them to it.
    Images,
    /// Print the path of the client configuration.
    Kubeconfig,
    /// Install packages and build the binaries of the local Kubernetes, without starting it.
    Build,
    /// End the local Kubernetes when the last of its owners has ended (started by `up`).
    #[command(hide = true)]
    Guard,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let progress = Progress::new();
    match run(args, &progress).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress.say(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args, progress: &Progress) -> Result<()> {
    let cache = Cache::from_env()?;
    match args.verb {
        Verb::Guard => return Plane::new(&cache, &args.name)?.guard(progress).await,
        Verb::Build => return Plane::new(&cache, &args.name)?.build(progress).await,
        Verb::Up { .. }
        | Verb::Down { .. }
        | Verb::Status
        | Verb::LoadImage { .. }
        | Verb::Images
        | Verb::Kubeconfig => {}
    }
    let cluster = Cluster::named(&args.name).await?;
    match args.verb {
        Verb::Up { owner } => up(&cluster, owner, progress).await,
        Verb::Down { owner: None } => cluster.down(progress).await,
        Verb::Down { owner: Some(pid) } => cluster.release(process(pid)?, progress).await,
        Verb::Status => status(&cluster).await,
        Verb::LoadImage { image, directory } => {
            let archive = images::build(&cache, &image, &directory, progress).await?;
            cluster.load(&[archive], progress).await
        }
        Verb::Images => {
            let archives = images::project(&cache, progress).await?;
            for archive in &archives {
                writeln!(io::stdout(), "{}\t{}", archive.name, archive.path.display())?;
            }
            if cluster.is_running().await {
                cluster.load(&archives, progress).await?;
            }
            Ok(())
        }
        Verb::Kubeconfig => Ok(writeln!(io::stdout(), "{}", cluster.kubeconfig().display())?),
        Verb::Guard | Verb::Build => Ok(()),
    }
}

fn process(pid: i32) -> Result<Owner> {
    let record = Record::of(pid).with_context(|| format!("the owner {pid} does not run"))?;
    Ok(Owner::Process(record))
}

async fn up(cluster: &Cluster, owner: Option<i32>, progress: &Progress) -> Result<()> {
    let owner = owner.map_or(Ok(Owner::Nobody), process)?;
    tokio::select! {
        result = cluster.up(owner, progress) => { result?; }
        signal = interrupted() => {
            progress.say(format_args!("{signal}: ending what was started"));
            cluster.release(owner, progress).await?;
            anyhow::bail!("interrupted");
        }
    }
    Ok(writeln!(
        io::stdout(),
        "export KUBECONFIG={}",
        cluster.kubeconfig().display()
    )?)
}

async fn status(cluster: &Cluster) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "cluster     {}", cluster.kind())?;
    writeln!(out, "kubeconfig  {}", cluster.kubeconfig().display())?;
    if let Cluster::Plane(plane) = cluster {
        for (name, record, alive) in plane.processes() {
            let state = if alive { "runs" } else { "has ended" };
            writeln!(out, "{name:<24} {:>8}  {state}", record.pid)?;
        }
    }
    let answers = if cluster.is_running().await {
        "answers"
    } else {
        "does not answer"
    };
    Ok(writeln!(out, "API server  {answers}")?)
}
