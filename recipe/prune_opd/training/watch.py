"""Whether the processes that a run waits for are alive.

verl 0.9.1 asks after none of them: where an agent-loop worker is killed in a rollout, or a rollout
server before it is given weights, a run waits for ever.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

LOOK = 30.0
"""Seconds between two looks."""
LAST_WORDS = 3.0
"""Seconds that Ray is given to bring what was said to the user."""

logger = logging.getLogger(__name__)


class Watch:
    """Warns of processes that died, and ends the run that stands still for want of one.

    Args:
        actors: Ray's handles by what their processes are, in words.
        steps: tells how many steps the run has ended; as long as that grows, it goes on.
        deadline: seconds without a step, after which a run that lost a process is ended.
        end: ends the run.
    """

    def __init__(
        self,
        actors: Mapping[str, Any],
        steps: Callable[[], int],
        deadline: float,
        end: Callable[[str], None] | None = None,
    ):
        self.steps, self.deadline, self.end = steps, deadline, end or end_process
        self.dead: dict[str, str] = {}
        """What died, with Ray's reason."""
        self._asked = {
            name: (actor, actor.__ray_ready__.remote()) for name, actor in actors.items()
        }
        self._last, self._since = steps(), time.monotonic()
        self._over = threading.Event()

    def start(self) -> None:
        """Look from now on, in a thread."""
        threading.Thread(target=self._run, name="prune_opd_watch", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(min(LOOK, self.deadline)):
            self.look()

    def look(self) -> None:
        """Look once."""
        now = time.monotonic()
        if self.steps() != self._last:
            self._last, self._since = self.steps(), now
        for name in [name for name in self._asked if self._died(name)]:
            del self._asked[name]
            self._since = now
            logger.warning("%s died: %s", name, self.dead[name])
        if self.dead and now - self._since >= self.deadline:
            self.end(
                f"the run is ended: no step has ended for {now - self._since:.0f} s"
                f" (prune_opd.deadline) since {', '.join(self.dead)} died; start it again, it goes"
                " on from the last checkpoint"
            )

    def _died(self, name: str) -> bool:
        """Tell whether a process has died since the last look. One that is busy answers late."""
        actor, answer = self._asked[name]
        answered, _ = ray.wait([answer], timeout=0)
        if not answered:
            return False
        try:
            ray.get(answer)
        except RayError as error:  # a kill for memory is none of Ray's ``RayActorError``
            self.dead[name] = str(error).strip().partition("\n")[0]
            return True
        self._asked[name] = actor, actor.__ray_ready__.remote()
        return False


def end_process(reason: str) -> None:
    """End this process, and with it the run: its main thread may be in a wait that nothing ends."""
    print(reason, file=sys.stderr, flush=True)  # at whatever level loggers are
    time.sleep(LAST_WORDS)
    os._exit(1)


def watched(trainer: Any) -> dict[str, Any]:
    """The processes that a trainer of verl's waits for: handles by what they are, in words."""
    managers = [
        getattr(trainer, name, None) for name in ("llm_server_manager", "standalone_server_manager")
    ]
    servers = {
        f"rollout server {address}": handle
        for manager in managers
        if manager
        for address, handle in zip(manager.server_addresses, manager.server_handles, strict=True)
    }
    loops = trainer.agent_loop_manager.agent_loop_workers
    return {
        **{
            f"trainer worker {rank}": one
            for rank, one in enumerate(trainer.actor_rollout_wg.workers)
        },
        **servers,
        **{f"agent-loop worker {number}": one for number, one in enumerate(loops)},
    }
