"""Row IDs as one block of bytes: a million Python strings would take some hundred MiB."""

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""Places of rows; where one is looked for, NO_ROW says that there is none."""
NO_ROW = -1

_AT_ONCE = 4096


class Ids:
    """The IDs of rows, in the order of the rows.

    They are UTF-8 (lone surrogates too), whose order by bytes is that of Python's strings.
    """

    def __init__(self, binaries: Any) -> None:
        """`binaries`: an Arrow array of large binaries."""
        self._binaries = binaries

    @classmethod
    def of(cls, ids: Iterable[str]) -> "Ids":
        builder = IdsBuilder()
        for row_id in ids:
            builder.add(row_id)
        return builder.build()

    def __len__(self) -> int:
        return len(self._binaries)

    def __getitem__(self, row: int) -> str:
        return str(self._binaries[row].as_py().decode("utf-8", "surrogatepass"))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            for data in self._binaries.slice(start, _AT_ONCE).to_pylist():
                yield data.decode("utf-8", "surrogatepass")

    def take(self, rows_B: Rows) -> "Ids":
        return Ids(self._binaries.take(rows_B))

    def same_as(self, other: "Ids") -> bool:
        return bool(self._binaries.equals(other._binaries))

    def rising(self) -> Rows:
        """The rows in the order of their IDs."""
        import pyarrow.compute as pc

        order_B: Rows = pc.sort_indices(self._binaries).to_numpy().view(np.int64)
        return order_B

    def repeated(self, rising_B: Rows) -> bool:
        """Whether an ID stands twice; `rising_B` as above."""
        import pyarrow.compute as pc

        sorted_ids = self._binaries.take(rising_B)
        equal = pc.equal(sorted_ids.slice(1), sorted_ids.slice(0, max(0, len(self) - 1)))
        return bool(pc.any(equal).as_py())

    def rows_of(self, others: "Ids") -> Rows:
        """For each of the others the row here with its ID, or NO_ROW."""
        import pyarrow.compute as pc

        if self.same_as(others):
            return np.arange(len(self), dtype=np.int64)
        found = pc.index_in(others._binaries, value_set=self._binaries)
        rows_B: Rows = found.fill_null(NO_ROW).to_numpy().astype(np.int64)
        return rows_B


class IdsBuilder:
    """IDs that come one after another."""

    def __init__(self) -> None:
        self._data, self._ends = bytearray(), array("q", [0])

    def add(self, row_id: str) -> None:
        self._data += row_id.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._data))

    def build(self) -> Ids:
        import pyarrow as pa

        buffers = [None, pa.py_buffer(self._ends), pa.py_buffer(self._data)]
        return Ids(pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self._ends) - 1, buffers))
