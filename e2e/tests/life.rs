//! The whole life of a pool: zero, the first request held, one wake, turns at home, more endpoints under load, idle,
//! zero again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use weir_crds::{LLMPoolStatus, rounding};
use weir_e2e::{
    TestNamespace,
    client::{Answer, Caller, Chat},
    cluster::{audit::Filter, audit::Mark, command::run, progress::Progress},
    install,
    pool::{PATIENCE, Pool, Simulated},
    with_temp_namespace,
};

const POLICY: &str = "apiVersion: weir.dev/v1alpha1
kind: WorkflowPolicy
metadata: {name: agents}
spec:
  poolSelector: {}
  toolPause: {lease: 2s}
  slo: {ttft: 10s}
";

const COLUMNS: [&str; 10] = [
    "NAME",
    "MODEL",
    "READY",
    "DESIRED",
    "STATUS",
    "IDLE",
    "BREAK-EVEN",
    "COLD-START",
    "GOODPUT",
    "AGE",
];

/// How long the simulator takes to start.
const STARTUP: Duration = Duration::from_secs(1);
/// What a wake may take beyond [`STARTUP`]: scheduling, containers and probes take about a second on an idle machine,
/// here on one that compiles and tests beside it.
const AROUND: Duration = Duration::from_secs(20);
/// What a held request may wait beyond the measured start: the order before it, the dispatch after it.
const BESIDE: Duration = Duration::from_secs(5);
/// The figures are measured in milliseconds, each by itself, before a status rounds them.
const ROUNDING: Duration = Duration::from_millis(5);

/// One agent's conversation: every turn says all that was said before, and something new.
struct Conversation {
    id: String,
    messages: Vec<Value>,
}

impl Conversation {
    fn new(id: &str) -> Self {
        let system = format!("You are the agent {id}. {}", "Think before you act. ".repeat(60));
        Self {
            id: id.to_owned(),
            messages: vec![json!({"role": "system", "content": system})],
        }
    }

    async fn turn(&mut self, caller: &Caller, model: &str) -> Result<Answer> {
        let number = self.messages.len();
        self.messages
            .push(json!({"role": "user", "content": format!("Step {number} of the work.")}));
        let chat = Chat::new(model, "")
            .messages(&self.messages)
            .workflow(&self.id)
            .tokens(16)
            .stream();
        let answer = caller.chat(&chat).await?.whole()?;
        self.messages
            .push(json!({"role": "assistant", "content": answer.text()}));
        Ok(answer)
    }
}

/// The cells of the pool's line in `kubectl get llmpools`, by column.
async fn line(space: &TestNamespace) -> Result<Vec<(String, String)>> {
    let kubectl = space.cluster.kubectl(&["get", "llmpools", "-n", &space.name])?;
    let text = run(kubectl).await?;
    Progress::new().say(format_args!("\n{text}"));
    let mut lines = text.lines();
    let (head, row) = lines.next().zip(lines.next()).context("two lines")?;
    // Cells may be empty, so that only the columns' places tell them apart.
    let mut starts: Vec<usize> = COLUMNS.iter().filter_map(|name| head.find(name)).collect();
    ensure!(starts.len() == COLUMNS.len(), "columns: {head}");
    starts.push(row.len().max(head.len()));
    let cells = COLUMNS.iter().zip(starts.windows(2)).map(|(name, ends)| {
        let cell = row.get(ends[0]..ends[1].min(row.len())).unwrap_or("");
        ((*name).to_owned(), cell.trim().to_owned())
    });
    Ok(cells.collect())
}

async fn expect_cells(space: &TestNamespace, wanted: &[(&str, &str)]) -> Result<()> {
    let cells = line(space).await?;
    for (column, value) in wanted {
        let found = cells.iter().find(|(name, _)| name == column);
        let found = found.map_or("", |(_, cell)| cell.as_str());
        ensure!(found == *value, "{column} is `{found}`, not `{value}`: {cells:?}");
    }
    Ok(())
}

/// Replicas that were written to the pool's Deployment since `mark`, in order, with who wrote them.
fn replicas_written(space: &TestNamespace, mark: Mark) -> Result<Vec<(i64, String)>> {
    let filter = Filter::writes().of("deployments").within(&space.name);
    let events = space.cluster.audit()?.since(mark, &filter)?;
    let mut written = Vec::new();
    for event in events {
        let of_engine = event
            .object_ref
            .as_ref()
            .is_some_and(|object| object.name.ends_with("-engine") && object.subresource != "status");
        let replicas = event
            .request_object
            .as_ref()
            .and_then(|body| body.pointer("/spec/replicas"))
            .and_then(Value::as_i64);
        if let (true, Some(replicas)) = (of_engine, replicas) {
            written.push((replicas, event.user.username));
        }
    }
    Ok(written)
}

/// Starts that were measured.
fn samples(status: &LLMPoolStatus) -> u32 {
    status.cold_start.as_ref().map_or(0, |start| start.samples)
}

/// Checks the last measured start against the simulator's own time, its phases, and what the request that caused it
/// waited.
fn check_start(status: &LLMPoolStatus, measured: u32, answer: &Answer) -> Result<()> {
    let start = status.cold_start.as_ref().context("no start was measured")?;
    let (last, phases) = start.last.zip(start.phases.as_ref()).context("no figures")?;
    let last = Duration::from(last);
    ensure!(
        start.samples == measured,
        "{} starts measured, not {measured}",
        start.samples
    );
    ensure!(
        (STARTUP..=STARTUP + AROUND).contains(&last),
        "a start of {last:?}; the engine takes {STARTUP:?}"
    );
    let parts = [phases.schedule, phases.pull, phases.start, phases.load];
    let parts = || parts.into_iter().flatten().map(Duration::from);
    let sum: Duration = parts().sum();
    // A status rounds every figure by itself: each is off by half a step at most.
    let rounded = parts().chain([last]).map(rounding).sum::<Duration>() / 2;
    ensure!(
        sum.abs_diff(last) <= ROUNDING + rounded,
        "the phases sum to {sum:?}, the start took {last:?}: {phases:?}"
    );
    let waited = answer.queued().context("no waiting time")?;
    ensure!(
        (STARTUP..=last + BESIDE).contains(&waited),
        "waited {waited:?} for a start of {last:?}"
    );
    Ok(())
}

async fn first_wake(pool: &Pool, caller: &Caller, agent: &mut Conversation) -> Result<Answer> {
    let mark = pool.space.cluster.audit()?.mark()?;
    let answer = agent
        .turn(caller, &pool.model)
        .await
        .context("the first request")?;
    Progress::new().say(format_args!(
        "held for {:?}, answered after {:?}",
        answer.queued(),
        answer.ended_after
    ));
    ensure!(answer.was_held(), "not held: {:?}", answer.headers);
    ensure!(answer.home() == "new", "home {}", answer.home());
    let status = pool.serving(1, PATIENCE).await?;
    let written = replicas_written(&pool.space, mark)?;
    let values: Vec<i64> = written.iter().map(|(value, _)| *value).collect();
    ensure!(
        values.first() == Some(&1) && values.iter().all(|value| *value == 1),
        "{written:?}"
    );
    ensure!(
        written.iter().all(|(_, user)| user.ends_with(":weir-operator")),
        "{written:?}"
    );
    check_start(&status, 1, &answer)?;
    Ok(answer)
}

async fn turns_at_home(pool: &Pool, caller: &Caller, agent: &mut Conversation, home: &str) -> Result<()> {
    let mut before = 0;
    for _ in 0..4 {
        let answer = agent.turn(caller, &pool.model).await?;
        ensure!(
            answer.home() == "kept" && answer.endpoint() == home,
            "{:?}",
            answer.headers
        );
        let cached = answer.cached_tokens();
        ensure!(cached > before, "{cached} cached tokens after {before}");
        before = cached;
    }
    Ok(())
}

/// More streams than one engine takes, for as long as a second engine needs to start.
async fn load(pool: &Pool, caller: &Caller) -> Result<()> {
    let mut streams = JoinSet::new();
    for number in 0..60 {
        let (caller, model) = (caller.clone(), pool.model.clone());
        streams.spawn(async move {
            let chat = Chat::new(&model, "Work.")
                .workflow(&format!("load-{number}"))
                .tokens(120)
                .stream();
            caller.chat(&chat).await?.whole()
        });
    }
    pool.serving(2, PATIENCE).await.context("under load")?;
    let mut endpoints = std::collections::BTreeSet::new();
    while let Some(answer) = streams.join_next().await {
        endpoints.insert(answer??.endpoint().to_owned());
    }
    ensure!(endpoints.len() == 2, "the load went to {endpoints:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_wakes_serves_grows_and_returns_to_zero() -> Result<()> {
    install().await?;
    with_temp_namespace(async |space| {
        space.apply(POLICY).await?;
        let recipe = Simulated {
            name: "life",
            args: &["--startup=1s", "--profile=8b-h100", "--time-scale=3", "--seed=1"],
            max_concurrency: Some(4),
            more: "  scaling: {maxReplicas: 2, scaleDownDelay: 2s}
  idle: {coldStartPrior: 5s}
  accelerator: {hourlyPrice: \"2.50\"}
  drain: {timeout: 1m}",
        };
        let (pool, caller) = recipe.settled(&space, 0).await?;
        expect_cells(
            &space,
            &[("STATUS", "AtZero"), ("DESIRED", "0"), ("MODEL", "life-model")],
        )
        .await?;

        let mut agent = Conversation::new("first");
        let first = first_wake(&pool, &caller, &mut agent).await?;
        expect_cells(
            &space,
            &[("STATUS", "Serving"), ("DESIRED", "1"), ("READY", "1/1")],
        )
        .await?;
        turns_at_home(&pool, &caller, &mut agent, first.endpoint()).await?;
        load(&pool, &caller).await?;

        let idle = pool
            .until("to be idle, with its break-even", PATIENCE, |status| {
                let idle = status.idle.as_ref();
                idle.is_some_and(|idle| idle.break_even.is_some() && idle.zero_at.is_some())
            })
            .await?;
        let goodput = idle.goodput.context("streams had objectives")?;
        ensure!(
            goodput.window.is_some() && goodput.ttft_p95.is_some() && goodput.percent.is_some(),
            "{goodput:?}"
        );
        let reason = idle.idle.and_then(|idle| idle.reason).unwrap_or_default();
        ensure!(
            reason.contains("KV refill is "),
            "the countdown says why: {reason}"
        );
        Progress::new().say(format_args!("{reason}; {goodput:?}"));
        expect_cells(&space, &[("STATUS", "Serving")]).await?;
        let zero = pool.at_zero(PATIENCE).await?;
        ensure!(zero.cost.is_some(), "the pool knows what it has cost");
        expect_cells(&space, &[("STATUS", "AtZero"), ("DESIRED", "0")]).await?;

        let again = Chat::new(&pool.model, "Are you back?").id("again");
        let again = caller.chat(&again).await?.whole()?;
        ensure!(
            again.was_held() && again.endpoint() != first.endpoint(),
            "{:?}",
            again.headers
        );
        let status = pool
            .until("to have measured the second wake", PATIENCE, |status| {
                samples(status) > samples(&zero)
            })
            .await?;
        check_start(&status, samples(&zero) + 1, &again)
    })
    .await
}
