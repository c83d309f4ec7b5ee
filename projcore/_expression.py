"""Reads expressions such as ``"vector([adam(), lr(1e-3)])"``: calls, names and literals only."""

from __future__ import annotations

import ast
import re
import textwrap
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from projcore._bases import is_module
from projcore._construct import Argument, construct, make_chain, plain
from projcore.errors import SpecError

if TYPE_CHECKING:
    from projcore.core.module import Module

_STRING = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_QUALIFIED = re.compile(rf"{_STRING}|(?<![\w.])[^\W\d]\w*(:)[^\W\d]")
_NUMBERS = {"inf": float("inf"), "nan": float("nan")}
_PYTHON = {"true": "True", "false": "False", "null": "None", "none": "None"}


class Expression:
    """A spec as a string.

    A qualified name, ``plugin:name``, is read as Python reads ``plugin.name``; dots that the user
    wrote are refused.

    Args:
        text: It.
        path: Where in a larger spec it stands, for messages; empty if it is the whole.

    Raises:
        SpecError: If it is not Python's syntax.
    """

    def __init__(self, text: str, path: str = "") -> None:
        self.at = f"at {path}\n" if path else ""
        self.text = textwrap.dedent(text).strip()
        self.colons = {match.start(1) for match in _QUALIFIED.finditer(self.text) if match.group(1)}
        source = "".join("." if i in self.colons else c for i, c in enumerate(self.text))
        self.lines = self.text.splitlines() or [""]
        try:
            self.body = ast.parse(source).body
        except SyntaxError as error:
            line, column = error.lineno or 1, max((error.offset or 1) - 1, 0)
            place = self._point(line, column, column + 1)
            raise SpecError(f"The spec cannot be read: {error.msg}.\n{place}") from None
        except (ValueError, RecursionError, MemoryError) as error:
            reason = error or "it is too deep"
            raise SpecError(f"The spec cannot be read: {reason}.\n{self.at}".rstrip()) from None

    def build(self) -> Module:
        """Makes the module, or the chain if there are several."""
        if not self.body:
            empty = "The spec is empty. Write a module, for example 'adam(); lr(0.001)'."
            raise SpecError(f"{empty}\n{self.at}".rstrip())
        modules = []
        for statement in self.body:
            if not isinstance(statement, ast.Expr):
                raise self._refuse(statement, f"{type(statement).__name__} is no expression")
            value = self._value(statement.value)
            if isinstance(value, list) and value:
                value = make_chain(value)
            if not is_module(value):
                raise self._refuse(statement, f"{value!r} is not a module")
            modules.append(value)
        return modules[0] if len(modules) == 1 else make_chain(modules)

    def value(self) -> Any:
        """Makes what a single expression stands for, as a choice."""
        if len(self.body) != 1 or not isinstance(self.body[0], ast.Expr):
            raise SpecError(
                f"{self.text!r} is not one call or name. Write one.\n{self.at}".rstrip()
            )
        return self._value(self.body[0].value)

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self._name(node)
        if isinstance(node, ast.Constant):
            if isinstance(node.value, (str, int, float)) or node.value is None:
                return node.value
            raise self._refuse(node, f"{node.value!r} is no value that a spec can hold")
        if isinstance(node, (ast.List, ast.Tuple)):
            items = [self._value(item) for item in node.elts]
            return tuple(items) if isinstance(node, ast.Tuple) else plain(items)
        if isinstance(node, ast.Dict):
            keys = [self._key(key, node) for key in node.keys]
            return dict(zip(keys, map(self._value, node.values), strict=True))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            value = self._value(node.operand)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return -value if isinstance(node.op, ast.USub) else value
        raise self._refuse(node, "A spec holds calls, names and literals, and is never evaluated")

    def _key(self, node: ast.expr | None, whole: ast.Dict) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float)):
            return node.value
        raise self._refuse(node or whole, "A key is a string or a number")

    def _call(self, node: ast.Call) -> Any:
        arguments = []
        for item in node.args:
            if isinstance(item, ast.Starred):
                raise self._refuse(item, "Write the arguments out; a spec has no *")
            arguments.append(self._argument(None, item, item))
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self._refuse(keyword.value, "Write the arguments out; a spec has no **")
            arguments.append(self._argument(keyword.arg, keyword.value, keyword))
        return construct(self._called(node.func), arguments, self._place(node.func))

    def _argument(
        self, keyword: str | None, value: ast.expr, node: ast.expr | ast.keyword
    ) -> Argument:
        def make(_: Parameter) -> Any:
            if isinstance(value, ast.Name):
                right = _PYTHON.get(value.id.lower(), repr(value.id))
                return self._name(value, f" If no module was meant, write {right}.")
            return self._value(value)

        return Argument(keyword, make, self._place(node))

    def _name(self, node: ast.Name | ast.Attribute, hint: str = "") -> Any:
        name = self._called(node)
        if name in _NUMBERS:
            return _NUMBERS[name]
        return construct(name, [], self._place(node), hint)

    def _called(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return node.id
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and self._index(node.value) + len(node.value.id) in self.colons
        ):
            return f"{node.value.id}:{node.attr}"
        raise self._refuse(
            node, "A spec holds the names of registered components; paths are never resolved"
        )

    def _index(self, node: ast.Name) -> int:
        """Returns where in the text a name begins."""
        before = self.text.splitlines(keepends=True)[: node.lineno - 1]
        return sum(map(len, before)) + self._column(node.lineno, node.col_offset)

    def _column(self, line: int, offset: int) -> int:
        """Returns the column of an offset, which Python counts in bytes."""
        return len(self.lines[line - 1].encode()[:offset].decode(errors="ignore"))

    def _refuse(self, node: ast.AST, why: str) -> SpecError:
        return SpecError(f"{why}.\n{self._place(node)}")

    def _place(self, node: Any) -> str:
        begin = self._column(node.lineno, node.col_offset)
        end = len(self.lines[node.lineno - 1])
        if node.end_lineno == node.lineno:
            end = self._column(node.lineno, node.end_col_offset)
        return self._point(node.lineno, begin, end)

    def _point(self, line: int, begin: int, end: int) -> str:
        text = self.lines[min(line, len(self.lines)) - 1]
        return f"{self.at}  {text}\n  {' ' * begin}{'^' * max(end - begin, 1)}"
