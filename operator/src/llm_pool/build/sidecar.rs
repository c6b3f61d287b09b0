//! The native sidecar: an init container that keeps running, starts before the engine and ends after it.

use k8s_openapi::{
    api::core::v1::{Container, ResourceRequirements, VolumeMount},
    apimachinery::pkg::api::resource::Quantity,
};
use weir_crds::{go_format, names};

use super::Valid;
use crate::{probes, restricted};

pub(super) fn sidecar(pool: &Valid, router_image: &str) -> Container {
    let spec = &pool.spec;
    let concurrency = spec
        .engine
        .max_concurrency
        .map_or("auto".to_owned(), |most| most.to_string());
    let args = [
        ("--pool", pool.key.name.clone()),
        ("--pool-uid", pool.uid.clone()),
        ("--engine", spec.engine.r#type.as_str().to_owned()),
        ("--engine-port", spec.engine_port().to_string()),
        ("--model", spec.model.name.clone()),
        ("--concurrency", concurrency),
        ("--token-file", names::CONTROL_TOKEN_FILE.to_owned()),
        ("--drain-timeout", go_format(spec.drain.timeout.into())),
    ];
    let mut all_args = vec!["sidecar".to_owned()];
    all_args.extend(
        args.into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]),
    );
    Container {
        name: names::container::SIDECAR.to_owned(),
        image: Some(router_image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        restart_policy: Some("Always".to_owned()),
        args: Some(all_args),
        ports: Some(probes::container_ports()),
        resources: Some(ResourceRequirements {
            requests: Some(
                [("cpu", "50m"), ("memory", "64Mi")]
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
