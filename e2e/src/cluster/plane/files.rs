//! The configuration files of the plane's parts: pure text from the paths of one state directory.

use std::path::Path;

/// Address of the node, on a bridge of its own: API server, kubelet and DNS listen there and nowhere else.
pub(super) const NODE_IP: &str = "10.0.99.1";
/// Address of what only the plane's own parts ask; not 127.0.0.1, where other programs may hold the usual ports.
pub(super) const LOCAL_IP: &str = "127.0.99.1";
/// First address of the service range: the API server as pods see it.
pub(super) const API_SERVICE_IP: &str = "10.96.0.1";
/// Range of service addresses.
pub(super) const SERVICES: &str = "10.96.0.0/16";
/// Range of pod addresses.
pub(super) const PODS: &str = "10.244.0.0/24";
/// The node's name.
pub(super) const NODE: &str = "node-1";
/// Bridge with the node's address.
pub(super) const NODE_BRIDGE: &str = "weir-node";
/// Bridge that joins the pods.
pub(super) const POD_BRIDGE: &str = "weir-pods";
/// Our own nftables table.
pub(super) const NFT_TABLE: &str = "weir-plane";

/// A client's configuration for the certificate `NAME.crt`.
pub(super) fn kubeconfig(state: &Path, name: &str) -> String {
    let pki = state.join("pki");
    let pki = pki.display();
    format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: weir, cluster: {{server: 'https://{NODE_IP}:6443', certificate-authority: '{pki}/ca.crt'}}}}]
users: [{{name: {name}, user: {{client-certificate: '{pki}/{name}.crt', client-key: '{pki}/{name}.key'}}}}]
contexts: [{{name: weir, context: {{cluster: weir, user: {name}}}}}]
current-context: weir
"
    )
}

/// Every write by anybody, and every read but those of the plane's own parts; bodies only for what scales.
pub const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: None
    users: ['system:kube-scheduler', 'system:kube-proxy', 'system:coredns', 'system:apiserver', 'system:kube-controller-manager']
    verbs: [get, list, watch]
  - level: None
    userGroups: ['system:nodes']
    verbs: [get, list, watch]
  - level: None
    userGroups: ['system:serviceaccounts:kube-system']
    verbs: [get, list, watch]
  - level: None
    resources: [{group: coordination.k8s.io, resources: [leases]}]
    namespaces: [kube-node-lease, kube-system]
  - level: Request
    verbs: [create, update, patch, delete]
    resources: [{group: apps, resources: [deployments, deployments/scale]}]
  - level: Metadata
";

/// `restrict_oom_score_adj`: without `CAP_SYS_RESOURCE` runc dies with \"can't get final child's PID from pipe: EOF\".
/// `netns_mounts_under_state_dir`: clearing the state directory then clears the pods' network namespaces.
pub(super) fn containerd(state: &Path, cni_directory: &str) -> String {
    let state = state.display();
    format!(
        r#"version = 2
root = "{state}/cri/root"
state = "{state}/cri/state"
[grpc]
  address = "{state}/cri/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/weir-pause:plane"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_directory}"
    conf_dir = "{state}/cni"
"#
    )
}

/// A bridge and addresses from a file: no NetworkPolicy is enforced. Masquerading is a rule of our own table, because
/// the plugin would ask for iptables.
pub(super) fn network(state: &Path) -> String {
    let state = state.display();
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "weir", "plugins": [
  {{"type": "bridge", "bridge": "{POD_BRIDGE}", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {{"type": "host-local", "dataDir": "{state}/ipam", "ranges": [[{{"subnet": "{PODS}"}}]],
            "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}
"#
    )
}

/// The rules that let pods reach the world outside the machine.
pub(super) fn nftables() -> String {
    format!(
        "table ip {NFT_TABLE} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {PODS} ip daddr != {{ {PODS}, {SERVICES} }} masquerade
  }}
}}
"
    )
}

/// No cgroup hierarchy of its own, no iptables, no image collection; everything it writes is under the state directory.
/// Without that hierarchy the resizing of pods in place panics when a pod is deleted without grace
/// (kubernetes/kubernetes#137999), so it is off.
pub(super) fn kubelet(state: &Path) -> String {
    let state = state.display();
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {NODE_IP}
healthzBindAddress: {LOCAL_IP}
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: '{state}/pki/ca.crt'}}}}
authorization: {{mode: Webhook}}
tlsCertFile: '{state}/pki/kubelet.crt'
tlsPrivateKeyFile: '{state}/pki/kubelet.key'
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
makeIPTablesUtilChains: false
containerRuntimeEndpoint: 'unix://{state}/cri/containerd.sock'
podLogsDir: '{state}/pods'
clusterDNS: ['{NODE_IP}']
clusterDomain: cluster.local
evictionHard: {{memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}}
imageGCHighThresholdPercent: 100
featureGates: {{InPlacePodVerticalScaling: false}}
syncFrequency: 10s
"
    )
}

/// `masqueradeAll`: answers between two pods on the one bridge would otherwise pass by the address translation on
/// machines without `br_netfilter`.
pub(super) fn proxy(state: &Path) -> String {
    let state = state.display();
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: {PODS}
nftables: {{masqueradeAll: true, minSyncPeriod: 100ms}}
clientConnection: {{kubeconfig: '{state}/proxy.kubeconfig'}}
hostnameOverride: {NODE}
healthzBindAddress: {LOCAL_IP}:10256
metricsBindAddress: {LOCAL_IP}:10249
"
    )
}

/// Names of the cluster from the API server, all others from the machine's own servers.
pub(super) fn corefile(state: &Path) -> String {
    let state = state.display();
    format!(
        ".:53 {{
  bind {NODE_IP}
  errors
  kubernetes cluster.local {{
    kubeconfig {state}/coredns.kubeconfig weir
  }}
  forward . /etc/resolv.conf
  cache 5
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_names_only_its_own_state_directory() {
        let state = Path::new("/somewhere/of its own");
        let texts = [
            kubeconfig(state, "admin"),
            containerd(state, "/usr/lib/cni"),
            network(state),
            kubelet(state),
            proxy(state),
            corefile(state),
        ];
        for text in texts {
            assert!(text.contains("/somewhere/of its own/"), "{text}");
            assert!(!text.contains("/var/lib"), "{text}");
        }
    }

    #[test]
    fn yaml_and_json_parse() {
        let state = Path::new("/state");
        for text in [
            kubeconfig(state, "admin"),
            kubelet(state),
            proxy(state),
            AUDIT_POLICY.to_owned(),
        ] {
            let value: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
            assert!(value.get("kind").is_some());
        }
        let network: serde_json::Value = serde_json::from_str(&network(state)).expect("JSON");
        assert_eq!(network["plugins"][0]["type"], "bridge");
    }
}
