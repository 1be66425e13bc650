"""Turn the learner's own cells into modules that import and run by themselves.

A cell leans on names that other cells made: imports, a router, a helper. At each check those statements are
looked up in the notebook's history (``requirements``) and go into the evidence with the cell; the report then
puts both together (``module``).
"""

from __future__ import annotations

import ast
import builtins
import symtable
import sys
from collections.abc import Iterable, Iterator, Sequence

from labkit.course.markers import Definition

# What belongs to the session and not to a module: a statement that uses one of these is left out.
SESSION = frozenset({"lab", "lesson", "get_ipython", "display"})

# What a module says instead: the Lab's own Redis ends with the notebook, so it names the usual address.
OUTSIDE = {"lab.redis.url": '"redis://127.0.0.1:6379/0"'}

Import = ast.Import | ast.ImportFrom


def history() -> list[str]:
    """The code of the cells run so far in this notebook, oldest first; empty outside of one."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return [str(cell) for cell in shell.user_ns.get("In", [])] if shell is not None else []


def requirements(source: str, cells: Sequence[str]) -> list[str]:
    """The top-level statements of other cells that a cell needs: imports first, then each after what it needs.

    Args:
        source: the cell.
        cells: the notebook's history; where a name was bound twice, the newest counts.
    """
    source, cells = _outside(source), [_outside(cell) for cell in cells]
    bound = {name: text for cell in cells for s in _statements(cell) for name, text in _bindings(s, cell)}
    found: dict[str, None] = {}
    seen: set[str] = set()

    def bring(code: str) -> None:
        for name in sorted(_needs(code) & bound.keys() - seen - SESSION):
            seen.add(name)
            bring(bound[name])
            found[bound[name]] = None

    bring(own_part(source))
    return sorted(found, key=lambda text: not _is_import(text))


def bound_names(source: str) -> set[str]:
    """What a cell binds at its top level by definitions and assignments."""
    statements = [s for s in _statements(source) if not isinstance(s, Import)]
    return {name for statement in statements for name, _ in _bindings(statement, source)}


def find_cell(names: Iterable[str], cells: Sequence[str]) -> str:
    """The newest cell that binds all these names; empty if there is none."""
    wanted = set(names)
    return next((cell for cell in reversed(cells) if wanted and wanted <= bound_names(cell)), "")


def module(heading: str, parts: Iterable[tuple[str, Sequence[str]]]) -> str:
    """One module of several cells.

    Args:
        heading: its docstring.
        parts: each cell with its requirements.
    """
    parts = [(_outside(source), needs) for source, needs in parts]
    bodies = [own_part(source) for source, _ in parts]
    own = set().union(*map(bound_names, bodies))
    imports: dict[str, None] = {}
    support: dict[str, None] = {}
    for source, needs in parts:
        imports |= dict.fromkeys(_imports(source))
        for text in needs:
            if not bound_names(text) & own:
                (imports if _is_import(text) else support)[text] = None
    head = "\n\n".join([f'"""{heading}"""', *_tidy(imports)])
    return "\n\n\n".join(filter(None, [head, "\n\n\n".join(support), *bodies])) + "\n"


def _outside(source: str) -> str:
    for inside, outside in OUTSIDE.items():
        source = source.replace(inside, outside)
    return source


def _tidy(imports: Iterable[str]) -> list[str]:
    """Imports as people order them: the future, the standard library, the rest; one line a module."""
    modules: dict[tuple[int, bool, str], set[str]] = {}
    for text in imports:
        word, name, *rest = text.split(" ", 3)
        top = name.partition(".")[0]
        rank = 0 if name == "__future__" else 1 if top in sys.stdlib_module_names else 2
        line = f"from {name} import" if word == "from" else text
        modules.setdefault((rank, word == "from", line), set()).update(rest[1:] if word == "from" else ())
    groups: dict[int, list[str]] = {}
    for (rank, _, line), names in sorted(modules.items()):
        groups.setdefault(rank, []).append(f"{line} {', '.join(sorted(names))}".rstrip())
    return ["\n".join(lines) for lines in groups.values()]


def own_part(source: str) -> str:
    """A cell without its imports (they go to the top) and without what only makes sense in the notebook."""
    lines: list[str | None] = list(source.splitlines())
    for statement in _statements(source):
        if isinstance(statement, Import) or _of_session(statement):
            for index in range(statement.lineno - 1, statement.end_lineno or statement.lineno):
                lines[index] = None
    return "\n".join(line for line in lines if line is not None).strip("\n")


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []


def _of_session(statement: ast.stmt) -> bool:
    if isinstance(statement, Definition):
        return False
    nodes = list(ast.walk(statement))
    return any(isinstance(n, ast.Await) or (isinstance(n, ast.Name) and n.id in SESSION) for n in nodes)


def _bindings(statement: ast.stmt, cell: str) -> Iterator[tuple[str, str]]:
    """The names a statement binds, each with the least code that binds it, as it was written."""
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
    written = "\n".join(cell.splitlines()[first - 1 : statement.end_lineno])
    if isinstance(statement, Import):
        for alias in statement.names:
            alone: Import = ast.Import([alias])
            if isinstance(statement, ast.ImportFrom):
                alone = ast.ImportFrom(statement.module, [alias], statement.level)
            yield (alias.asname or alias.name.partition(".")[0]), ast.unparse(alone)
    elif isinstance(statement, Definition):
        yield statement.name, written
    elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for node in (found for target in targets for found in ast.walk(target)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id, written


def _imports(source: str) -> list[str]:
    return [text for s in _statements(source) if isinstance(s, Import) for _, text in _bindings(s, source)]


def _is_import(text: str) -> bool:
    return text.startswith(("import ", "from "))


def _needs(source: str) -> set[str]:
    """The global names that code uses and does not bind itself."""

    def used(table: symtable.SymbolTable, top: bool) -> Iterator[str]:
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (top or symbol.is_global()):
                yield symbol.get_name()
        for child in table.get_children():
            yield from used(child, False)

    try:
        table = symtable.symtable(source, "<cell>", "exec")
    except SyntaxError:
        return set()
    bound = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    return set(used(table, True)) - bound - set(dir(builtins))
