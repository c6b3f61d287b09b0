//! A cluster made with `kind`, where that program and a container engine are there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::ListParams};

use super::{
    cache::Cache,
    command::{command, run, run_with},
    plane::{AUDIT_POLICY, Found, Owner, add_gpus, connect, remove},
    progress::{Detail, Progress},
};

/// One kind cluster.
#[derive(Debug, Clone)]
pub struct KindCluster {
    name: String,
    state: PathBuf,
}

impl KindCluster {
    /// The kind cluster called `name`, there or not.
    #[must_use]
    pub fn new(cache: &Cache, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: cache.path(&format!("kind/{name}")),
        }
    }

    /// The administrator's client configuration.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("admin.kubeconfig")
    }

    /// The API server's audit log, which the cluster's node shares with this machine.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.state.join("audit/audit.log")
    }

    /// Creates the cluster for `owner`, or joins the existing one.
    ///
    /// # Errors
    /// `kind` fails.
    pub async fn up(&self, owner: Owner, progress: &Progress) -> Result<Found> {
        let found = self.join_or_create(owner, progress).await?;
        if owner == Owner::Nobody {
            remove(&self.made_for())?;
        }
        Ok(found)
    }

    async fn join_or_create(&self, owner: Owner, progress: &Progress) -> Result<Found> {
        let existing = run(command("kind", ["get", "clusters"])).await?;
        if existing.lines().any(|line| line.trim() == self.name) && self.kubeconfig().is_file() {
            return Ok(Found::Running);
        }
        fs::create_dir_all(self.state.join("audit"))?;
        fs::write(self.made_for(), owner.text())?;
        fs::write(self.state.join("audit-policy.yaml"), AUDIT_POLICY)?;
        let config = self.state.join("kind.yaml");
        fs::write(&config, configuration(&self.state))?;
        let detail = Detail::default();
        let create = async {
            let mut create = command(
                "kind",
                ["create", "cluster", "--wait", "180s", "--name", &self.name],
            );
            create
                .arg("--kubeconfig")
                .arg(self.kubeconfig())
                .arg("--config")
                .arg(&config);
            run_with(create, &detail).await.map(|_| ())
        };
        progress
            .step_with("creating a kind cluster", &detail, create)
            .await?;
        let client = connect(&self.kubeconfig()).await?;
        let nodes: Api<Node> = Api::all(client.clone());
        for node in nodes.list(&ListParams::default()).await? {
            add_gpus(&client, node.metadata.name.as_deref().unwrap_or_default()).await?;
        }
        Ok(Found::Absent)
    }

    /// Deletes the cluster if it was made for `owner`, whole or not, and has not been given to nobody since.
    ///
    /// # Errors
    /// As [`Self::down`].
    pub async fn release(&self, owner: Owner, progress: &Progress) -> Result<()> {
        if self.is_made_for(owner) {
            self.down(progress).await
        } else {
            Ok(())
        }
    }

    fn is_made_for(&self, owner: Owner) -> bool {
        fs::read_to_string(self.made_for()).is_ok_and(|text| text == owner.text())
    }

    fn made_for(&self) -> PathBuf {
        self.state.join("made-for")
    }

    /// Deletes the cluster.
    ///
    /// # Errors
    /// `kind` fails.
    pub async fn down(&self, progress: &Progress) -> Result<()> {
        let delete = async {
            run(command("kind", ["delete", "cluster", "--name", &self.name])).await?;
            match fs::remove_dir_all(&self.state) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            }
        };
        progress.step("deleting the kind cluster", delete).await
    }

    /// Hands an image archive to every node.
    ///
    /// # Errors
    /// `kind` fails.
    pub async fn load(&self, archive: &Path) -> Result<()> {
        let mut load = command("kind", ["load", "image-archive", "--name", &self.name]);
        load.arg(archive);
        run(load).await.map(|_| ())
    }
}

/// One node whose API server keeps the same audit log as the local plane's.
fn configuration(state: &Path) -> String {
    let state = state.display();
    format!(
        "kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
  - role: control-plane
    extraMounts:
      - {{hostPath: '{state}/audit-policy.yaml', containerPath: /etc/weir/audit-policy.yaml, readOnly: true}}
      - {{hostPath: '{state}/audit', containerPath: /var/log/weir}}
    kubeadmConfigPatches:
      - |
        kind: ClusterConfiguration
        apiServer:
          extraArgs:
            audit-policy-file: /etc/weir/audit-policy.yaml
            audit-log-path: /var/log/weir/audit.log
          extraVolumes:
            - {{name: audit-policy, hostPath: /etc/weir/audit-policy.yaml, mountPath: /etc/weir/audit-policy.yaml, readOnly: true, pathType: File}}
            - {{name: audit-log, hostPath: /var/log/weir, mountPath: /var/log/weir, pathType: DirectoryOrCreate}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::process::Record;

    #[test]
    fn the_configuration_is_yaml_with_one_node() {
        let text = configuration(Path::new("/state"));
        let value: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
        assert_eq!(value["nodes"].as_array().map(Vec::len), Some(1));
        let patch = value["nodes"][0]["kubeadmConfigPatches"][0]
            .as_str()
            .expect("a patch");
        let patch: serde_json::Value = serde_saphyr::from_str(patch).expect("YAML");
        assert_eq!(
            patch["apiServer"]["extraArgs"]["audit-log-path"],
            "/var/log/weir/audit.log"
        );
    }

    #[test]
    fn only_the_one_it_was_made_for_ends_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let kind = KindCluster::new(&Cache::at(directory.path()), "weir");
        let own = Owner::Process(Record::own().expect("a process"));
        assert!(!kind.is_made_for(own), "a cluster that was there before");
        fs::create_dir_all(&kind.state).expect("a directory");
        fs::write(kind.made_for(), own.text()).expect("a mark");
        assert!(kind.is_made_for(own) && !kind.is_made_for(Owner::Nobody));
    }
}
