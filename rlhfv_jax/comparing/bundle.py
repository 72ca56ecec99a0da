"""The application's own modules as one script, for a page that loads nothing: each becomes a function's scope.

Reads the few forms that these modules use: `import { a, b as c } from "./x.js";` on a line of its own, declarations
that begin with `export`, and one `export{a as b}` at a module's end. Anything else is an error, not a broken page.
"""

import posixpath
import re
from importlib.resources import files

from rlhfv_jax.errors import UserError

_IMPORT = re.compile(r'^import \{([^}]*)\} from "([^"]+)";\n', re.M)
_DECLARED = re.compile(r"^export (?=(?:async )?(?:const|let|function|class) (\w+))", re.M)
_LIST = re.compile(r"\bexport\s*\{([^}]*)\};?\s*$")
_LEFT = re.compile(r"^\s*(?:import|export)\b|\bimport\s*\(", re.M)


def static(name: str) -> str:
    """A file of the application's front end."""
    return files("rlhfv_jax.annotation").joinpath("static", *name.split("/")).read_text(encoding="utf-8")


def bundle(entry: str) -> str:
    """`entry` and what it imports, in the order in which they run."""
    parts: dict[str, str] = {}
    _add(entry, parts, ())
    script = '"use strict";\n' + "\n".join(parts.values())
    if "</script" in script.lower() or "<!--" in script or "\r" in script:
        raise UserError(f"{entry}: a module spells what would end its script; write it otherwise.")
    return script


def _add(name: str, parts: dict[str, str], within: tuple[str, ...]) -> None:
    if name in parts:
        return
    if name in within:
        raise UserError(f"{name} imports itself by way of {within[-1]}.")
    source = static(name)
    needs = []
    for match in _IMPORT.finditer(source):
        other = posixpath.normpath(posixpath.join(posixpath.dirname(name), match[2]))
        _add(other, parts, (*within, name))
        needs.append(f"const {{ {_pairs(match[1], flip=False)} }} = {_scope(other)};")
    code = _IMPORT.sub("", source)
    gives = _DECLARED.findall(code)
    code = _DECLARED.sub("", code)
    if (last := _LIST.search(code)) is not None:
        gives.append(_pairs(last[1], flip=True))
        code = code[: last.start()]
    if (left := _LEFT.search(code)) is not None:
        raise UserError(f"{name}: cannot put {code[left.start() :][:40].strip()!r} on a page.")
    parts[name] = f"const {_scope(name)} = (() => {{\n" + "\n".join([*needs, code, f"return {{ {', '.join(gives)} }};"])
    parts[name] += "\n})();"


def _scope(name: str) -> str:
    return "$" + re.sub(r"\W", "_", name)


def _pairs(names: str, flip: bool) -> str:
    """`a, b as c` as an object's fields: of an import {a, b: c}, of an export {a, c: b}."""
    fields = []
    for one in filter(None, (part.strip() for part in names.split(","))):
        first, _, second = one.partition(" as ")
        fields.append(f"{second}: {first}" if second and flip else f"{first}: {second}" if second else first)
    return ", ".join(fields)
