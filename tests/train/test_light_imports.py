"""A learner loads what its steps need; whatever else there is, is there for whoever asks for it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from miles_async.train.light_imports import absent, imported_when_called, undecorated

SUPPORT = Path(__file__).parents[1] / "support"
A_LEARNER = """
import sys
import actors.runtime.placement.preload_learner
from train_support import make_config
from miles_async.models.builtin import make_model
from miles_async.train.ranks import alone
from miles_async.train.trainer import MegatronTrainer
from pathlib import Path
make_model("builtin:digits", Path("model"), 1)
trainer = MegatronTrainer(make_config(Path("model").absolute()), "model", alone(f"file://{Path('meeting').absolute()}"))
"""


def learner(then: str, where: Path) -> None:
    """A process that has a learner, on a CPU, and goes on with ``then``."""
    code = f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\n{A_LEARNER}\n{textwrap.dedent(then)}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=where)


def test_a_learner_loads_nothing_that_only_others_need(tmp_path: Path) -> None:
    learner(
        """
        heavy = {"transformers", "sympy", "tensorboard", "setuptools", "torch._dynamo", "torch._inductor"}
        heavy |= {"torch.distributed.tensor", "torch.distributed.checkpoint", "torch.distributed.fsdp"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        trainer.save_checkpoint(Path("checkpoints"), {})
        trainer.load_checkpoint(Path("checkpoints"))
        heavy.remove("torch.distributed.checkpoint")
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        """,
        tmp_path,
    )


def test_what_a_learner_does_without_is_there_for_whoever_asks(tmp_path: Path) -> None:
    learner(
        """
        trainer.save_checkpoint(Path("checkpoints"), {"a": 1})
        assert trainer.load_checkpoint(Path("checkpoints")) == {"a": 1}
        import torch.distributed.checkpoint, torch.utils.cpp_extension, torch.utils.tensorboard, transformers
        from mbridge.core.bridge import cached_file
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor
        assert transformers.AutoConfig.from_pretrained("model").vocab_size == trainer._bridge.hf_config.vocab_size
        assert cached_file("model", "config.json") == "model/config.json"
        """,
        tmp_path,
    )


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "light_one.py").write_text("def double(x): return 2 * x\n")
    (tmp_path / "light_two.py").write_text("from light_one import double\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("light_one", "light_two"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("modules")
def test_a_function_imports_its_module_when_it_is_called() -> None:
    with imported_when_called("light_one"):
        import light_two  # pyright: ignore[reportMissingImports]
    assert "light_one" not in sys.modules
    assert light_two.double(4) == 8 and "light_one" in sys.modules


@pytest.mark.usefixtures("modules")
def test_a_module_is_absent_only_inside_and_only_if_it_was_not_there() -> None:
    with absent("light_one"), pytest.raises(ImportError):
        import light_two
    import light_two  # pyright: ignore[reportMissingImports]

    with absent("light_one"):
        from light_one import double  # pyright: ignore[reportMissingImports]
    assert double is light_two.double


def test_a_decorator_leaves_alone_what_it_is_given_only_inside() -> None:
    import functools

    before = functools.cache
    with undecorated(functools, "cache"):
        assert functools.cache(len) is len and functools.cache(maxsize=1)(len) is len  # pyright: ignore[reportCallIssue]
    assert functools.cache is before
