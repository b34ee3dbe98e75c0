"""Test files of what changed since a revision: python tools/changed_tests.py REV

A test file belongs to a changed module if it is its mirror (tests/rl/test_tgrpo.py of jvr1/rl/tgrpo.py), imports it, or
imports a module that does; a helper of the tests stands for itself. Prints nothing where all tests are meant, after a
change of what all of them stand on, and --collect-only where none is.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEAR = 2
"""Imports between a test and what it is a test of; more where fewer find none."""
OF_ALL = {"pyproject.toml", "constraints.txt", "tests/conftest.py", "tests/compiled.py"}


def main(revision: str) -> int:
    changed = changed_files(revision)
    if changed is None:
        print(f"error: git knows no revision {revision}", file=sys.stderr)
        return 2
    if not OF_ALL & changed:
        print("\n".join(sorted(tests_of(changed, graph()))) or "--collect-only")
    return 0


def changed_files(revision: str) -> set[str] | None:
    """Files that differ from a revision in the working tree, new ones too; None: there is no such revision."""
    compared = _git("diff", "--name-only", revision)
    return None if compared is None else {*compared, *(_git("ls-files", "--others", "--exclude-standard") or ())}


def graph() -> dict[str, set[str]]:
    """File -> files of this repository that it imports."""
    folders = ("jvr1", "launch", "tools", "tests", "configs")
    files = [p.relative_to(ROOT) for folder in folders for p in (ROOT / folder).rglob("*.py")]
    named = {name: str(path) for path in files for name in _names(path)}
    return {str(p): {named[name] for name in _imports(p) if name in named} - {str(p)} for p in files}


def tests_of(changed: set[str], imports: dict[str, set[str]]) -> set[str]:
    """Test files of the changed files; `imports` as `graph` gives them."""
    users: dict[str, set[str]] = {file: set() for file in imports}
    for user, used in imports.items():
        for file in used:
            users[file].add(user)
    changed = changed & set(imports)
    names = {f"test_{Path(file).name}" for file in changed}
    found = {file for file in imports if _is_test(file) and (file in changed or Path(file).name in names)}
    reached, ring = set(changed), set(changed)
    for near in range(len(imports)):
        if not ring or (found and near >= NEAR):
            break
        ring = set().union(*(users[file] for file in ring))
        helpers = {file for file in ring if file.startswith("tests/") and not _is_test(file)}
        ring |= set().union(*(users[file] for file in helpers))
        found |= {file for file in ring if _is_test(file)}
        ring = {file for file in ring - reached if not _is_test(file)}
        reached |= ring
    return found


def _is_test(file: str) -> bool:
    return file.startswith("tests/") and Path(file).name.startswith("test_")


def _names(path: Path) -> Iterator[str]:
    """What a file is imported as; tests' folders are on the path, each by itself and as packages below tests/."""
    dotted = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    yield dotted
    if path.parts[0] == "tests":
        yield dotted.removeprefix("tests.")
        yield path.stem


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _git(*arguments: str) -> list[str] | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
