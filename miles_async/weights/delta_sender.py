"""The broadcaster's side of ``disk_delta``: the files of the shared directory, and what the mirrors say of them.

Promises: a version is written once, against the last one that was, or whole where there is none of this incarnation; a mirror
that asks for a full copy gets it; a mirror that is silent is given up after ``SILENT_S``, and named. The shared directory is
this object's: what lies there from before is removed at its first version; a broadcaster that has been replaced writes and
removes nothing there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import msgspec
import torch

from miles_async.disk.fence import before_it_counts, is_earlier
from miles_async.hooks.daemon_thread import in_thread
from miles_async.weights.delta import Header, write_delta
from miles_async.weights.delta_mirror import CONFIG_DIR, POLL_S, State, key_of, state_file
from miles_async.weights.snapshot import copy_config, load_snapshot, snapshot_name
from miles_async.weights.update import Copies, Key

KEEP = 8  # deltas that a mirror can be behind; then it needs a full copy
MAX_FULL = 2  # full copies of one version: a directory that damages them all is not filled for ever
SILENT_S = 15.0
MAX_STATE_BYTES = 1 << 16


class DeltaSender:
    """``timeout_s``: for the mirrors to have one version."""

    def __init__(self, shared: Path, timeout_s: float) -> None:
        self.shared, self.timeout_s = shared, timeout_s
        self.file_bytes = 0  # of the newest version's file
        self._newest: tuple[Key, dict[str, torch.Tensor]] | None = None  # mapped: the snapshot's own file may be gone
        self._full = 0  # copies of the newest version
        self._asks: dict[str, int] = {}
        self._silent: dict[str, int] = {}  # given up: the time of their last sign

    async def offer(self, path: Path, key: Key) -> None:
        """Write the snapshot in ``path`` for the mirrors, unless that is done. Raises SnapshotError, OSError."""
        if self._newest is not None and self._newest[0] == key:
            return
        await in_thread(lambda: self._write(path, key))

    def _write(self, path: Path, key: Key) -> None:
        tensors = load_snapshot(path)
        before_it_counts()
        base, self._full = self._newest, 0
        if base is None:
            (self.shared / CONFIG_DIR).mkdir(parents=True, exist_ok=True)
            self._prune(0)
        copy_config(path, self.shared / CONFIG_DIR)
        if base is not None and base[0][0] == key[0] and base[0] < key:
            self._file(key, "delta", tensors, base)
        else:
            self._prune(0)
            self._write_full(key, tensors)
        self._newest = key, tensors
        self._prune(KEEP)

    def _write_full(self, key: Key, tensors: dict[str, torch.Tensor]) -> None:
        before_it_counts()
        self._full += 1
        self._file(key, "full", tensors, None)

    def _file(
        self, key: Key, kind: str, tensors: dict[str, torch.Tensor], base: tuple[Key, dict[str, torch.Tensor]] | None
    ) -> Header:
        file = self.shared / f"{snapshot_name(*key)}.{kind}"
        header = write_delta(file, key, tensors, base)
        self.file_bytes = file.stat().st_size
        return header

    def _prune(self, keep: int) -> None:
        """Remove all but the last ``keep`` deltas and the full copy of the newest version."""
        deltas = sorted(self.shared.glob("i*-v*.delta"))
        old = deltas[: max(0, len(deltas) - keep)]
        newest = None if keep == 0 or self._newest is None else self._newest[0]
        old += [file for file in self.shared.glob("i*-v*.full") if key_of(file) != newest]
        # of a sender that was killed
        old += [file for file in self.shared.glob(".i*-v*draft*") if is_earlier(file.name.split(".")[3])]
        for file in old:
            file.unlink(missing_ok=True)

    async def wait(self, engines: Iterable[str]) -> Copies:
        """Until the mirrors of ``engines`` have the version offered last, or are given up."""
        assert self._newest is not None, "nothing was offered"
        key, tensors = self._newest
        copies, waiting = Copies(), list(engines)
        loop = asyncio.get_running_loop()
        begun, signs = loop.time(), dict[str, tuple[int, float]]()
        while True:
            for name in list(waiting):
                sign, state = self._look(name)
                if sign != signs.get(name, (0, 0.0))[0] or name not in signs:
                    signs[name] = sign, loop.time()
                if state.wants == key and state.asks != self._asks.get(name):
                    self._asks[name] = state.asks
                    copies.asked[name] = state.why
                    if self._full == 0 or (state.tried and self._full < MAX_FULL):
                        await in_thread(lambda: self._write_full(key, tensors))
                waited, silent = loop.time() - begun, loop.time() - signs[name][1]
                if state.key == key:
                    copies.paths[name] = Path(state.path)
                elif self._silent.get(name) == sign or silent > SILENT_S:
                    self._silent[name] = sign
                    copies.failed[name] = f"its mirror gives no sign in {state_file(self.shared, name)}"
                elif waited > self.timeout_s:
                    last = f"; it says: {state.why}" if state.why else ""
                    copies.failed[name] = (
                        f"its mirror has not got version {key[1]} within weights.timeout_s = {self.timeout_s:g}{last}"
                    )
                else:
                    continue
                waiting.remove(name)
            if not waiting:
                return copies
            await asyncio.sleep(POLL_S)

    def _look(self, name: str) -> tuple[int, State]:
        """When the mirror of ``name`` wrote last, by its file's clock, and what; (0, nothing) where it cannot be read."""
        file = state_file(self.shared, name)
        try:
            with file.open("rb") as stream:
                return file.stat().st_mtime_ns, msgspec.json.decode(stream.read(MAX_STATE_BYTES), type=State)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return 0, State()
