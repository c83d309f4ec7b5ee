"""What need not import torch does not."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "code",
    [
        "import projcore; dir(projcore); projcore.__version__; projcore.registry; projcore.errors",
        "import projcore.spec, projcore.projections, projcore.modules, projcore.recipes",
        "from projcore import projections, modules, recipes; dir(projections), dir(modules)",
        "from projcore import registry; assert len(registry.components()) >= 20",
        "from projcore import registry; registry.get('projection', 'vector')",
        "from projcore import modules, projections; assert 'LR' in dir(modules)",
        "from projcore import projections; assert not hasattr(projections, 'Nothing_like_it')",
        "from projcore.plugin import hookimpl",
        "from projcore.cli import main; main(['list'])",
        "from projcore.cli import main; main(['plugins', '--json'])",
        "from projcore.cli import main; main(['doctor'])",
        "from projcore.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_torch_is_not_imported(site, code):
    result = site.python(f"{code}\nimport sys\nassert 'torch' not in sys.modules")
    assert result.returncode == 0, result.stderr


def test_every_public_name_is_there(site):
    code = """
        import projcore, sys
        assert "torch" not in sys.modules
        for name in projcore.__all__:
            getattr(projcore, name)
        from projcore import *
        assert set(projcore.__all__) <= set(dir(projcore))
    """
    result = site.python(code)
    assert result.returncode == 0, result.stderr


def test_a_plugin_that_imports_torch_is_reported(site, good):
    heavy = "    import sys, types\n    sys.modules['torch'] = types.ModuleType('torch')\n"
    site.install("heavy", heavy + good("thing"))
    result = site.projcore("doctor")
    assert result.returncode == 1
    assert (
        "plugin 'heavy' (heavy 1.0): loaded\n  cause: discovering it imports torch" in result.stdout
    )
