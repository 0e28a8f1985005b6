"""IFEval's 25 families: for each, answers built to follow it, answers built to break it, and properties."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintain.verdict import Outcome
from quintain.verifiers import Item, get_verifier, verify_sync
from quintain.verifiers.rules.instruction_following.checks import FAMILIES, bullets, placeholders, sentences, words
from quintain.verifiers.rules.instruction_following.verifier import InstructionFollowingVerifier, variants

WORD = st.text(alphabet="bdfhjkmp", min_size=2, max_size=8)
PROSE = st.lists(WORD, min_size=1, max_size=12).map(" ".join)
COUNT = st.integers(1, 6)
Built = tuple[dict[str, Any], str, str]
"""Parameters, an answer that follows, an answer that does not."""


def both_ways(name: str, relation: str, count: int, make: Callable[[int], str]) -> Built:
    """An answer with just enough, or just too many, by the relation that the parameter `name` holds."""
    few, many = make(count - 1), make(count)
    return {name: relation}, *((few, many) if relation == "less than" else (many, few))


@st.composite
def built(draw: st.DrawFn, family: str) -> Built:
    prose, n = draw(PROSE), draw(COUNT)
    relation = draw(st.sampled_from(["less than", "at least"]))

    def related(name: str, make: Callable[[int], str]) -> Built:
        return both_ways(name, relation, n, make)

    match family:
        case "keywords:existence":
            return {"keywords": ["apex", "zest"]}, f"{prose} Apex {prose} zest", f"{prose} apex"
        case "keywords:frequency":
            more, yes, no = related("relation", lambda k: prose + " apex" * k)
            return {"keyword": "apex", "frequency": n, **more}, yes, no
        case "keywords:forbidden_words":
            return {"forbidden_words": ["apex"]}, f"{prose} apexes", f"{prose} an Apex, {prose}"
        case "keywords:letter_frequency":
            more, yes, no = related("let_relation", lambda k: prose + " " + "Zz"[k % 2] * k)
            return {"letter": "z", "let_frequency": n, **more}, yes, no
        case "language:response_language":
            return {"language": "fr"}, f"Le chat est assis près de la fenêtre et regarde la pluie. {n}", ENGLISH
        case "length_constraints:number_sentences":
            more, yes, no = related("relation", lambda k: " ".join([f"{prose}."] * k) or "...")
            return {"num_sentences": n, **more}, yes, no
        case "length_constraints:number_paragraphs":
            return {"num_paragraphs": n}, "\n***\n".join([prose] * n), "\n***\n".join([prose] * (n + 1))
        case "length_constraints:number_words":
            more, yes, no = related("relation", lambda k: " ".join(["apex"] * k) or "...")
            return {"num_words": n, **more}, yes, no
        case "length_constraints:nth_paragraph_first_word":
            parts = [prose] * n
            yes = "\n\n".join([*parts, f'"Apex," {prose}'])
            return (
                {"num_paragraphs": n + 1, "nth_paragraph": n + 1, "first_word": "apex"},
                yes,
                "\n\n".join([*parts, prose]),
            )
        case "detectable_content:number_placeholders":
            return {"num_placeholders": n}, f"{prose} " + "[a b] " * n, f"{prose} " + "[a b] " * (n - 1) + "[open"
        case "detectable_content:postscript":
            return {"postscript_marker": "P.S."}, f"{prose}\n\np.s. {prose}", f"{prose}\n\nPS {prose}"
        case "detectable_format:number_bullet_lists":
            return {"num_bullets": n}, f"* {prose}\n" * n, f"- {prose}\n" * (n + 1)
        case "detectable_format:constrained_response":
            return {}, f"{prose} My answer is maybe.", f"{prose} My answer is perhaps."
        case "detectable_format:number_highlighted_sections":
            return {"num_highlights": n}, f"*{prose}* and " * n, f"*{prose}* and " * (n - 1) + "* *"
        case "detectable_format:multiple_sections":
            make = [f"SECTION {k + 1}\n{prose}" for k in range(n)]
            return {"section_spliter": "SECTION", "num_sections": n}, "\n".join(make), "\n".join([*make[1:], prose])
        case "detectable_format:json_format":
            return {}, f"```json\n{json.dumps({'a': [prose, n]})}\n```", f"{{'a': '{prose}'}}"
        case "detectable_format:title":
            return {}, f"<<{prose}>>\n{prose}", f"<< >>\n<{prose}>"
        case "combination:two_responses":
            return {}, f"{prose}\n******\n{prose} too", f"{prose}\n******\n{prose}"
        case "combination:repeat_prompt":
            return {"prompt_to_repeat": f"Do {prose}!"}, f"do {prose}!\n\n{prose}", f"Sure. Do {prose}!"
        case "startend:end_checker":
            return {"end_phrase": "That is all."}, f'{prose} THAT is all."', f"{prose} That is all. Bye"
        case "startend:quotation":
            return {}, f'"{prose}"', f'"{prose}'
        case "change_case:capital_word_frequency":
            more, yes, no = related("capital_relation", lambda k: prose + " WELL-KNOWN," * k)
            return {"capital_frequency": n, **more}, yes, no
        case "change_case:english_capital":
            return {}, ENGLISH.upper(), ENGLISH
        case "change_case:english_lowercase":
            return {}, ENGLISH.lower(), ENGLISH
        case "punctuation:no_comma":
            return {}, prose, f"{prose}, {prose}"
    raise AssertionError(f"no answers are built for {family}")


ENGLISH = "The cat sits near the window and watches the rain that falls on the old garden."


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_built_to_follow_passes_and_one_built_to_break_fails(family: str) -> None:
    verifier = InstructionFollowingVerifier()

    @settings(max_examples=30, deadline=None)  # of a count up to 6, a relation, and words that do not matter
    @given(built(family))
    def holds(case: Built) -> None:
        given_parameters, yes, no = case
        reference = {"instruction_id_list": [family], "kwargs": [given_parameters]}
        assert verifier.judge(yes, reference).score == 1.0, (yes, given_parameters)
        assert verifier.judge(no, reference).score == 0.0, (no, given_parameters)

    holds()


def test_there_are_25_families() -> None:
    assert len(FAMILIES) == 25


TWO = {
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{"num_words": None}, {"num_words": 3.0, "relation": "at least"}],
}


def test_the_score_is_the_share_or_all_or_nothing_and_the_detail_has_each() -> None:
    items = [Item("one two three", TWO), Item("one, two, three", TWO), Item("one,", TWO)]
    share = verify_sync("instruction_following", items)
    assert [verdict.score for verdict in share] == [1.0, 0.5, 0.0]
    assert [verdict.outcome for verdict in share] == [Outcome.CORRECT, Outcome.PARTIAL, Outcome.WRONG]
    assert share[1].detail["instructions"] == [
        {"id": "punctuation:no_comma", "followed": False},
        {"id": "length_constraints:number_words", "followed": True},
    ]
    prompt = verify_sync("instruction_following", items, {"score": "prompt"})
    assert [verdict.score for verdict in prompt] == [1.0, 0.0, 0.0]


def test_loose_forgives_an_introduction_a_farewell_and_asterisks() -> None:
    reference = {"instruction_id_list": ["startend:quotation"], "kwargs": [{}]}
    answers = ['"x"', 'Sure:\n"x"', '"x"\nBye.', 'Sure:\n"x"\nBye.', '**"x"**', "x"]
    items = [Item(answer, reference) for answer in answers]
    strict = [verdict.score for verdict in verify_sync("instruction_following", items)]
    loose = [verdict.score for verdict in verify_sync("instruction_following", items, {"mode": "loose"})]
    assert strict == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert loose == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]


@given(st.text(alphabet="ab*\n ", min_size=1, max_size=30))
def test_what_is_followed_strictly_is_followed_loosely(text: str) -> None:
    if text.strip():
        assert variants(text.strip())[0] == text.strip()
        assert len(variants(text.strip())) <= 8


def test_thinking_is_no_answer_and_silence_follows_nothing() -> None:
    reference = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    items = [Item("<think>a, b</think>c", reference), Item("<think>a", reference), Item(" ", reference)]
    outcomes = [verdict.outcome for verdict in verify_sync("instruction_following", items)]
    assert outcomes == [Outcome.CORRECT, Outcome.UNPARSABLE, Outcome.UNPARSABLE]


BAD: list[Any] = [
    None,
    {},
    {"instruction_id_list": [], "kwargs": []},
    {"instruction_id_list": ["punctuation:no_comma"], "kwargs": []},
    {"instruction_id_list": ["punctuation:no_commas"], "kwargs": [{}]},
    {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{}]},
    {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": -1, "relation": "at least"}]},
    {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": 3, "relation": "about"}]},
    {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": []}]},
    {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": "apex"}]},
    {"instruction_id_list": [5], "kwargs": [{}]},
]


@pytest.mark.parametrize("reference", BAD)
def test_an_instruction_that_cannot_be_checked_is_nobodys_zero(reference: Any) -> None:
    [verdict] = verify_sync("instruction_following", [Item("one", reference)])
    assert verdict.outcome is Outcome.BAD_REFERENCE


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("One. Two! Three?", 3),
        ("One... Two?! Three", 3),
        ("Dr. Ada met Mr. Bob at 5 p.m. sharp.", 1),
        ("J. R. Smith said: “Go.” He went.", 2),
        ("It costs 3.50 today.", 1),
        ("A heading\nand a line", 1),
        ("...", 0),
        ("! ! !", 0),
    ],
)
def test_sentences_are_counted_by_their_ends(text: str, number: int) -> None:
    assert sentences(text) == number


def test_counting_is_linear_in_what_a_policy_may_write() -> None:
    for text in ("[" * 300_000, "! " * 150_000, "\n" * 300_000, "*" * 300_000, "<<" * 150_000, "A. " * 100_000):
        assert min(placeholders(text), sentences(text), bullets(text), words(text)) >= 0
        for family in ("detectable_format:title", "detectable_format:number_highlighted_sections"):
            FAMILIES[family].follows(text, **{name: 3 for name in FAMILIES[family].parameters})


def test_without_langdetect_a_language_is_a_bad_reference_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quintain.verifiers.options.find_spec", lambda name: None)
    families = ["language:response_language", "change_case:english_lowercase"]
    items = [Item("le chat", {"instruction_id_list": [family], "kwargs": [{"language": "en"}]}) for family in families]
    language, small = verify_sync("instruction_following", items)
    assert language.outcome is Outcome.BAD_REFERENCE
    assert language.failure is not None
    assert "quintain[ifeval]" in language.failure.message
    assert small.score == 1.0  # of which only the letters are checked
    assert get_verifier("instruction_following").version == "1"


def test_the_language_of_a_text_is_always_the_same_and_none_is_not_the_right_one() -> None:
    reference = {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "en"}]}
    verdicts = verify_sync("instruction_following", [Item(text, reference) for text in [ENGLISH] * 5 + ["12345", "!!"]])
    assert [verdict.score for verdict in verdicts] == [1.0] * 5 + [0.0, 0.0]


FORMATS: list[tuple[str, dict[str, Any], str, bool]] = [
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "***bold***", False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "2 * 3 * 4 = 24", False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "---\n->x\n*Note:* hi\n* a", True),
    ("detectable_format:constrained_response", {}, "My answer is yes. My answer is no.", False),
    ("detectable_format:json_format", {}, "NaN", False),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1 SECTION 1",
        False,
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[] [ ]", False),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "c\u0430t", False),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "cat_", False),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "ca\u200bt", False),
    ("keywords:existence", {"keywords": ["it's"]}, "It\u2019s", True),
    ("punctuation:no_comma", {}, "a\uff0c b", False),
    ("length_constraints:number_words", {"num_words": 2, "relation": "at least"}, "_ _ word", False),
    ("startend:quotation", {}, "\u201cHi.\u201d", True),
]


@pytest.mark.parametrize(("family", "parameters", "answer", "follows"), FORMATS)
def test_what_only_looks_followed_is_not(family: str, parameters: dict[str, Any], answer: str, follows: bool) -> None:
    reference = {"instruction_id_list": [family], "kwargs": [parameters]}
    [verdict] = verify_sync("instruction_following", [Item(answer, reference)])
    assert verdict.score == float(follows)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("The U.S. is big. Yes.", 2),
        ("He lives at 5 Elm St. She does not.", 2),
        ("He was in St. Paul. Yes.", 2),
        ("Meet at 5 p.m. Bring food.", 2),
        ("Dr. Who met J. Smith. Yes.", 2),
    ],
)
def test_an_abbreviation_ends_a_sentence_where_a_capital_follows_and_a_title_never(text: str, count: int) -> None:
    assert sentences(text) == count
