//! Rules of the section `discovery`.

use super::Judge;
use super::controller::context_of_kubeconfig;
use super::proxy::{needs_identity, trusted};
use crate::{Config, ConfigPath};

/// Endpoints of one service that are told of; proxies take no more.
const MOST_ENDPOINTS: usize = 10_000;

pub(super) fn rules(config: &Config, judge: &mut Judge<'_>) {
    let Some(discovery) = &config.discovery else { return };
    let at = ConfigPath::from("discovery");
    needs_identity(config, &at, judge);
    trusted(config, &at.key("allowedPeers"), &discovery.allowed_peers, judge);
    if let Some(kubernetes) = &discovery.kubernetes {
        judge.not_zero(&at.key("kubernetes").key("timeout"), kubernetes.timeout);
        context_of_kubeconfig(&at.key("kubernetes"), &kubernetes.kubeconfig, &kubernetes.context, judge);
    }
    let services = at.key("services");
    let names = discovery.services.iter().enumerate();
    judge.unique(
        "service",
        "keep one of them",
        names.map(|(index, one)| (services.index(index).key("name"), &one.name)),
    );
    let addresses = discovery.services.iter().enumerate().flat_map(|(index, service)| {
        let at = services.index(index).key("virtualAddresses");
        service.virtual_addresses.iter().enumerate().map(move |(index, one)| (at.index(index), *one))
    });
    let addresses: Vec<_> = addresses.collect();
    judge.unique("virtual address", "an address stands for one service", addresses);
    for (index, service) in discovery.services.iter().enumerate() {
        let at = services.index(index).key("endpoints");
        let listed = service.endpoints.iter().enumerate();
        judge.unique("endpoint", "keep one of them", listed.map(|(i, one)| (at.index(i).key("address"), one.address)));
        if service.endpoints.len() > MOST_ENDPOINTS {
            let message = format!("a service has at most {MOST_ENDPOINTS} endpoints");
            judge.error("value", &at, message, "split it into several services");
        }
    }
}
