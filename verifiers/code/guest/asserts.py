"""Reads and rewrites test code: which names it needs, and assertions that are counted."""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator

PASS, FAIL, ERROR = "_quintain_pass", "_quintain_fail", "_quintain_error"
"""What a rewritten assertion calls: nothing; its line and its message; its line and the exception."""


BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
"""Where a statement has others inside."""


def counting(tree: ast.Module, collect: bool) -> ast.Module:
    """`tree` with its assertions rewritten, in place.

    `assert test, message` becomes a call of PASS or of FAIL; where `collect` is set, what the test raises becomes a
    call of ERROR, so that the assertions after it are tried too.
    """
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        for name in BLOCKS:
            block = getattr(node, name, None)
            if type(block) is list:
                for number, inner in enumerate(block):
                    if type(inner) is ast.Assert:
                        block[number] = counted(inner, collect)
                    else:
                        waiting.append(inner)
    return tree


def counted(node: ast.Assert, collect: bool) -> ast.stmt:
    """What an assertion becomes."""
    line = ast.Constant(node.lineno)
    failed = _call(node, FAIL, line, node.msg or ast.Constant(None))
    test: ast.stmt = ast.copy_location(ast.If(test=node.test, body=[_call(node, PASS)], orelse=[failed]), node)
    if collect:
        error = ast.Name("_quintain_caught", ast.Load())
        kind = ast.copy_location(ast.Name("Exception", ast.Load()), node)
        handler = ast.copy_location(ast.ExceptHandler(kind, error.id, [_call(node, ERROR, line, error)]), node)
        test = ast.copy_location(ast.Try(body=[test], handlers=[handler], orelse=[], finalbody=[]), node)
    return test


def mentioned(code: types.CodeType) -> set[str]:
    """Names that are read somewhere in `code` and are not local there, and more: attributes, names that are set."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= mentioned(constant)
    return found


def defined(tree: ast.Module) -> set[str]:
    """Names that `tree` gives a meaning at its top, but for the rarer ways to do so."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return found


def names(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Every name that `tree` reads, and every name that it gives a meaning, wherever; "*" is among these where it
    imports names that are not told."""
    used: set[str] = set()
    bound: set[str] = set()
    for node in nodes(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            bound.add(node.rest)
    return used, bound


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """`tree` and what is in it, but for constants; as `ast.walk` does, in half the time."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name in node._fields:
            value = getattr(node, name, None)
            if type(value) is list:
                waiting += [each for each in value if isinstance(each, ast.AST) and type(each) is not ast.Constant]
            elif isinstance(value, ast.AST) and type(value) is not ast.Constant:
                waiting.append(value)


def is_stub(node: ast.stmt) -> bool:
    """Whether `node` is a function that is named, and not written: nothing but a docstring, `pass`, `...` or
    `raise NotImplementedError`."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    return all(
        isinstance(each, ast.Pass)
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        or (isinstance(each, ast.Raise) and each.exc is not None and "NotImplementedError" in ast.dump(each.exc))
        for each in node.body
    )


def _call(node: ast.Assert, name: str, *args: ast.expr) -> ast.Expr:
    """The statement that calls `name`, in the place of `node`."""
    function = ast.Name(name, ast.Load())
    call = ast.Call(func=function, args=list(args), keywords=[])
    for each in (function, call, *args):
        ast.copy_location(each, node)
    return ast.copy_location(ast.Expr(call), node)
