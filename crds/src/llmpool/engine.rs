//! What an engine pod is made of: model, program, hardware, placement, volumes.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{EnvVar, NodeAffinity, Toleration, TopologySpreadConstraint},
    apimachinery::pkg::api::resource::Quantity,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Decimal, schema};

/// The model and the names that requests ask for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// The name in the field `model` of requests and answers. Two pools of one gateway may not share a name: the
    /// younger one is not served, and says so in its Ready condition.
    #[schemars(
        length(min = 1, max = 256),
        regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$")
    )]
    pub name: String,
    /// Further names for the same model, at most 16. Absent: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub aliases: Vec<String>,
    /// Where the weights are: `hf://organisation/repository` (Hugging Face), `pvc://claim/path` (a volume claim of
    /// this namespace), `image:///path` (in the engine image), or `image` (the engine image knows by itself; it is
    /// started with the model's name).
    #[schemars(
        length(min = 1, max = 1024),
        regex(
            pattern = r"^(hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*|pvc://[a-z0-9]([-.a-z0-9]*[a-z0-9])?(/[A-Za-z0-9_@+-][A-Za-z0-9._@+-]*)*|image|image://(/[A-Za-z0-9_@+-][A-Za-z0-9._@+-]*)+)$"
        )
    )]
    pub source: String,
    /// Branch, tag or commit in the repository; only with `hf://`. Absent: the repository's default branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._/-]*$"))]
    pub revision: Option<String>,
    /// Secret with the token for the repository; only with `hf://`. Absent: the download is anonymous.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKey>,
}

/// One key of a Secret in the pool's namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Key in it.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// Where the weights are, read from [`Model::source`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelSource<'a> {
    /// A repository `organisation/name` at Hugging Face.
    HuggingFace(&'a str),
    /// A path, without a leading slash and possibly empty, in a volume claim.
    Claim {
        /// Name of the PersistentVolumeClaim.
        claim: &'a str,
        /// Path in the volume.
        path: &'a str,
    },
    /// An absolute path in the engine image.
    ImagePath(&'a str),
    /// The engine image knows by itself.
    Image,
}

impl Model {
    /// The parsed source; `None` for a form that the schema does not let in.
    #[must_use]
    pub fn parsed_source(&self) -> Option<ModelSource<'_>> {
        if self.source == "image" {
            return Some(ModelSource::Image);
        }
        if let Some(repository) = self.source.strip_prefix("hf://") {
            return Some(ModelSource::HuggingFace(repository));
        }
        if let Some(path) = self.source.strip_prefix("image://") {
            return path.starts_with('/').then_some(ModelSource::ImagePath(path));
        }
        let volume = self.source.strip_prefix("pvc://")?;
        let (claim, path) = volume.split_once('/').unwrap_or((volume, ""));
        Some(ModelSource::Claim { claim, path })
    }

    /// The model's name and its aliases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.aliases.iter().map(String::as_str))
    }
}

/// The program that serves the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Engine {
    /// Which engine the image holds: its flags, metrics and shutdown differ. Default `VLLM`.
    #[serde(default)]
    pub r#type: EngineType,
    /// Image of the engine. That of vLLM has the entry point `vllm serve`; in that of SGLang the pod runs
    /// `python3 -m sglang.launch_server`.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^\S+$"))]
    pub image: String,
    /// When the image is pulled: `IfNotPresent`, `Always` or `Never`. Default `IfNotPresent`.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,
    /// Further flags of the engine, at most 128 words of at most 2,048 characters. Flags that the operator sets
    /// (address, names, shutdown, ...) are refused. Absent: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 128),
        inner(length(max = 2048)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub args: Vec<String>,
    /// Further environment variables of the engine, at most 64, as in a Pod. Names that the operator sets are
    /// refused. Absent: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::embedded_by_name::<EnvVar>")]
    pub env: Vec<EnvVar>,
    /// Requests that one engine may work on at once; more wait in the gateway. Absent: as many as the engine says
    /// it can run in one batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub max_concurrency: Option<u32>,
}

/// Which engine the image holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EngineType {
    /// vLLM.
    #[default]
    #[serde(rename = "VLLM")]
    Vllm,
    /// SGLang.
    SGLang,
}

impl EngineType {
    /// The engine's own HTTP port.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Vllm => 8_000,
            Self::SGLang => 30_000,
        }
    }

    /// As in the spec and on the sidecar's command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vllm => "VLLM",
            Self::SGLang => "SGLang",
        }
    }
}

/// When the engine image is pulled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// Only if the node does not have it.
    #[default]
    IfNotPresent,
    /// At every start.
    Always,
    /// The node must have it.
    Never,
}

impl ImagePullPolicy {
    /// As Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IfNotPresent => "IfNotPresent",
            Self::Always => "Always",
            Self::Never => "Never",
        }
    }
}

/// Accelerators and price of one engine pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Accelerator {
    /// Extended resource of the accelerators, such as `nvidia.com/gpu`. Absent: a CPU engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 3, max = 253),
        regex(pattern = "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?/[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$")
    )]
    pub resource: Option<String>,
    /// How many of them one engine pod gets. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub count: u32,
    /// Price of one engine pod for an hour, all its accelerators together, in your currency: `"2.50"`. Absent: cost
    /// is shown in hours only. A price does not change when the pool stops, unless waiting is priced too
    /// (`idle.waitingWeight`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hourly_price: Option<Decimal>,
}

fn one() -> u32 {
    1
}

/// Requests and limits of the engine container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Resources {
    /// What the scheduler reserves, by resource name. Absent: nothing.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::quantities")]
    pub requests: BTreeMap<String, Quantity>,
    /// What the container may use, by resource name. Absent: no limit.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::quantities")]
    pub limits: BTreeMap<String, Quantity>,
}

/// Where engine pods may run: the fields of the same names in a Pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Scheduling {
    /// Labels that a node must have. Absent: none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::string_map")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are tolerated, at most 32. Absent: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::embedded_list::<Toleration>")]
    pub tolerations: Vec<Toleration>,
    /// Required and preferred nodes. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::embedded::<NodeAffinity>")]
    pub node_affinity: Option<NodeAffinity>,
    /// How engine pods are spread, at most 32 constraints. Absent: the cluster's default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::embedded_list::<TopologySpreadConstraint>")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// PriorityClass of engine pods. Absent: the cluster's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub priority_class_name: Option<String>,
    /// RuntimeClass of engine pods, such as `nvidia`. Absent: the cluster's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub runtime_class_name: Option<String>,
}

/// Volume for weights and compile caches; exactly one of the two.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Cache {
    /// A PersistentVolumeClaim of this namespace, shared by the pool's engine pods. Absent: not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub claim_name: Option<String>,
    /// Storage of the pod, lost with it, of at most this size. Absent: not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<ByteSize>,
}

/// Labels and annotations added to engine pods.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PodMetadata {
    /// Labels, at most 32. Those of Weir are refused. Absent: none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::label_map")]
    pub labels: BTreeMap<String, String>,
    /// Annotations, at most 32. Those of Weir are refused. Absent: none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::string_map")]
    pub annotations: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(source: &str) -> Model {
        Model {
            name: "m".to_owned(),
            aliases: vec!["a".to_owned()],
            source: source.to_owned(),
            revision: None,
            token_secret_ref: None,
        }
    }

    #[test]
    fn every_form_of_a_source_is_read() {
        for (source, expected) in [
            (
                "hf://Qwen/Qwen3-8B",
                Some(ModelSource::HuggingFace("Qwen/Qwen3-8B")),
            ),
            (
                "pvc://weights",
                Some(ModelSource::Claim {
                    claim: "weights",
                    path: "",
                }),
            ),
            (
                "pvc://weights/a/b",
                Some(ModelSource::Claim {
                    claim: "weights",
                    path: "a/b",
                }),
            ),
            ("image", Some(ModelSource::Image)),
            ("image:///opt/model", Some(ModelSource::ImagePath("/opt/model"))),
            ("image://opt", None),
            ("s3://bucket", None),
        ] {
            assert_eq!(model(source).parsed_source(), expected, "{source}");
        }
    }

    #[test]
    fn names_are_the_name_first() {
        assert_eq!(model("image").names().collect::<Vec<_>>(), ["m", "a"]);
    }
}
