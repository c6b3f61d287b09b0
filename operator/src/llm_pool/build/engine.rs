//! The engine container: flags, environment, probes and volumes that the engine's behaviour calls for. The reasons
//! are in the engine's documentation of shutdown, keep-alive and start-up; the flags set here are those that
//! `weir_crds::reserved` keeps users from setting.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, Lifecycle, LifecycleHandler,
        PersistentVolumeClaimVolumeSource, ResourceRequirements, SecretKeySelector, SecretVolumeSource,
        Volume, VolumeMount,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use weir_crds::{Duration, llmpool::EngineType, names};
use weir_wire::sidecar::{DRAIN, ENGINE_LIVEZ};

use super::{Valid, deployment::SHUTDOWN_SECONDS};
use crate::{llm_pool::validate::Source, probes, restricted};

/// Where the cache volume is mounted.
const CACHE: &str = "/cache";
/// Where a claim with weights is mounted.
const MODELS: &str = "/models";
/// Seconds that an idle connection from the sidecar stays open: longer than the sidecar keeps it.
const KEEP_ALIVE_SECONDS: &str = "120";
/// Shared memory for each accelerator, in GiB.
const SHM_GIB: u32 = 2;

/// Whole seconds, rounded up; negative durations, which the schema does not let in, are 0.
pub(super) fn seconds(duration: Duration) -> u64 {
    let span: std::time::Duration = duration.into();
    if duration.is_negative() {
        0
    } else {
        span.as_secs() + u64::from(span.subsec_nanos() > 0)
    }
}

pub(super) fn to_i32(value: u64) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

pub(super) fn engine(pool: &Valid) -> Container {
    let spec = &pool.spec;
    let deadline = to_i32(seconds(spec.startup.deadline).saturating_add(60));
    Container {
        name: names::container::ENGINE.to_owned(),
        image: Some(spec.engine.image.clone()),
        image_pull_policy: Some(spec.engine.image_pull_policy.as_str().to_owned()),
        command: command(pool),
        args: Some(args(pool)),
        env: Some(env(pool)),
        resources: Some(resources(pool)),
        // One second apart: the first of these probes that passes ends the start.
        startup_probe: Some(probes::probe("/readyz", 1, 2, deadline)),
        readiness_probe: Some(probes::probe("/readyz", 1, 2, 3)),
        liveness_probe: Some(probes::probe(ENGINE_LIVEZ, 10, 5, 3)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                http_get: Some(probes::get(DRAIN)),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        security_context: Some(restricted::container(false)),
        volume_mounts: Some(mounts(pool)),
        ..Container::default()
    }
}

fn command(pool: &Valid) -> Option<Vec<String>> {
    match pool.spec.engine.r#type {
        // The image's entry point is `vllm serve`.
        EngineType::Vllm => None,
        EngineType::SGLang => Some(
            ["python3", "-m", "sglang.launch_server"]
                .map(str::to_owned)
                .into(),
        ),
    }
}

fn args(pool: &Valid) -> Vec<String> {
    let spec = &pool.spec;
    let source = match &pool.source {
        Source::HuggingFace(repository) => repository.clone(),
        Source::Claim { path, .. } if path.is_empty() => MODELS.to_owned(),
        Source::Claim { path, .. } => format!("{MODELS}/{path}"),
        Source::Image(name) => name.clone(),
    };
    let port = spec.engine_port().to_string();
    let shutdown = SHUTDOWN_SECONDS.to_string();
    let own = |text: &[&str]| text.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    let mut args = match spec.engine.r#type {
        EngineType::Vllm => {
            let names: Vec<&str> = spec.model.names().collect();
            let mut args = own(&[&source, "--served-model-name"]);
            args.extend(own(&names));
            args.extend(own(&[
                "--host",
                "127.0.0.1",
                "--port",
                &port,
                "--shutdown-timeout",
                &shutdown,
            ]));
            args.extend(own(&["--enable-prompt-tokens-details"]));
            args
        }
        EngineType::SGLang => {
            // One name: SGLang answers to any, so aliases need no flag. Priorities run from low to high, as vLLM's do.
            own(&[
                "--model-path",
                &source,
                "--served-model-name",
                &spec.model.name,
                "--host",
                "127.0.0.1",
                "--port",
                &port,
                "--enable-metrics",
                "--enable-cache-report",
                "--schedule-low-priority-values-first",
            ])
        }
    };
    if let Some(revision) = &spec.model.revision {
        args.extend(own(&["--revision", revision]));
    }
    args.extend(spec.engine.args.iter().cloned());
    args
}

fn env(pool: &Valid) -> Vec<EnvVar> {
    let spec = &pool.spec;
    let ready_timeout = seconds(spec.startup.deadline).to_string();
    let value = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        value_from: None,
    };
    let mut env = vec![
        value("HOME", "/tmp"),
        value("HF_HOME", &format!("{CACHE}/huggingface")),
        value("XDG_CACHE_HOME", &format!("{CACHE}/xdg")),
    ];
    match spec.engine.r#type {
        EngineType::Vllm => env.extend([
            value("VLLM_CACHE_ROOT", &format!("{CACHE}/vllm")),
            value("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", KEEP_ALIVE_SECONDS),
            value("VLLM_ENGINE_READY_TIMEOUT_S", &ready_timeout),
        ]),
        EngineType::SGLang => env.extend([
            value("SGLANG_CACHE_DIR", &format!("{CACHE}/sglang")),
            value("SGLANG_TIMEOUT_KEEP_ALIVE", KEEP_ALIVE_SECONDS),
        ]),
    }
    if let Some(secret) = &spec.model.token_secret_ref {
        env.push(EnvVar {
            name: "HF_TOKEN".to_owned(),
            value: None,
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(SecretKeySelector {
                    name: secret.name.clone(),
                    key: secret.key.clone(),
                    optional: None,
                }),
                ..EnvVarSource::default()
            }),
        });
    }
    env.extend(spec.engine.env.iter().cloned());
    env
}

fn resources(pool: &Valid) -> ResourceRequirements {
    let spec = &pool.spec;
    let mut requests = spec.resources.requests.clone();
    let mut limits = spec.resources.limits.clone();
    if let Some(accelerator) = &spec.accelerator
        && let Some(resource) = &accelerator.resource
    {
        let count = Quantity(accelerator.count.to_string());
        requests.insert(resource.clone(), count.clone());
        limits.insert(resource.clone(), count);
    }
    let some = |map: BTreeMap<String, Quantity>| (!map.is_empty()).then_some(map);
    ResourceRequirements {
        requests: some(requests),
        limits: some(limits),
        claims: None,
    }
}

fn mounts(pool: &Valid) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let mut mounts = vec![
        mount("tmp", "/tmp", false),
        mount("shm", "/dev/shm", false),
        mount("cache", CACHE, false),
    ];
    if let Source::Claim { .. } = &pool.source {
        mounts.push(mount("models", MODELS, true));
    }
    mounts
}

/// Volumes of the pod.
pub(super) fn volumes(pool: &Valid) -> Vec<Volume> {
    let empty = |medium: Option<&str>, limit: Option<String>| EmptyDirVolumeSource {
        medium: medium.map(str::to_owned),
        size_limit: limit.map(Quantity),
    };
    let accelerators = pool
        .spec
        .accelerator
        .as_ref()
        .map_or(1, |accelerator| accelerator.count.max(1));
    let shm = format!("{}Gi", SHM_GIB.saturating_mul(accelerators));
    let cache = pool.spec.cache.clone().unwrap_or_default();
    let mut cache_volume = Volume {
        name: "cache".to_owned(),
        ..Volume::default()
    };
    match cache.claim_name {
        Some(claim_name) => {
            cache_volume.persistent_volume_claim = Some(PersistentVolumeClaimVolumeSource {
                claim_name,
                read_only: None,
            });
        }
        None => {
            cache_volume.empty_dir = Some(empty(
                None,
                cache.size_limit.map(|limit| limit.as_str().to_owned()),
            ));
        }
    }
    let mut volumes = vec![
        Volume {
            name: "control".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(names::control_secret(&pool.spec.gateway)),
                default_mode: Some(0o440),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "tmp".to_owned(),
            empty_dir: Some(empty(None, None)),
            ..Volume::default()
        },
        Volume {
            name: "shm".to_owned(),
            empty_dir: Some(empty(Some("Memory"), Some(shm))),
            ..Volume::default()
        },
        cache_volume,
    ];
    if let Source::Claim { claim, .. } = &pool.source {
        volumes.push(Volume {
            name: "models".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                read_only: Some(true),
            }),
            ..Volume::default()
        });
    }
    volumes
}
