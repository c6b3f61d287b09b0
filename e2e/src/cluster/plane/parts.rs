//! The plane's processes and their command lines.

use std::path::Path;

use super::files::{LOCAL_IP, NODE, NODE_IP, SERVICES};

pub(super) const ETCD: &str = "etcd";
pub(super) const API_SERVER: &str = "kube-apiserver";
pub(super) const CONTROLLER_MANAGER: &str = "kube-controller-manager";
pub(super) const SCHEDULER: &str = "kube-scheduler";
pub(super) const KUBELET: &str = "kubelet";
pub(super) const PROXY: &str = "kube-proxy";
pub(super) const DNS: &str = "coredns";
pub(super) const CONTAINERD: &str = "containerd";

/// All of them.
pub(super) const ALL: &[&str] = &[
    ETCD,
    API_SERVER,
    CONTROLLER_MANAGER,
    SCHEDULER,
    CONTAINERD,
    PROXY,
    DNS,
    KUBELET,
];

const ETCD_CLIENTS: &str = "http://127.0.99.1:2379";
const ETCD_PEERS: &str = "http://127.0.99.1:2380";

/// The arguments of `part`; every path in them is below `state`.
// In the texts `@` stands for the state directory.
pub(super) fn arguments(part: &str, state: &Path) -> Vec<String> {
    let text = match part {
        ETCD => format!(
            "--data-dir=@/etcd --listen-client-urls={ETCD_CLIENTS} --advertise-client-urls={ETCD_CLIENTS}
             --listen-peer-urls={ETCD_PEERS} --initial-advertise-peer-urls={ETCD_PEERS}
             --initial-cluster=default={ETCD_PEERS} --unsafe-no-fsync --log-level=error"
        ),
        API_SERVER => format!(
            "--etcd-servers={ETCD_CLIENTS} --bind-address={NODE_IP} --secure-port=6443 --advertise-address={NODE_IP}
             --client-ca-file=@/pki/ca.crt --tls-cert-file=@/pki/apiserver.crt
             --tls-private-key-file=@/pki/apiserver.key --service-account-key-file=@/pki/sa.pub
             --service-account-signing-key-file=@/pki/sa.key
             --service-account-issuer=https://kubernetes.default.svc --authorization-mode=Node,RBAC
             --enable-admission-plugins=NodeRestriction --service-cluster-ip-range={SERVICES}
             --kubelet-client-certificate=@/pki/apiserver.crt --kubelet-client-key=@/pki/apiserver.key
             --kubelet-preferred-address-types=InternalIP --allow-privileged=true --cert-dir=@/pki
             --audit-policy-file=@/audit-policy.yaml --audit-log-path=@/log/audit.log
             --audit-log-maxsize=4000"
        ),
        // A node without processor time for a while is no dead node here: pods must not be evicted for it.
        CONTROLLER_MANAGER => format!("--kubeconfig=@/controller-manager.kubeconfig --service-account-private-key-file=@/pki/sa.key
             --root-ca-file=@/pki/ca.crt --use-service-account-credentials --leader-elect=false
             --authentication-kubeconfig=@/controller-manager.kubeconfig
             --authorization-kubeconfig=@/controller-manager.kubeconfig --bind-address={LOCAL_IP}
             --cluster-signing-cert-file=@/pki/ca.crt --cluster-signing-key-file=@/pki/ca.key
             --node-monitor-grace-period=5m --kube-api-qps=100 --kube-api-burst=200 --cert-dir=@/pki"),
        SCHEDULER => format!("--kubeconfig=@/scheduler.kubeconfig --authentication-kubeconfig=@/scheduler.kubeconfig
             --authorization-kubeconfig=@/scheduler.kubeconfig --leader-elect=false --bind-address={LOCAL_IP}
             --cert-dir=@/pki"),
        KUBELET => format!(
            "--config=@/kubelet.yaml --kubeconfig=@/kubelet.kubeconfig --hostname-override={NODE}
             --root-dir=@/kubelet --node-ip={NODE_IP} --cert-dir=@/pki"
        ),
        PROXY => "--config=@/proxy.yaml".to_owned(),
        DNS => "-conf=@/Corefile".to_owned(),
        CONTAINERD => "--config=@/containerd.toml".to_owned(),
        _ => String::new(),
    };
    // The path comes in last: it may hold spaces.
    let state = state.display().to_string();
    text.split_whitespace()
        .map(|word| word.replace('@', &state))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_arguments_and_names_its_state_directory() {
        for part in ALL {
            let arguments = arguments(part, Path::new("/a state"));
            assert!(!arguments.is_empty(), "{part}");
            assert!(arguments.iter().any(|word| word.contains("=/a state/")), "{part}");
        }
    }
}
