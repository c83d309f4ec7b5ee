"""``projcore new-plugin NAME``: writes a distribution with a working, tested component."""

from __future__ import annotations

import keyword
import re
import shlex
from argparse import ArgumentParser, Namespace, _SubParsersAction
from datetime import date
from importlib.resources import files
from pathlib import Path
from string import Template

import projcore
from projcore import registry
from projcore._known import KNOWN
from projcore._scan import canonical
from projcore.cli.output import print_json
from projcore.errors import ArgumentError
from projcore.plugin import PROJCORE_API

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_LONGEST = 30  # limits the length of generated lines
_TAKEN = {
    "any",
    "iterable",
    "tensor",
    "scale",
    "laws",
}  # by the imports in the files, and test_laws

FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "LICENSE": "LICENSE",
    ".gitignore": "gitignore",
    ".github/workflows/test.yml": "workflow.yml",
    "src/{package}/__init__.py": "__init__.py",
    "src/{package}/_plugin.py": "{hooks}.py",
    "src/{package}/{module}.py": "{kind}.py",
    "src/{package}/py.typed": "py.typed",
    "tests/test_laws.py": "test_laws.py",
    "tests/test_{name}.py": "test_{kind}.py",
}
"""The files that are written, and the template of each."""

_SPEC = """\
```python
import projcore
import torch

model = torch.nn.Linear(4, 2)
optimizer = projcore.Optimizer(
    model,
    "$spec",
    lr=1e-3,
)
```

Here $others with `pip install 'projcore[adaptive,basic]'`."""

_RECIPE = """\
```python
import torch
from projcore.recipes import $name

model = torch.nn.Linear(4, 2)
optimizer = $name(model, lr=1e-3)
```"""

_COMMAND = """\
```sh
projcore $command optimizer.pt
```"""

_COMPONENT = {
    "kernel": "projcore",
    "hooks": "_plugin_component",
    "module": "$name",
    "cls": "$camel",
    "title": "$camel",
    "usage": _SPEC,
    "facts": "        tags=$tags,\n        example=$example,\n",
    "checks": "the laws, the packaging, and the oracle in tests/test_$name.py",
    "registers": "registers it by name, with tags for the laws that it keeps",
    "laws": "the laws",
    "laws_doc": "The laws that the tags promise hold, and the packaging is correct.",
    "oracle": "compares it with an oracle",
}

_PACKAGE = {
    "checks": "the packaging, and tests/test_$name.py",
    "laws": "the checks of the packaging",
    "laws_doc": "The packaging is correct.",
}

BY_KIND: dict[str, dict[str, str]] = {
    "projection": {
        "summary": "Runs modules in coordinates in which pairs of elements are rotated.",
        "tags": '("linear", "lossless", "orthonormal")',
        "example": '{"angle": 0.5}',
        "spec": "$name([adam()], angle=0.5)",
        "others": "`adam` and `lr` come",
        **_COMPONENT,
    },
    "module": {
        "summary": "Replaces the update by its moving average.",
        "tags": "()",
        "example": '{"beta": 0.9}',
        "spec": "$name(beta=0.9)",
        "others": "`lr` comes",
        **_COMPONENT,
    },
    "recipe": {
        "summary": "AdamW on clipped gradients, without weight decay of biases and gains.",
        "kernel": "projcore[adaptive,basic]",
        "hooks": "_plugin_component",
        "module": "recipes",
        "cls": "$name",
        "title": "$name",
        "usage": _RECIPE,
        "facts": "",
        "registers": "registers it by name",
        "oracle": "compares it with torch's optimizer, and resumes it",
        **_PACKAGE,
    },
    "command": {
        "kernel": "projcore",
        "hooks": "_plugin_command",
        "module": "command",
        "cls": "run",
        "title": "$command",
        "usage": _COMMAND,
        "registers": "adds it to `projcore`",
        "oracle": "runs it",
        **_PACKAGE,
    },
    "basis": {
        "hook": "choice",
        "requires": ', "projcore-lowrank"',
        "summary": "A basis of the first columns of each matrix.",
        "tags": '("basis", "linear", "orthonormal", "data_dependent")',
        "example": '{"period": 2, "stagger": False}',
        "spec": "subspace([adam()], rank=2, basis=$name())",
        "others": "`adam` and `lr` come",
        **_COMPONENT,
    },
    "combine": {
        "hook": "choice",
        "requires": ', "projcore-lowrank"',
        "summary": "The inner result, and the residual scaled by the same ratio of norms.",
        "tags": '("combine", "linear", "orthonormal", "data_dependent")',
        "example": '{"scale": 0.5}',
        "spec": "subspace([adam()], rank=2, combine=$name())",
        "others": "`adam` and `lr` come",
        **_COMPONENT,
    },
}
"""The parts of the templates that differ by kind; each may use the previous ones."""


def add(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("new-plugin", help="write the scaffold of a plugin")
    parser.add_argument("name", help="name of the component, for example fast-hadamard")
    parser.add_argument(
        "--kind", choices=tuple(BY_KIND), default="projection", help="kind of the component"
    )
    parser.add_argument("--directory", type=Path, help="its folder (default: ./projcore-NAME)")
    parser.add_argument("--author", help="author in the licence and the metadata")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Writes the files, all or none, and prints the next steps."""
    name = component_name(arguments.name)
    distribution = f"projcore-{name.replace('_', '-')}"
    directory = arguments.directory or Path(distribution)
    author = arguments.author or f"The {distribution} authors"
    if not author.isprintable():
        raise ArgumentError(f"--author {author!r} was given. A name is one line of text.")
    written = render(name, arguments.kind, author)
    _write(directory, written)
    source = next(path for path in written if path.startswith("src/") and "/_" not in path)
    if arguments.json:
        print_json({"name": name, "directory": str(directory), "files": sorted(written)})
        return 0
    print(
        f"{directory}: {len(written)} files, a working {arguments.kind} and its tests. Next:\n\n"
        f"  cd {shlex.quote(str(directory))}\n"
        "  python -m pip install -e '.[dev]'\n"
        "  python -m pytest\n"
        f"  projcore check {name}\n\n"
        f"Then replace the example in {source} and in tests/test_{name}.py by your own.\n"
        "README.md explains how to publish it."
    )
    return 0


def component_name(given: str) -> str:
    """Returns the name of a component, given that or the name of its distribution.

    Raises:
        ArgumentError: If the name is invalid or taken.

    Example:
        >>> component_name("projcore-fast-hadamard")
        'fast_hadamard'
    """
    short = given.removeprefix("projcore-").removeprefix("projcore_")
    name = canonical(short)
    who = f"new-plugin was given the name {given!r}."
    if not _NAME.fullmatch(short):
        raise ArgumentError(
            f"{who} A name has lower-case letters and digits, a letter first, and single - or _ "
            "between them. Write it so, for example fast-hadamard."
        )
    if len(name) > _LONGEST:
        raise ArgumentError(f"{who} It has {len(name)} letters, more than {_LONGEST}. Shorten it.")
    taken = {word.lower() for word in projcore.__all__} | _TAKEN
    if keyword.iskeyword(name) or class_name(name).lower() in taken:
        raise ArgumentError(f"{who} It is reserved in the generated code. Choose another.")
    for known in KNOWN:
        if name in (known.name, known.extra, *known.aliases) or class_name(name).lower() == (
            known.attribute.lower()
        ):
            raise ArgumentError(
                f"{who} {known.distribution} has that name already: it provides the {known.kind} "
                f"{known.name!r}. Choose another."
            )
    registry.manager.discover(lenient=True)
    for component in registry.manager.components:
        if name in (component.name, *component.aliases, component.plugin):
            raise ArgumentError(
                f"{who} The {component.kind} {component.qualified!r} ({component.provider}) has it "
                "already. Choose another."
            )
    return name


def class_name(name: str) -> str:
    """Returns the name of the class.

    Example:
        >>> class_name("fast_hadamard")
        'FastHadamard'
    """
    return "".join(part.capitalize() for part in name.split("_"))


def package_name(name: str) -> str:
    """Returns the name of the package."""
    return f"projcore_{name}"


def render(name: str, kind: str, author: str) -> dict[str, str]:
    """Returns the text of each file, by its path."""
    values = {
        "name": name,
        "kind": kind,
        "camel": class_name(name),
        "command": name.replace("_", "-"),
        "package": package_name(name),
        "distribution": f"projcore-{name.replace('_', '-')}",
        "author": author,
        "author_toml": author.replace("\\", r"\\").replace('"', r"\""),
        "year": str(date.today().year),
        "version": projcore.__version__,
        "api": str(PROJCORE_API),
        "hook": kind,
        "requires": "",
    }
    for key, text in BY_KIND[kind].items():
        values[key] = Template(text).substitute(values)
    templates = files("projcore").joinpath("templates")
    return {
        path.format_map(values): Template(
            templates.joinpath(f"{template.format_map(values)}.tmpl").read_text("utf-8")
        ).substitute(values)
        for path, template in FILES.items()
    }


def _write(directory: Path, texts: dict[str, str]) -> None:
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ArgumentError(
                f"new-plugin would write to {str(directory)!r}, which exists and is not empty. "
                "Nothing was overwritten. Pass --directory with a new or empty folder."
            )
        for path, text in texts.items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArgumentError(
            f"new-plugin cannot write to {str(directory)!r}: {error}. Pass --directory with a "
            "writable folder."
        ) from error
