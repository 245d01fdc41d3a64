"""How often a rank has asked for an all_reduce, in whichever thread and whoever asks: they are counted where all of them pass. Imports torch alone."""
import torch

__all__ = ["Calls"]


class Calls:
    """`with Calls() as calls: ...; calls.count`: all_reduces of this rank since the block began. Not within a traced step, which listens at the same place."""

    def __enter__(self) -> "Calls":
        self.count, self._library = 0, torch.library.Library("c10d", "IMPL")
        below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
        for name in ("allreduce_", "allreduce_coalesced_"):
            operator = getattr(torch.ops.c10d, name).default

            def kernel(keyset, *args, operator=operator):
                self.count += 1
                return operator.redispatch(keyset & below, *args)

            self._library.impl(name, kernel, "BackendSelect", with_keyset=True)
        return self

    def __exit__(self, *error) -> None:
        self._library._destroy()
