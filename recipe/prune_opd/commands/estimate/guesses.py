"""Numbers that no configuration holds, as they are assumed where nobody gives them."""

from tyro.conf import arg

GUESSES: dict[str, tuple[float, str]] = {
    "steps": (
        203,
        "training steps; the paper's number, unless trainer.total_training_steps is set",
    ),
    "prompt_length": (200, "mean tokens of a prompt"),
    "length": (7200, "mean tokens of a response that no limit cuts; fits the public run"),
    "spread": (0.6, "standard deviation of the logarithm of that length; fits the public run"),
    "gate_saving": (
        0.23,
        "share of Prune-OPD's tokens that come after R = 0; measured on the public run",
    ),
    "mfu": (0.17, "share of --peak-tflops that scoring and update reach; fits the public run"),
    "peak_tflops": (989, "dense bf16 TFLOPS of a GPU; an H100's"),
    "bandwidth": (2680, "GB/s at which decoding reads memory; 80 % of an H100's"),
    "token_overhead": (
        2.6,
        "milliseconds of a decoding step besides reading memory; fits the public run",
    ),
    "step_overhead": (9.7, "seconds of a step that depend on no length; fits the public run"),
    "gpu_memory": (80, "GB of a GPU"),
}
"""Option -> its value where nobody gives one, and what it is. "Fits": see docs/estimate.md."""


def assumed(name: str) -> object:
    """Help of the option of a guess, for its annotation."""
    value, meaning = GUESSES[name]
    return arg(help=meaning, help_behavior_hint=f"(assumed: {value:g})")
