#!/usr/bin/env python3
"""Ranks on hosts of their own, made of network namespaces with shaped links (network.py). usage: network_test.py EXPERT_PROBE PIPELINE_PROBE [--full]

Rows of experts: what leaves each host, by its interface's counter, beside what the router's choices make it by formula and what fathom counts itself, where a token
may go to few nodes and to all, with rows that cross once to a node and once to each rank. Overlap: passes send bytes over the shaped links and compute by waiting;
measured is what of the time ranks wait for messages that hide behind nothing. Skipped (77) where namespaces may not be made. --full: the figures of docs/parallel.md."""
import argparse
import json
import signal
import sys

from network import Network, NotPermitted

# Of the report's cluster: H800s, InfiniBand 50 GB/s, NVLink 160 GB/s that reach a GPU (V3 section 3.2.2).
INNER = 160 / 50
# Rows that a rank passes on inside its node for each that comes over the network: 8 experts of a token on at most 4 nodes.
WITHIN = 2
# In two hops ranks of a host use the links in each other's pauses: so much more is sent for the messages alone to take as long as computing.
PAUSES = 1.25
# Of a chunk's activations for the next stage to the rows of its pass: bf16 of a token beside 3.5 nodes, there in FP8 and back in bf16, 4 layers.
HANDOVER = 2 * 7168 / (4 * 3.5 * (7392 + 14336))


def tell(**what):
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in what.items()}), flush=True)


def rows_bytes(hidden, top_k):
    """Of a row there and back, forward and backward: FP8 with a scale each 128, ids and weights of experts with it; back in bf16, gradients of weights in f32."""
    fp8, bf16 = hidden + 4 * -(-hidden // 128), 2 * hidden
    return (fp8 + 8 * top_k) + fp8, bf16 + (bf16 + 4 * top_k)


def experts(probe, hosts, per_host, shape, rate, full):
    wrong = []
    # Groups that a token may go to, ranks that fathom is told to be on a node.
    ways = [(limit, per_node) for limit in (shape["groups"] // 2, shape["groups"]) for per_node in (per_host, 1)]
    n, words = hosts * per_host, [word for key, value in shape.items() for word in (f"--{key}", value)]
    there, back = rows_bytes(shape["hidden"], shape["top-k"])
    with Network(hosts, rate) as network:
        _, idle = network.run(per_host, probe, *words, "--layers", 0)
        for limit, per_node in ways if full else (ways[0], ways[-1]):
            told, sent = network.run(per_host, probe, *words, "--topk-groups", limit, "--ranks-per-host", per_host, "--ranks-per-node", per_node)

            def leaves(rank, other, rows=told["rows"]):
                return rows[rank * n + other] * there + rows[other * n + rank] * back

            for rank in range(n):
                if told["across_nodes"][rank] != sum(leaves(rank, other) for other in range(n) if other != rank):
                    wrong.append(f"{limit} groups, {per_node} ranks a node: rank {rank} counts {told['across_nodes'][rank]} bytes")
            if told["hosts_a_token"] > limit * max(1, hosts // shape["groups"]):
                wrong.append(f"{limit} groups: a token goes to {told['hosts_a_token']} hosts")
            expected = [sum(leaves(rank, other) for rank in range(n) for other in range(n) if rank // per_host == host and other // per_host != host) for host in range(hosts)]
            measured = [ours - base for ours, base in zip(sent, idle, strict=True)]
            ratios = [ours / theirs for ours, theirs in zip(measured, expected, strict=True)]
            tell(groups_of_a_token=limit, groups=shape["groups"], rows_cross_once_to="node" if per_node == per_host else "rank", hosts_a_token=told["hosts_a_token"],
                 seconds=told["seconds"], bytes_by_formula=sum(expected), bytes_on_links=sum(measured), least_ratio_of_a_host=min(ratios), largest_ratio_of_a_host=max(ratios))
            # Headers of MPI and counts of rows besides.
            if min(ratios) < 1 or max(ratios) > 1.02:
                wrong.append(f"{limit} groups, {per_node} ranks a node: on the links {min(ratios):.4f} to {max(ratios):.4f} of the formula")
    return wrong


def overlap(probe, hosts, per_host, unit_ms, chunks, rate, full):
    """Stages whose experts are on two hosts of per_host ranks. Messages of a forward pass, over all its hops, take as long as it computes. rate: of a rank."""
    wrong, shares = [], {}
    across = rate * unit_ms / 1e3 * (PAUSES / (1 + WITHIN / INNER) if per_host > 1 else 1)

    def run(network, kind, unit, *options):
        told, sent = network.run(per_host, probe, "--kind", kind, "--chunks", chunks, "--columns", 2 * per_host, "--ranks-per-node", per_host, "--f", unit, "--b", 2 * unit,
                                 "--w", unit, "--across", int(across), "--within", int(WITHIN * across), "--handover", int(HANDOVER * across), *options, timeout=900)
        n = len(told["computed"])
        return told["makespan"], sum(told["computed"]) / n, sum(told["exposed"]) / n, sum(sent)

    with Network(hosts, per_host * rate, per_host * INNER * rate) as network:
        if full:  # what the messages of a forward pass take where nothing is computed
            _, _, messages, _ = run(network, "1f1b", 0, "--no-overlap")
            tell(hosts=hosts, ranks_of_a_host=per_host, messages_to_computing=messages / 2 / chunks / (unit_ms / 1e3))
        for kind, *options in (("1f1b", "--no-overlap"), ("dualpipe",)):
            makespan, computed, exposed, sent = run(network, kind, unit_ms, *options)
            shares[kind] = exposed / makespan
            tell(hosts=hosts, ranks_of_a_host=per_host, schedule=kind, overlap=not options, chunks=chunks, makespan_s=makespan, computed=computed / makespan, exposed=shares[kind],
                 bytes_on_links=sent)
            # Of each rank, forward and backward, whatever the schedule.
            if sent < 2 * chunks * hosts * per_host * (int(across) - 1):
                wrong.append(f"{kind}: only {sent} bytes have gone over the links")
    if full and shares["dualpipe"] > 0.05:
        wrong.append(f"{per_host} ranks a host: DualPipe waits for {shares['dualpipe']:.4f} of the time for messages, without overlap for {shares['1f1b']:.4f}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("expert_probe")
    parser.add_argument("pipeline_probe")
    parser.add_argument("--full", action="store_true")
    o = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was made goes away
    try:
        if o.full:
            # The router and the rows of V3, a group of experts on each host.
            wrong = experts(o.expert_probe, 8, 2, {"hidden": 7168, "experts": 256, "top-k": 8, "groups": 8, "tokens": 64}, 50e6, full=True)
            for hosts, per_host in ((8, 1), (4, 2)):
                wrong += overlap(o.pipeline_probe, hosts, per_host, 400, 24, 1e6, full=True)
        else:
            wrong = experts(o.expert_probe, 4, 2, {"hidden": 1024, "experts": 32, "top-k": 4, "groups": 4, "tokens": 64}, 50e6, full=False)
            wrong += overlap(o.pipeline_probe, 4, 2, 10, 4, 1e7, full=False)
    except NotPermitted as why:
        print(f"skipped: {why}")
        sys.exit(77)
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
