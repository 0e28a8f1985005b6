"""The instruction-following verifier. The reference is a row of the dataset `google/IFEval`, or two of its fields:

    {"instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
     "kwargs": [{}, {"num_words": 300, "relation": "at least"}]}

Parameters that are None, as the dataset's columns have them, are not given. `strict` checks the answer as it is;
`loose` (Zhou et al. 2023, section 3.2) takes an instruction as followed where it is in one of eight variants of the
answer: without its first line, last line or both, and each of these without asterisks.

langdetect (`quintain[ifeval]`) tells languages. Without it, `language:response_language` is a `bad_reference` and
names what to install, and of the two families of English in capitals or small letters only the letters are checked.
Unlike the authors' programme, a text whose language nothing tells is not taken for the right one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from quintain.nearest import one_of
from quintain.verdict import Verdict
from quintain.verifiers.options import Options, ThinkingOptions, is_installed, versioned
from quintain.verifiers.pure import PureVerifier, bad_reference, unparsable
from quintain.verifiers.rules.instruction_following.checks import AT_LEAST, FAMILIES, LESS_THAN, Family, Kind
from quintain.verifiers.rules.instruction_following.language import INSTALL, language_of
from quintain.verifiers.text import shown


class InstructionFollowingOptions(ThinkingOptions):
    """Options of the instruction-following verifier."""

    mode: Literal["strict", "loose"] = "strict"
    """Whether the answer is checked as it is, or any of the paper's eight variants of it will do."""
    score: Literal["instruction", "prompt"] = "instruction"
    """The share of the instructions that are followed, or 1 where all of them are and else 0."""


class InstructionFollowingVerifier(PureVerifier[InstructionFollowingOptions]):
    """Scores an answer by the instructions that it follows."""

    name: ClassVar[str] = "instruction_following"
    options_type: ClassVar[type[Options]] = InstructionFollowingOptions

    def __init__(self, options: InstructionFollowingOptions | None = None) -> None:
        super().__init__(options)
        self._detect = language_of if is_installed("langdetect") else None

    @property
    def version(self) -> str:
        """Our own version of the judgement, and langdetect's where it takes part in it."""
        return versioned("1", *(() if self._detect is None else ("langdetect",)))

    def judge(self, answer: str, reference: Any) -> Verdict:
        """The score; the detail says of each instruction whether it is followed."""
        try:
            instructions = _instructions(reference)
        except _BadReference as error:
            return bad_reference(f'{{"instruction_id_list": […], "kwargs": [{{…}}]}} as in IFEval ({error})', reference)
        if self._detect is None and any(name == "language:response_language" for name, _ in instructions):
            return bad_reference(f"checkable without langdetect, or langdetect is installed ({INSTALL})", reference)
        text = self.options.answer_in(answer)
        if not text:
            return unparsable("there is no answer in the text")
        texts = [text] if self.options.mode == "strict" else variants(text)
        followed = [
            any(self._follows(FAMILIES[name], variant, given) for variant in texts) for name, given in instructions
        ]
        score = sum(followed) / len(followed)
        return Verdict.scored(
            score if self.options.score == "instruction" else float(score == 1.0),
            mode=self.options.mode,
            instructions=[{"id": name, "followed": one} for (name, _), one in zip(instructions, followed, strict=True)],
        )

    def _follows(self, family: Family, text: str, given: Mapping[str, Any]) -> bool:
        return family.follows(text, **given, detect=self._detect) if family.detects else family.follows(text, **given)


def variants(text: str) -> list[str]:
    """The paper's eight loose variants of `text`: those that differ, and are not empty."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [variant for variant in dict.fromkeys([*cut, *(part.replace("*", "") for part in cut)]) if variant.strip()]


class _BadReference(Exception):
    """Raised inside this module: what is wrong with the reference."""


def _instructions(reference: Any) -> list[tuple[str, dict[str, Any]]]:
    """The instructions of `reference`: each one's id and parameters."""
    if not isinstance(reference, Mapping):
        raise _BadReference("it is no mapping")
    names, parameters = reference.get("instruction_id_list"), reference.get("kwargs")
    if not isinstance(names, (list, tuple)) or not isinstance(parameters, (list, tuple)) or not names:
        raise _BadReference("both are lists that are not empty")
    if len(names) != len(parameters):
        raise _BadReference(f"there are {len(names)} instructions and {len(parameters)} sets of parameters")
    return [_instruction(name, given) for name, given in zip(names, parameters, strict=True)]


def _instruction(name: Any, given: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(name, str) or name not in FAMILIES:
        raise _BadReference(f"there is no instruction {shown(name, 80)}{one_of(str(name), FAMILIES)}")
    if not isinstance(given, Mapping) and given is not None:
        raise _BadReference(f"the parameters of {name} are no mapping")
    wanted = FAMILIES[name].parameters
    found = {key: _fit(name, key, (given or {}).get(key), kind) for key, kind in wanted.items()}
    if name == "length_constraints:nth_paragraph_first_word" and found["nth_paragraph"] < 1:
        raise _BadReference("nth_paragraph is counted from 1")
    return name, found


def _fit(name: str, key: str, value: Any, kind: Kind) -> Any:
    """`value` where it is of its `kind`."""
    match kind:
        case "count":
            if isinstance(value, float) and value.is_integer():
                value = int(value)  # a column with gaps makes its numbers floats
            fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        case "text":
            fits = isinstance(value, str) and bool(value.strip())
        case "texts":
            fits = isinstance(value, (list, tuple)) and bool(value)
            fits = fits and all(isinstance(text, str) and text.strip() for text in value)
        case "relation":
            fits = value in (LESS_THAN, AT_LEAST)
    if not fits:
        raise _BadReference(f"{name} needs {key}, a {kind}, and has {shown(value, 80)}")
    return value
