"""What a run's Ray and TransferQueue hold: one line of JSON for every line of input.

    python benchmarks/ray_state.py ADDRESS

A process of its own: Ray ends every process that has come to a cluster when the cluster ends.
"""

import json
import sys
from typing import Any

import ray
from ray.util.state import list_actors, summarize_objects

QUEUE = ("TransferQueueController", "transfer_queue")
"""Name and namespace of TransferQueue's controller actor."""


def look(address: str) -> dict[str, Any]:
    """Count the objects in Ray's store and the samples of TransferQueue, and find the processes of
    the teacher's servers.

    Args:
        address: of the cluster, which has a dashboard: that is who knows of objects and actors.
    """
    found = summarize_objects(address=address, raise_on_missing_output=False)
    objects: dict[str, Any] = found["cluster"]
    controller: Any = ray.get_actor(*QUEUE)
    names = ray.get(controller.list_partitions.remote(), timeout=60)
    asked = [controller.get_partition_index_range.remote(name) for name in names]
    alive = list_actors(address=address, filters=[("state", "=", "ALIVE")], limit=1000)
    return {
        "objects": objects["total_objects"],
        "entries": sum(map(len, ray.get(asked, timeout=60))),
        "teachers": [actor.pid for actor in alive if "server_teacher_" in actor.name],
    }


def main() -> None:
    """Answer until there is no more input."""
    (address,) = sys.argv[1:]
    ray.init(address, namespace=QUEUE[1], log_to_driver=False, logging_level="ERROR")
    for _ in sys.stdin:
        print(json.dumps(look(address)), flush=True)


if __name__ == "__main__":
    main()
