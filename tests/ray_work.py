"""Work for Ray whose workers die or misbehave; workers import it by its name."""

import os
import secrets
import signal

from data import store, workers


def die_once(folder) -> None:
    """Kill this process, the first time that it is called with this folder."""
    mark = folder / ".died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    """Kills its worker at a piece of that name; leaves a file each time."""

    def __init__(self, folder):
        self._folder = folder

    def __call__(self, piece):
        if piece == "bad":
            (self._folder / secrets.token_hex(8)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return piece


class KillerOfRows(Killer):
    """The same of a row, as Ray Data gives it."""

    def __call__(self, row):
        return {"item": super().__call__(row["item"])}


class KillerInActor(KillerOfRows):
    """The same, made as the actors of predict are."""

    def __init__(self, model, *rest):
        super().__init__(model[0])


class DyingPreparation(workers.MakeShard):
    """Dies once in the middle of a shard: it has begun to write, and it is not whole."""

    def __call__(self, piece):
        write = workers.write_shard

        def dying(path, records):
            def some():
                for record in records:
                    yield record
                    die_once(path.parent.parent)

            return write(path, some())

        workers.write_shard = dying
        try:
            return super().__call__(piece)
        finally:
            workers.write_shard = write


class DyingStore(store.MakeShard):
    """Dies once after a shard is written and before its note is."""

    def __call__(self, piece):
        note = store.write_note

        def dying(out, *rest, **more):
            die_once(out.parent)
            return note(out, *rest, **more)

        store.write_note = dying
        try:
            return super().__call__(piece)
        finally:
            store.write_note = note
