"""The tool-call verifier: does the answer call the right functions with allowed arguments?"""

from quintain.verifiers.rules.tool_call.verifier import ToolCallOptions, ToolCallVerifier, make_tool_call_verifier

__all__ = ["ToolCallOptions", "ToolCallVerifier", "make_tool_call_verifier"]
