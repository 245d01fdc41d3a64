"""Which cells of a solved twin the tests run: what differs from its chapter, and what that stands on. All its
other cells are the chapter's own, word for word (a test holds that), and run there.
"""

import ast
import re
import symtable
from pathlib import Path

import nbformat

__all__ = ["needed_cells", "ends"]

SEED = re.compile(r"^[\w.]*seed\(", re.MULTILINE)


def needed_cells(path: Path) -> set[int]:
    """The positions of a twin's exercises, of what uses them, and of what all these use, directly or not.
    Positions are counted as nbval counts: cells of code alone.
    """
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    code = dict(enumerate(cells))
    makes = {number: _made(cell.source) for number, cell in code.items()}
    uses = {number: _used(cell.source) for number, cell in code.items()}

    def maker(name: str, before: int) -> set[int]:
        return set([other for other in code if other < before and name in makes[other]][-1:])

    solved = {number for number in code if "exercise" in code[number].metadata.get("tags", [])}
    first = {number for number in code if any(maker(name, number) & solved for name in uses[number])}
    # random numbers follow from a seed that may stand anywhere
    first |= solved | {number for number, cell in code.items() if SEED.search(cell.source)}
    # a function looks its names up when it is called: in what stands before the caller, not before itself
    pairs, seen = {(number, number) for number in first}, set()
    while pairs:
        cell, at = pair = pairs.pop()
        seen.add(pair)
        for name in uses[cell]:
            for end in {cell, at}:
                pairs |= {(number, end) for number in maker(name, end)} - seen
    return {cell for cell, _ in seen}


def ends(path: Path) -> set[int]:
    """The positions, counted alike, of cells from which no later cell takes a name."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    found, wanted = set(), set()
    for number, cell in reversed(list(enumerate(cells))):
        made = _made(cell.source)
        if not made & wanted:
            found.add(number)
        wanted = wanted - made | _used(cell.source)
    return found


def _made(source: str) -> set[str]:
    """Names that a cell gives a value, or changes in place."""
    made = {symbol.get_name() for symbol in _table(source).get_symbols() if symbol.is_assigned()}
    made |= {symbol.get_name() for symbol in _table(source).get_symbols() if symbol.is_imported()}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            made |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return made


def _used(source: str) -> set[str]:
    """Names that a cell, or a function in it, takes from the notebook."""
    used, tables = set(), [_table(source)]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == "module"
        used |= {
            one.get_name() for one in table.get_symbols() if one.is_referenced() and (top or one.is_global())
        }
    return used


def _table(source: str) -> symtable.SymbolTable:
    return symtable.symtable(source, "cell", "exec")
