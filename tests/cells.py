"""Which cells of a notebook stand on which others; and so, which cells of a solved twin the tests run: what
differs from its chapter, and what that stands on. All its other cells are the chapter's own, word for word (a
test holds that), and run there.
"""

import ast
import bisect
import functools
import re
import symtable
from pathlib import Path

import nbformat

__all__ = ["needed_cells", "takers", "made", "used"]

# methods that change a list, a set or a dict
CHANGE = set("append extend insert remove pop clear sort reverse add discard update".split())
SEED = re.compile(r"^[\w.]*seed\(", re.MULTILINE)


class _Cells:
    """The cells of code of a notebook, at the positions that nbval counts."""

    def __init__(self, path: Path):
        self.code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        self.uses = [used(cell.source) for cell in self.code]
        self._makers: dict[str, list[int]] = {}
        for number, cell in enumerate(self.code):
            for name in made(cell.source):
                self._makers.setdefault(name, []).append(number)

    def maker(self, name: str, before: int) -> set[int]:
        """The last cell before this one that makes the name, if there is one."""
        makers = self._makers.get(name, ())
        return set(makers[: bisect.bisect_left(makers, before)][-1:])

    def stand_on(self, first: set[int]) -> set[int]:
        """These, and all that they use, directly or not."""
        # a function looks its names up when it is called: in what stands before the caller, not before itself
        pairs, seen = {(number, number) for number in first}, set()
        while pairs:
            cell, at = pair = pairs.pop()
            seen.add(pair)
            for name in self.uses[cell]:
                for end in {cell, at}:
                    pairs |= {(number, end) for number in self.maker(name, end)} - seen
        return {cell for cell, _ in seen}


_cells = functools.cache(_Cells)


@functools.cache
def needed_cells(path: Path) -> set[int]:
    """The positions of a twin's exercises, of what uses them, and of what all these use, directly or not.
    Positions are counted as nbval counts: cells of code alone.
    """
    cells = _cells(path)
    every = range(len(cells.code))
    solved = {number for number in every if "exercise" in cells.code[number].metadata.get("tags", [])}
    first = {
        number for number in every if any(cells.maker(name, number) & solved for name in cells.uses[number])
    }
    # random numbers follow from a seed that may stand anywhere
    first |= solved | {number for number in every if SEED.search(cells.code[number].source)}
    return cells.stand_on(first)


def takers(path: Path, number: int) -> set[int]:
    """The positions, counted alike, of this cell and of all that stand on it, directly or not."""
    return {other for other, stands_on in enumerate(_each_stands_on(path)) if number in stands_on}


@functools.cache
def _each_stands_on(path: Path) -> list[set[int]]:
    cells = _cells(path)
    return [cells.stand_on({number}) for number in range(len(cells.code))]


def made(source: str) -> set[str]:
    """Names that a cell gives a value, or changes in place."""
    names = {symbol.get_name() for symbol in _table(source).get_symbols() if symbol.is_assigned()}
    names |= {symbol.get_name() for symbol in _table(source).get_symbols() if symbol.is_imported()}
    of_notebook = used(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            names |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        if isinstance(node, ast.Attribute) and node.attr in CHANGE and isinstance(node.value, ast.Name):
            names |= {node.value.id} & of_notebook
    return names


def used(source: str) -> set[str]:
    """Names that a cell, or a function in it, takes from the notebook."""
    names, tables = set(), [_table(source)]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == "module"
        names |= {
            one.get_name() for one in table.get_symbols() if one.is_referenced() and (top or one.is_global())
        }
    return names


def _table(source: str) -> symtable.SymbolTable:
    return symtable.symtable(source, "cell", "exec")
