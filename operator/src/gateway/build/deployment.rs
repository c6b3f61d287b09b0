//! The gateway's Deployment. Its replicas are left to whoever scales it: absent, there is one. Its configuration is
//! not in the template: gateways watch their ConfigMap.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Container, Lifecycle, LifecycleHandler, PodSpec, PodTemplateSpec, ResourceRequirements,
            SecretVolumeSource, SleepAction, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use weir_crds::names;

use super::Maker;
use crate::{labels, probes, restricted};

/// Seconds that a stopping gateway may go on with its requests: [`LEAVE_SECONDS`], its own drain timeout (10 minutes) and
/// half a minute.
const GRACE_SECONDS: i64 = 635;
/// Seconds between a pod's deletion and SIGTERM: new connections arrive until every node has taken it out of the Service,
/// and would be refused.
const LEAVE_SECONDS: i64 = 5;

pub(super) fn deployment(maker: &Maker<'_>, router_image: &str) -> Deployment {
    Deployment {
        metadata: maker.own(),
        spec: Some(DeploymentSpec {
            replicas: None,
            selector: maker.selector(),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            revision_history_limit: Some(2),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels::gateway(&maker.key.name)),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(maker, router_image)),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn pod(maker: &Maker<'_>, router_image: &str) -> PodSpec {
    PodSpec {
        service_account_name: Some(names::gateway(&maker.key.name)),
        automount_service_account_token: Some(true),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(restricted::pod()),
        containers: vec![container(maker, router_image)],
        volumes: Some(vec![Volume {
            name: "control".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(names::control_secret(&maker.key.name)),
                default_mode: Some(0o440),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    }
}

fn container(maker: &Maker<'_>, router_image: &str) -> Container {
    let args = [
        "gateway",
        "--namespace",
        &maker.key.namespace,
        "--name",
        &maker.key.name,
        "--token-file",
        names::CONTROL_TOKEN_FILE,
    ];
    let requests = [("cpu", "100m"), ("memory", "64Mi")];
    Container {
        name: names::container::GATEWAY.to_owned(),
        image: Some(router_image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(args.map(str::to_owned).into()),
        ports: Some(probes::container_ports()),
        readiness_probe: Some(probes::probe("/readyz", 1, 2, 3)),
        liveness_probe: Some(probes::probe("/livez", 10, 5, 3)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction {
                    seconds: LEAVE_SECONDS,
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        resources: Some(ResourceRequirements {
            requests: Some(
                requests
                    .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
                    .into(),
            ),
            ..ResourceRequirements::default()
        }),
        security_context: Some(restricted::container(true)),
        volume_mounts: Some(vec![VolumeMount {
            name: "control".to_owned(),
            mount_path: names::CONTROL_TOKEN_DIR.to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    }
}
