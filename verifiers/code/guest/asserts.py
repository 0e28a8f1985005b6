"""Reads and rewrites test code: which names it needs, and assertions that are counted."""

from __future__ import annotations

import ast

PASS, FAIL, ERROR = "_quintain_pass", "_quintain_fail", "_quintain_error"
"""What a rewritten assertion calls: nothing; its line and its message; its line and the exception."""


class Asserts(ast.NodeTransformer):
    """`assert test, message` becomes a call of PASS or of FAIL; where `collect` is set, what the test raises becomes a
    call of ERROR, so that the assertions after it are tried too."""

    def __init__(self, collect: bool) -> None:
        self._collect = collect

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        line = ast.Constant(node.lineno)
        failed = _call(FAIL, line, node.msg or ast.Constant(None))
        counted: ast.stmt = ast.If(test=node.test, body=[_call(PASS)], orelse=[failed])
        if self._collect:
            error = ast.Name("_quintain_caught", ast.Load())
            handler = ast.ExceptHandler(ast.Name("Exception", ast.Load()), error.id, [_call(ERROR, line, error)])
            counted = ast.Try(body=[counted], handlers=[handler], orelse=[], finalbody=[])
        return ast.copy_location(counted, node)


def counting(tree: ast.Module, collect: bool) -> ast.Module:
    """`tree` with its assertions rewritten."""
    rewritten: ast.Module = ast.fix_missing_locations(Asserts(collect).visit(tree))
    return rewritten


def bound(tree: ast.AST) -> set[str]:
    """Every name that `tree` gives a meaning, wherever; "*" where it imports names that are not told."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            names.add(node.rest)
    return names


def used(tree: ast.AST) -> set[str]:
    """Every name that `tree` reads."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


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


def _call(name: str, *args: ast.expr) -> ast.Expr:
    return ast.Expr(ast.Call(func=ast.Name(name, ast.Load()), args=list(args), keywords=[]))
