"""A tool for the walk task, and a parser of its calls, for verl's ``function_tool_path``.

A turn that holds a semicolon calls the tool, with 5. The task's tokenizer has no words for calls in
JSON.
"""

import json
import sys
from pathlib import Path

from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.tools.function_tool import function_tool

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "pairs"))
import walk

CALLED: list[int] = []
"""Numbers of all calls in this process."""
SEMICOLON = walk.VOCABULARY.index(";")


@function_tool
def repeat(number: int) -> str:
    """Repeat a number.

    Args:
        number: which one.
    """
    CALLED.append(number)
    return f"{number} {number}"


@ToolParser.register("walk")
class WalkParser(ToolParser):
    """Calls end with a semicolon, and so does the turn."""

    @property
    def stop_token_ids(self) -> list[int]:
        return [SEMICOLON]

    async def extract_tool_calls(self, responses_ids, tools=None):
        if SEMICOLON not in responses_ids:
            return "", []
        return "", [FunctionCall(name="repeat", arguments=json.dumps({"number": 5}))]
