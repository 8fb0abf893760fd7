//! What each drop reason means to an operator: its cause, and what to change. The command line and
//! `docs/operations.md` say the same, from here.

use lb_common::lb::DropReason;

/// What led to a drop, in one sentence about the cluster or the node.
pub const fn cause(reason: DropReason) -> &'static str {
    match reason {
        DropReason::NoEndpoints => {
            "The Service has no endpoint that could serve: its selector matches no pod, no pod is \
             ready, or the port's targetPort names a port that the pods don't have."
        }
        DropReason::NoLocalEndpoint => {
            "The traffic policy that applies here is Local, and the Service's endpoints are all on \
             other nodes."
        }
        DropReason::SnatExhausted => {
            "Clients whose endpoint is on another node reach it from a port of this node, and every \
             port that was tried towards this endpoint is held by a flow that goes on (or was over \
             less than five seconds ago)."
        }
        DropReason::FlowTable => {
            "The kernel refused a new entry of the flow table: it had no memory, or no entry that \
             could give way at that moment."
        }
        DropReason::NoRoute => {
            "The node's routing table has no route to the endpoint (or back to the client), refuses \
             it, or leads a flow that was forwarded to this node itself; or IP forwarding is off on \
             the device where the packet came in."
        }
        DropReason::NoSourceAddress => {
            "The endpoint is on another node, and the device that leads there has no address of this \
             IP family or isn't one of the agent's external devices, so there is no address that \
             its replies could come back to."
        }
        DropReason::Rewrite => {
            "The packet could not be rewritten: it ends inside of its own headers, or a fragment that \
             was held back could not be restored."
        }
        DropReason::Inconsistent => {
            "The tables named a Service or an endpoint that isn't there. It happens for a moment \
             when a Service is deleted while it is used; if it goes on, the tables are damaged."
        }
        DropReason::Answer => {
            "An ICMP error or a reset was due, and could not be built from the packet, or the packet \
             is a later fragment, which mustn't be answered."
        }
        DropReason::HopLimit => {
            "The hop limit (TTL) of a packet that gets no answer itself, an ICMP error or a later \
             fragment, ran out on this node."
        }
        DropReason::UnknownPort => {
            "The address is the ClusterIP of a Service that has no such port or protocol."
        }
        DropReason::SourceRange => {
            "The address is a load balancer's, and the Service's loadBalancerSourceRanges don't hold \
             the client's address, or nobody knows the address that the client's socket will send \
             from."
        }
        DropReason::UnownedAddress => {
            "The address is one of the cluster's Service ranges and nobody's: no Service has it, or \
             the Service that has it was sent something other than to one of its ports, such as an \
             echo request."
        }
    }
}

/// What to look at and to change.
pub const fn cure(reason: DropReason) -> &'static str {
    match reason {
        DropReason::NoEndpoints => {
            "Look at `kubectl get endpointslices -l kubernetes.io/service-name=NAME` and at the pods' \
             readiness; compare selector and targetPort with the pods."
        }
        DropReason::NoLocalEndpoint => {
            "Run a pod of the Service on this node, send the traffic to a node that has one (load \
             balancers learn which from the healthCheckNodePort), or set internalTrafficPolicy \
             (ClusterIP) or externalTrafficPolicy (all other addresses) to Cluster."
        }
        DropReason::SnatExhausted => {
            "Widen --snat-port-range (it must stay outside net.ipv4.ip_local_port_range), spread the \
             load over more nodes or endpoints, or set externalTrafficPolicy to Local, which needs \
             no port."
        }
        DropReason::FlowTable => {
            "Look at the node's memory; raise --max-flows (after `lb-agent cleanup`: the size of a \
             table is fixed when it is made)."
        }
        DropReason::NoRoute => {
            "Look at `ip route get ENDPOINT` on this node and at the CNI's state; forwarding takes \
             net.ipv4.ip_forward or net.ipv6.conf.all.forwarding."
        }
        DropReason::NoSourceAddress => {
            "Give the device an address of this family, or name it with --devices; \
             `ip route get ENDPOINT` shows which it is."
        }
        DropReason::Rewrite => {
            "Find the sender of the damaged packets by a capture on the device (`tcpdump` marks \
             them); an MTU that is smaller on the way than at the sender is a common cause."
        }
        DropReason::Inconsistent => {
            "If the count goes on rising, restart the agent, which compares every table with the \
             cluster, and report it with the output of `lb-agent services -o wide`."
        }
        DropReason::Answer => {
            "If it is frequent, find out why such packets come: clients whose packets are larger than \
             the path's MTU, fragments, or damaged packets."
        }
        DropReason::HopLimit => {
            "Look for a routing loop between the client and this node (`traceroute` from the client)."
        }
        DropReason::UnknownPort => {
            "Compare the client's port and protocol with the Service's `spec.ports`; \
             `lb-agent services --address IP` lists what is served there."
        }
        DropReason::SourceRange => {
            "Add the client's address to loadBalancerSourceRanges. It is judged as this node sees it: \
             after whatever NAT is in front. When the agent's log says that ranges don't fit, raise \
             --max-source-ranges."
        }
        DropReason::UnownedAddress => {
            "Look for what still uses the address of a deleted Service (a stale DNS answer, a fixed \
             address in a configuration); a ClusterIP answers no ping."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_cause_and_a_cure_of_its_own_in_whole_sentences() {
        let texts: Vec<_> =
            DropReason::ALL.iter().flat_map(|reason| [cause(*reason), cure(*reason)]).collect();
        for text in &texts {
            assert!(text.ends_with('.') && !text.contains("  "), "{text}");
            assert_eq!(texts.iter().filter(|other| other == &text).count(), 1, "{text}");
        }
    }

    #[test]
    fn flags_that_a_cure_names_exist() {
        use clap::CommandFactory as _;
        let command = crate::args::Args::command();
        let known: Vec<_> = command
            .get_subcommands()
            .flat_map(|command| command.get_arguments().filter_map(|argument| argument.get_long()))
            .collect();
        for reason in DropReason::ALL {
            let ours = cure(reason).split([' ', ',', '.', ';', '`', '(']);
            for flag in ours.filter_map(|word| word.strip_prefix("--")) {
                assert!(known.contains(&flag), "{reason:?}: --{flag}");
            }
        }
    }
}
