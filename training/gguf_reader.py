"""Reading the packaged student's GGUF file in seconds.

What it does: stand in for `gguf.GGUFReader` while transformers converts the file. That reader makes
several NumPy views of a memory map for each of the 262,144 tokens, their scores and types, and
transformers opens the file three times; here a list is read in one sweep over plain memory, and the
file once. What it does not do: dequantise (gguf does) or know what a model is (transformers does).
The fields, and so the converted weights, are the same (`python -m benchmarks.conversion`).

Source: the GGUF specification and `gguf/gguf_reader.py` (ggml-org/llama.cpp).
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator


@functools.cache
def fast_reader() -> type:
    """The reader's class, made once, so that importing this module does not import gguf."""
    import numpy as np
    from gguf import GGUFReader, GGUFValueType

    class FastReader(GGUFReader):
        def _get(self, offset, dtype, count=1, override_order=None):
            # `data` is a memory map, whose every slice runs Python code; a plain array's does not
            if "plain" not in vars(self):
                self.plain = np.asarray(self.data)
            kind = np.dtype(dtype)
            order = self.byte_order if override_order is None else override_order
            end = offset + kind.itemsize * int(count)
            return self.plain[offset:end].view(kind.newbyteorder(order))

        def _get_field_parts(self, orig_offs, raw_type):
            """As the original: `(bytes, parts, indices of the values among the parts, types)`."""
            if GGUFValueType(raw_type) != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            item = self._get(orig_offs, np.uint32)
            length = self._get(orig_offs + 4, np.uint64)
            start, count = orig_offs + 12, int(length[0])
            kind = GGUFValueType(item[0])
            if kind == GGUFValueType.STRING:
                end, parts = self._strings(start, count)
                values = list(range(3, 3 + 2 * count, 2))  # a length, then the text
            elif kind in self.gguf_scalar_to_np:
                numbers = self._get(start, self.gguf_scalar_to_np[kind], count)
                end, parts = start + numbers.nbytes, list(numbers.reshape(-1, 1))
                values = list(range(2, 2 + count))
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            types = [GGUFValueType.ARRAY, kind] if count else [GGUFValueType.ARRAY]
            return end - orig_offs, [item, length, *parts], values, types

        def _strings(self, offset, count):
            """`(where they end, [length, text, length, text, ...])`, each an array of bytes."""
            memory = memoryview(self.plain)
            swapped = self.byte_order != "I"  # the file is of a machine of the other kind
            order = "big" if (sys.byteorder == "little") == swapped else "little"
            parts = []
            for _ in range(count):
                size = int.from_bytes(memory[offset : offset + 8], order)
                parts.append(self.plain[offset : offset + 8])
                parts.append(self.plain[offset + 8 : offset + 8 + size])
                offset += 8 + size
            return offset, parts

    return FastReader


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """While this lasts, whoever opens a GGUF file gets the fast reader, and of one path the
    same."""
    import gguf

    original = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(fast_reader())
    try:
        yield
    finally:
        gguf.GGUFReader = original
