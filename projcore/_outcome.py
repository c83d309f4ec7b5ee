"""The status of a plugin, in words."""

from __future__ import annotations

from projcore._switches import DISABLE
from projcore.component import Plugin
from projcore.plugin import PROJCORE_API, PROJCORE_API_FLOOR

BAD = ("failed", "incompatible", "corrupt")

# Any other exception in the code of a plugin is that plugin's failure, including SystemExit: a
# plugin that calls sys.exit on import must not end the program. So code of plugins runs in try: ...
# except INTERRUPTS: raise except BaseException as error: ...
INTERRUPTS = (KeyboardInterrupt, GeneratorExit)


def story(plugin: Plugin) -> str:
    """Returns the status of a plugin, as the predicate of a sentence."""
    if plugin.status == "failed":
        return (
            f"is installed but failed to load: {plugin.cause}. "
            "Run 'projcore doctor' for the traceback."
        )
    if plugin.status == "incompatible":
        return f"{plugin.cause}: {plugin.fix}"
    if plugin.status == "corrupt":
        return f"is corrupt: {plugin.cause}. {plugin.fix}"
    if plugin.status == "conflict":
        return f"shares names: {plugin.cause}. {plugin.fix}"
    return f"is {plugin.cause}."


def describe(error: BaseException) -> str:
    """Returns type and message of an error, and of its root cause, in one line."""
    root, seen = error, {id(error)}
    while deeper := root.__cause__ or (None if root.__suppress_context__ else root.__context__):
        if id(deeper) in seen:
            break
        root = deeper
        seen.add(id(root))
    text = _one_line(error)
    return text if root is error else f"{text} (caused by {_one_line(root)})"


def _one_line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r})"
    try:
        message = " ".join(str(error).split()).rstrip(".")
    except INTERRUPTS:
        raise
    except BaseException:
        message = "its message cannot be printed"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def api_mismatch(hooks: object, required: bool) -> tuple[str, str] | None:
    """Returns cause and fix if the plugin API of a plugin is not supported."""
    api = getattr(hooks, "PROJCORE_API", None if required else PROJCORE_API)
    if isinstance(api, bool) or not isinstance(api, int):
        return (
            f"does not say which plugin API it was written for (PROJCORE_API is {api!r})",
            f"write PROJCORE_API = {PROJCORE_API} into its hook module",
        )
    if PROJCORE_API_FLOOR <= api <= PROJCORE_API:
        return None
    spoken = f"{PROJCORE_API_FLOOR} to {PROJCORE_API}"
    if PROJCORE_API_FLOOR == PROJCORE_API:
        spoken = str(PROJCORE_API)
    return (
        f"was written for plugin API {api}, this projcore speaks {spoken}",
        "pip install -U projcore" if api > PROJCORE_API else "update the plugin",
    )


def restart(plugin: Plugin, error: BaseException, editable: bool) -> str:
    """Returns a hint for an editable install that this Python process cannot see yet."""
    package = plugin.entry_point.partition(":")[0].partition(".")[0]
    if editable and isinstance(error, ModuleNotFoundError) and error.name == package:
        return " (if it was installed while Python was running, restart Python)"
    return ""


def fix(plugin: Plugin) -> str:
    """Returns the fix for a plugin that fails."""
    if plugin.distribution is None:
        return "Correct it, and register it again."
    return (
        f"Update it (pip install -U {plugin.distribution}), or switch it off "
        f"({DISABLE}={plugin.name})."
    )
