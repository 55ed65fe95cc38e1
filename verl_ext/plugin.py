"""Entry point of ``verl.plugins``, loaded in every process that imports verl: keep it light."""

import logging

from verl_ext.cpu import no_accelerator
from verl_ext.logs import isolate

isolate("verl_ext")

if no_accelerator():
    try:
        from verl_ext.cpu.platform import activate

        activate()
    except Exception:
        # verl logs a failing plugin at DEBUG only, and would go on to look for a GPU.
        logging.getLogger(__name__).exception("the CPU platform for verl could not be set up")
        raise
