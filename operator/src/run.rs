//! Joins the parts: probes at once, then the kinds, then the lease, and only as leader watches, reconcilers, control
//! streams and scalers. Losing the lease, or any part that ends, ends the process.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, bail};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{Role, RoleBinding},
};
use kube::{Client, Resource, core::DeserializeGuard};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use weir_crds::{LLMPool, WorkflowPolicy};

use crate::{
    admin::{self, Health, Readiness},
    args::Config,
    caches::{Cache, Caches, Watched, Watches, status_only, without_managed_fields},
    calls::{Calls, TIMEOUT},
    check,
    control::{Tokens, board::Board, keep_streams},
    events::Events,
    gateway,
    key::Key,
    kinds,
    lease::{Elector, Leadership},
    llm_pool,
    metrics::Metrics,
    operator::{Operator, Work, owner_of},
    scaling::{keep_scalers, outlook::Outlooks},
    version, workflow_policy,
};

/// Reconciles of one kind at once.
const WORKERS: usize = 4;
/// Threads: the work is waiting, not computing.
const THREADS: usize = 2;

/// Runs the operator until it is told to stop, or must; with `--check` only looks whether it could.
///
/// # Errors
/// Whatever ends it early: an address that cannot be bound, a client that cannot be made, a lost lease, a part that
/// ended.
pub fn block_on(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    if config.check {
        let fine = runtime.block_on(async { check::check(&client().await?, &config).await })?;
        return if fine {
            Ok(())
        } else {
            bail!("the operator cannot work")
        };
    }
    runtime.block_on(Box::pin(run(config)))
}

async fn run(config: Config) -> anyhow::Result<()> {
    let metrics = Metrics::new().context("cannot register metrics")?;
    let health = Health::default();
    let listener = TcpListener::bind(config.admin_listen)
        .await
        .with_context(|| format!("cannot listen on --admin-listen {}", config.admin_listen))?;
    let mut parts = JoinSet::new();
    parts.spawn(admin::serve(listener, health.clone(), metrics.clone()));

    let client = client().await?;
    parts.spawn(kinds::warn_of_old(client.clone()));
    let mut term = signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?;
    let mut elector = Elector::new(
        client.clone(),
        &config.namespace,
        &config.lease_name,
        &config.identity,
        config.lease,
    );
    let follow = async {
        version::warn_if_old(&client).await;
        kinds::wait(&client, &config.watch_namespaces, &health).await;
        health.set(Readiness::Following);
        elector.acquire().await
    };
    let leadership = tokio::select! {
        leadership = follow => leadership,
        _ = term.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        _ = parts.join_next() => bail!("probes ended"),
    };
    tracing::info!(identity = config.identity, "this process leads");
    metrics.leader.set(1);
    health.set(Readiness::Listing);
    lead(&mut parts, client, &config, &leadership, (&health, &metrics));
    let ended = tokio::select! {
        () = elector.keep(&leadership) => Some("the lease is lost"),
        Some(_) = parts.join_next() => Some("a part of the operator ended"),
        _ = term.recv() => None,
        _ = interrupt.recv() => None,
    };
    metrics.leader.set(0);
    // Nothing of ours writes any more before the lease is free for another.
    leadership.end();
    parts.shutdown().await;
    elector.release(&leadership).await;
    match ended {
        Some(why) => bail!(why),
        None => Ok(()),
    }
}

/// The way to the API server.
async fn client() -> anyhow::Result<Client> {
    let mut client_config = kube::Config::infer().await.context("no way to an API server")?;
    client_config.connect_timeout = Some(TIMEOUT);
    client_config.write_timeout = Some(TIMEOUT);
    // Watches stay silent for up to their own 290 s; every other call has a timeout of its own (`calls.rs`).
    client_config.read_timeout = Some(Duration::from_secs(300));
    client_config.reset_reader_on_write = true;
    Client::try_from(client_config).context("cannot make an API client")
}

/// Starts everything that a leader does.
fn lead(
    parts: &mut JoinSet<()>,
    client: Client,
    config: &Config,
    leadership: &Leadership,
    (health, metrics): (&Health, &Metrics),
) {
    let work = Arc::new(Work::default());
    let board = Arc::new(Board::default());
    let mut watches = Watches::new(
        client.clone(),
        config.watch_namespaces.clone(),
        metrics.clone(),
        health.clone(),
    );
    let caches = watch(&mut watches, &work, &board);
    for task in watches.tasks {
        parts.spawn(task);
    }
    let operator = Operator {
        calls: Calls::new(client.clone(), leadership.clone(), metrics.clone()),
        caches,
        board,
        tokens: Arc::new(Tokens::default()),
        outlooks: Arc::new(Outlooks::default()),
        work,
        events: Events::new(client, &config.identity),
        metrics: metrics.clone(),
        router_image: config.router_image.as_str().into(),
        workflows: config.workflows,
        reported: Arc::default(),
    };
    parts.spawn(work_on(operator, health.clone()));
}

/// Waits for the first listing, then works for ever.
async fn work_on(operator: Operator, health: Health) {
    operator.caches.ready().await;
    health.set(Readiness::Leading);
    let mut parts = JoinSet::new();
    parts.spawn(keep_streams(operator.clone()));
    parts.spawn(keep_scalers(operator.clone()));
    parts.spawn(queue(&operator, &operator.work.pools, llm_pool::reconcile));
    parts.spawn(queue(
        &operator,
        &operator.work.policies,
        workflow_policy::reconcile,
    ));
    parts.spawn(queue(&operator, &operator.work.gateways, gateway::reconcile));
    parts.spawn(follow_configurations(operator));
    parts.join_next().await;
}

fn queue<F, Fut>(
    operator: &Operator,
    queue: &Arc<crate::queue::Queue<Key>>,
    reconcile: F,
) -> impl Future<Output = ()> + Send + 'static
where
    F: Fn(Operator, Key) -> Fut + Send + 'static,
    Fut: Future<Output = crate::queue::Outcome> + Send + 'static,
{
    let operator = operator.clone();
    Arc::clone(queue).work(WORKERS, move |key| reconcile(operator.clone(), key))
}

/// Policies show which gateways run with them: they are looked at when a gateway says what it runs with.
async fn follow_configurations(operator: Operator) {
    let mut configurations = operator.board.configurations();
    while configurations.changed().await.is_ok() {
        for policy in operator.caches.policies.all() {
            operator
                .work
                .policies
                .add_after(Key::of(policy.as_ref()), Duration::from_millis(200));
        }
    }
}

/// One watch per kind, and who is told of what.
fn watch(watches: &mut Watches, work: &Arc<Work>, board: &Arc<Board>) -> Caches {
    let cell: Arc<OnceLock<Caches>> = Arc::default();
    let pools = {
        let (work, board, cell) = (Arc::clone(work), Arc::clone(board), Arc::clone(&cell));
        watches.kind("LLMPool", move |pool: &DeserializeGuard<LLMPool>| {
            if let Some(caches) = cell.get() {
                work.pool_changed(pool, caches);
            }
            board.tell(&Key::of(pool));
        })
    };
    let policies = {
        let (work, cell) = (Arc::clone(work), Arc::clone(&cell));
        watches.kind(
            "WorkflowPolicy",
            move |policy: &DeserializeGuard<WorkflowPolicy>| {
                if let Some(caches) = cell.get() {
                    work.policy_changed(policy, caches);
                }
            },
        )
    };
    let deployments = {
        let (work, board) = (Arc::clone(work), Arc::clone(board));
        // Managed fields stay: they tell who else wrote replicas.
        watches.owned(
            "Deployment",
            |_: &mut Deployment| (),
            move |deployment: &Deployment| {
                work.owned(deployment);
                tell(&board, deployment);
            },
        )
    };
    let pods = {
        let (work, board) = (Arc::clone(work), Arc::clone(board));
        watches.owned("Pod", status_only, move |pod: &Pod| match owner_of(pod) {
            Some((true, pool)) => board.tell(&pool),
            Some((false, _)) => work.gateway_pods.notify_one(),
            None => {}
        })
    };
    let caches = Caches {
        pools,
        policies,
        deployments,
        pods,
        services: watch_owned::<Service>(watches, "Service", work),
        service_accounts: watch_owned::<ServiceAccount>(watches, "ServiceAccount", work),
        roles: watch_owned::<Role>(watches, "Role", work),
        role_bindings: watch_owned::<RoleBinding>(watches, "RoleBinding", work),
        config_maps: watch_owned::<ConfigMap>(watches, "ConfigMap", work),
        budgets: watch_owned::<PodDisruptionBudget>(watches, "PodDisruptionBudget", work),
        network_policies: watch_owned::<NetworkPolicy>(watches, "NetworkPolicy", work),
    };
    cell.get_or_init(|| caches.clone());
    caches
}

fn tell(board: &Board, object: &impl Resource) {
    if let Some((true, pool)) = owner_of(object) {
        board.tell(&pool);
    }
}

fn watch_owned<K: Watched>(watches: &mut Watches, kind: &'static str, work: &Arc<Work>) -> Cache<K> {
    let work = Arc::clone(work);
    watches.owned(kind, without_managed_fields, move |object: &K| work.owned(object))
}
