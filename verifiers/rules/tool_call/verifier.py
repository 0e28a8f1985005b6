"""The tool-call verifier. The reference is a record as BFCL's data has it:

    {"function": [{"name": …, "parameters": {"properties": {…}, "required": […]}}],
     "ground_truth": [{"get_weather": {"city": ["Paris"], "unit": ["celsius", ""]}}]}

`function` may also hold the tools of OpenAI, `{"type": "function", "function": {…}}`, MCP (`inputSchema`) and Anthropic
(`input_schema`). Each entry of `ground_truth` is an
expected call with the values that each parameter may have. An empty `ground_truth` is BFCL's irrelevance: right is
who calls nothing. Who tries to call something and fails to write it is `unparsable`, there too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from quintain.call_syntax import MAX_CALLS, Call
from quintain.tool_calls import Schemas, UnreadableCall, read_calls
from quintain.verdict import Verdict
from quintain.verifiers.options import Options, ThinkingOptions
from quintain.verifiers.pure import PureVerifier, bad_reference, unparsable
from quintain.verifiers.rules.tool_call.match import Expected, Function, Texts, matching, why_not
from quintain.verifiers.text import shown

SCHEMAS: Final = ("parameters", "inputSchema", "input_schema")
"""Where a function has the schema of its parameters: with OpenAI, in MCP, with Anthropic."""


class ToolCallOptions(ThinkingOptions):
    """Options of the tool-call verifier."""

    ordered: bool = False
    """Whether several calls must come in the order in which the reference has them."""
    partial: bool = False
    """Whether the score is the share of calls that match, of the larger of both numbers, in place of all or nothing."""
    texts: Texts = "exact"
    """Whether texts are compared by every character but case and blanks, or as BFCL does, without punctuation."""


class ToolCallVerifier(PureVerifier[ToolCallOptions]):
    """Judges whether an answer makes the expected calls."""

    name: ClassVar[str] = "tool_call"
    options_type: ClassVar[type[Options]] = ToolCallOptions

    def judge(self, answer: str, reference: Any) -> Verdict:
        """The score; the detail has the calls that were read and why they do not match."""
        try:
            expected, schemas = expected_calls(reference)
        except _BadReference as error:
            return bad_reference(f'{{"function": […], "ground_truth": […]}} as in BFCL ({error})', reference)
        text = self.options.answer_in(answer)
        if text is None:
            return unparsable("the thinking never ends")
        if not text and expected:
            return unparsable("there is no answer in the text")
        calls = read_calls(text, schemas)
        if isinstance(calls, UnreadableCall):
            return unparsable(calls.reason)
        detail: dict[str, Any] = {"calls": [shown(call.name, 80) for call in calls]}
        if not expected or not calls:
            if calls or expected:
                detail["reasons"] = ["it calls something" if calls else "it calls nothing"]
            return Verdict.scored(float(not expected and not calls), **detail)
        matched, reasons = self._matched(calls, expected)
        share = matched / max(len(calls), len(expected))
        if reasons:
            detail["reasons"] = reasons
        return Verdict.scored(share if self.options.partial else float(share == 1.0), **detail)

    def _matched(self, calls: list[Call], expected: list[Expected]) -> tuple[int, list[str]]:
        problems = [[why_not(call, one, self.options.texts) for call in calls] for one in expected]
        if self.options.ordered:
            diagonal = [problems[i][i] for i in range(min(len(calls), len(expected)))]
            matched, reasons = diagonal.count(None), [problem for problem in diagonal if problem]
        else:
            matched = matching([[problem is None for problem in row] for row in problems])
            reasons = [next(filter(None, row)) for row in problems if None not in row]
        if len(calls) != len(expected):
            reasons.insert(0, f"it makes {len(calls)} calls, not {len(expected)}")
        return matched, reasons[:8]


class _BadReference(Exception):
    """Raised inside this module: what is wrong with the reference."""


def expected_calls(reference: Any) -> tuple[list[Expected], Schemas]:
    """The expected calls of `reference` and the schemas of the functions on offer."""
    if not isinstance(reference, Mapping):
        raise _BadReference("it is no mapping")
    offered, truth = reference.get("function"), reference.get("ground_truth")
    offered = [offered] if isinstance(offered, Mapping) else offered
    if not isinstance(offered, (list, tuple)) or not isinstance(truth, (list, tuple)):
        raise _BadReference("both are lists")
    if len(truth) > MAX_CALLS:
        raise _BadReference(f"it expects more than {MAX_CALLS} calls")
    functions = {function.name: function for function in map(_function, offered)}
    return [_expected(entry, functions) for entry in truth], {
        name: {"properties": function.parameters} for name, function in functions.items()
    }


def _function(offered: Any) -> Function:
    if isinstance(offered, Mapping) and isinstance(offered.get("function"), Mapping):
        offered = offered["function"]
    if not isinstance(offered, Mapping) or not isinstance(offered.get("name"), str):
        raise _BadReference("a function has a name")
    parameters: Any = next((offered[key] for key in SCHEMAS if offered.get(key)), {})
    properties = parameters.get("properties", {}) if isinstance(parameters, Mapping) else None
    required = parameters.get("required") or [] if isinstance(parameters, Mapping) else None
    if not isinstance(properties, Mapping) or not all(isinstance(one, Mapping) for one in properties.values()):
        raise _BadReference(f"the properties of {offered['name']} are a mapping of schemas")
    if not isinstance(required, (list, tuple)) or not all(isinstance(name, str) for name in required):
        raise _BadReference(f"what {offered['name']} requires is a list of names")
    return Function(offered["name"], properties, frozenset(required))


def _expected(entry: Any, functions: Mapping[str, Function]) -> Expected:
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise _BadReference("an expected call is {function: {parameter: [values]}}")
    [(name, allowed)] = entry.items()
    if name not in functions:
        raise _BadReference(f"it expects {shown(name, 80)}, which is not on offer")
    if not isinstance(allowed, Mapping) or not all(isinstance(values, list) for values in allowed.values()):
        raise _BadReference(f"what {name} may be given is a mapping of lists")
    return Expected(functions[name], allowed)
