//! The network that joins the nodes: one bridge in a namespace of its own, a link to each node and one to
//! the host.
//!
//! ```text
//! host namespace        <prefix>-net            <prefix>-node1      <prefix>-node2
//!   <prefix> 10.K.0.1 ──── host ─┐
//!                               br0 10.K.0.2
//!                                ├─ node1 ──── eth0 10.K.0.11
//!                                └─ node2 ──────────────────── eth0 10.K.0.12
//! ```
//! The bridge is not on the host so that the host's packet filters do not see the nodes' packets, and the
//! nodes' default route ends at the bridge, so that nothing of a cluster leaves the machine.
//!
//! Invariant: every link ends in one of the namespaces, so deleting those leaves nothing behind.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use tokio::process::Command;

use crate::spec::Spec;

/// Held while a free slot of addresses is chosen and taken.
const SLOT_LOCK: &str = "/run/lock/rkube-e2e.lock";

/// Clusters that can exist on one machine at a time.
const SLOTS: u8 = 32;

/// Makes the bridge and the host's link to it, and chooses the cluster's addresses if it has none yet.
pub(crate) async fn make(spec: &mut Spec) -> Result<()> {
    let prefix = spec.prefix();
    let net = spec.fabric();
    if exists(&net) && is_reachable(spec).await? {
        return Ok(());
    }
    remove(&net).await?;
    // Two clusters that come up at once must not choose the same addresses.
    let _ = fs::create_dir_all("/run/lock");
    let lock = File::create(SLOT_LOCK).with_context(|| format!("creating {SLOT_LOCK}"))?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    spec.slot = free_slot(spec.slot % SLOTS).await?;
    let (host, gateway) = (spec.host_address(), spec.gateway());
    ip(&["netns", "add", &net]).await?;
    ip(&["link", "add", &prefix, "type", "veth", "peer", "name", "host", "netns", &net]).await?;
    ip(&["-n", &net, "link", "add", "br0", "type", "bridge"]).await?;
    ip(&["-n", &net, "link", "set", "lo", "up"]).await?;
    ip(&["-n", &net, "link", "set", "host", "master", "br0", "up"]).await?;
    ip(&["-n", &net, "addr", "add", &format!("{gateway}/24"), "dev", "br0"]).await?;
    ip(&["-n", &net, "link", "set", "br0", "up"]).await?;
    ip(&["link", "set", &prefix, "up"]).await?;
    ip(&["addr", "add", &format!("{host}/24"), "dev", &prefix]).await?;
    drop(lock);
    // Pods and Services from the host, through the first node.
    let first = spec.node_address(1).to_string();
    for network in [spec.cluster_cidr(), spec.service_cidr()] {
        ip(&["route", "add", &network, "via", &first, "dev", &prefix]).await?;
    }
    Ok(())
}

/// Makes a node's namespace and its link. One that exists is made anew: its node is gone.
pub(crate) async fn make_node(spec: &Spec, number: usize) -> Result<()> {
    let (net, node, link) = (spec.fabric(), spec.netns(number), spec.node_name(number));
    remove(&node).await?;
    // The bridge's end goes with the node's, but only when the kernel gets to it.
    let _ = ip(&["-n", &net, "link", "delete", &link]).await;
    ip(&["netns", "add", &node]).await?;
    ip(&["link", "add", "eth0", "netns", &node, "type", "veth", "peer", "name", &link, "netns", &net]).await?;
    ip(&["-n", &net, "link", "set", &link, "master", "br0", "up"]).await?;
    ip(&["-n", &node, "link", "set", "lo", "up"]).await?;
    ip(&["-n", &node, "addr", "add", &format!("{}/24", spec.node_address(number)), "dev", "eth0"]).await?;
    ip(&["-n", &node, "link", "set", "eth0", "up"]).await?;
    ip(&["-n", &node, "route", "add", "default", "via", &spec.gateway().to_string()]).await
}

/// Cuts a node off, or joins it again: its cable.
pub(crate) async fn set_link(spec: &Spec, number: usize, up: bool) -> Result<()> {
    let state = if up { "up" } else { "down" };
    ip(&["-n", &spec.fabric(), "link", "set", &spec.node_name(number), state]).await
}

/// Deletes a namespace with its links, if there is one.
pub(crate) async fn remove(netns: &str) -> Result<()> {
    if exists(netns) {
        ip(&["netns", "delete", netns]).await?;
    }
    Ok(())
}

pub(crate) fn exists(netns: &str) -> bool {
    Path::new("/run/netns").join(netns).exists()
}

/// Every namespace of the cluster with this prefix.
pub(crate) fn all(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let start = format!("{prefix}-");
    names.filter(|name| name.starts_with(&start)).collect()
}

/// Whether an earlier start got as far as the host's own address, which comes last but for the routes.
async fn is_reachable(spec: &Spec) -> Result<bool> {
    let routes = run(&["-4", "route", "show", "dev", &spec.prefix()]).await.unwrap_or_default();
    Ok([spec.cluster_cidr(), spec.service_cidr()].iter().all(|network| routes.contains(network.as_str())))
}

async fn free_slot(first: u8) -> Result<u8> {
    let routes = run(&["-4", "route", "show", "table", "all"]).await?;
    let resolvers = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let taken = networks(&format!("{routes}\n{resolvers}"));
    match (first..SLOTS).chain(0..first).find(|slot| is_free(*slot, &taken)) {
        Some(slot) => Ok(slot),
        None => bail!("none of {SLOTS} sets of addresses is free on this machine; take a cluster down first"),
    }
}

/// Every network and address in a text.
fn networks(text: &str) -> Vec<Ipv4Net> {
    let words = text.split_whitespace();
    words.filter_map(|word| word.parse().ok().or_else(|| word.parse::<Ipv4Addr>().ok().map(Ipv4Net::from))).collect()
}

/// Whether nothing that the host reaches now is inside the slot's networks, its resolver included. A wider network may hold
/// them: the cluster's routes are narrower and go first.
fn is_free(slot: u8, taken: &[Ipv4Net]) -> bool {
    Spec::slot_networks(slot).iter().all(|network| !taken.iter().any(|taken| network.contains(taken)))
}

async fn ip(arguments: &[&str]) -> Result<()> {
    run(arguments).await.map(drop)
}

async fn run(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(arguments).output().await.context("running ip (package iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_when_the_host_reaches_nothing_in_it() {
        let taken = networks(
            "default via 192.0.2.1 dev eth0\n10.0.0.0/8 via 192.0.2.1 dev eth0\n10.161.0.0/24 dev e2e proto kernel src 10.161.0.1\n\
             10.194.7.0/24 dev eth1 scope link\nlocal 10.227.0.5 dev eth2 table local\nnameserver 10.255.255.53\n",
        );
        let free: Vec<u8> = (0..SLOTS).filter(|slot| is_free(*slot, &taken)).collect();
        assert_eq!(free, [vec![0], (4..31).collect()].concat());
    }
}
