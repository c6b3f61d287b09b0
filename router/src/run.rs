//! Wires the parts of either role together, and ends them together.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    process,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use weir_wire::ports;

use crate::{
    admin::{self, Admin, TokenFile},
    args::{Args, Concurrency, GatewayArgs, Role, SidecarArgs},
    gateway::{
        Gateway,
        control::Control,
        endpoints::{self, Discovery, Readiness},
        file, fixed,
        pools::Pools,
    },
    metrics::{self, Metrics},
    proxy::server::{self, Traffic},
    sidecar::{self, Sidecar},
    telemetry,
};

/// Of the drain time, the share after which what still waits is refused instead of cut, so that clients get an answer.
const LAST_CALL: f64 = 0.9;

/// Runs the role that the command line names until it is told to end.
///
/// # Errors
/// Whatever keeps it from starting or going on.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        role,
        log_format,
        log,
    } = args;
    if let Role::Gateway(GatewayArgs {
        check: true,
        config: Some(path),
        ..
    }) = &role
    {
        return check(path);
    }
    telemetry::start(log_format, &log)?;
    raise_descriptor_limit();
    // On one core, threads that steal work from each other only get in each other's way.
    let mut builder = match thread::available_parallelism() {
        Ok(cores) if cores.get() == 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.enable_all().build()?;
    let result = runtime.block_on(async {
        let stop = stop_on_signals()?;
        match role {
            Role::Gateway(args) => gateway(args, stop).await,
            Role::Sidecar(args) => beside_an_engine(args, stop).await,
        }
    });
    // What may still run are blocking reads of small files; nothing waits for them.
    runtime.shutdown_background();
    result
}

/// Prints an error and its causes for a person.
pub fn complain(error: &anyhow::Error) {
    let mut text = format!("weir-router: {error}");
    for cause in error.chain().skip(1) {
        let _ = write!(text, ": {cause}");
    }
    // Without a standard error there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

fn check(path: &Path) -> anyhow::Result<()> {
    let config = file::load(path).with_context(|| path.display().to_string())?;
    io::stdout().write_all(file::describe(&config).as_bytes())?;
    Ok(())
}

/// Every connection is a descriptor; the soft limit is often 1,024 where the hard one is high.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if current != maximum && setrlimit(Resource::Nofile, raised).is_err() {
        tracing::warn!(limit = current, "the limit on open files could not be raised");
    }
}

/// Cancelled by the first SIGTERM or SIGINT; the second ends the process at once.
fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = stop.clone();
    let mut watching = JoinSet::new();
    watching.spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if token.is_cancelled() {
                process::exit(130);
            }
            tracing::info!("stopping");
            token.cancel();
        }
    });
    watching.detach_all();
    Ok(stop)
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))
}

async fn gateway(args: GatewayArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let GatewayArgs {
        config,
        check: _,
        namespace,
        name,
        token_file,
        listen: traffic,
        admin_listen,
    } = args;
    let metrics = Metrics::new(metrics::Role::Gateway)?;
    let broken = CancellationToken::new();
    let pools = Pools::new(Arc::clone(&metrics), broken.clone());
    let readiness = Arc::new(Readiness::default());
    let token = token_file.map(TokenFile::open).transpose()?;
    let seed = instance();

    let mut beside = JoinSet::new();
    let ended = CancellationToken::new();
    match (config, namespace, name, token.clone()) {
        (Some(path), ..) => {
            let first = file::load(&path).with_context(|| path.display().to_string())?;
            pools.apply(first)?;
            readiness.configured();
            readiness.endpoints_fixed();
            let path: Arc<Path> = path.into();
            beside.spawn(file::watch(
                path,
                Arc::clone(&pools),
                Arc::clone(&metrics),
                ended.clone(),
            ));
            beside.spawn(fixed::watch(Arc::clone(&pools), ended.clone()));
        }
        (None, Some(namespace), Some(name), Some(token)) => {
            let discovery = Discovery {
                client: endpoints::client()
                    .await
                    .context("cannot reach the Kubernetes API")?,
                namespace,
                gateway: name,
                pools: Arc::clone(&pools),
                token,
                sidecar_port: ports::ADMIN,
                metrics: Arc::clone(&metrics),
                readiness: Arc::clone(&readiness),
            };
            beside.spawn(discovery.run(ended.clone()));
        }
        _ => anyhow::bail!("either --config, or --namespace, --name and --token-file"),
    }
    let control = Control {
        pools: Arc::clone(&pools),
        readiness,
        metrics: Arc::clone(&metrics),
        instance: format!("{seed:08x}"),
    };
    let admin = Admin::new(control, Arc::clone(&metrics), token);
    beside.spawn(admin::serve(listen(admin_listen).await?, admin, ended.clone()));

    let result = tokio::select! {
        result = traffic_port(traffic, &pools, metrics, seed, stop) => result,
        () = broken.cancelled() => Err(anyhow::anyhow!("a pool's scheduler failed")),
        Some(task) = beside.join_next() => Err(anyhow::anyhow!("a background task ended: {task:?}")),
    };
    ended.cancel();
    while beside.join_next().await.is_some() {}
    result
}

/// Opens the traffic port once a configuration is in force, and serves until `stop` and the drain after it.
async fn traffic_port(
    address: SocketAddr,
    pools: &Arc<Pools>,
    metrics: Arc<Metrics>,
    seed: u32,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut changes = pools.changes();
    tokio::select! {
        configured = changes.wait_for(|version| *version > 0) => {
            configured?;
        }
        () = stop.cancelled() => return Ok(()),
    }
    let last_call = CancellationToken::new();
    let gateway = Gateway::new(Arc::clone(pools), Arc::clone(&metrics), seed, last_call.clone());
    let port = Traffic {
        listener: listen(address).await?,
        bounds: pools.bounds(),
        metrics: &metrics,
    };
    tracing::info!(address = %address, pools = pools.list().len(), "gateway serves");
    let handler = move |request| Arc::clone(&gateway).answer(request);
    let stopping = stop.clone();
    let closing = Arc::clone(pools);
    let refuse_late = async move {
        stopping.cancelled().await;
        let drain = Duration::from(closing.view().config.timeouts.drain).mul_f64(LAST_CALL);
        let mut orphaned = closing.orphaned();
        tokio::select! {
            () = tokio::time::sleep(drain) => {}
            // Nothing that waits will ever be served: the pools are gone, and this gateway with them.
            _ = orphaned.wait_for(|orphaned| *orphaned) => {}
        }
        last_call.cancel();
        closing.close();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        served = server::serve(port, handler, stop) => Ok(served?),
        () = refuse_late => Ok(()),
    }
}

async fn beside_an_engine(args: SidecarArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let SidecarArgs {
        pool,
        pool_uid,
        engine,
        engine_port,
        model,
        concurrency: Concurrency(concurrency),
        token_file,
        listen,
        admin_listen,
        drain_timeout,
    } = args;
    let metrics = Metrics::new(metrics::Role::Sidecar)?;
    let settings = sidecar::Settings {
        pool,
        pool_uid,
        engine,
        engine_port,
        model,
        concurrency,
        listen,
        admin_listen,
        token_file,
        drain_timeout,
    };
    Ok(Sidecar::bind(settings, metrics).await?.run(stop).await?)
}

/// Differs from process to process: half of the nanoseconds since 1970, mixed with the process's number.
fn instance() -> u32 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    (since.as_nanos() as u32) ^ process::id().rotate_left(16)
}
