"""Several nodes on this machine, as a process: ``python nodes.py PORT CPUS CPUS…``: the dashboard's
port, and CPUs of the head and of each other node.

Says ``{"address": …, "raylet": pid}`` of every node, a line each. A number on standard input adds a node, its
end ends all.
"""

import json
import sys

from ray.cluster_utils import Cluster


def say(cluster: Cluster, node: object) -> None:
    raylet = node.all_processes["raylet"][0].process.pid
    print(json.dumps({"address": cluster.address, "raylet": raylet}), flush=True)


def main() -> None:
    port, first, *others = (int(word) for word in sys.argv[1:])
    options = {"object_store_memory": 200_000_000}
    head = {"num_cpus": first, "include_dashboard": True, "dashboard_port": port, **options}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    say(cluster, cluster.head_node)
    for cpus in others:
        say(cluster, cluster.add_node(num_cpus=cpus, **options))
    for line in sys.stdin:
        say(cluster, cluster.add_node(num_cpus=int(line), **options))
    cluster.shutdown()


if __name__ == "__main__":
    main()
