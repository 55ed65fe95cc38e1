"""Teacher servers take a part of one node or whole nodes."""

import pytest

from verl_ext.rollout.teacher_pool import TeacherPool


@pytest.mark.parametrize(
    ("replicas", "parallel", "per_node", "nodes"),
    [
        (1, 1, 1, [1]),
        (1, 1, 8, [1]),
        (3, 2, 8, [6]),
        (2, 4, 8, [8]),
        (4, 4, 8, [8, 8]),
        (3, 1, 1, [1, 1, 1]),
        (1, 16, 8, [8, 8]),
    ],
)
def test_a_pool_is_part_of_a_node_or_whole_ones(replicas, parallel, per_node, nodes):
    pool = TeacherPool(
        {"default": "T"},
        "vllm",
        16,
        100,
        400,
        replicas=replicas,
        tensor_model_parallel_size=parallel,
    )
    assert pool.nodes(per_node) == nodes
    assert sum(nodes) == replicas * parallel


@pytest.mark.parametrize(("per_node", "nodes"), [(12, [12]), (6, [6, 6]), (4, [4, 4, 4])])
def test_each_of_several_teachers_has_so_many_servers(per_node, nodes):
    models = {"math": "M", "code": "C"}
    pool = TeacherPool(models, "vllm", 16, 100, 400, replicas=3, tensor_model_parallel_size=2)
    assert pool.nodes(per_node) == nodes
