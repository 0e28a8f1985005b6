"""The verifier `code`: is a program right, as its tests say.

`answer` is the model's text: the program is in its last complete fenced block of the language (option `extraction`),
or, where there is no fence at all, the whole text if it compiles. `reference` says what is asked
(`quintain.verifiers.code.reference`):

- `function`: tests call a function, as HumanEval (Chen et al. 2021, arXiv:2107.03374) and MBPP (Austin et al. 2021,
  arXiv:2108.07732) have them. Solution and tests run in two sandboxes; values cross (`guest.values`), objects do not.
- `stdio`: a program reads and writes, in any configured language; each case is a run in a fresh sandbox, and the
  expected output never enters one.
- `livecodebench`: that benchmark's records (Jain et al. 2024, arXiv:2403.07974), which are one or the other.
- `pytest`: a project's tests by id. They share a process with the solution: `detail["isolation"]` says so.

The score is 1 where everything passed, else 0, or with `partial_credit` the share of cases. `detail["status"]` tells
compile errors, wrong answers, runtime errors, timeouts, limits and tampering apart; what broke on our side is a
failure and never a score.
"""
