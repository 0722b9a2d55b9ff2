"""Nothing that outlives its use is written into the environment, where a launch from the same process would find it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("bus", "miles_async", "actors", "benchmarks/lib")
ALLOWED = {
    "miles_async/hooks/environment.py": "it takes back what it writes",
    "actors/runtime/placement/local.py": "the process is an actor's own",
    "actors/runtime/placement/on_ray/host.py": "the process is an actor's own",
    "actors/runtime/placement/preloaded.py": "the process is a fork server's own",
}
WRITES = ("update", "setdefault", "pop", "popitem", "clear", "__setitem__")


def is_environ(node: ast.expr) -> bool:
    return ast.unparse(node) in ("os.environ", "environ")


def is_write(node: ast.AST) -> bool:
    """Whether it changes the environment of the process."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        by_method = node.func.attr in WRITES and is_environ(node.func.value)
        return by_method or ast.unparse(node.func) in ("os.putenv", "os.unsetenv")
    if isinstance(node, ast.Subscript):
        return not isinstance(node.ctx, ast.Load) and is_environ(node.value)
    return isinstance(node, ast.AugAssign) and is_environ(node.target)


def writes(source: str) -> list[int]:
    """The lines that do."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if is_write(node)]  # type: ignore[attr-defined]


def test_every_way_to_write_is_seen() -> None:
    writing = ["os.environ['a'] = 'b'", "os.environ.setdefault('a', 'b')", "del os.environ['a']", "os.environ |= {}"]
    reading = ["env = os.environ | {'a': 'b'}", "env['a'] = os.environ['a']", "os.environ.get('a')"]
    assert sorted(writes("\n".join([*writing, "os.putenv('a', 'b')", *reading]))) == [1, 2, 3, 4, 5]


def test_the_environment_is_changed_for_a_block_only() -> None:
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): writes(path.read_text()) for path in files}
    writing = {name: lines for name, lines in found.items() if lines}
    assert writing.keys() == ALLOWED.keys(), "use miles_async/hooks/environment.py"
